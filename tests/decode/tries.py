"""Catalogues of made-up tokens, for tests of tries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calrec_jax.text.items import Catalogue
from calrec_jax.text.prompts import TextTokens, TokenizedCatalogue


def tokenized(items: Sequence[Sequence[int]], max_tokens: int = 20) -> TokenizedCatalogue:
    """A catalogue of items i000, i001, ... with these tokens, cut to `max_tokens`."""
    catalogue = Catalogue.create("made_up", {f"i{n:03}": {} for n in range(len(items))})
    nothing = np.zeros(0, np.int32)
    splits = np.cumsum([0, *map(len, items)])
    values = np.array([token for item in items for token in item], np.int32)
    text = TextTokens(nothing, nothing, nothing, values, splits)
    return TokenizedCatalogue(catalogue, text, {"inputs": 100, "targets": max_tokens + 1})
