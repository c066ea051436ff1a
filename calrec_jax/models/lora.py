"""Low-rank adapters of projections (LoRA, Hu et al. 2021, arXiv 2106.09685).

A projection x W becomes x W + (alpha / rank) (x A) B, and only A and B are trained. In the tree of
parameters they are beside the projection's kernel, as `lora_a` [*inputs, R] and `lora_b`
[R, *outputs], float32, with a leading axis of layers where the layers are stacked.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.errors import CalrecError
from calrec_jax.models.params import Params

A, B, KERNEL = "lora_a", "lora_b", "kernel"

# {path in a block: (number of input axes, number of output axes)} of all projections.
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
    """Which projections have adapters, and their size.

    Attributes:
      rank: R, at least 1.
      alpha: the update is multiplied by alpha / rank.
      pattern: a regular expression; projections whose whole path in a block matches have adapters:
        "attention/query", "mlp/(gate|up|down)", ".*" = all of `PROJECTIONS`.
    """

    rank: int = 8
    alpha: float = 16.0
    pattern: str = "attention/(query|value)"

    def __post_init__(self):
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            # A value of another type is reported by the code that reads the configuration.
            if isinstance(value, (int, float)) and value < (1 if name == "rank" else 1e-9):
                least = "at least 1" if name == "rank" else "positive"
                raise CalrecError(f"LoraConfig.{name} is {value}: it must be {least}")
        if not isinstance(self.pattern, str):
            return
        try:
            adapts_any = any(self.adapts(projection) for projection in PROJECTIONS)
        except re.error as error:
            raise CalrecError(
                f"LoraConfig.pattern {self.pattern!r} is no regular expression: {error}"
            ) from error
        if not adapts_any:
            raise CalrecError(
                f"LoraConfig.pattern {self.pattern!r} matches no projection: they are "
                f"{', '.join(PROJECTIONS)}"
            )

    @property
    def scale(self) -> float:
        """alpha / rank, by which the product of the adapters is multiplied."""
        return self.alpha / self.rank

    def adapts(self, projection: str) -> bool:
        """Whether a projection, "attention/query", has adapters."""
        return re.fullmatch(self.pattern, projection) is not None


def split(params: Params) -> tuple[Params, Params]:
    """(trained, frozen) parameters: the adapters and the rest, or all and {} without adapters."""
    flat = flatten_dict(params)
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in (A, B)}
    if not adapters:
        return params, {}
    rest = {path: leaf for path, leaf in flat.items() if path not in adapters}
    return unflatten_dict(adapters), unflatten_dict(rest)


def join(trained: Params, frozen: Params) -> Params:
    """The parameters that `split` divided; no array is copied."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained) | flatten_dict(frozen))


def merge(params: Params, config: LoraConfig) -> Params:
    """`params` with the adapters merged into their kernels: each becomes W + alpha / rank A B.

    That is computed in float32 and rounded to the kernel's type. Kernels may be stacked along
    layers.
    """
    flat = flatten_dict(params)
    merged = {path: leaf for path, leaf in flat.items() if path[-1] not in (A, B)}
    for *at, name in flat:
        if name == A:
            kernel, a, b = (flat[*at, leaf] for leaf in (KERNEL, A, B))
            merged[*at, KERNEL] = _merged(kernel, a, b, config.scale)
    return unflatten_dict(merged)


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    def merge_layer(kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        # By default a TPU multiplies float32 matrices in bfloat16.
        update = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
        return (kernel.astype(jnp.float32) + scale * update).astype(kernel.dtype)

    is_stacked = a.ndim + b.ndim - kernel.ndim > 2
    return (jax.vmap(merge_layer) if is_stacked else merge_layer)(kernel, a, b)


def adapter_shapes(shapes: Params, config: LoraConfig) -> Params:
    """The adapters of parameters that have none, as ShapeDtypeStructs with shardings.

    They are split as their kernels are, and whole along R.

    Args:
      shapes: the parameters, as ShapeDtypeStructs with shardings.
    """
    adapters: dict[tuple[str, ...], jax.ShapeDtypeStruct] = {}
    for (*at, name), kernel in flatten_dict(shapes).items():
        projection = "/".join(at[-2:])
        if name != KERNEL or not config.adapts(projection):
            continue
        inputs, outputs = PROJECTIONS[projection]
        first, middle = kernel.ndim - inputs - outputs, kernel.ndim - outputs
        shape, spec = kernel.shape, kernel.sharding.spec
        axes = (*spec, *[None] * (kernel.ndim - len(spec)))
        adapters[*at, A] = _like(kernel, (*shape[:middle], config.rank), (*axes[:middle], None))
        adapters[*at, B] = _like(
            kernel,
            (*shape[:first], config.rank, *shape[middle:]),
            (*axes[:first], None, *axes[middle:]),
        )
    return unflatten_dict(adapters)


def _like(
    kernel: jax.ShapeDtypeStruct, shape: Sequence[int], axes: Sequence[Any]
) -> jax.ShapeDtypeStruct:
    """A float32 shape on the kernel's mesh. `axes`: the mesh axis that each axis is split along."""
    sharding = NamedSharding(kernel.sharding.mesh, P(*axes))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
