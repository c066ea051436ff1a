"""Adapters trained on several devices are those of one."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
from multidevice.sharding_test import LOSSES, ONE, SPEC, devices_of, leaves
from training.small_run import MODEL, random_batch

from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.training import state as train_state
from calrec_jax.training.step import make_train_step

ADAPTED = dataclasses.replace(MODEL, lora=LoraConfig(rank=2, alpha=8.0, pattern=".*"))


def two_steps(config: MeshConfig):
    """(shapes, state after, metrics): the first step moves B alone, which begins at 0."""
    decoder, tx, mesh = Decoder(ADAPTED), optax.sgd(0.3, momentum=0.9), devices_of(config)
    with partitioning.use_mesh(mesh, config):
        shapes = train_state.state_shapes(decoder, tx, mesh, config)
        every = train_state.param_shapes(decoder, mesh, config)
        params, frozen = lora.split(train_state.init_params(decoder, 0, every))
        state = train_state.fresh_state(params, tx, shapes)
        one = make_train_step(decoder, tx, lambda _: 0.3, LOSSES, SPEC.max_loss_tokens)
        out = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        step = jax.jit(one, out_shardings=(out, None))
        for seed in (0, 1):
            batch = partitioning.to_global(dict(random_batch(seed)), mesh)
            state, metrics = step(state, frozen, batch)
    return shapes, state, jax.device_get(metrics)


def test_two_steps_on_a_mesh_are_those_of_one_device():
    config = MeshConfig(4, 2, shard_params_over_data=True)
    _, one, metrics = two_steps(ONE)
    shapes, many, told_there = two_steps(config)
    for metric, value in metrics.items():
        np.testing.assert_allclose(told_there[metric], value, rtol=1e-5, err_msg=metric)
    for (path, a), (there, b) in zip(
        leaves(one.params).items(), leaves(many.params).items(), strict=True
    ):
        assert path == there and np.any(np.asarray(a))
        np.testing.assert_allclose(b, a, rtol=0, atol=5e-6, err_msg=path)
        wanted = leaves(shapes.params)[path]
        share = wanted.sharding.shard_shape(wanted.shape)
        assert {shard.data.shape for shard in b.addressable_shards} == {share}, path
