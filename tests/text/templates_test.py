"""Items and histories as text, and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

TEMPLATE = Template()
ITEM = {"title": "Pan", "category": "Home > Kitchen", "brand": "Lodge", "price": "$19.90"}

# Clean values, as the readers make them: white space folded, no control characters.
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
clean = any_text.map(lambda t: re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", t).strip())
no_label = clean.filter(lambda t: t and not re.search(r"(Title|Category|Brand|Price):", t))
fields = st.dictionaries(st.sampled_from(TEMPLATE.fields), no_label)


def test_an_item_shows_its_fields_in_the_templates_order():
    shuffled = {name: ITEM[name] for name in ("price", "brand", "title", "category")}
    expected = "Title: Pan Category: Home > Kitchen Brand: Lodge Price: $19.90"
    assert TEMPLATE.render_item(shuffled) == expected
    assert Template(fields=("brand", "title")).render_item(ITEM) == "Brand: Lodge Title: Pan"


@pytest.mark.parametrize("missing", [{}, {"brand": ""}, {"brand": None}, {"brand": " \n"}])
def test_a_missing_field_is_left_out(missing):
    item = {"title": "Pan", "price": "$1"} | missing
    assert TEMPLATE.render_item(item) == "Title: Pan Price: $1"


def test_nan_is_a_word_like_any_other():
    assert TEMPLATE.render_item({"title": "nan"}) == "Title: nan"
    assert TEMPLATE.parse_item("Title: nan") == {"title": "nan"}


def test_an_item_without_fields_is_empty_text():
    assert TEMPLATE.render_item({}) == ""
    assert TEMPLATE.render_item({"unknown": "x"}) == ""
    assert TEMPLATE.parse_item("") == {}


def test_line_ends_and_control_characters_become_one_space():
    item = {"title": " a\r\n\nb\x00\x07c\x1b \u2028d\x7f\x9f e\xa0f "}
    assert TEMPLATE.render_item(item) == "Title: a b c d e f"


@given(fields)
def test_round_trip(item):
    assert TEMPLATE.parse_item(TEMPLATE.render_item(item)) == item


@given(fields)
def test_round_trip_with_the_models_own_line_ends_around(item):
    text = f"\n{TEMPLATE.render_item(item)}\n".replace(" ", "\n")
    assert TEMPLATE.parse_item(text) == item


@given(fields, no_label)
def test_what_is_not_a_label_stays_where_it_stands(item, tail):
    item = {"title": "Pan"} | item
    last = [name for name in TEMPLATE.fields if name in item][-1]
    parsed = TEMPLATE.parse_item(f"{TEMPLATE.render_item(item)} {tail}")
    assert parsed == item | {last: f"{item[last]} {tail}"}


@given(any_text)
def test_garbage_is_never_an_error(text):
    for value in TEMPLATE.parse_item(text).values():
        assert value


garbage = st.lists(
    st.sampled_from(["Title:", "Brand:", "Title: Brand:", " ", "\n", "pan", "title:", ":", "Price"])
).map(" ".join)


@given(garbage)
def test_no_word_after_the_first_label_is_lost(text):
    words, labels = text.split(), ("Title:", "Brand:")
    start = next((i for i, word in enumerate(words) if word in labels), len(words))
    expected = words[start:]
    for label in labels:
        if label in expected:
            expected.remove(label)  # its first occurrence; later ones are text
    assert " ".join(TEMPLATE.parse_item(text).values()).split() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no label at all", {}),
        ("Subtitle: x", {}),
        ("SubTitle: x", {}),
        ("Title:x", {}),
        ("title: x", {}),
        ("Title:", {}),
        ("well, Title: x", {"title": "x"}),
        ("Brand: b Title: t", {"brand": "b", "title": "t"}),
        ("Title: Brand: b", {"brand": "b"}),
        ("Title: t Brand: b Title: u", {"title": "t", "brand": "b Title: u"}),
        ("Title: ratio 3:4 Price: $1", {"title": "ratio 3:4", "price": "$1"}),
        ("Title: t\nThe next item", {"title": "t The next item"}),
    ],
)
def test_generated_text(text, expected):
    assert TEMPLATE.parse_item(text) == expected


def test_any_field_names_survive_the_round_trip():
    template = Template(fields=("mainCat", "c++", "item name", "name"))
    item = {"mainCat": "a", "c++": "b", "item name": "c", "name": "d"}
    assert template.render_item(item) == "Maincat: a C++: b Item name: c Name: d"
    assert template.parse_item(template.render_item(item)) == item


@pytest.mark.parametrize("names", [(), "title", ["title"], ("title", ""), ("title", "Title")])
def test_field_names_that_cannot_work_are_refused(names):
    with pytest.raises(CalrecError, match="tuple of different field names"):
        Template(fields=names)


def test_a_prompt_in_full():
    assert TEMPLATE.render_prompt([{"title": "A"}, {"title": "B"}]) == (
        "This is the summary of a user's purchase history. "
        "The first item bought is as follows. Title: A\n"
        "The next item bought is as follows. Title: B\n"
        "The next item bought is as follows.\n"
    )


@given(st.lists(fields, min_size=1, max_size=4), fields)
def test_the_prompt_is_the_training_text_up_to_the_target(history, target):
    # Known defect elsewhere: the prompt at inference lacks the last separator.
    prompt, joint = TEMPLATE.render_prompt(history), TEMPLATE.render_joint(history, target)
    assert prompt.endswith(TEMPLATE.target_separator)
    assert joint == prompt + TEMPLATE.render_item(target)


def test_fixed_strings_are_all_that_a_template_adds():
    text = TEMPLATE.render_joint([ITEM, ITEM], ITEM)
    for part in (*TEMPLATE.fixed_strings, *ITEM.values()):
        assert part in text
        text = text.replace(part, "") if part in TEMPLATE.fixed_strings else text
    assert text == "".join(ITEM.values()) * 3


def test_templates_are_values():
    assert Template() == Template()
    assert hash(Template()) == hash(Template())
    assert Template(fields=("title",)) != Template()


def test_labels_are_left_out_wherever_they_stand():
    text = "Title: Title: Pan Brand:\nLodge (Brand: x) Brand:x title: y Price:"
    assert TEMPLATE.labels == ("Title", "Category", "Brand", "Price")
    assert TEMPLATE.without_labels(text).split() == "Pan Lodge (Brand: x) Brand:x title: y".split()
    named = Template(fields=("c++", "a.b"))
    assert (
        named.without_labels("C++: x A.b: y Aab: z Title: w").split()
        == "x y Aab: z Title: w".split()
    )
