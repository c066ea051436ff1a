"""A decoder-only transformer in NumPy float64, one position and one head at a time. Sizes are read
off the parameters:

    {"embedding": [V, D], "final_norm": [D], "unembedding": [D, V] (if untied), "layers": [
        {"attn_norm": [D], "wq": [D, H, hd], "wk": [D, KV, hd], "wv": [D, KV, hd],
         "wo": [H, hd, D], "mlp_norm": [D], "w_gate": [D, F], "w_up": [D, F],
         "w_down": [F, D]}, ...]}

What a layer has besides is used: "attn_post_norm", "mlp_post_norm" [D]; "q_norm", "k_norm" [hd];
"bq" [H, hd], "bk", "bv" [KV, hd], "bo" [D]; "b_gate", "b_up" [F], "b_down" [D]. The rest is in cfg,
a dict that must have every key of CFG_KEYS and may have those of SWITCHES.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from oracles import rotary
from oracles.losses import log_softmax

CFG_KEYS = (
    "scale_plus_one",  # bool: the norms multiply by (1 + scale) instead of scale
    "norm_eps",  # float, added to the mean of squares
    "rope_theta",  # float, usually 10000
    "activation",  # "gelu" (the tanh approximation) or "silu"
    "tied",  # bool: the embedding is also the unembedding
    "scale_embedding",  # bool: embeddings are multiplied by sqrt(D)
)
SWITCHES = {
    "windows": None,  # of each layer: how many places it sees, itself included; None = all
    "local_rope_theta": None,  # float, of layers with a window, which then are not scaled
    "rope_scaling": None,  # see oracles.rotary
    "query_scalar": None,  # float: scores are divided by its root; None = hd
    "attention_softcap": None,  # float c: scores become c tanh(score / c)
    "logit_softcap": None,  # the same of logits
}


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float, scale_plus_one: bool) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * (1 + scale), or * scale if not scale_plus_one; x [D]."""
    mean_square = sum(float(value) ** 2 for value in x) / len(x)
    factor = 1 + scale if scale_plus_one else scale
    return x / math.sqrt(mean_square + eps) * factor


def rope(
    x: np.ndarray, position: int, theta: float, scaling: dict[str, Any] | None = None
) -> np.ndarray:
    """Rotary embedding of one head's vector x [hd], the first half paired with the second.

    With half = hd/2, i < half, and the angle phi_i = position * theta^(-2i/hd):
    y_i = x_i cos(phi_i) - x_{i+half} sin(phi_i);
    y_{i+half} = x_{i+half} cos(phi_i) + x_i sin(phi_i).
    """
    half = len(x) // 2
    frequencies = rotary.frequencies(theta, len(x), scaling)
    rotated = np.zeros(len(x))
    for i in range(half):
        angle = float(position) * frequencies[i]
        first, second = float(x[i]), float(x[i + half])
        rotated[i] = first * math.cos(angle) - second * math.sin(angle)
        rotated[i + half] = second * math.cos(angle) + first * math.sin(angle)
    return rotated * rotary.amplitude(scaling)


def soft_cap(x: float, cap: float | None) -> float:
    """cap tanh(x / cap), or x where there is no cap."""
    return x if cap is None else cap * math.tanh(x / cap)


def activate(x: float, name: str) -> float:
    """gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))); silu(x) = x / (1 + e^-x)."""
    if name == "gelu":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + math.exp(-x))
    raise ValueError(f"activation {name!r} is neither gelu nor silu")


def mlp(x: np.ndarray, layer: dict[str, np.ndarray], activation: str) -> np.ndarray:
    """(act(x W_gate) * (x W_up)) W_down, for one position x [D]."""
    gate = x @ layer["w_gate"] + layer.get("b_gate", 0)
    up = x @ layer["w_up"] + layer.get("b_up", 0)
    inner = np.array([activate(float(gate[f]), activation) * up[f] for f in range(len(gate))])
    return inner @ layer["w_down"] + layer.get("b_down", 0)


def visible(query: int, key: int, segment_ids: Sequence[int], window: int | None = None) -> bool:
    """Whether `query` sees the place `key`: causal, near enough, the same segment, and no pad."""
    same_segment = segment_ids[query] == segment_ids[key]
    near = window is None or query - key < window
    return key <= query and near and same_segment and segment_ids[query] != 0


def attention(
    x: np.ndarray,
    layer: dict[str, np.ndarray],
    positions: Sequence[int],
    segment_ids: Sequence[int],
    cfg: dict[str, Any],
    window: int | None = None,
) -> np.ndarray:
    """sum_h softmax_j(cap(rope(q_h) . rope(k_jg) / sqrt(hd))) v_jg W_o,h over the visible places j.

    x [S, D] -> [S, D]. Head h of H reads key/value head g = h // (H / KV). A pad sees nothing and
    gets zeros.
    """
    cfg = SWITCHES | cfg
    length, width = x.shape
    num_heads, head_dim = layer["wq"].shape[1:]
    group = num_heads // layer["wk"].shape[1]
    theta, scaling = cfg["rope_theta"], cfg["rope_scaling"]
    if window is not None and cfg["local_rope_theta"] is not None:
        theta, scaling = cfg["local_rope_theta"], None

    def project(place: int, name: str, head: int) -> np.ndarray:
        bias = layer[f"b{name}"][head] if f"b{name}" in layer else 0
        return x[place] @ layer[f"w{name}"][:, head, :] + bias

    def rotated(place: int, name: str, head: int) -> np.ndarray:
        vector = project(place, name, head)
        if f"{name}_norm" in layer:
            norm = layer[f"{name}_norm"]
            vector = rms_norm(vector, norm, cfg["norm_eps"], cfg["scale_plus_one"])
        return rope(vector, positions[place], theta, scaling)

    output = np.zeros((length, width))
    for i in range(length):
        seen = [j for j in range(length) if visible(i, j, segment_ids, window)]
        if not seen:
            continue
        for head in range(num_heads):
            kv_head = head // group
            query = rotated(i, "q", head)
            scores, values = [], []
            for j in seen:
                key = rotated(j, "k", kv_head)
                score = float(query @ key) / math.sqrt(cfg["query_scalar"] or head_dim)
                scores.append(soft_cap(score, cfg["attention_softcap"]))
                values.append(project(j, "v", kv_head))
            largest = max(scores)
            exponentials = [math.exp(score - largest) for score in scores]
            mixed = np.zeros(head_dim)
            for exponential, value in zip(exponentials, values, strict=True):
                mixed = mixed + exponential / sum(exponentials) * value
            output[i] = output[i] + mixed @ layer["wo"][head]
        output[i] = output[i] + layer.get("bo", 0)
    return output


def random_params(
    seed: int,
    vocabulary: int = 12,
    width: int = 6,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 4,
    inner: int = 5,
    layers: int = 2,
) -> dict[str, Any]:
    """Untied parameters in the layout above, each drawn from N(0, 1/4)."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) * 0.5

    def draw_layer() -> dict[str, np.ndarray]:
        return {
            "attn_norm": draw(width),
            "wq": draw(width, heads, head_dim),
            "wk": draw(width, kv_heads, head_dim),
            "wv": draw(width, kv_heads, head_dim),
            "wo": draw(heads, head_dim, width),
            "mlp_norm": draw(width),
            "w_gate": draw(width, inner),
            "w_up": draw(width, inner),
            "w_down": draw(inner, width),
        }

    return {
        "embedding": draw(vocabulary, width),
        "final_norm": draw(width),
        "unembedding": draw(width, vocabulary),
        "layers": [draw_layer() for _ in range(layers)],
    }


def _float64(params: Any) -> Any:
    if isinstance(params, dict):
        return {name: _float64(value) for name, value in params.items()}
    if isinstance(params, (list, tuple)):
        return [_float64(value) for value in params]
    return np.asarray(params, dtype=np.float64)


def forward(
    params: dict[str, Any],
    tokens: Sequence[int],
    positions: Sequence[int],
    segment_ids: Sequence[int],
    cfg: dict[str, Any],
) -> np.ndarray:
    """The last layer's hidden states after the final norm: tokens [S] -> [S, D].

    Pre-norm residual blocks: x <- x + attention(norm(x)), then x <- x + mlp(norm(x)). What stands
    at pad positions means nothing.
    """
    params, cfg = _float64(params), SWITCHES | cfg
    width = params["embedding"].shape[1]

    def normed(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
        eps, plus_one = cfg["norm_eps"], cfg["scale_plus_one"]
        return np.array([rms_norm(row, scale, eps, plus_one) for row in rows])

    rows = []
    for token in tokens:
        row = params["embedding"][int(token)]
        rows.append(row * math.sqrt(width) if cfg["scale_embedding"] else row)
    x = np.array(rows)
    windows = cfg["windows"] or [None] * len(params["layers"])
    for layer, window in zip(params["layers"], windows, strict=True):
        out = attention(normed(x, layer["attn_norm"]), layer, positions, segment_ids, cfg, window)
        x = x + (normed(out, layer["attn_post_norm"]) if "attn_post_norm" in layer else out)
        out = [mlp(row, layer, cfg["activation"]) for row in normed(x, layer["mlp_norm"])]
        out = np.array(out)
        x = x + (normed(out, layer["mlp_post_norm"]) if "mlp_post_norm" in layer else out)
    return normed(x, params["final_norm"])


def logits(params: dict[str, Any], hidden: np.ndarray, cfg: dict[str, Any]) -> np.ndarray:
    """hidden E^T if tied, else hidden W_unembedding, capped: [S, D] -> [S, V]."""
    params, cap = _float64(params), (SWITCHES | cfg)["logit_softcap"]
    matrix = params["embedding"].T if cfg["tied"] else params["unembedding"]
    rows = [row @ matrix for row in np.asarray(hidden, dtype=np.float64)]
    return np.array([[soft_cap(float(value), cap) for value in row] for row in rows])


def teacher_forced_log_prob(
    params: dict[str, Any],
    prompt: Sequence[int],
    continuation: Sequence[int],
    cfg: dict[str, Any],
) -> float:
    """score = sum_j log p(c_j | prompt, c_<j), p the softmax of the untempered logits.

    prompt is what the model is given, with BOS; continuation is what it answered, with EOS.
    Nothing is divided by the length. The whole prefix is run again for each token.
    """
    total = 0.0
    for j in range(len(continuation)):
        prefix = [int(token) for token in prompt] + [int(token) for token in continuation[:j]]
        hidden = forward(params, prefix, range(len(prefix)), [1] * len(prefix), cfg)
        log_p = log_softmax(logits(params, hidden[-1:], cfg)[0])
        total += float(log_p[int(continuation[j])])
    return total
