"""Every sharding rule: which logical axis lies along which mesh axis."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import DATA, MODEL, MeshConfig

Rules = Iterable[tuple[str, str | None]]


def logical_rules(config: MeshConfig) -> tuple[tuple[str, str | None], ...]:
    """(logical axis, mesh axis) pairs, for parameters and activations.

    Of two axes of an array that would lie along the same mesh axis, the one whose rule comes first
    does: activations are split along the batch, and so their "embed" axis never is.
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
def use_mesh(mesh: Mesh, config: MeshConfig):
    """Inside, `constrain` and `gathered` lay arrays out on `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(logical_rules(config)):
        yield


def unplaced():
    """A context in which nothing is laid out, for programs whose arrays are not the model's."""
    return nn.logical_axis_rules(())


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """`x` with its axes along the mesh's as the rules say; None = whole.

    What is not constrained the compiler may spread otherwise: of a product of rows of the batch
    with a parameter that is split along the data axis, it would compute all rows on every device.

    Where no rules are, `x` as it is: no mesh is expected there.

    Raises:
      RuntimeError: there are rules and no mesh. JAX and flax would drop the constraint.
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
    """A parameter as it is computed with: whole along "embed", which FSDP splits over the rows'
    devices. Its gradient is added up over them and split again.

    Args:
      axes: of `param`, as it is held.

    Raises:
      RuntimeError, CalrecError: as `constrain`.
    """
    # Gradients are constrained alike, in the opposite order.
    held = constrain(param, axes)
    return constrain(held, [None if axis == "embed" else axis for axis in axes])


def keeps_all_but_gathered(primitive, *_, **__) -> bool:
    """A policy of `jax.checkpoint`: gathered parameters are gathered again for gradients.

    Else a scan over layers would keep those of all layers on every device. What else is constrained
    is kept as it was before.
    """
    return primitive.name != "sharding_constraint"


def _spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh_shape: Mapping[str, int], rules: Rules
) -> P:
    """How an array of these logical axes is split."""
    split = []
    for name, size, axis in zip(axes, shape, nn.logical_to_mesh_axes(axes, rules), strict=True):
        along = (axis,) if isinstance(axis, str) else axis or ()
        parts = math.prod(mesh_shape[one] for one in along)
        if size % parts:
            # Few key/value heads on many devices are held whole on each, as is the custom.
            if name != "kv_heads":
                raise CalrecError(
                    f"an array's {name!r} axis of {size} does not divide over the mesh's "
                    f"{axis!r} axis of {parts}: change the model or MeshConfig"
                )
            axis = None
        split.append(axis)
    return P(*split)


def param_shardings(boxed_params, mesh: Mesh, config: MeshConfig):
    """A tree of NamedSharding for parameters boxed with their logical axes (by `eval_shape`).

    Raises:
      CalrecError: an axis does not divide over its mesh axis.
    """
    rules = logical_rules(config)
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731

    def sharding(param) -> NamedSharding:
        spec = _spec(param.names, param.value.shape, mesh.shape, rules) if is_box(param) else P()
        return NamedSharding(mesh, spec)

    return jax.tree.map(sharding, boxed_params, is_leaf=is_box)


def state_shardings(state_shapes, param_shardings_tree, mesh: Mesh):
    """Shardings of a whole training state, given those of its parameters.

    Optimizer moments repeat the parameters' tree, so a leaf whose path ends like a parameter's path
    and whose shape is the same is split like it; all else (counters, factored moments) is whole.
    """
    by_path = {
        tuple(str(key) for key in path): sharding
        for path, sharding in jax.tree_util.tree_leaves_with_path(param_shardings_tree)
    }
    shape_of = {
        tuple(str(key) for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state_shapes.params)
    }
    whole = NamedSharding(mesh, P())

    def choose(path, leaf):
        keys = tuple(str(key) for key in path)
        for start in range(len(keys)):
            if keys[start:] in by_path and shape_of[keys[start:]] == leaf.shape:
                return by_path[keys[start:]]
        return whole

    return jax.tree_util.tree_map_with_path(choose, state_shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch, split along the data axis."""
    return NamedSharding(mesh, P(DATA))


def to_global(batch, mesh: Mesh):
    """A host's rows of a batch as global arrays, split along the data axis.

    Every process gives its own rows, in the order of the processes.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
