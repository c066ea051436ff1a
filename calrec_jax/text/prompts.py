"""Items and prompts as tokens, put together from pieces that are each encoded on their own.

So an item is tokenised once and has the same tokens wherever it stands, a prompt is truncated
between items, and the prompt at inference is token for token what training saw before the target.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue
from calrec_jax.text.templates import Template

Encode = Callable[[str], Sequence[int]]
"""A function from a text to its token ids, without BOS and EOS."""


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """All text of a domain as tokens: the template's sentences and every item, each once.

    Nothing is truncated, and BOS and EOS are not included.

    Attributes:
      opening, separator, target_separator: int32 [length], tokens of the template's strings.
      values: int32 [tokens of all items], item after item in the catalogue's order.
      splits: int64 [items + 1]; the tokens of item i are `values[splits[i] : splits[i + 1]]`.
    """

    opening: np.ndarray
    separator: np.ndarray
    target_separator: np.ndarray
    values: np.ndarray
    splits: np.ndarray

    @classmethod
    def encode(
        cls,
        catalogue: Catalogue,
        template: Template,
        encode: Encode,
        encode_template: Encode | None = None,
    ) -> TextTokens:
        """The tokens of the text that `template` gives to `catalogue`.

        Args:
          encode: encodes the text of items.
          encode_template: encodes the template's sentences; None: `encode` does.
        """

        def tokens(text: str, encode: Encode = encode) -> np.ndarray:
            return np.asarray(encode(text), np.int32)

        items = [tokens(template.render_item(fields)) for fields in catalogue.fields]
        opening, separator, target_separator = (
            tokens(sentence, encode_template or encode)
            for sentence in (template.opening, template.separator, template.target_separator)
        )
        splits = np.zeros(len(items) + 1, np.int64)
        np.cumsum([len(item) for item in items], out=splits[1:])
        return cls(
            opening,
            separator,
            target_separator,
            np.concatenate([np.zeros(0, np.int32), *items]),
            splits,
        )

    @property
    def item_fingerprint(self) -> str:
        """A digest of the items' tokens: catalogues with different tokens have different ones."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.splits, self.values):
            digest.update(part.tobytes())
        return digest.hexdigest()


class TokenizedCatalogue:
    """Tokens of a catalogue's items and of prompts, truncated to a run's lengths.

    Args:
      catalogue: the items.
      text: the tokens of `catalogue`, not truncated.
      lengths: TASK_FEATURE_LENGTHS. A prompt has at most `inputs` tokens: its oldest items are left
        out, as many as needed. An item is cut to `targets` - 1 tokens, as a target and in histories
        alike, since a target ends with EOS.

    Attributes:
      frame: how many tokens of a prompt are the template's, separators between items not counted.

    Raises:
      CalrecError: an item of the greatest length does not fit into a prompt, or items have no room
        at all.
    """

    def __init__(self, catalogue: Catalogue, text: TextTokens, lengths: Mapping[str, int]):
        self.catalogue, self.text = catalogue, text
        self.max_history_tokens, self.max_item_tokens = lengths["inputs"], lengths["targets"] - 1
        if self.max_item_tokens < 1:
            raise CalrecError(
                f"items have room for {self.max_item_tokens} tokens: raise 'targets' in "
                f"TASK_FEATURE_LENGTHS, which counts an item's tokens and EOS"
            )
        self.frame = len(text.opening) + len(text.target_separator)
        if self.frame + self.max_item_tokens > self.max_history_tokens:
            raise CalrecError(
                f"a history of {self.max_history_tokens} tokens cannot hold one item of "
                f"{self.max_item_tokens} within the template's {self.frame}: raise 'inputs' or "
                f"lower 'targets' in TASK_FEATURE_LENGTHS"
            )

    @property
    def item_lengths(self) -> np.ndarray:
        """int64 [items], the number of tokens of each item after truncation."""
        return np.minimum(np.diff(self.text.splits), self.max_item_tokens)

    def item(self, item_id: str) -> np.ndarray:
        """int32 tokens of one item.

        Raises:
          CalrecError: it is not in the catalogue.
        """
        (place,) = self.catalogue.places([item_id])
        return self.item_at(place)

    def prompt(self, item_ids: Sequence[str]) -> np.ndarray:
        """int32 tokens of the prompt for a history of item ids, oldest first.

        Raises:
          CalrecError: the history is empty, or ids are not in the catalogue.
        """
        return self.prompt_at(self.catalogue.places(item_ids))

    def item_at(self, place: int) -> np.ndarray:
        """int32 tokens of the item at `place` of the catalogue."""
        start, end = self.text.splits[place : place + 2]
        return self.text.values[start : min(end, start + self.max_item_tokens)]

    def prompt_at(self, places: Sequence[int]) -> np.ndarray:
        """int32 tokens of the prompt for a history of places in the catalogue, oldest first.

        Raises:
          CalrecError: the history is empty.
        """
        if not len(places):
            raise CalrecError("an empty history: a prompt needs at least one item")
        text, room = self.text, self.max_history_tokens - self.frame
        pieces, used = [], 0
        for place in reversed(places):
            item = self.item_at(place)
            separator = text.separator if pieces else text.separator[:0]
            used += len(item) + len(separator)
            if used > room:
                break
            pieces += [separator, item]
        return np.concatenate([text.opening, *reversed(pieces), text.target_separator])
