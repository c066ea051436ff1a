"""This model as one of T5X's: T5X's own partitioner, trainer and checkpoints train a stage of it.

The one module that imports t5x, which is on no registry (docs/t5x.md). gin/t5x/finetune.gin puts
what is here into `t5x.train`; a run of that is one stage.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

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

from calrec_jax.data import vocabularies
from calrec_jax.data.seqio_tasks import tasks
from calrec_jax.data.seqio_tasks.feature_converters import CalrecFeatureConverter
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.model_dir import saved_steps
from calrec_jax.models.decoder import Decoder, boxed_params, unboxed
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.parallel.partitioning import logical_rules
from calrec_jax.runs.run import Run
from calrec_jax.training import manifest, t5x_io, weights
from calrec_jax.training.identity import Identity
from calrec_jax.training.optimizer import make_optimizer, make_schedule
from calrec_jax.training.stages import Stage
from calrec_jax.training.step import loss_sums


class CalrecModel(models.BaseModel):
    """The decoder with its losses, optimizer and packing, as T5X asks for them.

    To make one makes its data what the SeqIO tasks read.

    Args:
      run: model, data and one stage, which says what is trained. T5X knows mixture, steps, batch
        size and lengths too; they must be the same. When to validate, to save and to log, and
        everything else of a run, is T5X's affair and not read here.
      dropout_rate: T5X's DROPOUT_RATE; the decoder has none.

    Raises:
      CalrecError: what is asked for is not to be had with T5X.
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

    def get_initial_variables(self, rng, input_shapes, input_types=None) -> Mapping[str, Any]:
        """Fresh parameters as plain arrays, and beside them their logical axes, as T5X has them."""
        boxed = boxed_params(self.decoder, rng)
        is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
        axes = {
            (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(box.names if is_box(box) else ())
            for path, box in flatten_dict(boxed, is_leaf=lambda _, value: is_box(value)).items()
        }
        return {"params": unboxed(boxed), "params_axes": unflatten_dict(axes)}

    def loss_fn(self, params, batch, dropout_rng):
        """(loss of the global batch, metrics).

        Raises:
          CalrecError: the batch is a part of one.
        """
        rows = batch["decoder_input_tokens"].shape[0]
        if rows != self.spec.batch_size:
            raise CalrecError(
                f"a batch of {rows} rows, and BATCH_SIZE is {self.spec.batch_size}: the losses are "
                f"means over the whole batch, so Trainer.num_microbatches must be None"
            )
        return self.eval_fn(params, batch)

    def eval_fn(self, params, batch):
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

    def predict_batch_with_aux(self, params, batch, rng=None):
        """Raises CalrecError."""
        raise CalrecError(_NO_INFERENCE)

    def score_batch(self, params, batch, return_intermediates=False):
        """Raises CalrecError."""
        raise CalrecError(_NO_INFERENCE)


def _check(stage: Stage, dropout_rate: float) -> None:
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
    """One of the losses of `LossSums.means`, exact over any number of batches."""

    sums: LossSums
    name: str = flax.struct.field(pytree_node=False)
    config: LossConfig = flax.struct.field(pytree_node=False)

    def merge(self, other: LossMetric) -> LossMetric:
        """The metric over the batches of both."""
        return self.replace(sums=jax.tree.map(jnp.add, self.sums, other.sums))

    def compute(self) -> jax.Array:
        """float32 scalar."""
        return self.sums.means(self.config)[self.name]


class OptaxOptimizer(optimizers.OptaxWrapper):
    """T5X's wrapper of optax, for any state: T5X's own knows but some."""

    def derive_logical_axes(self, optimizer, param_logical_axes):
        """The optimizer with logical axes for arrays.

        Moments repeat the parameters' tree: a leaf whose path ends like a parameter's and whose
        shape is the same is split like it; all else is whole (as `partitioning.state_shardings`).
        """
        state = flatten_dict(optimizer.state_dict())
        axes_of = flatten_dict(flax.core.unfreeze(param_logical_axes))
        shapes = {path[1:]: leaf.shape for path, leaf in state.items() if path[0] == "target"}

        def axes(path, leaf):
            ends = (path[start:] for start in range(1, len(path)))
            same = (end for end in ends if end in shapes and shapes[end] == jnp.shape(leaf))
            return axes_of.get(next(same, None))

        derived = {path: axes(path, leaf) for path, leaf in state.items()}
        return optimizer.restore_state(unflatten_dict(derived))


class TrainStateInitializer(utils.TrainStateInitializer):
    """T5X's, but what it starts from is `Stage.init_from`: exactly that, or an error.

    Parameters alone are taken; step and optimizer are fresh. `init_from` is T5X's checkpoint
    ("runs/stage1/checkpoint_300") or a stage of a MODEL_DIR ("runs/a/stage1:best"). A checkpoint in
    T5X's MODEL_DIR comes first, and is restored whole by T5X.
    """

    def __init__(self, *, init_fn, **kwargs):
        super().__init__(init_fn=init_fn, **kwargs)
        self._model = init_fn.__self__  # as T5X's own does

    def from_scratch(self, init_rng):
        """The state of step 0.

        Raises:
          CalrecError: `init_from` cannot be had, or was made with another model or vocabulary.
        """
        state = super().from_scratch(init_rng)
        source = self._model.stage.init_from
        if source is None:
            return state
        fresh = flax.core.unfreeze(state.params)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), fresh
        )
        jax.tree.map(lambda x: x.delete(), fresh)  # or there would be two copies
        required = self._model.identity.required_to_train()
        if ":" in source:
            params = weights.load_params(pathlib.Path(), source, shapes, required)
        else:
            params = t5x_io.load_params(source, shapes, required)
        return state.replace_params(flax.core.freeze(params))


def on_mesh(partitioner: BasePartitioner) -> BasePartitioner:
    """`partitioner` itself, with its mesh set while a program is traced.

    T5X enters the mesh in a way that JAX no longer counts as one: the decoder's arrays would be
    spread as the compiler likes.
    """
    partition = partitioner.partition

    def partition_on_mesh(fn, *args, **kwargs):
        @functools.wraps(fn)
        def traced(*inputs):
            with jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
                return fn(*inputs)

        return partition(traced, *args, **kwargs)

    partitioner.partition = partition_on_mesh
    return partitioner


def summarize_config(model_dir: str, summary_writer, step: int, model: CalrecModel) -> None:
    """Writes config.gin as T5X does, and manifest.json, which says what the checkpoints hold.

    Raises:
      CalrecError: MODEL_DIR is a URL or no absolute path, or has checkpoints of another model,
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
    """(logical axis, mesh axis) of this model's arrays. T5X's own rules come before them."""
    # Few key/value heads rarely divide over the mesh: T5X would refuse, so each device has all.
    return tuple(
        (name, None if name == "kv_heads" else axis) for name, axis in logical_rules(MeshConfig())
    )
