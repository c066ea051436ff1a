"""Item ids, catalogues and user sequences."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, UserSequence, stable_id


def test_stable_ids_never_change():
    # Trained models and saved batches hold these numbers.
    assert stable_id("Scientific", "B00001") == 789702435
    assert stable_id("a") == 1566015139
    assert stable_id("a", "b") == 276393698


def test_stable_id_is_the_same_in_another_process():
    code = "from calrec_jax.text.items import stable_id; print(stable_id('domain', 'ïtem'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == stable_id("domain", "ïtem")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_stable_id_is_a_positive_int32(parts):
    assert 1 <= stable_id(*parts) <= 2**31 - 1


def test_stable_id_tells_parts_apart():
    assert stable_id("ab", "c") != stable_id("a", "bc")
    assert stable_id("a", "b") != stable_id("b", "a")


def test_stable_ids_of_a_catalogue_seldom_collide():
    ids = {stable_id("domain", str(i)) for i in range(20_000)}
    assert len(ids) >= 20_000 - 3  # 0.1 collisions are expected


def test_catalogue_is_sorted_and_lacks_empty_fields():
    catalogue = Catalogue.create(
        "games", {"b": {"title": "B", "brand": ""}, "a": {"title": "A", "price": None}}
    )
    assert catalogue.item_ids == ("a", "b")
    assert catalogue.fields == ({"title": "A"}, {"title": "B"})
    assert catalogue.index == {"a": 0, "b": 1}
    assert len(catalogue) == 2


def test_items_of_equal_text_stay_apart():
    catalogue = Catalogue.create("games", {"b": {"title": "same"}, "a": {"title": "same"}})
    assert catalogue.places(["b", "a", "b"]) == [1, 0, 1]


def test_an_unsorted_or_repeated_id_is_refused():
    with pytest.raises(ValueError, match="ascending and unique"):
        Catalogue("games", ("b", "a"), ({}, {}))
    with pytest.raises(ValueError, match="ascending and unique"):
        Catalogue("games", ("a", "a"), ({}, {}))
    with pytest.raises(ValueError, match="1 item ids, but 2 fields"):
        Catalogue("games", ("a",), ({}, {}))


def test_unknown_items_are_named():
    catalogue = Catalogue.create("games", {"a": {"title": "A"}})
    with pytest.raises(CalrecError, match="games has no item 'x', 'y': its catalogue has 1 items"):
        catalogue.places(["a", "x", "y"])
    with pytest.raises(CalrecError, match="and others"):
        catalogue.places("uvwxyz")


def test_the_target_is_the_last_item():
    user = UserSequence("u", "games", ("a", "b", "a"))
    assert user.history == ("a", "b")
    assert user.target == "a"
