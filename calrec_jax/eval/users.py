"""Which users are measured, and what is told of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from calrec_jax.text.items import UserSequence


def sample_users(users: Sequence[UserSequence], n: int | None, seed: int) -> list[UserSequence]:
    """`n` of the users in their order, or all (None): a sample that a larger one includes."""
    shuffled = random.Random(seed).sample(range(len(users)), len(users))
    return [users[i] for i in sorted(shuffled[:n])]


def with_shuffled_history(user: UserSequence, seed: int) -> UserSequence:
    """The user with the history in random order, always the same one; time is no longer known.

    A control: what a model finds of such users it did not find by the order of events.
    """
    history = list(user.history)
    random.Random("\x1f".join((str(seed), user.domain, user.user_id))).shuffle(history)
    return dataclasses.replace(user, item_ids=(*history, user.target), timestamps=None)
