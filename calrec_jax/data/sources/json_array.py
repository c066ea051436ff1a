"""The elements of a file that is one JSON array, `[{...}, {...}]`, read piece by piece."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from calrec_jax.errors import CalrecError

_BEGINNING = re.compile(rb"\s*\[\s*\{")
_SPACE = re.compile(r"[ \t\r\n]*")
_PIECE = 2**20  # bytes per read

_find_end = json.JSONDecoder().raw_decode


def begins(start: bytes) -> bool:
    """Whether a file whose first bytes are `start` is an array of objects."""
    return _BEGINNING.match(start) is not None


def elements(file: BinaryIO, path: str, longest: int) -> Iterator[tuple[int, bytes]]:
    """(number from 1, element as it is written) of the array in `file`.

    Args:
      path: the file's path, for errors.
      longest: roughly how many characters an element may have.

    Raises:
      CalrecError: the array is broken. It cannot be read further: where the next element begins is
        then unknown.
    """
    text = _Text(file, longest)
    text.take("[")
    number = 0
    while not text.take("]"):
        number += 1
        element = text.value() if number == 1 or text.take(",") else None
        if element is None:
            raise CalrecError(
                f"{path} is a JSON array that is broken or cut off in its element {number} (from "
                f"1), or that one is longer than 16 MiB"
            )
        yield number, element.encode(errors="surrogateescape")
    if not text.ended():
        raise CalrecError(f"{path} holds something after its JSON array: give one array, or lines")


class _Text:
    """A file's text, which is consumed from its beginning to its end."""

    def __init__(self, file: BinaryIO, longest: int):
        self._file, self._longest = file, longest
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._place, self._whole = "", 0, False

    def _read_on(self) -> None:
        piece = self._file.read(_PIECE)
        self._whole = not piece
        self._text = self._text[self._place :] + self._decode(piece, final=self._whole)
        self._place = 0

    def ended(self) -> bool:
        """Skips white space; whether that was all that was left."""
        while True:
            self._place = _SPACE.match(self._text, self._place).end()
            if self._place < len(self._text) or self._whole:
                return self._place == len(self._text)
            self._read_on()

    def take(self, character: str) -> bool:
        """Takes `character` if it is the next one after white space. Returns whether it was."""
        is_next = not self.ended() and self._text[self._place] == character
        self._place += is_next
        return is_next

    def value(self) -> str | None:
        """Takes a JSON value as it is written; None where there is none."""
        while not self.ended():
            try:
                _, end = _find_end(self._text, self._place)
            except (RecursionError, ValueError):
                end = len(self._text)  # the value may continue in what is not read yet
            else:
                if end < len(self._text) or self._whole:
                    begin, self._place = self._place, end
                    return self._text[begin:end]
            if self._whole or end - self._place > self._longest:
                return None
            self._read_on()
        return None
