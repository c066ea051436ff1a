"""Words against examples of each script, and against what they were where spaces divide them."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.retrieval.words import words

HAN = "不锈钢保温杯大容量便携女夏季々〇"
HANGUL = "한국어무선청소기값"


def test_words() -> None:
    assert words('Title: Pan-Set, 12" (été_x)') == ["title", "pan", "set", "12", "été_x"]
    assert words(" ... ") == []


# Latin, Greek, Cyrillic, Armenian and Georgian letters, accents apart from their letters, digits,
# signs and emoji.
SPACED = st.characters(
    codec="utf-8",
    max_codepoint=0x1FFFF,
    exclude_categories=("Cs", "Lo", "Lm", "Mc", "Mn", "Me", "Nd", "Nl", "No"),
) | st.sampled_from("0123456789½²ªºß_\u0301\u0308\u0327\u0483\u20e3\ufe0f\u200d\u00ad ")


@given(st.text(SPACED, max_size=60))
def test_where_spaces_divide_words_they_are_runs_of_letters(text: str) -> None:
    assert words(text) == re.findall(r"\w+", text.lower())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("不锈钢保温杯", "不锈 锈钢 钢保 保温 温杯"),
        ("杯 大杯", "杯 大杯"),
        ("Title: iPhone15手机壳, A4用紙2枚", "title iphone15 手机 机壳 a4 用紙 2 枚"),
        ("𠮷野家", "𠮷野 野家"),
        ("コーヒー・カップ", "コー ーヒ ヒー カッ ップ"),
        ("ｶﾞｲﾄﾞ", "ガイ イド"),
        ("人々は", "人々 々は"),
        ("東京\u200bタワー", "東京 京タ タワ ワー"),
        ("葛\U000e0100城", "葛城"),
        ("ㄅㄆㄇ", "ㄅㄆ ㄆㄇ"),
        ("무선청소기 값", "무선 선청 청소 소기 값"),
        ("กระเป๋า 25 ใบ", "กร ระ ะเ เป๋ ป๋า 25 ใบ"),
        ("ราคา ๑๕฿", "รา าค คา ๑๕"),
        ("ສີແດງ", "ສີແ ແດ ດງ"),
        ("ក្រហម។", "ក្រ រហ ហម"),
        ("အနီရောင်", "အနီ နီရော ရောင်"),
        ("ꦲꦏ꧀ꦱꦫ", "ꦲꦏ꧀ ꦏ꧀ꦱ ꦱꦫ"),
        ("हिन्दी किताब", "हिन्दी किताब"),
        ("தமிழ் நூல்", "தமிழ் நூல்"),
        ("སྨན་ཁང", "སྨན ཁང"),
        ("כִּתָב ספר", "כִּתָב ספר"),
        ("Été 2 Ёлка ΑΒΓ 3個", "été 2 ёлка αβγ 3 個"),
    ],
)
def test_scripts(text: str, expected: str) -> None:
    # Burmese and Thai have letters that are two in form NFKC.
    assert words(text) == [unicodedata.normalize("NFKC", word) for word in expected.split()]


@given(st.text(st.sampled_from(HAN + HANGUL), min_size=1, max_size=20))
def test_a_run_without_spaces_is_its_pairs(run: str) -> None:
    pairs = [run[i : i + 2] for i in range(len(run) - 1)]
    assert words(run) == (pairs or [run])
    assert words(f"Title: a1{run}b2") == ["title", "a1", *(pairs or [run]), "b2"]


@given(st.text(st.sampled_from(HANGUL + "ガギグパピｱｲ"), max_size=20))
def test_composed_and_decomposed_letters_are_the_same(text: str) -> None:
    assert words(text) == words(unicodedata.normalize("NFD", text))


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_every_letter_and_digit_is_in_a_word(text: str) -> None:
    found = unicodedata.normalize("NFKC", "".join(words(text)))
    for letter in filter(str.isalnum, text.lower()):
        assert unicodedata.normalize("NFKC", letter) in found
