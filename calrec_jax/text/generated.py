"""A text that a model wrote."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generated:
    """One continuation.

    Attributes:
      text: what its tokens say.
      log_prob: the sum of its tokens' log-probabilities.
      items: places in the catalogue of the items whose text it is, where a trie tells; several
        where an item is listed twice, or where they are equal up to the length that items are cut
        to.
    """

    text: str
    log_prob: float
    items: tuple[int, ...] = ()
