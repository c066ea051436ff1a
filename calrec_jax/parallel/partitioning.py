"""Every sharding rule: which logical axis lies along which mesh axis."""

from __future__ import annotations

import contextlib

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calrec_jax.errors import CalrecError
from calrec_jax.parallel.mesh import DATA, MODEL, MeshConfig


def logical_rules(config: MeshConfig) -> tuple[tuple[str, str | None], ...]:
    """(logical axis, mesh axis) pairs for parameters and activations."""
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


def _activation_rules(config: MeshConfig):
    # Activations are split along the batch, so their model width never is.
    return [(name, None if name == "embed" else axis) for name, axis in logical_rules(config)]


@contextlib.contextmanager
def use_mesh(mesh: Mesh, config: MeshConfig):
    """Inside, the model's sharding constraints on activations refer to `mesh`."""
    with mesh, nn.logical_axis_rules(_activation_rules(config)):
        yield


def _spec(value: nn.LogicallyPartitioned | jax.ShapeDtypeStruct, mesh: Mesh, rules: dict) -> P:
    if not isinstance(value, nn.LogicallyPartitioned):
        return P()
    axes = []
    for name, size in zip(value.names, value.value.shape, strict=True):
        axis = rules[name]
        if axis is not None and size % mesh.shape[axis]:
            # Few key/value heads on many devices are held whole on each, as is the custom.
            if name != "kv_heads":
                raise CalrecError(
                    f"a parameter's {name!r} axis of {size} does not divide over the mesh's "
                    f"{axis!r} axis of {mesh.shape[axis]}: change the model or MeshConfig"
                )
            axis = None
        axes.append(axis)
    return P(*axes)


def param_shardings(boxed_params, mesh: Mesh, config: MeshConfig):
    """A tree of NamedSharding for parameters boxed with their logical axes (by `eval_shape`).

    Raises:
      CalrecError: an axis does not divide over its mesh axis.
    """
    rules = dict(logical_rules(config))
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(
        lambda value: NamedSharding(mesh, _spec(value, mesh, rules)), boxed_params, is_leaf=is_box
    )


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
