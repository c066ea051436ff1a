"""The batch's sizes, and the check of batches between data and model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny

from calrec_jax.batch import BatchSpec
from calrec_jax.errors import CalrecError

LENGTHS = {"inputs": 12, "targets": 4}
SPEC = BatchSpec(3, tiny.ROW_LENGTH, tiny.MAX_SEGMENTS, tiny.ITEM_LENGTH, tiny.MAX_LOSS_TOKENS)


def test_a_row_holds_the_longest_example_by_default():
    assert BatchSpec.create(8, LENGTHS) == BatchSpec(8, 16, 1, 4, 4)


def test_packed_rows_may_carry_the_loss_of_every_segment():
    assert BatchSpec.create(8, LENGTHS, row_length=64, max_segments=5).max_loss_tokens == 20


def test_no_more_loss_tokens_than_a_row_has_tokens():
    assert BatchSpec.create(8, LENGTHS, max_segments=9).max_loss_tokens == 16
    given = BatchSpec.create(8, LENGTHS, max_segments=9, max_loss_tokens=99)
    assert given.max_loss_tokens == 16


def test_loss_tokens_can_be_bounded():
    spec = BatchSpec.create(8, LENGTHS, row_length=64, max_segments=5, max_loss_tokens=7)
    assert spec.max_loss_tokens == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"row_length": 15}, r"row_length 15 is shorter .* = 16: raise row_length"),
        ({"max_loss_tokens": 3}, "max_loss_tokens 3 cannot hold one target of 4"),
    ],
)
def test_a_row_that_cannot_hold_an_example_is_refused(changes, says):
    with pytest.raises(CalrecError, match=says):
        BatchSpec.create(8, LENGTHS, **changes)


def test_a_batch_as_specified_passes():
    SPEC.check(tiny.packed())
    dataclasses.replace(SPEC, batch_size=5, max_segments=1).check(tiny.unpacked())


def test_every_feature_is_needed_and_no_other():
    for name in SPEC.shapes():
        batch = tiny.packed()
        del batch[name]
        with pytest.raises(CalrecError, match=f"lacks \\['{name}'\\]"):
            SPEC.check(batch)
    with pytest.raises(CalrecError, match=r"unknown \['extra'\]"):
        SPEC.check(tiny.packed() | {"extra": np.zeros(3)})


@pytest.mark.parametrize("name", SPEC.shapes())
def test_shapes_and_dtypes_must_be_exact(name):
    batch = tiny.packed()
    with pytest.raises(CalrecError, match=f"{name} is .*\\(2, "):
        SPEC.check(batch | {name: batch[name][:2]})
    with pytest.raises(CalrecError, match=f"{name} is float64"):
        SPEC.check(batch | {name: batch[name].astype(np.float64)})


def test_loss_tokens_that_would_be_left_out_are_refused():
    most = int((tiny.packed()["decoder_loss_weights"] != 0).sum(axis=1).max())
    dataclasses.replace(SPEC, max_loss_tokens=most).check(tiny.packed())
    with pytest.raises(CalrecError, match=f"{most} loss tokens, more than {most - 1}"):
        dataclasses.replace(SPEC, max_loss_tokens=most - 1).check(tiny.packed())
