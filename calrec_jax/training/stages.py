"""Stages of finetuning, chained: each starts from fresh weights or from another's checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from calrec_jax import ranges
from calrec_jax.batch import TARGETS, BatchSpec
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.losses import LossConfig, LossSums
from calrec_jax.model_dir import ModelDir, StageDir
from calrec_jax.models import lora
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.models.params import Params
from calrec_jax.parallel import partitioning
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import divergence, loop, manifest, processes, weights
from calrec_jax.training import state as train_state
from calrec_jax.training.identity import Identity
from calrec_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from calrec_jax.training.state import TrainState
from calrec_jax.training.step import Batch, make_train_step
from calrec_jax.training.telemetry import Telemetry
from calrec_jax.training.validation import make_validation_step, mean_losses
from calrec_jax.training.weights import load_params


@dataclasses.dataclass(frozen=True)
class Stage:
    """One finetuning round. The paper's steps, sizes and rates are not known: a run states its own.

    Attributes:
      name: its directory in MODEL_DIR.
      mixture: the registered mixture to train on, or a domain.
      train_steps, batch_size: updates, and rows of a global batch.
      task_feature_lengths: {"inputs": history tokens, "targets": target tokens with EOS}.
      targets: which items of a training sequence become targets, see `batch.TARGETS`.
      row_length, max_segments, max_loss_tokens: packing, see `BatchSpec.create`; the defaults do
        not pack.
      optimizer, losses: see there.
      lora: the adapters that are trained, while all else is frozen; None = all is trained.
      init_from: None = fresh weights; "stage1:best", "stage1:latest" or "stage1:300" = parameters
        of another stage of this MODEL_DIR; "DIR/stage1:best" = of a stage of the MODEL_DIR `DIR`,
        seen from the working directory. What becomes of its adapters: `weights.begin_adapters`
        where `lora` is given; otherwise they are merged into its weights.
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
    lora: LoraConfig | None = None
    init_from: str | None = None
    validate_period: int = 200
    save_period: int | None = None
    log_period: int = 20
    validation_batches: int | None = None
    keep_best: int = 1

    def __post_init__(self):
        ranges.require_at_least_one(self, "train_steps", "batch_size", "max_segments")
        ranges.require_at_least_one(self, "validate_period", "save_period", "log_period")
        ranges.require_at_least_one(self, "validation_batches", "keep_best")
        ranges.require_one_of(self, "targets", TARGETS)
        lengths = self.task_feature_lengths
        if isinstance(lengths, Mapping) and lengths.keys() != {"inputs", "targets"}:
            raise CalrecError(
                f"TASK_FEATURE_LENGTHS of {self.name} must be of inputs and targets, not {lengths}"
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


class TrainingData(Protocol):
    """Where the batches of stages come from: all that training knows of data."""

    def batches(self, stage: Stage, split: str, start: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This host's rows of the batches `start`, `start + 1`, ...; those of validation end."""

    def epochs(self, stage: Stage, step: int) -> Mapping[str, float]:
        """{domain: epochs of it in the training batches before `step`}, for metrics.jsonl."""

    def fingerprint(self, stage: Stage) -> Mapping[str, object]:
        """Identifies what a stage trains on, which may not change once it has saved something."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all stages of a run share.

    Attributes:
      model_dir: MODEL_DIR; a local path.
      identity: what must stay the same in this MODEL_DIR. Its `model` has its vocab_size filled in
        and no `lora`, which is each stage's own; fresh weights are drawn from its `seed`.
      data: where batches come from.
      mesh: how devices are laid out.
      decode: tokens -> text; by it the examples of a batch that cannot be trained on are shown.
    """

    model_dir: pathlib.Path
    identity: Identity
    data: TrainingData
    mesh: MeshConfig
    decode: divergence.Decode | None = None

    @contextlib.contextmanager
    def claimed(self, stages: Sequence[Stage]) -> Iterator[None]:
        """Locks MODEL_DIR and writes its manifest, before anything else is written there.

        Raises:
          CalrecError: it was made with another configuration, another process trains there, stages
            share a name, or the model or a batch cannot be spread over the mesh.
        """
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names) or not names:
            raise CalrecError(f"stages need different names, and at least one: {names}")
        mesh = make_mesh(self.mesh)
        # For their errors: a batch or a model that cannot be spread over the mesh.
        for stage in stages:
            _host_spec(stage, mesh)
        train_state.param_shapes(Decoder(self.identity.model), mesh, self.mesh)
        with processes.held_by_first(manifest.locked(self.model_dir)):
            processes.in_first(lambda: manifest.claim(self.model_dir, self._manifest(stages)))
            yield

    def run_stage(self, stage: Stage) -> None:
        """Trains one stage to its last step, from where it stopped or from `init_from`.

        A finished stage is left as it is. MODEL_DIR is `claimed` meanwhile.

        Raises:
          CalrecError: the stage's start cannot be had.
          Preempted: told to stop; everything is saved.
        """
        spec, mesh = stage.spec(), make_mesh(self.mesh)
        decoder = Decoder(dataclasses.replace(self.identity.model, lora=stage.lora))
        schedule = make_schedule(stage.optimizer, stage.train_steps)
        tx = make_optimizer(stage.optimizer, schedule)
        checkpoints = Checkpoints(self.stage_dir(stage.name).checkpoints, stage.keep_best)
        latest = checkpoints.latest_step()
        if latest == stage.train_steps and checkpoints.validated(latest):
            checkpoints.close()
            return
        with partitioning.use_mesh(mesh, self.mesh):
            shapes = train_state.state_shapes(decoder, tx, mesh, self.mesh)
            state, frozen, start = self._start(stage, decoder, tx, shapes, mesh, checkpoints)
            telemetry = Telemetry(
                self.stage_dir(stage.name),
                stage.name,
                start,
                stage.train_steps,
                stage.log_period,
                functools.partial(self.data.epochs, stage),
            )
            shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
            train_step = jax.jit(
                make_train_step(decoder, tx, schedule, stage.losses, spec.max_loss_tokens),
                donate_argnums=0,
                out_shardings=(shardings, None),
            )
            with contextlib.closing(telemetry), _save_finished(checkpoints):
                loop.train(
                    state,
                    stage.train_steps,
                    train_step=lambda state, batch: train_step(state, frozen, batch),
                    validate=self._validator(stage, spec, decoder, frozen, mesh),
                    batches=self._global_batches(stage, "train", start, mesh),
                    checkpoints=checkpoints,
                    telemetry=telemetry,
                    periods=loop.Periods(
                        stage.log_period, stage.validate_period, stage.save_period
                    ),
                    divergence_error=functools.partial(
                        divergence.error, self.stage_dir(stage.name), checkpoints, self.decode
                    ),
                )

    def stage_dir(self, stage_name: str) -> StageDir:
        """The folder of a stage of this run."""
        return ModelDir(self.model_dir).stage(stage_name)

    def _start(
        self,
        stage: Stage,
        decoder: Decoder,
        tx: optax.GradientTransformation,
        shapes: TrainState,
        mesh: Mesh,
        checkpoints: Checkpoints,
    ) -> tuple[TrainState, Params, int]:
        """The state to train on from, what is frozen, and the number of batches it has seen.

        1. The stage has a checkpoint: the latest, whole. With adapters, the frozen weights under
           them are loaded, too.
        2. `init_from`: its parameters, a fresh optimizer, step 0.
        3. Neither: fresh parameters from the run's seed.
        Nothing else: a start that is named but cannot be had is an error.
        """
        param_shapes = train_state.param_shapes(decoder, mesh, self.mesh)
        latest = checkpoints.latest_step()
        if latest is not None:
            state, position = checkpoints.restore(latest, shapes)
            frozen = {}
            if stage.lora is not None:
                frozen = weights.load_base(self.stage_dir(stage.name), lora.split(param_shapes)[1])
            return state, frozen, position["batches"]
        trained, frozen = lora.split(self._first_params(stage, decoder, param_shapes))
        return train_state.fresh_state(trained, tx, shapes), frozen, 0

    def _first_params(self, stage: Stage, decoder: Decoder, shapes: Params) -> Params:
        """All parameters of a stage that begins: adapters, and the weights under them."""
        seed, required = self.identity.seed, self.identity.required_to_train()
        if stage.lora is not None:
            params, base = weights.begin_adapters(
                self.model_dir, stage.init_from, decoder, seed, shapes, required
            )
            if jax.process_index() == 0:
                manifest.note_base(self.model_dir, stage.name, base)
            return params
        if stage.init_from is not None:
            return load_params(self.model_dir, stage.init_from, shapes, required)
        return train_state.init_params(decoder, seed, shapes)

    def _global_batches(self, stage: Stage, split: str, start: int, mesh: Mesh) -> Iterator[Batch]:
        """Checked host batches, put on the mesh."""
        host_spec = _host_spec(stage, mesh)
        for batch in self.data.batches(stage, split, start):
            host_spec.check(batch)
            yield partitioning.to_global(dict(batch), mesh)

    def _validator(
        self, stage: Stage, spec: BatchSpec, decoder: Decoder, frozen: Params, mesh: Mesh
    ) -> Callable[[TrainState], dict[str, float]]:
        """Makes the function that gives a state's validation losses."""
        step = jax.jit(make_validation_step(decoder, stage.losses, spec.max_loss_tokens))
        means = jax.jit(functools.partial(_means, config=stage.losses))

        def validate(state: TrainState) -> dict[str, float]:
            batches = self._global_batches(stage, "validation", 0, mesh)
            params = lora.join(state.params, frozen)
            losses = mean_losses((step(params, batch) for batch in batches), means)
            if losses is None:
                raise CalrecError(f"{stage.mixture} has no validation example: lower min_events?")
            return losses

        return validate

    def _manifest(self, stages: Sequence[Stage]) -> dict[str, object]:
        return {
            "versions": manifest.versions(),
            **self.identity.described(),
            "stages": {
                stage.name: dataclasses.asdict(stage) | {"data": self.data.fingerprint(stage)}
                for stage in stages
            },
        }


@contextlib.contextmanager
def _save_finished(checkpoints: Checkpoints) -> Iterator[None]:
    """Finishes the save that is under way, also where training fails, and closes the files."""
    try:
        yield
    except BaseException:
        # Closing waits for all processes, and the peers of one that failed may never come here.
        if jax.process_count() == 1:
            with contextlib.suppress(CalrecError):  # the disk is full: not the first error
                checkpoints.close()
        raise
    checkpoints.close()


def _host_spec(stage: Stage, mesh: Mesh) -> BatchSpec:
    """The sizes of one host's part of a batch. Raises CalrecError where batches do not divide."""
    spec, hosts, data = stage.spec(), jax.process_count(), mesh.shape["data"]
    if spec.batch_size % hosts or spec.batch_size % data:
        raise CalrecError(
            f"{stage.name}: batch_size {spec.batch_size} does not divide over {hosts} hosts "
            f"and the mesh's data axis of {data}"
        )
    return dataclasses.replace(spec, batch_size=spec.batch_size // hosts)


def _means(sums: LossSums, config: LossConfig) -> dict[str, jax.Array]:
    return sums.means(config)
