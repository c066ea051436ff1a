"""Packed rows give the losses and the gradients of the same examples, one a row."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import tiny
from oracles import batches

from calrec_jax.losses import LossConfig

MOST = 15  # loss tokens of all examples, as one of the packings needs
SLOTS = (tiny.ITEM_LENGTH, tiny.MAX_SEGMENTS, tiny.BOS, tiny.EOS)
PACKINGS = {
    "rows with pads, an empty row": tiny.packed(),
    "another order": batches.packed_batch(
        tiny.EXAMPLES, [[4], [1, 3], [2, 0]], tiny.ROW_LENGTH, *SLOTS
    ),
    "all in one row": batches.packed_batch(
        tiny.EXAMPLES, [[0, 1, 2, 3, 4]], 40, tiny.ITEM_LENGTH, 6, tiny.BOS, tiny.EOS
    ),
}
VARIANTS = LossConfig(
    direction="both", mask_same_target=True, same_domain_negatives=True, beta=-0.025
)


def check(batch, losses):
    packed, unpacked = (
        tiny.losses_and_gradient(tiny.params(), b, losses, max_loss_tokens=MOST)
        for b in (batch, tiny.unpacked())
    )
    # The same float32 numbers added in another order: a few roundings of 6e-8.
    assert packed[0] == {n: pytest.approx(float(v), rel=1e-6) for n, v in unpacked[0].items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max()),
        packed[1],
        unpacked[1],
    )


@pytest.mark.parametrize("batch", PACKINGS.values(), ids=PACKINGS)
def test_losses_and_gradients_are_those_of_one_example_a_row(batch):
    check(batch, LossConfig())


def test_so_they_are_with_all_variants_of_the_losses():
    check(PACKINGS["another order"], VARIANTS)
