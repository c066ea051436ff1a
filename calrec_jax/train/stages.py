"""Stages of finetuning, chained: each starts from fresh weights or from another's checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from calrec_jax.batch import TARGETS, BatchSpec
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError, local_path
from calrec_jax.losses import LossConfig
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.train import loop, manifest
from calrec_jax.train import state as train_state
from calrec_jax.train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.train.step import make_train_step, make_validation_step
from calrec_jax.train.telemetry import Telemetry

_COUNTS = (
    "train_steps",
    "batch_size",
    "max_segments",
    "validate_period",
    "save_period",
    "log_period",
    "validation_batches",
    "keep_best",
)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One finetuning round. The paper's steps, sizes and rates are not known: a run states its own.

    Attributes:
      name: its directory in MODEL_DIR.
      mixture: the SeqIO mixture or task to train on.
      train_steps, batch_size: updates, and rows of a global batch.
      task_feature_lengths: {"inputs": history tokens, "targets": target tokens with EOS}.
      targets: what examples are made of the training sequences, see `batch.TARGETS`.
      row_length, max_segments, max_loss_tokens: packing, see `BatchSpec.create`; the defaults do
        not pack.
      optimizer, losses: see there.
      init_from: None = fresh weights; "stage1:best", "stage1:latest" or "stage1:300" = parameters
        of another stage of this MODEL_DIR; "DIR/stage1:best" = of a stage of the MODEL_DIR `DIR`,
        seen from the working directory.
      validate_period, save_period, log_period: see `loop.Periods`.
      validation_batches: at most so many batches a validation; None = the whole split.
      keep_best: how many of the best checkpoints stay (besides the latest).
    """

    name: str
    mixture: str
    train_steps: int
    batch_size: int
    task_feature_lengths: Mapping[str, int]
    targets: str = "last"
    row_length: int | None = None
    max_segments: int = 1
    max_loss_tokens: int | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    losses: LossConfig = LossConfig()
    init_from: str | None = None
    validate_period: int = 200
    save_period: int | None = None
    log_period: int = 20
    validation_batches: int | None = None
    keep_best: int = 1

    def __post_init__(self):
        for name in _COUNTS:
            value = getattr(self, name)
            # What is of another type is told by whoever reads the configuration.
            if isinstance(value, int) and value < 1:
                raise CalrecError(f"Stage.{name} is {value}: it must be at least 1")
        if self.targets not in TARGETS:
            raise CalrecError(
                f"Stage.targets is {self.targets!r}: it must be one of {', '.join(TARGETS)}"
            )

    def spec(self) -> BatchSpec:
        """The sizes of this stage's batches."""
        return BatchSpec.create(
            self.batch_size,
            self.task_feature_lengths,
            self.row_length,
            self.max_segments,
            self.max_loss_tokens,
        )


# (stage, split, start) -> this host's rows of batch start, start + 1, ...; validation ends.
MakeBatches = Callable[[Stage, str, int], Iterator[Mapping[str, np.ndarray]]]
# (stage, step) -> epochs of each domain that the training batches before `step` hold.
Epochs = Callable[[Stage, int], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all stages of a run share.

    Attributes:
      model_dir: MODEL_DIR; a local path.
      model: the decoder, with its vocab_size filled in.
      make_batches: see `MakeBatches`; the only thing that knows where data comes from.
      mesh: how devices are laid out.
      seed: of fresh weights.
      identity: what else must stay the same in this MODEL_DIR: {"vocabulary": ..., "data": ...}.
      epochs: see `Epochs`; told in metrics.jsonl.
      data_of: stage -> what its data is, which must stay the same too.
    """

    model_dir: pathlib.Path
    model: DecoderConfig
    make_batches: MakeBatches
    mesh: MeshConfig
    seed: int
    identity: Mapping[str, object]
    epochs: Epochs = lambda stage, step: {}
    data_of: Callable[[Stage], Mapping[str, object]] = lambda stage: {}

    def claim(self, stages: Sequence[Stage]) -> None:
        """Makes MODEL_DIR this run's, before anything else is written there.

        Raises:
          CalrecError: it was made with another configuration, stages share a name, or the model or
            a batch cannot be spread over the mesh.
        """
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names) or not names:
            raise CalrecError(f"stages need different names, and at least one: {names}")
        mesh = make_mesh(self.mesh)
        for stage in stages:
            _host_spec(stage, mesh)
        train_state.param_shapes(Decoder(self.model), mesh, self.mesh)
        if jax.process_index() == 0:
            manifest.claim(self.model_dir, self._manifest(stages))

    def run(self, stages: Sequence[Stage]) -> None:
        """Runs the chain; finished stages are left as they are, a begun one goes on.

        Raises:
          CalrecError: a stage's start cannot be had.
          Preempted: told to stop; everything is saved.
        """
        for stage in stages:
            self.run_stage(stage)

    def run_stage(self, stage: Stage) -> None:
        """Trains one stage to its last step, from where it stopped or from `init_from`."""
        spec, mesh = stage.spec(), make_mesh(self.mesh)
        decoder = Decoder(self.model)
        schedule = make_schedule(stage.optimizer, stage.train_steps)
        tx = make_optimizer(stage.optimizer, schedule)
        checkpoints = Checkpoints(self.checkpoint_dir(stage.name), stage.keep_best)
        latest = checkpoints.latest_step()
        if latest == stage.train_steps and checkpoints.validated(latest):
            checkpoints.close()
            return
        with partitioning.use_mesh(mesh, self.mesh):
            shapes = train_state.state_shapes(decoder, tx, mesh, self.mesh)
            state, start = self._start(stage, decoder, tx, shapes, checkpoints)
            telemetry = Telemetry(
                self.model_dir / stage.name,
                stage.name,
                start,
                stage.train_steps,
                stage.log_period,
                functools.partial(self.epochs, stage),
            )
            step = make_train_step(decoder, tx, schedule, stage.losses, spec.max_loss_tokens)
            shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
            with contextlib.closing(telemetry), _save_finished(checkpoints):
                loop.train(
                    state,
                    stage.train_steps,
                    train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
                    validate=self._validator(stage, spec, decoder, mesh),
                    batches=self._global_batches(stage, "train", start, mesh),
                    checkpoints=checkpoints,
                    telemetry=telemetry,
                    periods=loop.Periods(
                        stage.log_period, stage.validate_period, stage.save_period
                    ),
                )

    def checkpoint_dir(self, stage_name: str) -> pathlib.Path:
        """Where a stage of this run keeps its checkpoints."""
        return self.model_dir / stage_name / "checkpoints"

    def _start(self, stage, decoder, tx, shapes, checkpoints):
        """The state to train on from, and the number of batches it has seen.

        1. A checkpoint of this stage: all of it, from the latest.
        2. `init_from`: its parameters, a fresh optimizer, step 0.
        3. Neither: fresh parameters from the run's seed.
        Nothing else: a start that is named but cannot be had is an error.
        """
        latest = checkpoints.latest_step()
        if latest is not None:
            state, position = checkpoints.restore(latest, shapes)
            return state, position["batches"]
        if stage.init_from is not None:
            needs = {"vocabulary": self.identity["vocabulary"], "model": self.model.meaning()}
            params = load_params(self.model_dir, stage.init_from, shapes.params, needs)
        else:
            params = train_state.init_params(decoder, self.seed, shapes.params)
        return train_state.fresh_state(params, tx, shapes), 0

    def _global_batches(self, stage, split: str, start: int, mesh):
        """Checked host batches, put on the mesh."""
        host_spec = _host_spec(stage, mesh)
        for batch in self.make_batches(stage, split, start):
            host_spec.check(batch)
            yield partitioning.to_global(dict(batch), mesh)

    def _validator(self, stage, spec: BatchSpec, decoder, mesh):
        step = jax.jit(make_validation_step(decoder, stage.losses, spec.max_loss_tokens))
        means = jax.jit(functools.partial(_means, config=stage.losses))

        def validate(state) -> dict[str, float]:
            batches = self._global_batches(stage, "validation", 0, mesh)
            losses = loop.mean_losses((step(state.params, batch) for batch in batches), means)
            if losses is None:
                raise CalrecError(f"{stage.mixture} has no validation example: lower min_events?")
            return losses

        return validate

    def _manifest(self, stages: Sequence[Stage]) -> dict:
        import flax
        import optax
        import orbax.checkpoint

        import calrec_jax

        modules = {"calrec_jax": calrec_jax, "jax": jax, "flax": flax, "optax": optax}
        versions = {name: module.__version__ for name, module in modules.items()}
        return {
            "versions": versions | {"orbax-checkpoint": orbax.checkpoint.__version__},
            "model": dataclasses.asdict(self.model),
            **self.identity,
            "stages": {
                stage.name: dataclasses.asdict(stage) | {"data": self.data_of(stage)}
                for stage in stages
            },
        }


@contextlib.contextmanager
def _save_finished(checkpoints: Checkpoints):
    """Finishes the save that is under way, also where training fails, and lets go."""
    try:
        yield
    except BaseException:
        # Alone, a process can do so; peers of one that fails would never come to it.
        if jax.process_count() == 1:
            with contextlib.suppress(CalrecError):  # the disk is full: not the first error
                checkpoints.close()
        raise
    checkpoints.close()


def _host_spec(stage: Stage, mesh) -> BatchSpec:
    """The sizes of one host's part of a batch. Raises CalrecError where batches do not divide."""
    spec, hosts, data = stage.spec(), jax.process_count(), mesh.shape["data"]
    if spec.batch_size % hosts or spec.batch_size % data:
        raise CalrecError(
            f"{stage.name}: batch_size {spec.batch_size} does not divide over {hosts} hosts "
            f"and the mesh's data axis of {data}"
        )
    return dataclasses.replace(spec, batch_size=spec.batch_size // hosts)


def _means(sums, config: LossConfig):
    return sums.means(config)


def load_params(model_dir, source: str, shapes, needs: Mapping[str, object]):
    """Parameters that `source` names, in the shardings of `shapes`.

    Args:
      model_dir: where a bare stage name is looked up.
      source: "stage1:best", "stage1:latest" or "stage1:300" of `model_dir`, or with a MODEL_DIR
        before it, "DIR/stage1:best": a path as any other, from the working directory.
      shapes: see `state.param_shapes`.
      needs: what the source's manifest must share, see `manifest.require`.

    Raises:
      CalrecError: there is no such stage or checkpoint, or its tree or what it needs differs.
    """
    stage_dir, step = find_checkpoint(model_dir, source)
    manifest.require(stage_dir.parent, needs, source)
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    params = checkpoints.restore_params(step, shapes)
    checkpoints.close()
    return params


def find_checkpoint(model_dir, source: str) -> tuple[pathlib.Path, int]:
    """The folder of the stage and the step that `source` names now, see `load_params`.

    Raises:
      CalrecError: there is no such stage or checkpoint.
    """
    path, colon, which = source.rpartition(":")
    if not colon or not path:
        raise CalrecError(f"{source!r} names no checkpoint: write 'stage1:best', 'DIR/stage1:best'")
    stage_dir = local_path(path, source) if "/" in path else pathlib.Path(model_dir) / path
    stage_dir = stage_dir.absolute()
    if not (stage_dir / "checkpoints").is_dir():
        there = sorted(p.parent.name for p in stage_dir.parent.glob("*/checkpoints"))
        raise CalrecError(f"{source!r}: no checkpoints in {stage_dir}; stages there: {there}")
    checkpoints = Checkpoints(stage_dir / "checkpoints", read_only=True)
    step = checkpoints.resolve(which)
    checkpoints.close()
    return stage_dir, step
