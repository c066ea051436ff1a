"""Eight simulated devices, along data and along the model, generate the same as one."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny
from decode.tries import tokenized

from calrec_jax.decode.sample import Sampler, Samples
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import state as train_state

MODEL = tiny.CONFIG
PROMPTS = [np.array(p, np.int32) for p in ([3, 4, 5, 6], [7], [], [9, 8, 7, 6, 5])]
SEEDS = [56, 57, 58, 59]
ITEMS = [(3, 4), (3,), (5, 6, 7), (5, 6), (9,), (3, 4)]
SAMPLED = SamplingConfig(3, 0.5, 5)
WAYS = {
    "sample": SAMPLED,
    "filtered": dataclasses.replace(SAMPLED, top_k=6, top_p=0.9),
    "beam": SamplingConfig(3, max_new_tokens=5, method="beam"),
}
# Of one key/value head a device, of half of one (two heads, held whole on four), and of all.
MESHES = [MeshConfig(4, 2), MeshConfig(2, 4), MeshConfig(4, 2, shard_params_over_data=True)]


def sharded(mesh, mesh_config: MeshConfig):
    """Parameters where a run has them."""
    shapes = train_state.param_shapes(Decoder(MODEL), mesh, mesh_config)
    return jax.tree.map(
        lambda leaf, shape: jax.device_put(leaf, shape.sharding), tiny.params(seed=9), shapes
    )


def generated(mesh_config: MeshConfig, config: SamplingConfig, constrained: bool) -> Samples:
    mesh = make_mesh(mesh_config, jax.devices()[: mesh_config.data * mesh_config.model])
    sampler = Sampler(
        Decoder(MODEL),
        sharded(mesh, mesh_config),
        config,
        eos_id=tiny.EOS,
        bos_id=tiny.BOS,
        max_prompt_tokens=20,
        mesh=mesh,
        mesh_config=mesh_config,
        trie=TokenTrie.build(tokenized(ITEMS), tiny.EOS) if constrained else None,
    )
    return sampler(PROMPTS, SEEDS)


CASES = [
    *((way, constrained, MESHES[0]) for way in WAYS for constrained in (False, True)),
    *((way, way == "beam", mesh) for way in ("sample", "beam") for mesh in MESHES[1:]),
]


@pytest.mark.parametrize(("way", "constrained", "mesh"), CASES)
def test_samples_are_those_of_one_device(way, constrained, mesh):
    one = generated(MeshConfig(1, 1), WAYS[way], constrained)
    many = generated(mesh, WAYS[way], constrained)
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_array_equal(many.lengths, one.lengths)
    # Sums in another order: float32 rounding of values up to 30.
    np.testing.assert_allclose(many.log_probs, one.log_probs, rtol=0, atol=2e-5)
    if constrained:
        np.testing.assert_array_equal(many.leaves, one.leaves)


def test_parameters_of_a_layer_are_split_as_they_were_in_the_stack():
    mesh_config = MESHES[0]
    mesh = make_mesh(mesh_config, jax.devices())
    _, params = for_generation(Decoder(MODEL), sharded(mesh, mesh_config))
    alone = Decoder(dataclasses.replace(MODEL, scan_layers=False))
    shapes = train_state.param_shapes(alone, mesh, mesh_config)
    for leaf, shape in zip(jax.tree.leaves(params), jax.tree.leaves(shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
