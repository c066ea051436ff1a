"""Which users are measured, and the histories that models are given of them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from calrec_jax.text.items import UserSequence


def sample_users(users: Sequence[UserSequence], n: int | None, seed: int) -> list[UserSequence]:
    """`n` of the users in their order, or all (None): a sample that a larger one includes."""
    order = random.Random(seed).sample(range(len(users)), len(users))
    return [users[i] for i in sorted(order[:n])]


def with_shuffled_history(user: UserSequence, seed: int) -> UserSequence:
    """The user with the history in random order, always the same one, and without timestamps.

    A control: what a model finds for such users does not come from the order of events.
    """
    history = list(user.history)
    random.Random("\x1f".join((str(seed), user.domain, user.user_id))).shuffle(history)
    return dataclasses.replace(user, item_ids=(*history, user.target), timestamps=None)
