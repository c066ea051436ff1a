"""The decoder's dimensions and choices, as one frozen dataclass."""

from __future__ import annotations

import dataclasses

from calrec_jax.errors import CalrecError

ACTIVATIONS = ("gelu", "silu")
REMAT_POLICIES = ("none", "dots", "full")
DTYPES = ("float32", "bfloat16", "float16")
_SIZES = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff", "vocab_size")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a pre-norm, rotary, grouped-query decoder.

    Attributes:
      vocab_size: V, rows of the embedding; None = as the vocabulary needs, rounded up to a multiple
        of 128 so that the axis divides over a mesh (`with_vocab_size` fills it in).
      d_model, num_layers, d_ff: residual width, depth, hidden width of the gated MLP.
      num_heads, num_kv_heads, head_dim: query heads, key/value heads (a divisor), width.
      activation: of the MLP's gate, "gelu" (tanh approximation) or "silu".
      rope_theta: base of the rotary wavelengths.
      norm_eps: epsilon of RMSNorm.
      norm_plus_one: RMSNorm multiplies by 1 + scale (scale starts at 0) instead of by scale.
      tie_embeddings: the unembedding is the embedding's transpose.
      scale_embedding: multiply embeddings by sqrt(d_model).
      scan_layers: one compiled block scanned over stacked parameters (fast to compile), or a loop.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products), "full".
      dtype, param_dtype: of activations and of parameters.
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int | None = None
    activation: str = "gelu"
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    norm_plus_one: bool = True
    tie_embeddings: bool = True
    scale_embedding: bool = True
    scan_layers: bool = True
    remat: str = "none"
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self):
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise CalrecError(f"DecoderConfig.{name} is {value}: it must be at least 1")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise CalrecError(f"{name} {getattr(self, name)!r} is none of {DTYPES}")
        if self.num_heads % self.num_kv_heads:
            raise CalrecError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise CalrecError(f"head_dim {self.head_dim} is odd: rotary embeddings need pairs")
        if self.activation not in ACTIVATIONS:
            raise CalrecError(f"activation {self.activation!r} is none of {ACTIVATIONS}")
        if self.remat not in REMAT_POLICIES:
            raise CalrecError(f"remat {self.remat!r} is none of {REMAT_POLICIES}")

    def meaning(self) -> dict[str, object]:
        """What weights mean, and not how they are computed with: equal for the same function."""
        how = ("dtype", "param_dtype", "remat", "scan_layers")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in how}

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
