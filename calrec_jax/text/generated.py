"""A text that the model generated."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generated continuation of a prompt.

    Attributes:
      text: its decoded tokens.
      log_prob: the sum of its tokens' log-probabilities.
      items: places of the items that have this text, when it was generated under a trie; there are
        several where items have the same text, or the same one up to the length that items are cut
        to.
    """

    text: str
    log_prob: float
    items: tuple[int, ...] = ()
