"""Coverage, Gini index and novelty against the oracles and numbers worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import diversity as oracle

from calrec_jax.eval.diversity import beyond_accuracy

NOTHING = {"coverage@10": 0.0, "gini@10": 0.0, "novelty@10": 0.0}


@st.composite
def recommended(draw: Callable[..., Any]) -> tuple[list[list[int]], list[int]]:
    """Each user's items, some users without any, and the events of all items."""
    events = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=14))
    items = st.integers(0, len(events) - 1)
    lists = draw(st.lists(st.lists(items, unique=True, max_size=10), max_size=8))
    return lists, events


def padded(lists: list[list[int]], width: int = 10) -> np.ndarray:
    """int32 [n, width]."""
    best = np.full((len(lists), width), -1, np.int32)
    for row, places in zip(best, lists, strict=True):
        row[: len(places)] = places
    return best


@given(recommended())
def test_measures_are_the_oracles(case: tuple[Any, ...]) -> None:
    lists, events = case
    found = beyond_accuracy(padded(lists), np.array(events))
    assert list(found) == ["coverage@10", "gini@10", "novelty@10"]
    assert found["coverage@10"] == oracle.coverage(lists, len(events))
    assert found["gini@10"] == pytest.approx(oracle.gini(lists, len(events)), rel=1e-12)
    assert found["novelty@10"] == pytest.approx(oracle.novelty(lists, events), rel=1e-12, abs=1e-12)


def test_by_hand() -> None:
    best = np.array([[2, 1, -1], [2, -1, -1], [-1, -1, -1], [2, 3, -1]])
    found = beyond_accuracy(best, np.array([3, 1, 0, 0]))
    # Counts 0, 1, 1, 3 of 5; p(i) = 1/2, 1/4, 1/8, 1/8.
    assert found == pytest.approx(
        {"coverage@10": 3 / 4, "gini@10": (-1 + 1 + 9) / (4 * 5), "novelty@10": (3 * 4 + 2) / 5}
    )


def test_the_same_ten_items_to_everyone() -> None:
    best = np.tile(np.arange(10), (7, 1))
    found = beyond_accuracy(best, np.full(40, 6))
    assert found == pytest.approx(
        {"coverage@10": 10 / 40, "gini@10": 1 - 10 / 40, "novelty@10": math.log2(40)}
    )


def test_each_item_once_is_even() -> None:
    found = beyond_accuracy(np.arange(40).reshape(4, 10), np.arange(40))
    assert (found["coverage@10"], found["gini@10"]) == (1.0, 0.0)


def test_items_without_events_are_finitely_novel() -> None:
    assert beyond_accuracy(np.array([[1]]), np.array([1_000_000, 0]))[
        "novelty@10"
    ] == pytest.approx(math.log2(1_000_002))
    nobody_bought = beyond_accuracy(np.array([[1], [0]]), np.zeros(8, np.int64))
    assert nobody_bought["novelty@10"] == 3.0


@pytest.mark.parametrize("shape", [(0, 10), (0, 0), (5, 0), (5, 10)])
def test_nobody_is_recommended_anything(shape: tuple[int, ...]) -> None:
    assert beyond_accuracy(np.full(shape, -1), np.array([4, 0, 1])) == NOTHING


def test_a_catalogue_of_one_item() -> None:
    assert beyond_accuracy(np.array([[0], [-1]]), np.array([9])) == NOTHING | {"coverage@10": 1.0}
    assert beyond_accuracy(np.array([[-1]]), np.array([0])) == NOTHING


def test_measures_are_plain_numbers_in_json() -> None:
    found = beyond_accuracy(np.array([[0, 1], [1, -1]], np.int32), np.array([1, 2, 3]))
    assert all(type(value) is float for value in found.values())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize("place", [-2, 3])
def test_places_outside_the_catalogue_are_refused(place: int) -> None:
    with pytest.raises(ValueError, match="to the last of 3 items"):
        beyond_accuracy(np.array([[0, place]]), np.array([1, 1, 1]))


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 10 of each user"):
        beyond_accuracy(np.zeros((1, 11), int), np.array([1]))
    with pytest.raises(ValueError, match="at most 10 of each user"):
        beyond_accuracy(np.zeros(3, int), np.array([1]))
    with pytest.raises(ValueError, match="to the last of 0 items"):
        beyond_accuracy(np.full((1, 1), -1), np.zeros(0, np.int64))
