"""Items and prompts as tokens, put together from pieces that are each encoded on their own.

So an item is tokenised once and has the same tokens wherever it stands, truncation falls on borders
of items, and the prompt at inference is token for token what training saw before the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, Fields
from calrec_jax.text.templates import Template

Encode = Callable[[str], Sequence[int]]


class PromptBuilder:
    """Tokens of items and prompts. BOS and EOS are added by whoever needs them.

    Args:
      template: the strings.
      encode: text -> ids, without BOS or EOS.
      max_history_tokens: of a prompt; the oldest items go first when it is full.
      max_item_tokens: an item's tokens are cut there, as target and in histories alike.

    Raises:
      CalrecError: not even one longest item fits a prompt, or items have no room at all.
    """

    def __init__(
        self, template: Template, encode: Encode, max_history_tokens: int, max_item_tokens: int
    ):
        self.template, self._encode = template, encode
        self.max_history_tokens, self.max_item_tokens = max_history_tokens, max_item_tokens
        self._opening = self._tokens(template.opening)
        self._separator = self._tokens(template.separator)
        self._target_separator = self._tokens(template.target_separator)
        if max_item_tokens < 1:
            raise CalrecError(
                f"items have room for {max_item_tokens} tokens: raise 'targets' in "
                f"TASK_FEATURE_LENGTHS, which counts an item's tokens and EOS"
            )
        frame = len(self._opening) + len(self._target_separator)
        if frame + max_item_tokens > max_history_tokens:
            raise CalrecError(
                f"a history of {max_history_tokens} tokens cannot hold one item of "
                f"{max_item_tokens} within the template's {frame}: raise 'inputs' or lower "
                f"'targets' in TASK_FEATURE_LENGTHS"
            )
        self._room = max_history_tokens - frame

    def item(self, fields: Fields) -> np.ndarray:
        """int32 [<= max_item_tokens], the item's own tokens."""
        return self._tokens(self.template.render_item(fields))[: self.max_item_tokens]

    def prompt(self, items: Sequence[np.ndarray]) -> np.ndarray:
        """int32 [<= max_history_tokens] of a history, oldest item first.

        Where it is too long, whole items are left out from the oldest end; the newest always fits.

        Args:
          items: int32 tokens of each, as `item` makes them.

        Raises:
          CalrecError: the history is empty.
        """
        if not items:
            raise CalrecError("an empty history: a prompt needs at least one item")
        pieces, used = [], 0
        for item in reversed(items):
            separator = self._separator if pieces else self._separator[:0]
            used += len(item) + len(separator)
            if used > self._room:
                break
            pieces += [separator, item]
        return np.concatenate([self._opening, *reversed(pieces), self._target_separator])

    def _tokens(self, text: str) -> np.ndarray:
        return np.asarray(self._encode(text), np.int32)


class TokenizedCatalogue:
    """A catalogue whose items have been tokenised, each once.

    Attributes:
      values: int32, all items' tokens one after another.
      splits: int64 [n + 1], where each item's tokens begin and end in `values`.
    """

    def __init__(self, catalogue: Catalogue, builder: PromptBuilder):
        self.catalogue, self.builder = catalogue, builder
        tokens = [builder.item(fields) for fields in catalogue.fields]
        self.splits = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(t) for t in tokens], out=self.splits[1:])
        self.values = np.concatenate([np.zeros(0, np.int32), *tokens])

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of each item."""
        return np.diff(self.splits)

    def item(self, item_id: str) -> np.ndarray:
        """int32 tokens of one item.

        Raises:
          CalrecError: it is not in the catalogue.
        """
        (place,) = self.catalogue.places([item_id])
        return self._at(place)

    def prompt(self, item_ids: Sequence[str]) -> np.ndarray:
        """int32 tokens of the prompt for a history of item ids, oldest first.

        Raises:
          CalrecError: the history is empty, or ids are not in the catalogue.
        """
        places = self.catalogue.places(item_ids)
        # No item takes less than a separator: older ones than these can never fit.
        most = self.builder.max_history_tokens
        return self.builder.prompt([self._at(place) for place in places[-most:]])

    def _at(self, place: int) -> np.ndarray:
        return self.values[self.splits[place] : self.splits[place + 1]]
