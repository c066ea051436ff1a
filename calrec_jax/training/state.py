"""The training state, created in its shardings."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder, boxed_params, unboxed
from calrec_jax.models.params import Params
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig


@flax.struct.dataclass
class TrainState:
    """All that training changes, saved and restored as one.

    Attributes:
      step: [] int32, finished updates of this stage.
      params: the parameters that are trained, as plain arrays: the adapters' where the decoder has
        adapters (see `lora.split`), otherwise all.
      opt_state: the optimizer's state.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def param_shapes(decoder: Decoder, mesh: Mesh, config: MeshConfig) -> Params:
    """The decoder's parameters as ShapeDtypeStructs that carry their shardings."""
    boxed = jax.eval_shape(lambda: boxed_params(decoder, jax.random.key(0)))
    shardings = partitioning.param_shardings(boxed, mesh, config)
    return jax.tree.map(_with_sharding, unboxed(boxed), shardings)


def state_shapes(
    decoder: Decoder, tx: optax.GradientTransformation, mesh: Mesh, config: MeshConfig
) -> TrainState:
    """The TrainState as ShapeDtypeStructs that carry their shardings; no array is made."""
    params, _ = lora.split(param_shapes(decoder, mesh, config))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    shapes = TrainState(step=step, params=params, opt_state=jax.eval_shape(tx.init, params))
    shardings = partitioning.state_shardings(
        shapes, jax.tree.map(lambda leaf: leaf.sharding, params), mesh
    )
    return jax.tree.map(_with_sharding, shapes, shardings)


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def init_params(decoder: Decoder, seed: int, shapes: Params) -> Params:
    """Fresh parameters, created in the shardings of `shapes` (see `param_shapes`).

    Where `shapes` hold a part of the decoder, such as its adapters, only that part is made.
    """
    wanted = flatten_dict(shapes)

    def init() -> dict[tuple[str, ...], jax.Array]:
        fresh = flatten_dict(unboxed(boxed_params(decoder, jax.random.key(seed))))
        return {path: fresh[path].astype(leaf.dtype) for path, leaf in wanted.items()}

    shardings = {path: leaf.sharding for path, leaf in wanted.items()}
    return unflatten_dict(jax.jit(init, out_shardings=shardings)())


def fresh_state(params: Params, tx: optax.GradientTransformation, shapes: TrainState) -> TrainState:
    """Step 0 with a fresh optimizer around `params`, in the shardings of `shapes`."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes.opt_state)
    opt_state = jax.jit(tx.init, out_shardings=shardings)(params)
    step = jax.device_put(jnp.zeros((), jnp.int32), shapes.step.sharding)
    return TrainState(step=step, params=params, opt_state=opt_state)
