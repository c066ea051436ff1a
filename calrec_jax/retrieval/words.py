"""Texts as words: what BM25 matches (method: Inference)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Blocks of the scripts that are written without spaces between words, and Korean, whose spaces
# stand between phrases and are left out at will.
_UNSPACED = "".join(
    (
        "\u0e00-\u0eff",  # Thai, Lao
        "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f",  # Burmese
        "\u1780-\u17ff",  # Khmer
        "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf",  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
        "\u1b00-\u1b7f\ua980-\ua9df",  # Balinese, Javanese
        "\u3005-\u3007\u3021-\u3029\u3038-\u303c",  # signs of Han
        "\u3041-\u30ff\u31f0-\u31ff",  # Hiragana, Katakana
        "\u3100-\u312f\u31a0-\u31bf",  # Bopomofo
        "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",  # Han
        "\ua000-\ua48f",  # Yi
        "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",  # Hangul
        "\uff66-\uffdc",  # Katakana and Hangul of half the width
    )
)
# Apart from those, because `re` is fast only for a class of characters that fit 16 bits.
_UNSPACED_BEYOND = "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Kana, Han
# Blocks whose combining marks are vowels and other parts of a word. A mark of Latin, Greek or
# Cyrillic divides words, like punctuation.
_MARKED = (
    (0x0590, 0x1AAF),
    (0x1B00, 0x1CFF),
    (0x302A, 0x309A),
    (0xA800, 0xABFF),
    (0xFB1E, 0xFB1E),
)
_MARKS = "".join(
    chr(code)
    for first, last in _MARKED
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)).startswith("M")
)
# Without width: borders for line breaks, joiners, and selectors of a sign's variant.
_INVISIBLE = "\u00ad\u200b-\u200d\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef"

_WORD = re.compile(r"\w+")
_NOT_PLAIN = re.compile(f"[{_UNSPACED}{_MARKS}]|[{_UNSPACED_BEYOND}]")
_LETTER = rf"(?=[{_UNSPACED}]|[{_UNSPACED_BEYOND}])[^\W\d]"
_RUN = re.compile(
    rf"((?:{_LETTER}[{_MARKS}{_INVISIBLE}]*)+)"  # of letters without spaces
    rf"|(?:(?!{_LETTER})\w[{_MARKS}]*)+"  # a word
)
_VISIBLE = re.compile(rf"[^{_INVISIBLE}]+")
_MARKED_LETTER = re.compile(rf"[^{_MARKS}][{_MARKS}]*")


def words(text: str) -> list[str]:
    """The words of a text, lower-cased; no stop words, no stemming.

    A word is a run of letters, digits and underscores. Where no spaces are written between words,
    as in Chinese, Japanese, Thai, Lao, Khmer and Burmese, each pair of neighbouring letters with
    their marks is a word, in Unicode's form NFKC; so is a letter that stands alone. Korean is cut
    into pairs between its spaces. In other scripts than Latin, Greek and Cyrillic, marks such as
    vowels belong to the word that they stand in.
    """
    text = text.lower()
    if text.isascii() or not _NOT_PLAIN.search(text):
        return _WORD.findall(text)
    text_words: list[str] = []
    for run in _RUN.finditer(text):
        text_words += _pairs(run[1]) if run[1] else [run[0]]
    return text_words


def _pairs(run: str) -> Iterator[str]:
    """The pairs of neighbouring letters, or the letter that stands alone."""
    visible = "".join(_VISIBLE.findall(run))
    letters = _MARKED_LETTER.findall(unicodedata.normalize("NFKC", visible))
    if len(letters) == 1:
        return iter(letters)
    return (a + b for a, b in zip(letters, letters[1:], strict=False))
