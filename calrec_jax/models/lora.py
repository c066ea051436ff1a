"""Low-rank adapters of projections (LoRA, Hu et al. 2021, arXiv 2106.09685).

A projection x W becomes x W + (alpha / rank) (x A) B; A and B alone are trained. They stand beside
the projection's kernel in the tree of parameters, as `lora_a` [*inputs, R] and `lora_b`
[R, *outputs], float32, with an axis of layers before them where the layers are stacked.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.errors import CalrecError

A, B, KERNEL = "lora_a", "lora_b", "kernel"

# {path in a block: (axes of inputs, axes of outputs)} of all projections.
PROJECTIONS = {
    "attention/query": (1, 2),
    "attention/key": (1, 2),
    "attention/value": (1, 2),
    "attention/out": (2, 1),
    "mlp/gate": (1, 1),
    "mlp/up": (1, 1),
    "mlp/down": (1, 1),
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections have adapters, and of what size.

    Attributes:
      rank: R, at least 1.
      alpha: the update is multiplied by alpha / rank.
      pattern: a regular expression that a projection's path in its block must match as a whole:
        "attention/query", "mlp/(gate|up|down)", ".*" = all of `PROJECTIONS`.
    """

    rank: int = 8
    alpha: float = 16.0
    pattern: str = "attention/(query|value)"

    def __post_init__(self):
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            # What is of another type is told by whoever reads the configuration.
            if isinstance(value, (int, float)) and value < (1 if name == "rank" else 1e-9):
                least = "at least 1" if name == "rank" else "positive"
                raise CalrecError(f"LoraConfig.{name} is {value}: it must be {least}")
        if not isinstance(self.pattern, str):
            return
        try:
            found = any(self.adapts(projection) for projection in PROJECTIONS)
        except re.error as error:
            raise CalrecError(
                f"LoraConfig.pattern {self.pattern!r} is no regular expression: {error}"
            ) from error
        if not found:
            raise CalrecError(
                f"LoraConfig.pattern {self.pattern!r} matches no projection: they are "
                f"{', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, projection: str) -> bool:
        """Whether a projection, "attention/query", has adapters."""
        return re.fullmatch(self.pattern, projection) is not None


def split(params) -> tuple[dict, dict]:
    """(what is trained, what is frozen): adapters and the rest; without adapters, all and {}."""
    flat = flatten_dict(params)
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in (A, B)}
    if not adapters:
        return params, {}
    rest = {path: leaf for path, leaf in flat.items() if path not in adapters}
    return unflatten_dict(adapters), unflatten_dict(rest)


def join(trained, frozen):
    """Parameters of what `split` gave; no array is touched."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def merge(params, config: LoraConfig) -> dict:
    """`params` without adapters: each adapted kernel is W + alpha / rank A B.

    Computed in float32 and rounded to the kernel's type; kernels may be stacked along layers.
    """
    flat = flatten_dict(params)
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in (A, B)}
    for *at, name in flat:
        if name == A:
            kernel, a, b = (flat[*at, leaf] for leaf in (KERNEL, A, B))
            merged[*at, KERNEL] = _merged(kernel, a, b, config.scale)
    return unflatten_dict(merged)


def _merged(kernel, a, b, scale: float) -> jax.Array:
    def one(kernel, a, b):
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        # On a TPU a product of float32 is one of bfloat16, unless it is asked for.
        update = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    stacked = a.ndim + b.ndim - kernel.ndim > 2
    return (jax.vmap(one) if stacked else one)(kernel, a, b)


def adapter_shapes(shapes, config: LoraConfig) -> dict:
    """Adapters for `shapes`, parameters without any: ShapeDtypeStructs with shardings, as they are.

    They are split as their kernels are, and whole along R.
    """
    found: dict[tuple, Any] = {}
    for (*at, name), kernel in flatten_dict(shapes).items():
        projection = "/".join(at[-2:])
        if name != KERNEL or not config.adapts(projection):
            continue
        inputs, outputs = PROJECTIONS[projection]
        first, middle = kernel.ndim - inputs - outputs, kernel.ndim - outputs
        shape, spec = kernel.shape, kernel.sharding.spec
        axes = (*spec, *[None] * (kernel.ndim - len(spec)))
        found[*at, A] = _like(kernel, (*shape[:middle], config.rank), (*axes[:middle], None))
        found[*at, B] = _like(
            kernel,
            (*shape[:first], config.rank, *shape[middle:]),
            (*axes[:first], None, *axes[middle:]),
        )
    return unflatten_dict(found)


def _like(kernel, shape, axes) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(kernel.sharding.mesh, P(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
