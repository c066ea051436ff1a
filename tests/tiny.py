"""One tiny decoder for tests of the numerical core, and its parameters for the oracles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from oracles import batches
from oracles import decoder as decoder_oracle
from oracles import losses as losses_oracle

from calrec_jax.losses import LossConfig
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.params import Params
from calrec_jax.models.rotary import RopeScaling
from calrec_jax.training import step
from calrec_jax.training.step import Batch

Losses = dict[str, jax.Array]

BOS, EOS = 1, 2
CONFIG = DecoderConfig(
    vocab_size=20, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=12
)

# All options in which families differ, at once: windows shorter than the rows, two rotations, one
# of them scaled.
FAMILY = {
    "attention_pattern": ("sliding", "global"),
    "sliding_window": 3,
    "local_rope_theta": 20.0,
    "rope_scaling": RopeScaling("yarn", 4.0, 8),
    "query_scalar": 3.0,
    "query_key_norm": True,
    "attention_softcap": 1.5,
    "logit_softcap": 2.0,
    "query_key_value_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "post_norms": True,
}

# Histories and targets of different lengths; the first two have the same target item, the last
# two are of another domain.
EXAMPLES = [
    {"history": [3, 4, 5, 6], "target": [7, 8], "item_id": 101, "domain_id": 1},
    {"history": [9, 3], "target": [7, 8], "item_id": 101, "domain_id": 1},
    {"history": [11, 12, 13], "target": [14], "item_id": 102, "domain_id": 1},
    {"history": [15, 3, 16, 5, 17], "target": [18, 4, 19], "item_id": 103, "domain_id": 2},
    {"history": [10], "target": [6, 6], "item_id": 104, "domain_id": 2},
]
ROWS = [[3, 2], [0, 1, 4], []]  # a full row, one with pads, an empty one
ROW_LENGTH, ITEM_LENGTH, MAX_SEGMENTS, MAX_LOSS_TOKENS = 18, 4, 3, 9


def packed() -> dict[str, np.ndarray]:
    """EXAMPLES as ROWS, int32 and float32 arrays."""
    return batches.packed_batch(EXAMPLES, ROWS, ROW_LENGTH, ITEM_LENGTH, MAX_SEGMENTS, BOS, EOS)


def unpacked() -> dict[str, np.ndarray]:
    """EXAMPLES, one a row."""
    return batches.unpacked_batch(EXAMPLES, ROW_LENGTH, ITEM_LENGTH, BOS, EOS)


def params(config: DecoderConfig = CONFIG, seed: int = 0, size: float = 0.5) -> Params:
    """Parameters drawn from N(0, size^2), norms' scales too, whose initial values hide mistakes.

    The tree is the decoder's own; arrays are float32.
    """
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(Decoder(config).init(jax.random.key(0), tokens, tokens, tokens))
    )["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def unstacked(stacked: Params, num_layers: int) -> Params:
    """The parameters of scanned layers, in the tree of the same layers in a loop."""
    layers = {
        f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked["layers"])
        for i in range(num_layers)
    }
    return {name: value for name, value in stacked.items() if name != "layers"} | layers


def for_oracle(tree: Params, config: DecoderConfig = CONFIG) -> dict:
    """Parameters of scanned layers in the oracle's layout."""
    names = {
        "attn_norm": "attention_norm/scale",
        "wq": "attention/query/kernel",
        "wk": "attention/key/kernel",
        "wv": "attention/value/kernel",
        "wo": "attention/out/kernel",
        "mlp_norm": "mlp_norm/scale",
        "w_gate": "mlp/gate/kernel",
        "w_up": "mlp/up/kernel",
        "w_down": "mlp/down/kernel",
        "attn_post_norm": "attention_post_norm/scale",
        "mlp_post_norm": "mlp_post_norm/scale",
        "q_norm": "attention/query_norm/scale",
        "k_norm": "attention/key_norm/scale",
        "bq": "attention/query/bias",
        "bk": "attention/key/bias",
        "bv": "attention/value/bias",
        "bo": "attention/out/bias",
        "b_gate": "mlp/gate/bias",
        "b_up": "mlp/up/bias",
        "b_down": "mlp/down/bias",
    }
    stacked = flatten_dict(tree["layers"], sep="/")
    assert stacked.keys() <= {*names.values()}
    layers = [
        {
            name: np.asarray(stacked[path][i], np.float64)
            for name, path in names.items()
            if path in stacked
        }
        for i in range(config.num_layers)
    ]
    out = {
        "embedding": np.asarray(tree["embedding"], np.float64),
        "final_norm": np.asarray(tree["final_norm"]["scale"], np.float64),
        "layers": layers,
    }
    if not config.tie_embeddings:
        out["unembedding"] = np.asarray(tree["unembedding"], np.float64).T
    return out


def oracle_cfg(config: DecoderConfig = CONFIG) -> dict:
    """The other fields of the config, under the oracle's names."""
    return {
        "scale_plus_one": config.norm_plus_one,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "activation": config.activation,
        "tied": config.tie_embeddings,
        "scale_embedding": config.scale_embedding,
        "windows": [
            config.sliding_window if kind == "sliding" else None for kind in config.layer_kinds
        ],
        "local_rope_theta": config.local_rope_theta,
        "rope_scaling": config.rope_scaling and dataclasses.asdict(config.rope_scaling),
        "query_scalar": config.query_scalar,
        "attention_softcap": config.attention_softcap,
        "logit_softcap": config.logit_softcap,
    }


def oracle_hidden(tree: Params, batch: Batch, config: DecoderConfig = CONFIG) -> np.ndarray:
    """The oracle's hidden states of a batch's joint rows, float64 [B, S, D]."""
    rows = zip(
        batch["decoder_input_tokens"],
        batch["decoder_positions"],
        batch["decoder_segment_ids"],
        strict=True,
    )
    oracle_params, cfg = for_oracle(tree, config), oracle_cfg(config)
    return np.stack([decoder_oracle.forward(oracle_params, *row, cfg) for row in rows])


def oracle_losses(
    tree: Params, examples: Sequence[dict], losses: LossConfig, config: DecoderConfig = CONFIG
) -> dict[str, float]:
    """{"loss", "nig", "tt", "ut"} of examples, float64. Each is read alone, without a batch.

    Nothing is packed or padded here, so that it tests packing and padding as well.
    """
    oracle_params, cfg = for_oracle(tree, config), oracle_cfg(config)

    def read(tokens: Sequence[int]) -> np.ndarray:
        n = len(tokens)
        return decoder_oracle.forward(oracle_params, tokens, range(n), [1] * n, cfg)

    nll, count, v_u, v_tu, v_t = 0.0, 0, [], [], []
    for example in examples:
        history, target = example["history"], example["target"]
        hidden = read([BOS, *history, *target])
        ends = len(history), len(history) + len(target)
        logits = decoder_oracle.logits(oracle_params, hidden[ends[0] :], cfg)
        for row, token in zip(logits, [*target, EOS], strict=True):
            nll -= losses_oracle.log_softmax(row)[token]
            count += 1
        v_u.append(hidden[1 : 1 + ends[0]].mean(axis=0))
        v_tu.append(hidden[1 + ends[0] :].mean(axis=0))
        v_t.append(read([BOS, *target])[1:].mean(axis=0))
    same = [example["item_id"] for example in examples] if losses.mask_same_target else None

    def info_nce(a: Sequence[np.ndarray]) -> float:
        if losses.same_domain_negatives:
            raise NotImplementedError("the oracle has no domains")
        return losses_oracle.info_nce(a, v_t, losses.temperature, losses.direction, same)

    nig, tt, ut = nll / count, info_nce(v_tu), info_nce(v_u)
    loss = losses_oracle.calrec_loss(nig, tt, ut, losses.alpha, losses.beta)
    return {"loss": loss, "nig": nig, "tt": tt, "ut": ut}


# These programs run for microseconds but compile for seconds, so they are not optimised.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_jit = functools.partial(
    jax.jit, static_argnames=("losses", "config", "max_loss_tokens"), compiler_options=FAST
)


def _means(
    tree: Params, batch: Batch, losses: LossConfig, config: DecoderConfig, max_loss_tokens: int
) -> Losses:
    sums = step.loss_sums(Decoder(config), tree, batch, losses, max_loss_tokens)
    return sums.means(losses)


@_jit
def losses_of(
    tree: Params,
    batch: Batch,
    losses: LossConfig,
    config: DecoderConfig = CONFIG,
    max_loss_tokens: int = MAX_LOSS_TOKENS,
) -> Losses:
    """calrec_jax's {"loss", "nig"[, "tt", "ut"]} of a batch; compiled once for each config."""
    return _means(tree, batch, losses, config, max_loss_tokens)


@_jit
def losses_and_gradient(
    tree: Params,
    batch: Batch,
    losses: LossConfig,
    config: DecoderConfig = CONFIG,
    max_loss_tokens: int = MAX_LOSS_TOKENS,
) -> tuple[Losses, Params]:
    """The same, and the gradient of "loss"."""

    def loss(p: Params) -> tuple[jax.Array, Losses]:
        means = _means(p, batch, losses, config, max_loss_tokens)
        return means["loss"], means

    gradient, means = jax.grad(loss, has_aux=True)(tree)
    return means, gradient


@_jit
def gradients(
    tree: Params,
    batch: Batch,
    losses: LossConfig,
    config: DecoderConfig = CONFIG,
    max_loss_tokens: int = MAX_LOSS_TOKENS,
) -> dict[str, Params]:
    """{name: gradient} of all means."""
    return jax.jacrev(lambda p: _means(p, batch, losses, config, max_loss_tokens))(tree)


def changed(**fields: Any) -> DecoderConfig:
    """CONFIG with these fields."""
    return dataclasses.replace(CONFIG, **fields)
