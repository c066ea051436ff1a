"""Examples against a straightforward implementation of their definition."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.data.examples import Examples
from calrec_jax.errors import CalrecError
from calrec_jax.text.items import Catalogue, PlacedSequences, stable_id
from calrec_jax.text.prompts import TextTokens, TokenizedCatalogue
from calrec_jax.text.templates import Template

EOS = 1
CATALOGUE = Catalogue.create("d", {f"i{n}": {"title": "x" * (1 + 3 * n % 7)} for n in range(9)})
TEMPLATE = Template(("title",), "From: ", " > ", " =>")


def encode(text):
    return [byte + 3 for byte in text.encode()]


def examples(sequences, targets="last", inputs=60, seed=0):
    text = TextTokens.encode(CATALOGUE, TEMPLATE, encode)
    tokens = TokenizedCatalogue(CATALOGUE, text, {"inputs": inputs, "targets": 14})
    flat = np.array([place for s in sequences for place in s], np.int32)
    splits = np.cumsum([0, *map(len, sequences)])
    return Examples(tokens, PlacedSequences(flat, splits), targets, seed, EOS)


SEQUENCES = st.lists(st.lists(st.integers(0, 8), min_size=2, max_size=9), min_size=1, max_size=6)


@given(SEQUENCES, st.sampled_from(["last", "random", "all"]), st.integers(32, 90))
def test_lengths_are_those_of_the_tokens(sequences, targets, inputs):
    of = examples(sequences, targets, inputs)
    spans = of.spans(3)
    assert len(spans) > 0
    for i in range(len(spans)):
        example = of.example(int(spans.start[i]), int(spans.end[i]))
        assert spans.lengths[i] == len(example.inputs) + len(example.targets)
        assert spans.loss_lengths[i] == len(example.targets)
        assert len(example.inputs) <= inputs


@given(SEQUENCES, st.integers(32, 90))
def test_the_start_leaves_out_what_the_prompt_would(sequences, inputs):
    of = examples(sequences, "last", inputs)
    spans, splits = of.spans(0), of.histories.splits
    for i, sequence in enumerate(sequences):
        cut = of.example(int(spans.start[i]), int(spans.end[i]))
        whole = of.example(int(splits[i]), int(splits[i + 1]))
        np.testing.assert_array_equal(cut.inputs, whole.inputs)
        item_ids = [CATALOGUE.item_ids[place] for place in sequence]
        np.testing.assert_array_equal(cut.inputs, of.tokens.prompt(item_ids[:-1]))
        np.testing.assert_array_equal(cut.targets, [*of.tokens.item(item_ids[-1]), EOS])
        assert cut.item_id == stable_id("d", item_ids[-1]) and cut.domain_id == stable_id("d")


@given(SEQUENCES)
def test_all_targets_are_all_prefixes(sequences):
    of = examples(sequences, "all", inputs=1000)
    spans = of.spans(0)
    found = [tuple(of.histories.places[s:e]) for s, e in zip(spans.start, spans.end, strict=True)]
    assert found == [tuple(s[:end]) for s in sequences for end in range(2, len(s) + 1)]


def test_random_targets_are_drawn_anew_in_each_epoch_and_evenly():
    of = examples([[0, 1, 2, 3, 4]] * 50, "random", inputs=1000)
    ends = [of.spans(epoch).end - of.histories.splits[:-1] for epoch in range(40)]
    counts = collections.Counter(np.concatenate(ends).tolist())
    assert counts.keys() == {2, 3, 4, 5}
    for count in counts.values():  # of 2,000 draws: 500 each, with a deviation of 19
        assert abs(count - 500) < 5 * 19
    assert not np.array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[7], of.spans(7).end - of.histories.splits[:-1])
    other = examples([[0, 1, 2, 3, 4]] * 50, "random", inputs=1000, seed=1)
    assert not np.array_equal(of.spans(0).end, other.spans(0).end)
    assert not np.array_equal(of.spans(0).end, of.spans(0, attempt=1).end)


def test_other_targets_are_the_same_in_each_epoch():
    for targets in ("last", "all"):
        of = examples([[0, 1, 2], [3, 4]], targets)
        np.testing.assert_array_equal(of.spans(0).end, of.spans(5).end)


def test_an_unknown_kind_of_target_is_refused():
    with pytest.raises(CalrecError, match="targets 'first' is none of last, random, all"):
        examples([[0, 1]], "first")
