import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.batch import HISTORY, TARGET, BatchSpec
from calrec_jax.data import packing
from calrec_jax.data.packing import Example
from calrec_jax.errors import CalrecError

SPEC = BatchSpec(1, row_length=40, max_segments=3, item_length=8, max_loss_tokens=18)


def examples_strategy():
    loss = st.integers(1, 8)
    return st.lists(st.tuples(st.integers(1, 32), loss), max_size=60)


@given(examples_strategy())
def test_rows_hold_every_example_once_within_all_capacities(examples):
    lengths = np.array([history + loss for history, loss in examples], int)
    loss_lengths = np.array([loss for _, loss in examples], int)
    rows = packing.pack(lengths, loss_lengths, SPEC)
    assert sorted(i for row in rows for i in row) == list(range(len(examples)))
    for row in rows:
        assert 1 <= len(row) <= SPEC.max_segments
        assert lengths[row].sum() <= SPEC.row_length
        assert loss_lengths[row].sum() <= SPEC.max_loss_tokens


@given(examples_strategy())
def test_no_example_would_have_fitted_a_row_opened_before_its_own(examples):
    lengths = np.array([history + loss for history, loss in examples], int)
    loss_lengths = np.array([loss for _, loss in examples], int)
    rows = packing.pack(lengths, loss_lengths, SPEC)

    def placed(example):  # longest first
        return -lengths[example], -loss_lengths[example], example

    for later, row in enumerate(rows):
        i = row[0]
        for before in rows[:later]:
            # What stood in the earlier row when i was placed: all that is at least as long.
            then = [j for j in before if placed(j) < placed(i)]
            assert (
                len(then) == SPEC.max_segments
                or lengths[then].sum() + lengths[i] > SPEC.row_length
                or loss_lengths[then].sum() + loss_lengths[i] > SPEC.max_loss_tokens
            )


def test_one_segment_a_row_keeps_the_order():
    spec = BatchSpec(1, 40, 1, 8, 8)
    assert packing.pack(np.array([9, 30, 5]), np.array([2, 2, 2]), spec) == [[0], [1], [2]]


def test_a_window_of_usual_lengths_fills_its_rows():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.7, 0.6, 512).astype(int), 40, 1024)
    spec = BatchSpec(1, 1024, 16, 64, 1024)
    rows = packing.pack(lengths, np.full(512, 20), spec)
    assert lengths.sum() / (len(rows) * 1024) > 0.95


@pytest.mark.parametrize(
    ("lengths", "loss_lengths", "line"),
    [([41], [5], "41 tokens"), ([20], [19], "19 loss tokens")],
)
@pytest.mark.parametrize("max_segments", [1, 3])
def test_an_example_longer_than_a_row_is_refused(lengths, loss_lengths, line, max_segments):
    spec = BatchSpec(1, 40, max_segments, 8, 18)
    with pytest.raises(CalrecError, match=line):
        packing.pack(np.array(lengths), np.array(loss_lengths), spec)


def test_layout_of_a_row_of_two_segments():
    first = Example(np.array([11, 12, 13], np.int32), np.array([21, 22, 1], np.int32), 501, 77)
    second = Example(np.array([14], np.int32), np.array([23, 1], np.int32), 502, 78)
    spec = BatchSpec(1, row_length=11, max_segments=3, item_length=4, max_loss_tokens=6)
    row = packing.make_row([first, second], spec, bos_id=3)
    expected = {
        #                        h1  h2  h3  t1  t2 | .  h1  t1 | pad
        "decoder_input_tokens": [3, 11, 12, 13, 21, 22, 3, 14, 23, 0, 0],
        "decoder_target_tokens": [11, 12, 13, 21, 22, 1, 14, 23, 1, 0, 0],
        "decoder_loss_weights": [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0],
        "decoder_positions": [0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 0],
        "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        "decoder_span_ids": [0, 1, 1, 1, 2, 2, 0, 1, 2, 0, 0],
        "item_tokens": [[3, 21, 22, 0], [3, 23, 0, 0], [0, 0, 0, 0]],
        "item_mask": [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
        "target_item_ids": [501, 502, 0],
        "domain_ids": [77, 78, 0],
    }
    assert {name: value.tolist() for name, value in row.items()} == expected
    spec.check({name: value[None] for name, value in row.items()})


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), min_size=1, max_size=3))
def test_every_target_token_is_what_follows_its_input(sizes):
    rng = np.random.default_rng(len(sizes))
    examples = [
        Example(rng.integers(4, 99, n), np.append(rng.integers(4, 99, m), 1), 5 + i, 9)
        for i, (n, m) in enumerate(sizes)
    ]
    spec = BatchSpec(1, row_length=90, max_segments=3, item_length=8, max_loss_tokens=24)
    row = packing.make_row(examples, spec, bos_id=3)
    counts = collections.Counter(row["decoder_segment_ids"].tolist())
    for i, example in enumerate(examples):
        here = row["decoder_segment_ids"] == i + 1
        inputs, targets = row["decoder_input_tokens"][here], row["decoder_target_tokens"][here]
        assert counts[i + 1] == len(example) == len(inputs)
        assert inputs[0] == 3 and inputs[1:].tolist() == targets[:-1].tolist()
        assert row["decoder_loss_weights"][here].sum() == len(example.targets)
        assert (row["decoder_span_ids"][here] == HISTORY).sum() == len(example.inputs)
        assert (row["decoder_span_ids"][here] == TARGET).sum() == len(example.targets) - 1
        assert row["item_mask"][i].sum() == len(example.targets) - 1
