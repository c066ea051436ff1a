"""Learning rates and updates, against values worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training.small_run import MODEL

from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.state import param_shapes


def rates(train_steps, **config):
    """The learning rate of update 1, 2, ..., train_steps."""
    schedule = make_schedule(OptimizerConfig(**config), train_steps)
    return [float(schedule(step)) for step in range(train_steps)]


@pytest.mark.parametrize(
    "decay, after_peak",
    [
        ("constant", [8.0, 8.0, 8.0, 8.0]),
        ("linear", [6.5, 5.0, 3.5, 2.0]),
        # 2 + (8 - 2) (1 + cos(pi t / 4)) / 2 for t = 1 .. 4
        ("cosine", [5 + 3 * 2**-0.5, 5.0, 5 - 3 * 2**-0.5, 2.0]),
    ],
)
def test_warm_up_to_the_peak_then_decay_to_the_final_fraction_at_the_last_step(decay, after_peak):
    got = rates(8, learning_rate=8.0, warmup_steps=4, decay=decay, final_fraction=0.25)
    np.testing.assert_allclose(got, [2.0, 4.0, 6.0, 8.0, *after_peak], rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 1])
def test_without_warm_up_the_first_step_has_the_peak(warmup_steps):
    got = rates(3, learning_rate=1.0, warmup_steps=warmup_steps, decay="linear", final_fraction=0)
    np.testing.assert_allclose(got, [1.0, 0.5, 0.0], atol=1e-7)


def test_a_warm_up_longer_than_the_training_reaches_the_peak_at_the_last_step():
    got = rates(4, learning_rate=1.0, warmup_steps=100)
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1.0], rtol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7, 100])
def test_the_first_step_changes_something(decay, warmup_steps):
    assert rates(10, warmup_steps=warmup_steps, decay=decay)[0] > 0


def first_updates(params, grads, **config):
    config = {"learning_rate": 0.5, "warmup_steps": 0, "clip_norm": 1e9} | config
    config = OptimizerConfig(decay="constant", **config)
    tx = make_optimizer(config, make_schedule(config, 10))
    return tx.update(grads, tx.init(params), params)[0]


MATRIX_AND_SCALE = {"kernel": jnp.full((2, 3), 4.0), "norm": {"scale": jnp.full((2, 3), 4.0)}}
NO_GRADIENT = jax.tree.map(jnp.zeros_like, MATRIX_AND_SCALE)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_is_times_the_learning_rate_and_spares_norms(name):
    updates = first_updates(MATRIX_AND_SCALE, NO_GRADIENT, name=name, weight_decay=0.1)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 4.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0.0)


def test_weight_decay_is_of_adapters_too():
    adapters = {"lora_a": jnp.full((2, 3), 4.0), "lora_b": jnp.full((3, 2), 4.0)}
    updates = first_updates(adapters, jax.tree.map(jnp.zeros_like, adapters), weight_decay=0.1)
    for update in updates.values():
        np.testing.assert_allclose(update, -0.5 * 0.1 * 4.0, rtol=1e-6)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_weight_decay_spares_the_norms_of_the_decoder_and_nothing_else(scan_layers):
    decoder = Decoder(dataclasses.replace(MODEL, scan_layers=scan_layers))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = param_shapes(decoder, mesh, MeshConfig())
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda params: first_updates(params, nothing, weight_decay=0.1))(params)
    decayed, spared = set(), set()
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        (decayed if bool(jnp.all(update != 0)) else spared).add(name)
    assert spared and all("norm" in name for name in spared)
    assert decayed and not any("norm" in name for name in decayed)


def test_the_first_update_of_adamw_is_the_sign_of_the_gradient():
    grads = {"kernel": jnp.array([[3.0, -4.0]])}
    updates = first_updates({"kernel": jnp.zeros((1, 2))}, grads)
    np.testing.assert_allclose(updates["kernel"], [[-0.5, 0.5]], rtol=1e-5)


def test_b1_and_b2_are_those_of_adam():
    """Two gradients, 1 then 0: m = b1 (1 - b1), v = b2 (1 - b2), both bias-corrected."""
    b1, b2 = 0.8, 0.9
    config = OptimizerConfig(
        learning_rate=1.0, warmup_steps=0, decay="constant", b1=b1, b2=b2, clip_norm=1e9
    )
    tx = make_optimizer(config, make_schedule(config, 10))
    params = {"kernel": jnp.zeros((1, 1))}
    state = tx.init(params)
    _, state = tx.update({"kernel": jnp.ones((1, 1))}, state, params)
    updates, _ = tx.update({"kernel": jnp.zeros((1, 1))}, state, params)
    m, v = b1 * (1 - b1) / (1 - b1**2), b2 * (1 - b2) / (1 - b2**2)
    np.testing.assert_allclose(updates["kernel"], -m / v**0.5, rtol=1e-5)


def test_the_gradient_is_clipped_by_its_global_norm_before_the_optimizer_sees_it():
    """Adam's first moment is (1 - b1) g, so it shows the gradient that arrived."""
    config = OptimizerConfig(clip_norm=1.0)
    tx = make_optimizer(config, make_schedule(config, 10))
    params = {"a": jnp.zeros((1,)), "b": jnp.zeros((1,))}
    _, state = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init(params), params)
    (mu,) = optax.tree_utils.tree_get_all_with_path(state, "mu")
    np.testing.assert_allclose(mu[1]["a"], 0.1 * 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(mu[1]["b"], 0.1 * 4 / 5, rtol=1e-6)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(CalrecError, match="'sgd' is none of .*'adamw', 'adafactor'"):
        OptimizerConfig(name="sgd")
    with pytest.raises(CalrecError, match="'step' is none of .*'cosine'"):
        OptimizerConfig(decay="step")
