"""Items and histories as text, and generated text parsed back into fields (method: Template)."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Fields

_GAP = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # white space and control characters


@dataclasses.dataclass(frozen=True)
class Template:
    """The strings that items and histories are written with.

    The paper has these parts; the default strings themselves are `unverified`.

    Attributes:
      fields: names of the fields that are written, in this order.
      opening: stands before the first item of a history.
      separator: stands between two items of a history.
      target_separator: stands between a history and its target; every prompt ends with it.

    Raises:
      CalrecError: `fields` is not a tuple of names that give different labels.
    """

    fields: tuple[str, ...] = ("title", "category", "brand", "price")
    opening: str = (
        "This is the summary of a user's purchase history. The first item bought is as follows. "
    )
    separator: str = "\nThe next item bought is as follows. "
    target_separator: str = "\nThe next item bought is as follows.\n"

    def __post_init__(self):
        names = self.fields if isinstance(self.fields, tuple) else ()
        if not names or not all(names) or len(set(map(_label, names))) < len(names):
            raise CalrecError(
                f"Template.fields must be a tuple of different field names, such as "
                f'("title", "brand"), not {self.fields!r}'
            )

    def render_item(self, item: Fields) -> str:
        """`Title: ... Category: ... Brand: ... Price: ...`, without fields that are missing."""
        shown = [(name, _one_line(item.get(name) or "")) for name in self.fields]
        return " ".join(f"{_label(name)}: {value}" for name, value in shown if value)

    def parse_item(self, text: str) -> dict[str, str]:
        """The fields of a rendered (or generated) item: the text from each label up to the next.

        Labels may come in any order. Where a label is repeated, the first one counts, and the
        others are part of the value they stand in. Text before the first label is dropped; text
        without a label gives {}.
        """
        first: dict[str, re.Match[str]] = {}
        for label in self._label_pattern.finditer(text):
            first.setdefault(self._names[label[1]], label)
        ends = [*(label.start() for label in first.values()), len(text)][1:]
        values = {
            name: _one_line(text[label.end() : end])
            for (name, label), end in zip(first.items(), ends, strict=True)
        }
        return {name: value for name, value in values.items() if value}

    def without_labels(self, text: str) -> str:
        """A rendered (or generated) item with a space in place of every label."""
        return self._label_pattern.sub(" ", text)

    def render_prompt(self, history: Sequence[Fields]) -> str:
        """The prompt: what the model reads before it generates the target."""
        items = self.separator.join(self.render_item(item) for item in history)
        return self.opening + items + self.target_separator

    def render_joint(self, history: Sequence[Fields], target: Fields) -> str:
        """The joint sequence: prompt, then target."""
        return self.render_prompt(history) + self.render_item(target)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label that stands before each field's value, without its colon."""
        return tuple(map(_label, self.fields))

    @property
    def fixed_strings(self) -> tuple[str, ...]:
        """The strings that texts have in common: the sentences, and the fields' labels in items."""
        labels = [f"{label}: " for label in self.labels]
        return (
            self.opening,
            self.separator,
            self.target_separator,
            labels[0],
            *(f" {label}" for label in labels[1:]),
        )

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        return {_label(name): name for name in self.fields}

    @functools.cached_property
    def _label_pattern(self) -> re.Pattern[str]:
        labels = "|".join(map(re.escape, self._names))
        return re.compile(rf"(?:(?<=\s)|^)({labels}):(?=\s|$)")


def _label(name: str) -> str:
    return name.capitalize()


def _one_line(value: str) -> str:
    return _GAP.sub(" ", value).strip()
