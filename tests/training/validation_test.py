"""Validation gives the losses of the training step, as means over many batches."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.models.decoder import Decoder
from calrec_jax.training import validation


def test_validation_gives_the_sums_of_the_same_losses():
    validate = jax.jit(
        validation.make_validation_step(Decoder(tiny.CONFIG), LossConfig(), tiny.MAX_LOSS_TOKENS),
        compiler_options=tiny.FAST,
    )
    sums = validate(tiny.params(), tiny.packed())
    expected = tiny.losses_of(tiny.params(), tiny.packed(), LossConfig())
    assert (sums.tokens, sums.examples) == (15.0, 5.0)
    for name, value in sums.means(LossConfig()).items():
        assert value == pytest.approx(float(expected[name]), rel=1e-6)


def test_losses_of_several_batches_are_weighted_by_their_sizes():
    config = LossConfig(alpha=0.25, beta=0.125)
    sums = [
        LossSums(*(jnp.float32(x) for x in (10, 4, 3, 2, 2))),
        LossSums(*(jnp.float32(x) for x in (2, 2, 9, 4, 4))),
    ]
    found = validation.mean_losses(iter(sums), lambda total: total.means(config))
    assert found == {"loss": 0.625 * 2.0 + 0.25 * 2.0 + 0.125 * 1.0, "nig": 2.0, "tt": 2.0, "ut": 1}


def test_without_batches_there_is_no_mean():
    assert validation.mean_losses(iter([]), lambda total: total) is None
