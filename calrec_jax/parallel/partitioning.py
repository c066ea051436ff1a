"""All sharding rules: which logical axis lies along which mesh axis."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.extend.core import Primitive
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import DATA, MODEL, MeshConfig

Rules = Iterable[tuple[str, str | None]]
Tree = Any
"""A tree of arrays, shapes or shardings."""


def logical_rules(config: MeshConfig) -> tuple[tuple[str, str | None], ...]:
    """(logical axis, mesh axis) pairs, for parameters and activations.

    If two axes of an array would lie along the same mesh axis, only the one whose rule comes first
    does: activations are split along the batch, so their "embed" axis never is.
    """
    return (
        ("batch", DATA),
        ("vocab", MODEL),
        ("heads", MODEL),
        ("kv_heads", MODEL),
        ("mlp", MODEL),
        ("embed", DATA if config.shard_params_over_data else None),
        ("kv", None),
        ("length", None),
        ("layers", None),
        ("lora", None),
    )


@contextlib.contextmanager
def use_mesh(mesh: Mesh, config: MeshConfig) -> Iterator[None]:
    """A context in which `constrain` and `gathered` lay arrays out on `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_rules(config)):
        yield


def unplaced() -> contextlib.AbstractContextManager[None]:
    """A context in which nothing is laid out, for programs that do not run on the mesh."""
    return nn.logical_axis_rules(())


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """`x` with its axes along the mesh's axes as the rules say. Without rules, `x` itself.

    Without constraints the compiler chooses other layouts: for a product of the batch's rows and a
    parameter that is split along the data axis, it would compute all rows on every device.

    Args:
      axes: logical names of the axes of `x`; None = not split.

    Raises:
      RuntimeError: there are rules but no mesh. JAX and flax would drop the constraint silently.
      CalrecError: an axis does not divide over its mesh axis.
    """
    rules = nn.get_logical_axis_rules()
    if not rules:
        return x
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise RuntimeError(
            f"an array is to be split along {tuple(axes)}, and there is no mesh: call the program "
            f"inside partitioning.use_mesh (jax.set_mesh; `with mesh:` alone sets none)"
        )
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.shape, mesh.shape, rules))


def gathered(param: jax.Array, axes: Sequence[str]) -> jax.Array:
    """A parameter as it is used in computation: whole along "embed", which FSDP splits over the
    data axis. Its gradient is summed over that axis and split again.

    Args:
      axes: logical names of the axes of `param`.

    Raises:
      RuntimeError, CalrecError: as `constrain`.
    """
    # Gradients get the same constraints, in the opposite order.
    split = constrain(param, axes)
    return constrain(split, [None if axis == "embed" else axis for axis in axes])


def keeps_all_but_gathered(primitive: Primitive, *_: Any, **__: Any) -> bool:
    """A policy of `jax.checkpoint` under which parameters are gathered again for gradients.

    Otherwise a scan over layers would keep the gathered parameters of all layers on every device.
    Of other constrained arrays, the values before the constraint are kept.
    """
    return primitive.name != "sharding_constraint"


def _spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> P:
    """The PartitionSpec of an array with these logical axes."""
    mesh_axes = []
    for name, size, axis in zip(axes, shape, nn.logical_to_mesh_axes(axes, rules), strict=True):
        names_along = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(mesh_shape[name_along] for name_along in names_along)
        if size % parts:
            # Key/value heads that are too few to be split are whole on each device, as is usual.
            if name != "kv_heads":
                raise CalrecError(
                    f"an array's {name!r} axis of {size} does not divide over the mesh's "
                    f"{axis!r} axis of {parts}: change the model or MeshConfig"
                )
            axis = None
        mesh_axes.append(axis)
    return P(*mesh_axes)


def param_shardings(boxed_params: Tree, mesh: Mesh, config: MeshConfig) -> Tree:
    """The NamedShardings of parameters that are boxed with their logical axes.

    Args:
      boxed_params: arrays, or shapes as by `jax.eval_shape`.

    Raises:
      CalrecError: an axis does not divide over its mesh axis.
    """
    rules = logical_rules(config)

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    def sharding(param: Any) -> NamedSharding:
        spec = _spec(param.names, param.value.shape, mesh.shape, rules) if is_box(param) else P()
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, boxed_params, is_leaf=is_box)


def state_shardings(state_shapes: Tree, param_shardings_tree: Tree, mesh: Mesh) -> Tree:
    """The shardings of a whole training state, given those of its parameters.

    Optimizer moments repeat the parameters' tree. So a leaf is split like a parameter if its path
    ends with that parameter's path and their shapes are equal; all other leaves (counters, factored
    moments) are whole.
    """
    sharding_of = {
        _keys(path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings_tree)
    }
    shape_of = {
        _keys(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state_shapes.params)
    }
    whole = NamedSharding(mesh, P())

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = _keys(path)
        for start in range(len(keys)):
            if keys[start:] in sharding_of and shape_of[keys[start:]] == leaf.shape:
                return sharding_of[keys[start:]]
        return whole

    return jax.tree_util.tree_map_with_path(sharding, state_shapes)


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(key) for key in path)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: rows along the data axis."""
    return NamedSharding(mesh, P(DATA))


def to_global(batch: Tree, mesh: Mesh) -> Tree:
    """Global arrays, split along the data axis, of the rows that this process has of a batch.

    The rows of all processes follow each other in the order of the processes.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
