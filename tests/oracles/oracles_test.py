"""The oracles against numbers worked out by hand and known identities; the decoder's own are in
decoder_oracle_test.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracles import batches, decoder, diversity, losses, ranking

BOS, EOS = 1, 2
CFG = {
    "scale_plus_one": True,
    "norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "activation": "gelu",
    "tied": False,
    "scale_embedding": True,
}
EXAMPLES = [
    {"history": [3, 4, 5], "target": [6, 7], "item_id": 101, "domain_id": 8},
    {"history": [9, 3], "target": [10], "item_id": 102, "domain_id": 9},
    {"history": [11], "target": [4, 4, 8], "item_id": 103, "domain_id": 8},
]


# losses


def test_nll_by_hand_counts_only_weighted_tokens():
    logits = np.log([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.4, 0.4], [1.0, 1.0, 1.0]]])
    targets, weights = [[1, 2], [0, 0]], [[1, 1], [0, 1]]
    expected = (math.log(4) - math.log(0.8) + math.log(3)) / 3
    assert losses.next_item_nll(logits + 7, targets, weights) == pytest.approx(expected)
    halved = losses.next_item_nll(logits, targets, np.array(weights) / 2)
    assert halved == pytest.approx(expected)
    with pytest.raises(ValueError):
        losses.next_item_nll(logits, targets, np.zeros((2, 2)))


def test_pool_by_hand():
    hidden = np.array([[[100.0], [1.0], [3.0], [8.0], [100.0], [5.0], [100.0]]])
    segments = [[1, 1, 1, 1, 2, 2, 0]]
    spans = [[0, 1, 1, 2, 0, 2, 0]]
    history = losses.pool(hidden, segments, spans, 1, 3)
    target = losses.pool(hidden, segments, spans, 2, 3)
    np.testing.assert_array_equal(history, [[[2.0], [0.0], [0.0]]])
    np.testing.assert_array_equal(target, [[[8.0], [5.0], [0.0]]])


def test_pool_items_by_hand():
    hidden = np.array([[[[100.0], [1.0], [4.0], [100.0]], [[9.0], [9.0], [9.0], [9.0]]]])
    mask = [[[0, 1, 1, 0], [0, 0, 0, 0]]]
    np.testing.assert_array_equal(losses.pool_items(hidden, mask), [[[2.5], [0.0]]])


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_info_nce_of_identical_vectors_is_log_n(direction):
    vectors = np.tile([1.0, -2.0, 0.5], (7, 1))
    assert losses.info_nce(vectors, vectors, 0.5, direction) == pytest.approx(math.log(7))


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_info_nce_of_orthogonal_pairs(direction):
    loss = losses.info_nce(np.eye(3), 5 * np.eye(3), 0.5, direction)
    assert loss == pytest.approx(math.log(1 + 2 * math.exp(-2)))


def test_info_nce_directions_by_hand():
    """a_1 = b_1 = b_2 = e_1 and a_2 = e_2: cos(a_1, .) = 1, 1 and cos(a_2, .) = 0, 0; tau = 1."""
    a, b = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [3.0, 0.0]])
    users = (math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2
    items = math.log(2)
    assert losses.info_nce(a, b, 1.0, "users") == pytest.approx(users)
    assert losses.info_nce(a, b, 1.0, "items") == pytest.approx(items)
    assert losses.info_nce(a, b, 1.0, "both") == pytest.approx((users + items) / 2)
    assert losses.info_nce(b, a, 1.0, "users") == pytest.approx(items)


@pytest.mark.parametrize("direction", losses.DIRECTIONS)
def test_info_nce_masks_other_rows_of_the_same_target(direction):
    vectors = np.tile([1.0, 1.0], (4, 1))
    loss = losses.info_nce(vectors, vectors, 0.5, direction, target_ids=[5, 5, 5, 6])
    assert loss == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert losses.info_nce(vectors, vectors, 0.5, direction, [5, 5, 5, 5]) == pytest.approx(0)
    distinct = losses.info_nce(vectors, vectors, 0.5, direction, [1, 2, 3, 4])
    assert distinct == losses.info_nce(vectors, vectors, 0.5, direction)


def test_calrec_loss_by_hand():
    assert losses.calrec_loss(2.0, 4.0, 8.0, 0.125, 0.025) == pytest.approx(1.7 + 0.5 + 0.2)


def test_numeric_gradient_of_a_cubic():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = losses.numeric_gradient(lambda y: float(np.sum(y**3)), x, 1e-5)
    np.testing.assert_allclose(gradient, 3 * x**2, rtol=1e-7)


# ranking


def test_quasi_round_robin_by_hand():
    scores = np.array([[0.0, 5.0, 10.0], [8.0, 4.0, 4.0], [3.0, 3.0, 3.0]])
    merged = ranking.quasi_round_robin(scores, np.array([-20.0, -10.0, 0.0]), 0.01)
    expected = [math.exp(-0.1), 0.5 * math.exp(-0.2), math.exp(-0.2)]
    np.testing.assert_allclose(merged, expected)


def test_quasi_round_robin_puts_each_outputs_best_item_first():
    rng = np.random.default_rng(2)
    scores = rng.uniform(0, 0.9, size=(4, 30))
    for n, item in enumerate([17, 3, 29, 8]):
        scores[n, item] = 1.0
    merged = ranking.quasi_round_robin(scores, np.array([-40.0, -10.0, -30.0, -20.0]))
    assert list(np.argsort(-merged)[:4]) == [3, 8, 29, 17]


def test_metrics_at_rank_by_hand():
    assert ranking.metrics_at_rank(3, (1, 5), (2, 10)) == {
        "recall@1": 0.0,
        "recall@5": 1.0,
        "ndcg@2": 0.0,
        "ndcg@10": 0.5,
        "mrr": 1 / 3,
    }
    assert ranking.metrics_at_rank(11)["recall@10"] == 0.0
    assert ranking.metrics_at_rank(11)["mrr"] == 1 / 11
    assert set(ranking.metrics_at_rank(1).values()) == {1.0}


def test_expected_metrics_by_hand():
    """The target is tied with one other below one better item: ranks 2 and 3, half each."""
    metrics = ranking.expected_metrics([4.0, 2.0, 2.0, 1.0], 1, (1, 2, 3), (2, 3))
    assert ranking.rank_bounds([4.0, 2.0, 2.0, 1.0], 1) == (2, 3)
    assert metrics["recall@1"] == 0 and metrics["recall@2"] == 0.5 and metrics["recall@3"] == 1
    assert metrics["ndcg@2"] == pytest.approx(0.5 / math.log2(3))
    assert metrics["ndcg@3"] == pytest.approx(0.5 / math.log2(3) + 0.25)
    assert metrics["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_every_rank_of_the_tied_block_is_equally_likely():
    rng = np.random.default_rng(3)
    for _ in range(40):
        scores = rng.integers(0, 3, size=int(rng.integers(1, 7)))
        target = int(rng.integers(len(scores)))
        by_rank = ranking.expected_metrics(scores, target, (1, 2, 5), (2, 5))
        by_order = ranking.expected_metrics_by_permutation(scores, target, (1, 2, 5), (2, 5))
        assert by_rank == pytest.approx(by_order)


def test_bm25_by_hand():
    documents = [["a", "b", "a"], ["b"], ["c", "c"]]
    rare = math.log(1 + 2.5 / 1.5)
    common = math.log(1 + 1.5 / 2.5)
    scores = ranking.bm25_scores(documents, ["a", "b", "unseen"])
    long_part, short_part = 1.5 * (0.25 + 0.75 * 1.5), 1.5 * (0.25 + 0.75 * 0.5)
    first = rare * 2 / (2 + long_part) + common / (1 + long_part)
    np.testing.assert_allclose(scores, [first, common / (1 + short_part), 0.0])
    twice = ranking.bm25_scores(documents, ["b", "b"])
    np.testing.assert_allclose(twice, 2 * ranking.bm25_scores(documents, ["b"]))


# diversity


def test_coverage_by_hand():
    assert diversity.coverage([[0, 2], [2], []], 4) == 0.5
    assert diversity.coverage([[], []], 3) == 0.0
    assert diversity.coverage([[1, 0]], 2) == 1.0


def test_gini_by_hand():
    # Counts 0, 1, 3: pairs differ by 1, 3 and 2, each twice; 12 / (2 * 3 * 4).
    assert diversity.gini([[2, 1], [2], [2]], 3) == 0.5
    assert diversity.gini([[0], [1], [2]], 3) == 0.0
    assert diversity.gini([[3], [3]], 4) == 0.75  # one item alone: (N - 1) / N
    assert diversity.gini([[]], 4) == diversity.gini([[0]], 1) == 0.0


def test_novelty_by_hand():
    # p = 1/2, 1/4, 1/8, 1/8.
    events = [3, 1, 0, 0]
    assert diversity.novelty([[0]], events) == 1.0
    assert diversity.novelty([[0, 2], [1], []], events) == 2.0
    assert diversity.novelty([[0, 3], [3]], events) == pytest.approx(7 / 3)
    assert diversity.novelty([[]], events) == diversity.novelty([[0]], [5]) == 0.0


# batches


def test_unpacked_batch_by_hand():
    batch = batches.unpacked_batch(EXAMPLES[:1], 8, 4, BOS, EOS)
    expected = {
        "decoder_input_tokens": [[BOS, 3, 4, 5, 6, 7, 0, 0]],
        "decoder_target_tokens": [[3, 4, 5, 6, 7, EOS, 0, 0]],
        "decoder_loss_weights": [[0, 0, 0, 1, 1, 1, 0, 0]],
        "decoder_positions": [[0, 1, 2, 3, 4, 5, 0, 0]],
        "decoder_segment_ids": [[1, 1, 1, 1, 1, 1, 0, 0]],
        "decoder_span_ids": [[0, 1, 1, 1, 2, 2, 0, 0]],
        "item_tokens": [[[BOS, 6, 7, 0]]],
        "item_mask": [[[0, 1, 1, 0]]],
        "target_item_ids": [[101]],
        "domain_ids": [[8]],
    }
    assert set(batch) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)
        floating = name in ("decoder_loss_weights", "item_mask")
        assert batch[name].dtype == (np.float32 if floating else np.int32), name


def test_packed_batch_by_hand():
    batch = batches.packed_batch(EXAMPLES, [[1, 0], [2]], 11, 4, 3, BOS, EOS)
    expected = {
        "decoder_input_tokens": [
            [BOS, 9, 3, 10, BOS, 3, 4, 5, 6, 7, 0],
            [BOS, 11, 4, 4, 8, 0, 0, 0, 0, 0, 0],
        ],
        "decoder_target_tokens": [
            [9, 3, 10, EOS, 3, 4, 5, 6, 7, EOS, 0],
            [11, 4, 4, 8, EOS, 0, 0, 0, 0, 0, 0],
        ],
        "decoder_loss_weights": [
            [0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0],
            [0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        ],
        "decoder_positions": [
            [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0],
            [0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0],
        ],
        "decoder_segment_ids": [
            [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0],
            [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        ],
        "decoder_span_ids": [
            [0, 1, 1, 2, 0, 1, 1, 1, 2, 2, 0],
            [0, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0],
        ],
        "item_tokens": [
            [[BOS, 10, 0, 0], [BOS, 6, 7, 0], [0, 0, 0, 0]],
            [[BOS, 4, 4, 8], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        "item_mask": [
            [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]],
            [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        "target_item_ids": [[102, 101, 0], [103, 0, 0]],
        "domain_ids": [[9, 8, 0], [8, 0, 0]],
    }
    assert set(batch) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values, err_msg=name)


def test_a_segment_a_row_is_the_unpacked_batch():
    unpacked = batches.unpacked_batch(EXAMPLES, 9, 5, BOS, EOS)
    packed = batches.packed_batch(EXAMPLES, [[0], [1], [2]], 9, 5, 1, BOS, EOS)
    assert set(unpacked) == set(packed)
    for name, values in unpacked.items():
        np.testing.assert_array_equal(packed[name], values, err_msg=name)
        assert packed[name].dtype == values.dtype


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError):
        batches.unpacked_batch(EXAMPLES, 5, 5, BOS, EOS)
    with pytest.raises(ValueError):
        batches.packed_batch(EXAMPLES, [[0, 1, 2]], 30, 5, 2, BOS, EOS)


def batch_losses(params: dict, batch: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """(L_NIG, L_TT, L_UT) of a batch, tau = 0.5, direction "users"."""
    joint = zip(
        batch["decoder_input_tokens"],
        batch["decoder_positions"],
        batch["decoder_segment_ids"],
        strict=True,
    )
    hidden = np.array([decoder.forward(params, *row, CFG) for row in joint])
    scores = np.array([decoder.logits(params, row, CFG) for row in hidden])
    length = batch["item_tokens"].shape[2]
    alone = range(length), [1] * length  # pads come last, so no token of the item sees one
    items = np.array(
        [
            [decoder.forward(params, tokens, *alone, CFG) for tokens in row]
            for row in batch["item_tokens"]
        ]
    )
    ids = batch["target_item_ids"]
    where = batch["decoder_segment_ids"], batch["decoder_span_ids"]
    v_u = losses.filled_slots(losses.pool(hidden, *where, 1, ids.shape[1]), ids)
    v_tu = losses.filled_slots(losses.pool(hidden, *where, 2, ids.shape[1]), ids)
    v_t = losses.filled_slots(losses.pool_items(items, batch["item_mask"]), ids)
    nig = losses.next_item_nll(
        scores, batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    )
    return nig, losses.info_nce(v_tu, v_t, 0.5, "users"), losses.info_nce(v_u, v_t, 0.5, "users")


def test_packed_and_unpacked_give_the_same_losses():
    params = decoder.random_params(0)
    unpacked = batch_losses(params, batches.unpacked_batch(EXAMPLES, 8, 4, BOS, EOS))
    packed = batches.packed_batch(EXAMPLES, [[2, 0], [1]], 12, 4, 3, BOS, EOS)
    assert batch_losses(params, packed) == pytest.approx(unpacked)
    assert len(set(unpacked)) == 3 and min(unpacked) > 0
