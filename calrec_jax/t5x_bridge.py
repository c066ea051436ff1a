"""The model as a model of T5X, whose partitioner, trainer and checkpoints then train a stage.

The only module that imports t5x, which no package registry has (docs/t5x.md). gin/t5x/finetune.gin
passes the classes and functions below to `t5x.train`; one run of that is one stage.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import clu.metrics
import flax
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict
from t5x import gin_utils, metrics, models, optimizers, utils
from t5x.partitioning import BasePartitioner
from t5x.train_state import TrainState

from calrec_jax.data import vocabularies
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.seqio_tasks.feature_converters import CalrecFeatureConverter
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.model_dir import saved_steps
from calrec_jax.models.decoder import Decoder, boxed_params, unboxed
from calrec_jax.models.params import Params
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.parallel.partitioning import logical_rules
from calrec_jax.runs.run import Run
from calrec_jax.training import manifest, t5x_io, weights
from calrec_jax.training.identity import Identity
from calrec_jax.training.optimizer import make_optimizer, make_schedule
from calrec_jax.training.stages import Stage
from calrec_jax.training.step import loss_sums

Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, clu.metrics.Metric]


class CalrecModel(models.BaseModel):
    """The decoder with its losses, optimizer and packing, in the interface of T5X's models.

    Making one also makes the SeqIO tasks read the data of its run.

    Args:
      run: model, data, and the one stage that is trained. T5X has mixture, steps, batch size and
        lengths of its own, which must be the same. Other settings of the run, such as when to
        validate, save and log, are not read: T5X has its own.
      dropout_rate: DROPOUT_RATE of T5X, which must be 0.

    Raises:
      CalrecError: the run has a setting that T5X cannot train with.
    """

    def __init__(self, run: Run, dropout_rate: float = 0.0):
        (stage,) = run.stages
        _check(stage, dropout_rate)
        tasks.use(run.data)
        self.run, self.stage, self.spec = run, stage, stage.spec()
        self.decoder = Decoder(run.decoder_config)
        self.FEATURE_CONVERTER_CLS = functools.partial(
            CalrecFeatureConverter,
            bos_id=vocabularies.bos_id(run.data.vocabulary),
            row_length=stage.row_length,
            max_segments=stage.max_segments,
            max_loss_tokens=stage.max_loss_tokens,
        )
        schedule = make_schedule(stage.optimizer, stage.train_steps)
        super().__init__(OptaxOptimizer(make_optimizer(stage.optimizer, schedule)))

    @property
    def identity(self) -> Identity:
        """What the weights belong to. T5X's seed is its own affair."""
        return dataclasses.replace(self.run.identity, seed=None)

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Any, input_types: Any = None
    ) -> Mapping[str, Any]:
        """Fresh parameters as plain arrays, and their logical axes in the form that T5X wants."""
        boxed = boxed_params(self.decoder, rng)
        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        axes = {
            (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(box.names if is_box(box) else ())
            for path, box in flatten_dict(boxed, is_leaf=lambda _, value: is_box(value)).items()
        }
        return {"params": unboxed(boxed), "params_axes": unflatten_dict(axes)}

    def loss_fn(
        self, params: Params, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        """(loss of the global batch, metrics).

        Raises:
          CalrecError: the batch is only a part of the global batch.
        """
        rows = batch["decoder_input_tokens"].shape[0]
        if rows != self.spec.batch_size:
            raise CalrecError(
                f"a batch of {rows} rows, and BATCH_SIZE is {self.spec.batch_size}: the losses are "
                f"means over the whole batch, so Trainer.num_microbatches must be None"
            )
        return self.eval_fn(params, batch)

    def eval_fn(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        """(loss, metrics) of a batch."""
        config = self.stage.losses
        sums = loss_sums(self.decoder, params, batch, config, self.spec.max_loss_tokens)
        means = sums.means(config)
        losses = {name: LossMetric(sums, name, config) for name in means}
        timing = {
            "timing/steps_per_second": metrics.StepsPerTime.from_model_output(),
            "timing/examples_per_second": metrics.TimeRate.from_model_output(sums.examples),
        }
        return means["loss"], losses | timing

    def predict_batch_with_aux(
        self, params: Params, batch: Batch, rng: jax.Array | None = None
    ) -> NoReturn:
        """Raises CalrecError."""
        raise CalrecError(_NO_INFERENCE)

    def score_batch(
        self, params: Params, batch: Batch, return_intermediates: bool = False
    ) -> NoReturn:
        """Raises CalrecError."""
        raise CalrecError(_NO_INFERENCE)


def _check(stage: Stage, dropout_rate: float) -> None:
    """Raises CalrecError for settings that T5X cannot train with."""
    if dropout_rate:
        raise CalrecError(f"DROPOUT_RATE is {dropout_rate}: the decoder has no dropout, give 0")
    if stage.targets != "last":
        raise CalrecError(
            f"Stage.targets is {stage.targets!r}: SeqIO's tasks, which T5X reads, give 'last'; "
            f"`calrec train` has the others"
        )
    if stage.lora is not None:
        raise CalrecError("Stage.lora is set, and T5X trains all parameters: use `calrec train`")


_NO_INFERENCE = (
    "T5X trains this model and does not sample from it: evaluate with `calrec eval` (docs/t5x.md), "
    "and leave infer_eval_dataset_cfg None"
)


@flax.struct.dataclass
class LossMetric(clu.metrics.Metric):
    """A loss of `LossSums.means`, exact over any number of batches.

    Attributes:
      sums: the sums of the batches so far.
      name: the name of the loss.
    """

    sums: LossSums
    name: str = flax.struct.field(pytree_node=False)
    config: LossConfig = flax.struct.field(pytree_node=False)

    def merge(self, other: LossMetric) -> LossMetric:
        """The metric of the batches of both."""
        return self.replace(sums=jax.tree.map(jnp.add, self.sums, other.sums))

    def compute(self) -> jax.Array:
        """The loss, a float32 scalar."""
        return self.sums.means(self.config)[self.name]


class OptaxOptimizer(optimizers.OptaxWrapper):
    """T5X's wrapper of optax, for the state of any optimizer; T5X's own supports only a few."""

    def derive_logical_axes(
        self, optimizer: optimizers.OptimizerType, param_logical_axes: Params
    ) -> optimizers.OptimizerType:
        """The optimizer with logical axes in place of arrays.

        Moments repeat the tree of the parameters: a leaf whose path ends like a parameter's, and
        which has the same shape, is split like the parameter. All others are not split (as in
        `partitioning.state_shardings`).
        """
        state = flatten_dict(optimizer.state_dict())
        axes_by_path = flatten_dict(flax.core.unfreeze(param_logical_axes))
        shapes = {path[1:]: leaf.shape for path, leaf in state.items() if path[0] == "target"}

        def axes(path: tuple[str, ...], leaf: Any) -> Any:
            ends = (path[start:] for start in range(1, len(path)))
            same = (end for end in ends if end in shapes and shapes[end] == jnp.shape(leaf))
            return axes_by_path.get(next(same, None))

        derived = {path: axes(path, leaf) for path, leaf in state.items()}
        return optimizer.restore_state(unflatten_dict(derived))


class TrainStateInitializer(utils.TrainStateInitializer):
    """T5X's class, which starts from exactly `Stage.init_from`, or raises an error.

    Parameters alone are read; step and optimizer are fresh. `init_from` is a checkpoint of T5X
    ("runs/stage1/checkpoint_300") or of a MODEL_DIR ("runs/a/stage1:best"). If T5X's own MODEL_DIR
    has a checkpoint, T5X restores all of that instead.
    """

    def __init__(self, *, init_fn: Callable[..., Any], **kwargs: Any):
        super().__init__(init_fn=init_fn, **kwargs)
        self._model = init_fn.__self__  # as T5X's own does

    def from_scratch(self, init_rng: jax.Array) -> TrainState:
        """The state of step 0.

        Raises:
          CalrecError: `init_from` is missing or damaged, or has another model or vocabulary.
        """
        state = super().from_scratch(init_rng)
        source = self._model.stage.init_from
        if source is None:
            return state
        fresh = flax.core.unfreeze(state.params)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh
        )
        jax.tree.map(lambda x: x.delete(), fresh)  # otherwise memory would hold two copies
        required = self._model.identity.required_to_train()
        if ":" in source:
            params = weights.load_params(pathlib.Path(), source, shapes, required)
        else:
            params = t5x_io.load_params(source, shapes, required)
        return state.replace_params(flax.core.freeze(params))


def on_mesh(partitioner: BasePartitioner) -> BasePartitioner:
    """The partitioner itself, changed so that its mesh is set while a program is traced.

    T5X enters the mesh with an older interface of JAX, under which the decoder's constraints have
    no effect: the compiler would choose how arrays are split.
    """
    partition = partitioner.partition

    def partition_on_mesh(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        @functools.wraps(fn)
        def traced(*inputs: Any) -> Any:
            with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
                return fn(*inputs)

        return partition(traced, *args, **kwargs)

    partitioner.partition = partition_on_mesh
    return partitioner


def summarize_config(model_dir: str, summary_writer: Any, step: int, model: CalrecModel) -> None:
    """Writes config.gin as T5X does, and manifest.json, which describes the checkpoints.

    Raises:
      CalrecError: MODEL_DIR is a URL or a relative path, or has checkpoints of another model,
        vocabulary or template.
    """
    directory = local_path(model_dir, "MODEL_DIR")
    if not directory.is_absolute():
        raise CalrecError(
            f"MODEL_DIR is {model_dir!r}, and T5X cannot save to a relative path: give "
            f"{str(directory.absolute())!r}"
        )
    if saved_steps(directory):
        manifest.require(directory, model.identity.required_to_query(), model_dir)
    gin_utils.summarize_gin_config(model_dir, summary_writer, step)
    if jax.process_index() == 0:
        described = {
            "versions": manifest.versions(),
            **model.identity.described(),
            "stages": {model.stage.name: dataclasses.asdict(model.stage)},
        }
        manifest.claim(directory, described)


def additional_rules() -> tuple[tuple[str, str | None], ...]:
    """(logical axis, mesh axis) for the model's arrays. T5X puts its own rules before them."""
    # Few key/value heads rarely divide over the mesh, which T5X refuses: each device has them all.
    return tuple(
        (name, None if name == "kv_heads" else axis) for name, axis in logical_rules(MeshConfig())
    )
