"""A run as gin describes it, and how its parts are put together: the one place that knows all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from calrec_jax.cli import inference
from calrec_jax.cli.inference import domain_of
from calrec_jax.cli.main import show_error
from calrec_jax.configs import gin_config
from calrec_jax.data import domains, inspection, vocabularies
from calrec_jax.data.domains import DataConfig
from calrec_jax.data.loader import Batches
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError
from calrec_jax.eval.evaluator import EvaluationConfig
from calrec_jax.eval.predictions import write_json
from calrec_jax.models.config import DecoderConfig
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.report import training_data
from calrec_jax.training import manifest, weights
from calrec_jax.training.stages import Stage, Trainer

_PATHS = ("DATA_DIR", "MODEL_DIR", "VOCABULARY_PATH", "PRETRAINED")  # macros
# Process 0 is who the others are connected to: were it to leave first on a mistake that all of them
# are about to find, their own line would stand among those of a lost connection.
_LINGER_SECONDS = 3


@dataclasses.dataclass(frozen=True)
class Run:
    """A chain of stages and the evaluation of what comes out.

    Attributes:
      model_dir: MODEL_DIR, where everything is written.
      model: the decoder.
      data: store, vocabulary, template.
      modules: MIXTURE_OR_TASK_MODULE(s), which register the domains.
      stages: in the order in which they run.
      evaluation: of one checkpoint, on domains; None = the run trains, and is not asked.
      mesh: how devices are laid out.
      seed: of fresh weights and of the order of examples.

    Raises:
      CalrecError: there is no stage, or a stage's lengths are not of inputs and targets.
    """

    model_dir: str
    model: DecoderConfig
    data: DataConfig
    modules: str | Sequence[str]
    stages: Sequence[Stage]
    evaluation: EvaluationConfig | None
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def __post_init__(self):
        if not self.stages:
            raise CalrecError("STAGES is empty: a run needs at least one stage")
        for stage in self.stages if isinstance(self.stages, (list, tuple)) else ():
            lengths = getattr(stage, "task_feature_lengths", None)
            if isinstance(lengths, dict) and lengths.keys() != {"inputs", "targets"}:
                raise CalrecError(
                    f"TASK_FEATURE_LENGTHS of {stage.name} must be of inputs and targets, not "
                    f"{lengths}"
                )

    @functools.cached_property
    def decoder_config(self) -> DecoderConfig:
        """The decoder, with a vocabulary that holds the run's.

        Raises:
          CalrecError: it does not, or has adapters, which are a stage's.
        """
        if self.model.lora is not None:
            raise CalrecError("DecoderConfig.lora is bound: adapters are a stage's, Stage.lora")
        return self.model.with_vocab_size(self.data.vocabulary.vocab_size)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The domains of the evaluation, if there is one."""
        return () if self.evaluation is None else self.evaluation.domains

    def require_evaluation(self) -> EvaluationConfig:
        """The evaluation. Raises CalrecError where there is none."""
        if self.evaluation is None:
            raise CalrecError(
                "Run.evaluation is None, so nothing says how the model is asked: bind it to "
                "@evaluator.EvaluationConfig(), as gin/stages/two_stage.gin does"
            )
        return self.evaluation

    @property
    def identity(self) -> dict[str, object]:
        """What must stay the same in a MODEL_DIR, besides model and stages."""
        return {
            "vocabulary": vocabularies.fingerprint(self.data.vocabulary),
            "data": {"template": dataclasses.asdict(self.data.template), "seed": self.seed},
        }


def from_gin(files: Sequence[str], bindings: Sequence[str], search_paths: str = "") -> Run:
    """The run that gin files and bindings describe, with its domains registered.

    Raises:
      CalrecError: as `gin_config.parse` and `configured`, or a module cannot be imported.
    """
    gin_config.parse(files, bindings, search_paths)
    gin_config.make_absolute(_PATHS)
    run = gin_config.configured(Run)
    domains.use(run.data)
    # Saved arrays bring their domains and mixtures along; the modules may need TensorFlow.
    if not arrays.is_saved(run.data.data_dir):
        domains.import_modules([run.modules] if isinstance(run.modules, str) else run.modules)
    return run


def from_model_dir(
    model_dir: str | os.PathLike, bindings: Sequence[str] = (), search_paths: str = ""
) -> Run:
    """The run that made MODEL_DIR, from its config.gin; `bindings` override it.

    Raises:
      CalrecError: as `from_gin`, or no run made `model_dir`.
    """
    path = pathlib.Path(model_dir) / gin_config.CONFIG
    if not path.is_file():
        raise CalrecError(f"{model_dir} is no MODEL_DIR of `calrec train`: it has no {path.name}")
    run = from_gin([str(path)], bindings, search_paths)
    # The folder may have been moved since it was made.
    return dataclasses.replace(run, model_dir=os.path.abspath(model_dir))


def train(run: Run) -> None:
    """Runs the stages, or goes on with them.

    Raises:
      CalrecError: a later stage or the evaluation could not work, or as `Trainer.run`.
      Preempted: told to stop; everything is saved.
    """
    _check_all(run)
    data = _Data(run.seed)
    trainer = Trainer(
        model_dir=pathlib.Path(run.model_dir).absolute(),
        model=run.decoder_config,
        make_batches=data.make_batches,
        epochs=data.epochs,
        data_of=_data_of,
        decode=run.data.vocabulary.decode,
        mesh=run.mesh,
        seed=run.seed,
        identity=run.identity,
    )
    with trainer.claimed(run.stages):
        if jax.process_index() == 0:
            gin_config.write_operative_config(trainer.model_dir)
            write_json(trainer.model_dir / training_data.NAME, _described(run, data, examples=3))
        trainer.run(run.stages)


def _check_all(run: Run) -> None:
    """Lets the mistakes of stage II and of the evaluation be known before stage I has trained."""
    before: list[str] = []
    for stage in run.stages:
        stage.spec()
        for name in domains.get_mixture(stage.mixture).domains:
            domain = domain_of(run, name)
            domain.num_sequences("train")
            domain.tokens(stage.task_feature_lengths)
        # A begun stage goes on without what it started from, which may be gone by now. And what an
        # evaluation reads may come from a stage that is run later, alone.
        comes = stage.init_from is None or stage.init_from.rpartition(":")[0] in before
        if not comes and not manifest.has_saved(pathlib.Path(run.model_dir) / stage.name):
            stage_dir, step = weights.find_checkpoint(run.model_dir, stage.init_from)
            weights.require_whole(stage_dir, step)
            if weights.lora_of(stage_dir) is not None:
                weights.base_checkpoint(stage_dir)
        before.append(stage.name)
    for name in run.evaluated:
        domain_of(run, name).num_sequences(run.evaluation.split)


def inspect(run: Run, examples: int) -> dict[str, dict]:
    """{stage: what it would train on}, see `inspection.describe`.

    Args:
      examples: shown of each domain.

    Raises:
      CalrecError: as `train`, before it trains.
    """
    _check_all(run)
    return _described(run, _Data(run.seed), examples)


def _described(run: Run, data: _Data, examples: int) -> dict[str, dict]:
    return {
        stage.name: inspection.describe(data.batches(stage, "train"), stage.train_steps, examples)
        for stage in run.stages
    }


def _data_of(stage: Stage) -> dict[str, object]:
    """What a stage trains on, of which nothing may change once it has begun."""
    mixture = domains.get_mixture(stage.mixture)
    found = {name: domains.get_domain(name) for name in mixture.domains}
    return {
        "rates": dataclasses.asdict(mixture),
        "checksums": {name: domain.checksums() for name, domain in found.items()},
        "own_templates": {
            name: dataclasses.asdict(domain.template)
            for name, domain in found.items()
            if domain.template is not None
        },
    }


class _Data:
    """Where the batches of a run come from. Those of a stage are planned once."""

    def __init__(self, seed: int):
        self._seed = seed
        self._planned: dict[tuple[str, str], Batches] = {}

    def make_batches(self, stage: Stage, split: str, start: int):
        """See `stages.MakeBatches`."""
        limit = None if split == "train" else stage.validation_batches
        return self.batches(stage, split).iterate(start, limit)

    def epochs(self, stage: Stage, step: int) -> dict[str, float]:
        """See `stages.Epochs`."""
        return self.batches(stage, "train").epochs(step)

    def batches(self, stage: Stage, split: str) -> Batches:
        """The plan of a split of a stage."""
        key = stage.name, split
        if key not in self._planned:
            training = split == "train"
            self._planned[key] = Batches(
                domains.get_mixture(stage.mixture),
                stage.spec(),
                stage.task_feature_lengths,
                split=split,
                seed=self._seed,
                targets=stage.targets if training else "last",
                one_pass=not training,
                host=(jax.process_index(), jax.process_count()),
            )
        return self._planned[key]


def evaluate(run: Run, progress: Callable[[int, int], None]) -> dict:
    """Measures the run's model, see `inference.evaluate`.

    Raises:
      CalrecError: there are several processes, or as `inference.evaluate`.
    """
    if jax.process_count() > 1:
        raise CalrecError(
            f"evaluation runs in one process, and these are {jax.process_count()}: run it on a "
            f"machine or slice with one host"
        )
    return inference.evaluate(run, progress)


@contextlib.contextmanager
def joined_processes(command: str) -> Iterator[None]:
    """While active, this process is one of all those that a launcher started together.

    Where there are several, an error ends this one at once: it would else wait minutes for its
    peers at JAX's exit barrier.

    Raises:
      CalrecError: as `join_processes`.
    """
    several = join_processes()
    try:
        yield
    except BaseException as error:
        if several:
            code = show_error(command, error)
            sys.stderr.flush()
            # `jax.process_index` would first wait for the peers' devices.
            if os.environ.get("CALREC_PROCESS_ID", "0") == "0":
                time.sleep(_LINGER_SECONDS)
            os._exit(code)
        raise


def join_processes() -> bool:
    """Joins the other processes of this run, where a launcher says that there are some.

    CALREC_COORDINATOR (host:port), CALREC_NUM_PROCESSES and CALREC_PROCESS_ID describe them;
    CALREC_MULTIHOST=1 alone leaves it to JAX, which knows Cloud TPU.

    Returns:
      Whether there are.

    Raises:
      CalrecError: the variables do not describe them.
    """
    coordinator = os.environ.get("CALREC_COORDINATOR")
    if coordinator:
        count, place = _whole_number("CALREC_NUM_PROCESSES"), _whole_number("CALREC_PROCESS_ID")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, num_processes=count, process_id=place)
        return True
    if os.environ.get("CALREC_MULTIHOST") == "1":
        jax.distributed.initialize()
        return True
    return False


def _whole_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise CalrecError(f"CALREC_COORDINATOR is set, but {name} is {value!r}: give a number")
    return int(value)
