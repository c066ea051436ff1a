"""Gradients of the losses of a whole model against finite differences of the float64 oracle."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
import tiny

from calrec_jax.losses import LossConfig

CONFIG = tiny.changed(tie_embeddings=False)
LOSSES = LossConfig()
NAMES = ("nig", "tt", "ut", "loss")
EPSILON = 1e-5


def difference(params, direction):
    """{loss: its derivative along `direction`} of the oracle; central, error about 1e-9."""

    def at(size):
        moved = jax.tree.map(lambda p, d: np.asarray(p, np.float64) + size * d, params, direction)
        return tiny.oracle_losses(moved, tiny.EXAMPLES, LOSSES, CONFIG)

    above, below = at(EPSILON), at(-EPSILON)
    return {name: (above[name] - below[name]) / (2 * EPSILON) for name in NAMES}


@functools.cache
def _gradients():
    gradients = tiny.gradients(tiny.params(CONFIG), tiny.packed(), LOSSES, CONFIG)
    return jax.tree.map(np.asarray, gradients)


def gradients(name):
    """The product's gradient of one loss."""
    return _gradients()[name]


def leaf_names():
    leaves = jax.tree_util.tree_leaves_with_path(tiny.params(CONFIG))
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def check(directions):
    """Compares derivatives along each direction (a tree) with those of the product."""
    params = tiny.params(CONFIG)
    for direction in directions:
        expected = difference(params, direction)
        size = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(direction)))
        for name in NAMES:
            parts = jax.tree.map(lambda g, d: float((g * d).sum()), gradients(name), direction)
            got = sum(jax.tree.leaves(parts))
            # float32 against float64: gradients of norm 1 or so, some 100 roundings of 6e-8.
            scale = size * np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients(name))))
            assert got == pytest.approx(expected[name], rel=1e-4, abs=2e-6 * scale), name


def one_leaf(place, values):
    """A direction that is zero but for the leaf at `place`."""
    leaves, tree = jax.tree.flatten(tiny.params(CONFIG))
    zeros = [np.zeros(leaf.shape) for leaf in leaves]
    zeros[place] = values(leaves[place].shape)
    return jax.tree.unflatten(tree, zeros)


@pytest.mark.parametrize("place", range(len(leaf_names())), ids=leaf_names())
def test_derivatives_along_random_directions_of_each_parameter(place):
    rng = np.random.default_rng(place)
    check([one_leaf(place, lambda shape: rng.normal(size=shape)) for _ in range(2)])


@pytest.mark.slow
def test_derivatives_along_every_single_parameter():
    def single(shape, index):
        values = np.zeros(shape)
        values[index] = 1
        return values

    for place, leaf in enumerate(jax.tree.leaves(tiny.params(CONFIG))):
        check(
            one_leaf(place, functools.partial(single, index=index))
            for index in np.ndindex(leaf.shape)
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_gradient_from_each_loss(name):
    # Known defect elsewhere: the backbone is frozen.
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(name)):
        used = jax.tree_util.keystr(path[:1], simple=True) != "unembedding" or name in (
            "nig",
            "loss",
        )
        # Every layer of every parameter, and of the embedding at least the rows that are read.
        layers = gradient if "layers" in str(path[0]) else gradient[None]
        assert all(np.abs(layer).max() > 1e-5 for layer in layers) == used, path


def test_every_token_that_is_read_gets_gradient_and_no_other():
    batch = tiny.packed()
    read = set(batch["decoder_input_tokens"][batch["decoder_segment_ids"] != 0].tolist())
    rows = np.abs(gradients("loss")["embedding"]).max(axis=1)
    assert {int(token) for token in np.flatnonzero(rows)} == read


def test_both_towers_get_gradient():
    """Each tower alone moves the contrastive losses: tokens that only one of them reads."""
    embedding = {name: np.abs(gradients(name)["embedding"]).max(axis=1) for name in ("tt", "ut")}
    # Items are read by the item tower, which alone reads them in L_UT: v_u is of histories.
    assert embedding["ut"][14] > 1e-4 and embedding["ut"][19] > 1e-4
    # Histories are read by the joint tower alone; v_tu attends to them.
    assert embedding["ut"][15] > 1e-4 and embedding["tt"][15] > 1e-4
