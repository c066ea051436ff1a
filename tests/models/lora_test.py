"""Adapters: the updates they add, merging them, and which projections have them."""

from __future__ import annotations

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from models import decoder_test, kv_cache_test
from parallel.partitioning_test import MODEL
from parity import gradients_test

from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig
from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state

EVERY = LoraConfig(rank=3, alpha=6.0, pattern=".*")
CONFIG = tiny.changed(lora=EVERY)
# Two float32 computations of the same hidden states, with values up to 5: see decoder_test.
TOLERANCE = {"rtol": 2e-5, "atol": 5e-5}


def names(tree) -> set[str]:
    return set(flatten_dict(tree, sep="/"))


def merged(params, config):
    return lora.merge(params, config.lora), dataclasses.replace(config, lora=None)


def layout(scan: bool):
    """(config, parameters) of the same adapted decoder, scanned or in a loop."""
    params = tiny.params(CONFIG, size=0.4)
    if scan:
        return CONFIG, params
    config = dataclasses.replace(CONFIG, scan_layers=False)
    return config, tiny.unstacked(params, config.num_layers)


# What adapters add.


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_the_update_is_that_of_merged_weights(scan):
    config, params = layout(scan)
    rows = decoder_test.rows(tiny.packed())
    got = decoder_test.hidden(config, params, *rows)
    whole, plain = merged(params, config)
    np.testing.assert_allclose(got, decoder_test.hidden(plain, whole, *rows), **TOLERANCE)
    base = lora.split(params)[1]
    assert np.abs(got - decoder_test.hidden(plain, base, *rows)).max() > 0.1


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_in_prefill_and_decoding_too(scan):
    config, params = layout(scan)
    inputs = (*kv_cache_test.padded(), kv_cache_test.NEW)
    got = kv_cache_test.run(config, params, *inputs)
    whole, plain = merged(params, config)
    for a, b in zip(got[:2], kv_cache_test.run(plain, whole, *inputs)[:2], strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


def test_adapters_are_float32_over_a_bfloat16_base():
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16")
    mesh, mesh_config = make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig()
    shapes = train_state.param_shapes(Decoder(config), mesh, mesh_config)
    adapters, base = lora.split(shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {jnp.dtype("bfloat16")}
    assert lora.adapter_shapes(base, EVERY) == adapters


def test_biases_and_adapters_go_together():
    config = dataclasses.replace(
        CONFIG, query_key_value_bias=True, attention_out_bias=True, mlp_bias=True, remat="full"
    )
    params, rows = tiny.params(config, size=0.4), decoder_test.rows(tiny.packed())
    whole, plain = merged(params, config)
    assert names(whole) == names(tiny.params(plain))
    np.testing.assert_allclose(
        decoder_test.hidden(config, params, *rows),
        decoder_test.hidden(plain, whole, *rows),
        **TOLERANCE,
    )


def test_bfloat16_computes_in_bfloat16():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    got = decoder_test.hidden(config, tiny.params(config), *decoder_test.rows(tiny.packed()))
    assert got.dtype == jnp.bfloat16


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_fresh_adapters_add_nothing_and_can_learn_at_once(scan):
    wide = LoraConfig(rank=32, alpha=1.0, pattern=".*")
    config = tiny.changed(d_model=64, d_ff=96, scan_layers=scan, lora=wide)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes, _ = lora.split(train_state.param_shapes(Decoder(config), mesh, MeshConfig()))
    fresh = flatten_dict(train_state.init_params(Decoder(config), 0, shapes))
    assert len(fresh) == 14 * (1 if scan else 2)
    for path, leaf in fresh.items():
        if path[-1] == "lora_b":
            assert not np.any(leaf)
        else:  # Of variance 1 / fan-in; "out" sums over two axes.
            fan_in = {"down": 96, "out": 16}.get(path[-2], 64)
            assert np.std(leaf) == pytest.approx(fan_in**-0.5, rel=0.15), path


# Merging.


def test_merging_by_hand():
    a, b = jnp.array([[1.0], [2.0]]), jnp.array([[10.0, 20.0]])
    kernel, other = jnp.array([[0.5, 0.0], [0.0, 0.5]]), jnp.ones((1, 1))
    params = {
        "mlp": {"up": {"kernel": kernel, "bias": other, "lora_a": a, "lora_b": b}},
        "norm": {"scale": other},
    }
    got = lora.merge(params, LoraConfig(rank=4, alpha=2.0))  # half of A B
    assert names(got) == {"mlp/up/kernel", "mlp/up/bias", "norm/scale"}
    np.testing.assert_array_equal(got["mlp"]["up"]["kernel"], [[5.5, 10.0], [10.0, 20.5]])


def test_stacked_kernels_are_merged_layer_by_layer():
    (scanned, params), (looped, apart) = layout(True), layout(False)
    together = tiny.unstacked(merged(params, scanned)[0], scanned.num_layers)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        together,
        merged(apart, looped)[0],
    )


def test_merging_computes_in_float32_and_rounds_once():
    a, b = jnp.full((2, 3), 0.01, jnp.bfloat16), jnp.full((3, 2), 0.3, jnp.bfloat16)
    kernel = jnp.full((2, 2), 0.7, jnp.bfloat16)
    params = {"mlp": {"up": {"kernel": kernel, "lora_a": a, "lora_b": b}}}
    got = lora.merge(params, LoraConfig(rank=3, alpha=3.0))["mlp"]["up"]["kernel"]
    exact = np.float32(kernel) + np.float32(a) @ np.float32(b)
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_what_is_split_can_be_joined():
    params = tiny.params(CONFIG)
    adapters, base = lora.split(params)
    assert {name.rpartition("/")[2] for name in names(adapters)} == {"lora_a", "lora_b"}
    assert names(base) == names(tiny.params())
    jax.tree.map(np.testing.assert_array_equal, lora.join(adapters, base), params)


def test_without_adapters_all_is_trained():
    params = tiny.params()
    trained, frozen = lora.split(params)
    assert trained is params and frozen == {} and lora.join(trained, frozen) is params


# Which projections.


def test_the_projections_are_those_of_the_decoder():
    def axes(c) -> dict[str, tuple[int, int]]:
        module = {"attention": c.num_heads, "mlp": 0}
        heads = {"query": (1, 2), "key": (1, 2), "value": (1, 2), "out": (2, 1)}
        flat = flatten_dict(tiny.params(c)["layers"], sep="/")
        found = {name.removesuffix("/kernel") for name in flat if name.endswith("/kernel")}
        return {p: heads.get(p.split("/")[1], (1, 1)) for p in found if p.split("/")[0] in module}

    assert lora.PROJECTIONS == axes(tiny.CONFIG)


@pytest.mark.parametrize(
    ("pattern", "adapted"),
    [
        ("attention/query", {"attention/query"}),
        (LoraConfig().pattern, {"attention/query", "attention/value"}),
        ("mlp/(gate|up|down)", {"mlp/gate", "mlp/up", "mlp/down"}),
        (".*", set(lora.PROJECTIONS)),
    ],
)
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_a_pattern_chooses_projections_of_every_layer(pattern, adapted, scan):
    config = tiny.changed(lora=LoraConfig(pattern=pattern), scan_layers=scan)
    adapters = names(lora.split(tiny.params(config))[0])
    layers = ["layers"] if scan else ["layers_0", "layers_1"]
    assert adapters == {
        f"{layer}/{projection}/{leaf}"
        for layer in layers
        for projection in adapted
        for leaf in ("lora_a", "lora_b")
    }


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
@pytest.mark.parametrize(
    "mesh_config", [MeshConfig(4, 2), MeshConfig(2, 4), MeshConfig(4, 2, True)], ids=str
)
def test_the_shapes_of_adapters_follow_from_those_of_their_kernels(mesh_config, scan):
    plain = dataclasses.replace(MODEL, scan_layers=scan)
    mesh = make_mesh(mesh_config)
    whole = train_state.param_shapes(
        Decoder(dataclasses.replace(plain, lora=EVERY)), mesh, mesh_config
    )
    base = train_state.param_shapes(Decoder(plain), mesh, mesh_config)
    adapters, frozen = lora.split(whole)
    assert frozen == base
    got, wanted = (flatten_dict(t, sep="/") for t in (lora.adapter_shapes(base, EVERY), adapters))
    assert got.keys() == wanted.keys()
    for name, leaf in got.items():
        assert (leaf.shape, leaf.dtype) == (wanted[name].shape, wanted[name].dtype), name
        assert leaf.sharding.is_equivalent_to(wanted[name].sharding, len(leaf.shape)), name


def test_adapters_lie_as_their_kernels_do_and_whole_along_the_rank():
    mesh_config = MeshConfig(4, 2, shard_params_over_data=True)
    decoder = Decoder(dataclasses.replace(MODEL, lora=EVERY))
    shapes = train_state.param_shapes(decoder, make_mesh(mesh_config), mesh_config)
    flat = flatten_dict(shapes["layers"], sep="/")
    found = {name: tuple(flat[name].sharding.spec) for name in flat if "lora" in name}
    assert found["attention/query/lora_a"] == (None, "data", None)
    assert found["attention/query/lora_b"] == (None, None, "model", None)
    assert found["attention/out/lora_a"] == (None, "model", None, None)
    assert found["attention/out/lora_b"] == (None, None, "data")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rank": 0}, "LoraConfig.rank is 0: it must be at least 1"),
        ({"alpha": 0.0}, "LoraConfig.alpha is 0.0: it must be positive"),
        (
            {"pattern": "query"},
            "LoraConfig.pattern 'query' matches no projection: they are attention/query, "
            "attention/key, attention/value, attention/out, mlp/gate, mlp/up, mlp/down",
        ),
        ({"pattern": "mlp/("}, "LoraConfig.pattern 'mlp/(' is no regular expression: "),
    ],
)
def test_what_cannot_be_is_refused(changes, line):
    with pytest.raises(CalrecError, match=re.escape(line)) as error:
        LoraConfig(**changes)
    assert "\n" not in str(error.value)


def test_adapters_change_no_meaning_of_weights():
    assert CONFIG.meaning() == tiny.CONFIG.meaning()


# Gradients: of the adapters alone, against finite differences of the float64 oracle.


@functools.cache
def adapters_gradient():
    adapters, base = lora.split(tiny.params(CONFIG, size=0.4))

    def loss(adapters):
        params = lora.join(adapters, base)
        return tiny._means(params, tiny.packed(), LossConfig(), CONFIG, tiny.MAX_LOSS_TOKENS)[
            "loss"
        ]

    gradient = jax.jit(jax.grad(loss), compiler_options=tiny.FAST)(adapters)
    return flatten_dict(jax.tree.map(np.asarray, gradient), sep="/")


def oracle_loss(flat) -> float:
    """The loss of adapters and base in float64, merged by hand."""
    layers = {}
    for name, leaf in flat.items():
        if name.startswith("layers/") and name.endswith("/kernel"):
            a, b = (flat.get(name.replace("kernel", part)) for part in ("lora_a", "lora_b"))
            leaf = leaf + 2.0 * np.stack(
                [np.tensordot(*pair, axes=1) for pair in zip(a, b, strict=True)]
            )
        if "lora" not in name:
            layers[tuple(name.split("/"))] = leaf
    tree = lora.unflatten_dict(layers)
    return tiny.oracle_losses(tree, tiny.EXAMPLES, LossConfig())["loss"]


@pytest.mark.parametrize("leaf", ["lora_a", "lora_b"])
@pytest.mark.parametrize("projection", lora.PROJECTIONS)
def test_the_gradient_of_adapters_is_the_oracles(projection, leaf):
    name = f"layers/{projection}/{leaf}"
    flat = {
        key: np.asarray(value, np.float64)
        for key, value in flatten_dict(tiny.params(CONFIG, size=0.4), sep="/").items()
    }
    gradient = adapters_gradient()[name]
    direction = np.random.default_rng(0).normal(size=gradient.shape)
    epsilon = gradients_test.EPSILON
    above, below = (
        oracle_loss(flat | {name: flat[name] + sign * epsilon * direction}) for sign in (1, -1)
    )
    size = np.linalg.norm(direction) * np.linalg.norm(gradient)
    assert (gradient * direction).sum() == pytest.approx(
        (above - below) / (2 * epsilon), rel=1e-4, abs=5e-6 * size
    )
