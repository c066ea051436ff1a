"""The decoder's sizes and architecture choices, as one frozen dataclass."""

from __future__ import annotations

import dataclasses

from calrec_jax.errors import CalrecError
from calrec_jax.models.lora import LoraConfig
from calrec_jax.models.rotary import RopeScaling

ATTENTION_KINDS = ("global", "sliding")
_DTYPES = ("float32", "bfloat16", "float16")
_CHOICES = {
    "activation": ("gelu", "silu"),
    "remat": ("none", "dots", "full"),
    "dtype": _DTYPES,
    "param_dtype": _DTYPES,
}
_SIZES = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size")
_POSITIVE = (
    "sliding_window",
    "rope_theta",
    "local_rope_theta",
    "query_scalar",
    "attention_softcap",
    "logit_softcap",
    "norm_eps",
)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a rotary, grouped-query decoder; model families differ in these alone.

    Attributes:
      vocab_size: V, rows of the embedding; None = as many as the vocabulary needs, rounded up to a
        multiple of 128 so that the axis divides over a mesh (set by `with_vocab_size`).
      d_model, num_layers, d_ff: residual width, depth, hidden width of the gated MLP.
      num_heads, num_kv_heads, head_dim: query heads, key/value heads (a divisor of these), width.
      activation: that of the MLP's gate, "gelu" (tanh approximation) or "silu".
      attention_pattern: the kinds of layers, repeated over the depth. A token in a "global" layer
        attends to all tokens before it, in a "sliding" layer to the last `sliding_window` tokens,
        itself included.
      sliding_window: tokens; needed if any layer is "sliding".
      rope_theta: base of the rotary wavelengths.
      local_rope_theta: `rope_theta` of "sliding" layers, without scaling; None = as in
        "global" layers.
      rope_scaling: the scaling of `rope_theta`'s frequencies; None = none.
      query_scalar: scores are divided by its square root; None = head_dim.
      query_key_norm: RMSNorm over each head of queries and keys, before they are rotated.
      attention_softcap, logit_softcap: scores before the mask, and logits, become
        cap * tanh(x / cap); None = they are not capped.
      query_key_value_bias, attention_out_bias, mlp_bias: which projections add a bias.
      post_norms: RMSNorm on the outputs of attention and MLP too, before they are added.
      norm_eps: epsilon of RMSNorm.
      norm_plus_one: RMSNorm multiplies by 1 + scale (scale starts at 0) instead of by scale.
      tie_embeddings: the unembedding is the embedding's transpose.
      scale_embedding: multiply embeddings by sqrt(d_model).
      scan_layers: one block is scanned over stacked parameters (fast to compile), or a loop.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
      dtype, param_dtype: the types of activations (the compute dtype) and of parameters.
      lora: adapters of projections; None = none. Each stage sets its own, see `stages.Stage`.
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int | None = None
    activation: str = "gelu"
    attention_pattern: tuple[str, ...] = ("global",)
    sliding_window: int | None = None
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_scaling: RopeScaling | None = None
    query_scalar: float | None = None
    query_key_norm: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    query_key_value_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    post_norms: bool = False
    norm_eps: float = 1e-6
    norm_plus_one: bool = True
    tie_embeddings: bool = True
    scale_embedding: bool = True
    scan_layers: bool = True
    remat: str = "none"
    dtype: str = "float32"
    param_dtype: str = "float32"
    lora: LoraConfig | None = None

    def __post_init__(self):
        object.__setattr__(
            self, "attention_pattern", tuple(self.attention_pattern)
        )  # may be a list
        for name in (*_SIZES, *_POSITIVE):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value < (1 if name in _SIZES else 1e-9):
                least = "at least 1" if name in _SIZES else "positive, or None"
                raise CalrecError(f"DecoderConfig.{name} is {value}: it must be {least}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise CalrecError(f"{name} {getattr(self, name)!r} is none of {known}")
        if self.num_heads % self.num_kv_heads:
            raise CalrecError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CalrecError(f"head_dim {self.head_dim} is odd: rotary embeddings need pairs")
        self._check_pattern()

    def _check_pattern(self) -> None:
        pattern = self.attention_pattern
        if not pattern or not {*pattern} <= {*ATTENTION_KINDS}:
            raise CalrecError(
                f"attention_pattern {pattern!r}: each layer is one of {ATTENTION_KINDS}"
            )
        if "sliding" in pattern and self.sliding_window is None:
            raise CalrecError("attention_pattern has 'sliding' layers: set sliding_window, tokens")

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of attention of each layer."""
        pattern = self.attention_pattern
        return tuple(pattern[layer % len(pattern)] for layer in range(self.num_layers))

    def meaning(self) -> dict[str, object]:
        """The fields that define the function that weights compute, and not how it is computed."""
        how_computed = ("dtype", "param_dtype", "remat", "scan_layers", "lora")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in how_computed}

    def with_vocab_size(self, needed: int) -> DecoderConfig:
        """This config with a vocabulary that holds `needed` ids.

        Raises:
          CalrecError: vocab_size is given and smaller than `needed`.
        """
        if self.vocab_size is None:
            return dataclasses.replace(self, vocab_size=-(-needed // 128) * 128)
        if self.vocab_size < needed:
            raise CalrecError(
                f"the vocabulary has {needed} ids but the model only {self.vocab_size}: "
                f"use the model's own vocabulary or set DecoderConfig.vocab_size"
            )
        return self
