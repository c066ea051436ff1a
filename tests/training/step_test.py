"""The training step: the three losses of a whole model against the oracle, and one update."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from calrec_jax import losses
from calrec_jax.losses import LossConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.training import step
from calrec_jax.training.state import TrainState

# A whole float32 forward pass against float64; losses are near 3.
TOLERANCE = 2e-5
LANGUAGE_ONLY = LossConfig(alpha=0.0, beta=0.0)


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
@pytest.mark.parametrize("mask_same_target", [False, True])
def test_losses_of_packed_rows_are_the_oracles_of_single_sequences(direction, mask_same_target):
    config = LossConfig(direction=direction, mask_same_target=mask_same_target)
    expected = tiny.oracle_losses(tiny.params(), tiny.EXAMPLES, config)
    got = tiny.losses_of(tiny.params(), tiny.packed(), config)
    assert got == {name: pytest.approx(value, rel=TOLERANCE) for name, value in expected.items()}


def test_masking_the_same_target_changes_the_loss():
    plain, masked = (
        tiny.losses_of(tiny.params(), tiny.packed(), LossConfig(mask_same_target=mask))
        for mask in (False, True)
    )
    assert masked["tt"] < plain["tt"] - 0.05 and masked["nig"] == plain["nig"]


def test_negatives_of_the_same_domain_alone_are_one_batch_a_domain():
    config = LossConfig(same_domain_negatives=True)
    got = tiny.losses_of(tiny.params(), tiny.packed(), config)
    domains = [[e for e in tiny.EXAMPLES if e["domain_id"] == d] for d in (1, 2)]
    each = [tiny.oracle_losses(tiny.params(), examples, LossConfig()) for examples in domains]
    for name in ("tt", "ut"):
        expected = sum(o[name] * len(e) for o, e in zip(each, domains, strict=True)) / 5
        assert got[name] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, -0.2), (0.0, 0.025), (0.125, 0.0)])
def test_weights_may_be_negative_or_zero(alpha, beta):
    config = LossConfig(alpha=alpha, beta=beta)
    expected = tiny.oracle_losses(tiny.params(), tiny.EXAMPLES, config)
    got = tiny.losses_of(tiny.params(), tiny.packed(), config)
    assert got["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)


def jaxpr(config):
    """The computation of the losses, as text."""

    def sums(params, batch):
        return step.loss_sums(Decoder(tiny.CONFIG), params, batch, config, tiny.MAX_LOSS_TOKENS)

    return str(jax.make_jaxpr(sums)(tiny.params(), tiny.packed()))


def test_without_contrastive_weights_the_item_tower_is_not_read():
    with_tower = tiny.losses_of(tiny.params(), tiny.packed(), LossConfig())
    without = tiny.losses_of(tiny.params(), tiny.packed(), LANGUAGE_ONLY)
    assert without == {"loss": without["nig"], "nig": without["nig"]}
    assert without["nig"] == pytest.approx(float(with_tower["nig"]), rel=1e-6)

    # Each reading of rows is one loop over the layers.
    assert jaxpr(LossConfig()).count("scan[") == 2
    assert jaxpr(LANGUAGE_ONLY).count("scan[") == 1


def test_no_logits_of_whole_rows():
    text = jaxpr(LossConfig())
    assert "f32[3,9,20]" in text  # rows, max_loss_tokens, vocabulary
    assert "f32[3,18,20]" not in text


def train_step(tx, config=LossConfig(), schedule=lambda count: 0.25 + count):
    one = step.make_train_step(Decoder(tiny.CONFIG), tx, schedule, config, tiny.MAX_LOSS_TOKENS)
    return jax.jit(one, compiler_options=tiny.FAST)


def test_one_step_moves_the_parameters_against_the_gradient_of_the_total():
    params, batch, tx = tiny.params(), tiny.packed(), optax.sgd(0.5)
    state = TrainState(jnp.int32(7), params, tx.init(params))
    after, metrics = train_step(tx)(state, {}, batch)
    expected, gradient = tiny.losses_and_gradient(params, batch, LossConfig())
    jax.tree.map(
        lambda new, old, g: np.testing.assert_allclose(new, old - 0.5 * g, rtol=1e-5, atol=1e-6),
        after.params,
        params,
        gradient,
    )
    assert after.step == 8
    for name, value in expected.items():
        assert metrics.pop(name) == pytest.approx(float(value), rel=1e-6)
    assert metrics.pop("grad_norm") == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    assert {name: float(value) for name, value in metrics.items()} == {
        "tokens": float((batch["decoder_segment_ids"] != 0).sum()),
        "examples": 5.0,
        "learning_rate": 7.25,
    }


def test_training_on_one_batch_brings_every_loss_down():
    tx = optax.adam(3e-2)
    params, batch, config = tiny.params(size=0.2), tiny.packed(), LossConfig(alpha=0.3, beta=0.3)
    state, metrics = TrainState(jnp.int32(0), params, tx.init(params)), []
    update = train_step(tx, config)
    for _ in range(40):
        state, new = update(state, {}, batch)
        metrics.append(new)
    for name in ("loss", "nig", "tt", "ut"):
        assert metrics[-1][name] < metrics[0][name] - 0.1
