"""The decoder's oracle against numbers worked out by hand and known identities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from oracles import decoder, losses

BOS, EOS = 1, 2
CFG = {
    "scale_plus_one": True,
    "norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "activation": "gelu",
    "tied": False,
    "scale_embedding": True,
}


def single(params: dict, tokens: list[int], cfg: dict = CFG) -> np.ndarray:
    return decoder.forward(params, tokens, range(len(tokens)), [1] * len(tokens), cfg)


def test_rms_norm_by_hand():
    x, scale = np.array([3.0, 4.0]), np.array([1.0, 0.5])
    root = math.sqrt(12.5)
    plus_one = decoder.rms_norm(x, scale, 0.0, True)
    np.testing.assert_allclose(plus_one, [6 / root, 6 / root])
    np.testing.assert_allclose(decoder.rms_norm(x, scale, 0.0, False), [3 / root, 2 / root])


def test_rope_by_hand_and_relative():
    rotated = decoder.rope(np.array([1.0, 0.0, 0.0, 1.0]), 1, 10000.0)
    slow = 0.01
    expected = [math.cos(1), -math.sin(slow), math.sin(1), math.cos(slow)]
    np.testing.assert_allclose(rotated, expected)
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=8), rng.normal(size=8)

    def score(i: int, j: int) -> float:
        return float(decoder.rope(query, i, 10000.0) @ decoder.rope(key, j, 10000.0))

    assert score(9, 4) == pytest.approx(score(5, 0))
    assert score(9, 4) != pytest.approx(score(9, 5))
    np.testing.assert_array_equal(decoder.rope(query, 0, 10000.0), query)


def test_activations_at_known_points():
    assert decoder.activate(0.0, "gelu") == decoder.activate(0.0, "silu") == 0.0
    assert decoder.activate(1.0, "gelu") == pytest.approx(0.841192, abs=1e-6)
    assert decoder.activate(2.0, "gelu") == pytest.approx(1.954598, abs=1e-6)
    assert decoder.activate(1.0, "silu") == pytest.approx(0.731059, abs=1e-6)
    with pytest.raises(ValueError):
        decoder.activate(1.0, "relu")


def test_mlp_by_hand():
    layer = {
        "w_gate": np.array([[1.0], [0.0]]),
        "w_up": np.array([[0.0], [3.0]]),
        "w_down": np.array([[1.0, -1.0]]),
    }
    out = decoder.mlp(np.array([1.0, 2.0]), layer, "silu")
    np.testing.assert_allclose(out, [6 * 0.7310585786300049, -6 * 0.7310585786300049])


def test_attention_without_scores_is_the_mean_of_the_visible_values():
    layer = {
        "wq": np.zeros((1, 1, 2)),
        "wk": np.ones((1, 1, 2)),
        "wv": np.array([[[1.0, 0.0]]]),
        "wo": np.array([[[1.0], [0.0]]]),
    }
    x = np.array([[2.0], [4.0], [9.0], [1.0], [7.0]])
    out = decoder.attention(x, layer, [0, 1, 2, 0, 0], [1, 1, 1, 2, 0], CFG)
    np.testing.assert_allclose(out, [[2.0], [3.0], [5.0], [1.0], [0.0]])


def test_attention_by_hand_scores_are_divided_by_the_root_of_the_head_size():
    layer = {
        "wq": np.full((1, 1, 4), 0.5),
        "wk": np.full((1, 1, 4), 0.5),
        "wv": np.array([[[1.0, 0.0, 0.0, 0.0]]]),
        "wo": np.array([[[1.0], [0.0], [0.0], [0.0]]]),
    }
    x = np.array([[1.0], [3.0]])
    out = decoder.attention(x, layer, [0, 0], [1, 1], CFG)
    own, other = math.exp(9 / 2), math.exp(3 / 2)
    np.testing.assert_allclose(out, [[1.0], [(3 * own + other) / (own + other)]])


def test_a_window_a_cap_and_another_divisor_by_hand():
    layer = {
        "wq": np.full((1, 1, 4), 0.5),
        "wk": np.full((1, 1, 4), 0.5),
        "wv": np.array([[[1.0, 0.0, 0.0, 0.0]]]),
        "wo": np.array([[[1.0], [0.0], [0.0], [0.0]]]),
    }
    x = np.array([[5.0], [1.0], [3.0]])
    cfg = CFG | {"query_scalar": 9.0, "attention_softcap": 0.7}
    out = decoder.attention(x, layer, [0, 0, 0], [1, 1, 1], cfg, window=2)
    own, other = (math.exp(0.7 * math.tanh(score / 3 / 0.7)) for score in (9, 3))
    first, second = (math.exp(0.7 * math.tanh(score / 3 / 0.7)) for score in (5, 1))
    np.testing.assert_allclose(
        out[:, 0], [5.0, (5 * first + second) / (first + second), (3 * own + other) / (own + other)]
    )


def test_biases_and_norms_of_queries_and_keys_by_hand():
    layer = {
        "wq": np.zeros((1, 1, 2)), "bq": np.array([[3.0, 4.0]]), "q_norm": np.array([1.0, 0.0]),
        "wk": np.array([[[7.0, 0.0]]]), "bk": np.array([[0.0, 1.0]]), "k_norm": np.zeros(2),
        "wv": np.ones((1, 1, 2)), "bv": np.array([[5.0, 0.0]]),
        "wo": np.array([[[1.0], [0.0]]]), "bo": np.array([0.25]),
    }  # fmt: skip
    out = decoder.attention(np.array([[0.0], [1.0]]), layer, [0, 0], [1, 1], CFG)
    query = np.array([6.0, 4.0]) / math.sqrt(12.5)
    keys = [np.array([0.0, 1.0]) / math.sqrt(0.5), np.array([7.0, 1.0]) / 5]
    weights = [math.exp(query @ key / math.sqrt(2)) for key in keys]
    expected = (5 * weights[0] + 6 * weights[1]) / sum(weights) + 0.25
    np.testing.assert_allclose(out, [[5.25], [expected]], rtol=1e-6)


def test_capped_logits_by_hand():
    params = decoder.random_params(0)
    hidden = single(params, [BOS, 4])
    plain = decoder.logits(params, hidden, CFG)
    capped = decoder.logits(params, hidden, CFG | {"logit_softcap": 0.5})
    np.testing.assert_allclose(capped, 0.5 * np.tanh(plain / 0.5))


def test_norms_after_attention_and_mlp_stand_before_the_sum():
    params = decoder.random_params(1, layers=1)
    layer = params["layers"][0] | {"attn_post_norm": np.ones(6), "mlp_post_norm": np.full(6, -1.0)}
    plain = {**params["layers"][0], "w_down": np.zeros((5, 6))}
    x, own = params["embedding"][5] * math.sqrt(6), []
    for scale in (0.0, 1.0):  # 1 + 1, and 1 - 1 of the MLP: it adds nothing
        normed = decoder.rms_norm(x, plain["attn_norm"], 1e-6, True)
        out = decoder.attention(normed[None], plain, [0], [1], CFG)[0]
        own.append(x + (decoder.rms_norm(out, np.ones(6), 1e-6, True) if scale else out))
    for layers, expected in (([plain], own[0]), ([layer], own[1])):
        hidden = single(params | {"layers": layers}, [5])
        normed = decoder.rms_norm(expected, params["final_norm"], 1e-6, True)
        np.testing.assert_allclose(hidden[0], normed)


def test_heads_share_key_value_heads_in_order():
    """Four heads over two: heads 0, 1 read key/value head 0; heads 2, 3 read head 1."""
    layer = {
        "wq": np.ones((1, 4, 2)),
        "wk": np.ones((1, 2, 2)),
        "wv": np.array([[[1.0, 0.0], [10.0, 0.0]]]),
        "wo": np.zeros((4, 2, 4)),
    }
    for head in range(4):
        layer["wo"][head, 0, head] = 1.0
    x = np.array([[3.0, 0, 0, 0]])
    for name in ("wq", "wk", "wv"):
        layer[name] = np.concatenate([layer[name], np.zeros((3, *layer[name].shape[1:]))])
    out = decoder.attention(x, layer, [0], [1], CFG)
    np.testing.assert_allclose(out, [[3.0, 3.0, 30.0, 30.0]])


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_forward_is_causal(activation):
    params, cfg = decoder.random_params(0), CFG | {"activation": activation}
    before = single(params, [BOS, 3, 4, 5, 6], cfg)
    after = single(params, [BOS, 3, 4, 9, 6], cfg)
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.abs(before[3:] - after[3:]).max(axis=1).min() > 1e-3


def test_forward_depends_on_relative_positions_alone():
    params, tokens = decoder.random_params(0), [BOS, 3, 4, 5]
    shifted = decoder.forward(params, tokens, [7, 8, 9, 10], [1] * 4, CFG)
    stretched = decoder.forward(params, tokens, [0, 2, 4, 6], [1] * 4, CFG)
    np.testing.assert_allclose(shifted, single(params, tokens), atol=1e-12)
    assert np.abs(stretched - single(params, tokens)).max() > 1e-3


def test_segments_do_not_see_each_other_nor_pads():
    params = decoder.random_params(0)
    packed = decoder.forward(
        params, [BOS, 3, 4, BOS, 5, 0], [0, 1, 2, 0, 1, 0], [1, 1, 1, 2, 2, 0], CFG
    )
    np.testing.assert_allclose(packed[:3], single(params, [BOS, 3, 4]), atol=1e-12)
    np.testing.assert_allclose(packed[3:5], single(params, [BOS, 5]), atol=1e-12)


def test_forward_without_layers_is_the_normed_embedding():
    params = decoder.random_params(0) | {"layers": []}
    hidden = single(params, [5], CFG | {"norm_eps": 0.5})
    row = params["embedding"][5] * math.sqrt(6)
    expected = row / math.sqrt(np.mean(row**2) + 0.5) * (1 + params["final_norm"])
    np.testing.assert_allclose(hidden[0], expected)


def test_a_layer_on_one_token_adds_its_own_value_and_then_the_mlp():
    params = decoder.random_params(1, kv_heads=2, layers=1)
    cfg = CFG | {"scale_plus_one": False, "scale_embedding": False, "activation": "silu"}
    layer = params["layers"][0]

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + 1e-6) * scale

    x = params["embedding"][5]
    value = np.einsum("d,dgk->gk", norm(x, layer["attn_norm"]), layer["wv"])
    x = x + np.einsum("hk,hkd->d", value, layer["wo"])
    normed = norm(x, layer["mlp_norm"])
    gate = normed @ layer["w_gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (normed @ layer["w_up"])) @ layer["w_down"]
    np.testing.assert_allclose(single(params, [5], cfg)[0], norm(x, params["final_norm"]))


def test_tied_logits_are_inner_products_with_the_embedding():
    params = decoder.random_params(0)
    hidden = single(params, [BOS, 4])
    tied = decoder.logits(params, hidden, CFG | {"tied": True})
    np.testing.assert_allclose(tied, hidden @ params["embedding"].T)
    np.testing.assert_allclose(decoder.logits(params, hidden, CFG), hidden @ params["unembedding"])


def test_teacher_forced_log_prob_is_the_sum_in_one_pass():
    params, prompt, continuation = decoder.random_params(0), [BOS, 3, 4], [5, 6, EOS]
    sequence = prompt + continuation
    scores = decoder.logits(params, single(params, sequence[:-1]), CFG)
    places = range(len(prompt) - 1, len(sequence) - 1)
    expected = sum(losses.log_softmax(scores[i])[sequence[i + 1]] for i in places)
    log_prob = decoder.teacher_forced_log_prob(params, prompt, continuation, CFG)
    assert log_prob == pytest.approx(expected)


def test_probabilities_of_all_two_token_answers_add_up_to_one():
    params = decoder.random_params(0)
    total = sum(
        math.exp(decoder.teacher_forced_log_prob(params, [BOS], [first, second], CFG))
        for first in range(12)
        for second in range(12)
    )
    assert total == pytest.approx(1)
