"""The losses against their transcription in float64, on random inputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import losses as oracle

from calrec_jax import losses
from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig

TOLERANCE = 2e-6  # relative: float32 sums of a few dozen terms, against float64
SEEDS = st.integers(0, 10_000)
TABLE = np.random.default_rng(0).normal(size=(6, 11)).astype(np.float32)


def unembed(hidden):
    return hidden @ TABLE


# L_NIG


def language_batch(seed: int, rows: int = 3, length: int = 9, most: int = 5):
    """Hidden states, targets, and weights on at most `most` positions of a row."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, length, 6)).astype(np.float32)
    targets = rng.integers(11, size=(rows, length)).astype(np.int32)
    weights = np.zeros((rows, length), np.float32)
    for row in weights:
        row[rng.permutation(length)[: rng.integers(0, most + 1)]] = 1
    weights[0, 3] = 1
    weights[0, 4:] *= weights[0].sum() <= most
    return hidden, targets, weights


@functools.partial(jax.jit, static_argnums=3)
def next_item_nll(hidden, targets, weights, max_loss_tokens):
    return losses.next_item_nll(hidden, unembed, targets, weights, max_loss_tokens)


@given(SEEDS)
@settings(max_examples=25)
def test_next_item_loss_is_the_oracles(seed):
    hidden, targets, weights = language_batch(seed)
    nll, tokens = next_item_nll(hidden, targets, weights, 5)
    assert tokens == weights.sum()
    expected = oracle.next_item_nll(hidden @ TABLE, targets, weights)
    assert nll / tokens == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_logits_of_a_few_places_give_what_all_places_give(seed):
    hidden, targets, weights = language_batch(seed)
    few, all_places = (next_item_nll(hidden, targets, weights, most) for most in (5, 9))
    np.testing.assert_allclose(few, all_places, rtol=1e-6)  # the same terms, another order of sums

    def gradient(most):
        return jax.grad(lambda h: next_item_nll(h, targets, weights, most)[0])(hidden)

    np.testing.assert_allclose(gradient(5), gradient(9), rtol=1e-6, atol=1e-7)
    assert not gradient(5)[weights == 0].any()


def test_logits_exist_for_the_places_with_loss_alone():
    shapes = []

    def record(hidden):
        shapes.append(hidden.shape)
        return hidden @ TABLE

    losses.next_item_nll(*(lambda h, t, w: (h, record, t, w))(*language_batch(0)), 5)
    assert shapes == [(3, 5, 6)]


def test_weights_weigh_tokens():
    hidden, targets, weights = language_batch(1)
    scaled = weights * np.random.default_rng(0).uniform(0.1, 2, weights.shape).astype(np.float32)
    nll, tokens = next_item_nll(hidden, targets, scaled, 5)
    assert tokens == pytest.approx(scaled.sum())
    expected = oracle.next_item_nll(hidden @ TABLE, targets, scaled)
    assert nll / tokens == pytest.approx(expected, rel=TOLERANCE)


def test_what_has_no_weight_does_not_count():
    hidden, targets, weights = language_batch(2)
    other = np.where(weights == 0, (targets + 1) % 11, targets).astype(np.int32)
    assert next_item_nll(hidden, other, weights, 5) == next_item_nll(hidden, targets, weights, 5)


def test_the_loss_is_finite_however_sure_the_model_is():
    hidden, targets, weights = language_batch(3)
    nll, tokens = next_item_nll(1e3 * hidden, targets, weights, 5)
    expected = oracle.next_item_nll((1e3 * hidden) @ TABLE, targets, weights)
    assert nll / tokens == pytest.approx(expected, rel=1e-5)


# InfoNCE


def vectors(seed: int, n: int = 7, width: int = 5):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, width)).astype(np.float32)
    return a * rng.uniform(0.01, 100, (n, 1)).astype(np.float32), b + 0.5 * a


def ids(seed: int, n: int = 7):
    """(target ids, domain ids): some targets twice, two domains, some empty slots (id 0)."""
    rng = np.random.default_rng(seed)
    item_ids = rng.integers(1, 5, n).astype(np.int32)
    domain_ids = (item_ids % 2).astype(np.int32)  # an item is of one domain
    item_ids[rng.random(n) < 0.3] = 0
    item_ids[0] = 1
    domain_ids[0] = 1
    return item_ids, domain_ids


@functools.partial(jax.jit, static_argnums=4)
def mean_info_nce(a, b, item_ids, domain_ids, config):
    allowed = losses.allowed_pairs(item_ids, domain_ids, config)
    total = losses.info_nce(a, b, allowed, config.temperature, config.direction)
    return total / jnp.sum(item_ids != 0)


def oracle_info_nce(a, b, item_ids, domain_ids, config):
    """The oracle over the slots that are not empty; each domain is a batch of its own."""
    there = item_ids != 0
    a, b, item_ids, domain_ids = a[there], b[there], item_ids[there], domain_ids[there]
    groups = [np.ones(len(a), bool)]
    if config.same_domain_negatives:
        groups = [domain_ids == d for d in set(domain_ids.tolist())]
    total = 0.0
    for group in groups:
        same = item_ids[group] if config.mask_same_target else None
        mean = oracle.info_nce(a[group], b[group], config.temperature, config.direction, same)
        total += mean * group.sum()
    return total / len(a)


@pytest.mark.parametrize("mask_same_target", [False, True])
@pytest.mark.parametrize("same_domain_negatives", [False, True])
@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_info_nce_is_the_oracles(direction, same_domain_negatives, mask_same_target):
    config = LossConfig(
        direction=direction,
        mask_same_target=mask_same_target,
        same_domain_negatives=same_domain_negatives,
    )
    seen = set()
    for seed in range(8):
        inputs = (*vectors(seed, n=12), *ids(seed, n=12))
        got, expected = mean_info_nce(*inputs, config), oracle_info_nce(*inputs, config)
        assert got == pytest.approx(expected, rel=TOLERANCE, abs=1e-7)
        seen.add(round(expected, 6))
    assert len(seen) == 8


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_temperature_divides_cosines(temperature):
    config = LossConfig(temperature=temperature)
    inputs = (*vectors(3), np.arange(1, 8, dtype=np.int32), np.ones(7, np.int32))
    expected = oracle_info_nce(*inputs, config)
    # Cosines divided by 0.05 are up to 20, and exponents of error 20 * 6e-8.
    assert mean_info_nce(*inputs, config) == pytest.approx(expected, rel=1e-5)


def test_directions_differ_and_both_is_their_mean():
    inputs = (*vectors(0), np.arange(1, 8, dtype=np.int32), np.ones(7, np.int32))
    users, items, both = (
        float(mean_info_nce(*inputs, LossConfig(direction=d))) for d in ("users", "items", "both")
    )
    assert abs(users - items) > 0.01
    assert both == pytest.approx((users + items) / 2, rel=1e-6)


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
@pytest.mark.parametrize("empty", [0.0, 1e4])
def test_empty_slots_change_nothing_and_get_no_gradient(direction, empty):
    (a, b), config = vectors(0), LossConfig(direction=direction)
    item_ids, domain_ids = np.arange(1, 8, dtype=np.int32), np.ones(7, np.int32)
    item_ids[[2, 6]] = 0
    there = item_ids != 0
    a[~there], b[~there] = empty, empty
    got = mean_info_nce(a, b, item_ids, domain_ids, config)
    without = mean_info_nce(a[there], b[there], item_ids[there], domain_ids[there], config)
    assert got == pytest.approx(float(without), rel=1e-6)
    for gradient in jax.grad(mean_info_nce, (0, 1))(a, b, item_ids, domain_ids, config):
        assert np.isfinite(gradient).all()
        assert not gradient[~there].any() and gradient[there].any(axis=-1).all()


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_the_gradient_of_info_nce_is_that_of_finite_differences(direction):
    config = LossConfig(direction=direction, mask_same_target=True)
    (a, b), (item_ids, domain_ids) = vectors(2, n=5, width=3), ids(5, n=5)
    a /= np.linalg.norm(a, axis=-1, keepdims=True)
    got = jax.grad(mean_info_nce, (0, 1))(a, b, item_ids, domain_ids, config)
    of_a = oracle.numeric_gradient(lambda x: oracle_info_nce(x, b, item_ids, domain_ids, config), a)
    of_b = oracle.numeric_gradient(lambda x: oracle_info_nce(a, x, item_ids, domain_ids, config), b)
    # Entries near 1 in float32; the differences themselves are good to 1e-9.
    np.testing.assert_allclose(got[0], of_a, atol=2e-6)
    np.testing.assert_allclose(got[1], of_b, atol=2e-6)
    assert np.abs(of_a).max() > 0.01 and np.abs(of_b).max() > 0.01


def test_allowed_pairs_by_hand():
    item_ids, domain_ids = jnp.array([5, 5, 0, 6]), jnp.array([1, 1, 1, 2])

    def allowed(**changes):
        pairs = losses.allowed_pairs(item_ids, domain_ids, LossConfig(**changes))
        return pairs.astype(int).tolist()

    assert allowed() == [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]]
    assert allowed(mask_same_target=True) == [
        [1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1],
    ]  # fmt: skip
    assert allowed(same_domain_negatives=True) == [
        [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1],
    ]  # fmt: skip


# The weighted sum


def sums(**changes):
    values = {"nll": 12.0, "tokens": 6.0, "tt": 20.0, "ut": 40.0, "examples": 5.0}
    return losses.LossSums(**{k: jnp.float32(v) for k, v in (values | changes).items()})


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.125, 0.025), (0.125, -0.025), (0.125, 0.0), (0.0, 0.3), (1.0, 0.0)]
)
def test_the_total_is_the_weighted_sum_of_means(alpha, beta):
    means = sums().means(LossConfig(alpha=alpha, beta=beta))
    assert (means["nig"], means["tt"], means["ut"]) == (2.0, 4.0, 8.0)
    assert means["loss"] == pytest.approx(oracle.calrec_loss(2.0, 4.0, 8.0, alpha, beta), rel=1e-6)


def test_without_weights_the_total_is_the_next_item_loss_alone():
    config = LossConfig(alpha=0.0, beta=0.0)
    assert not config.contrastive
    assert sums().means(config) == {"loss": 2.0, "nig": 2.0}


def test_a_batch_of_nothing_has_a_loss_of_zero():
    empty = sums(nll=0.0, tokens=0.0, tt=0.0, ut=0.0, examples=0.0)
    assert set(map(float, empty.means(LossConfig()).values())) == {0.0}


def test_sums_of_batches_add_up():
    total = jax.tree.map(jnp.add, sums(), sums(nll=4.0, tokens=2.0, tt=0.0, examples=3.0))
    means = total.means(LossConfig())
    assert (means["nig"], means["tt"], means["ut"]) == (2.0, 2.5, 10.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"direction": "sideways"}, "direction 'sideways' is none of"),
        ({"temperature": 0.0}, "temperature 0.0 is not positive"),
        ({"temperature": -0.5}, "temperature -0.5 is not positive"),
    ],
)
def test_impossible_settings_are_refused(changes, says):
    with pytest.raises(CalrecError, match=says):
        LossConfig(**changes)
