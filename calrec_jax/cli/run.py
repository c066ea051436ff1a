"""A run as gin describes it, and how its parts are put together. The one place that knows them all."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Sequence

import jax

from calrec_jax.cli import gin_config
from calrec_jax.data import loader, registry, store, vocabularies
from calrec_jax.data.registry import DataConfig
from calrec_jax.decode.sample import Sampler, SamplingConfig
from calrec_jax.decode.texts import TextGenerator
from calrec_jax.eval import evaluator
from calrec_jax.eval.evaluator import EvaluationConfig
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.train import stages
from calrec_jax.train import state as train_state
from calrec_jax.train.stages import Stage, Trainer


@dataclasses.dataclass(frozen=True)
class Run:
    """A chain of stages and the evaluation of what comes out.

    Attributes:
      model_dir: MODEL_DIR, where everything is written.
      model: the decoder.
      data: store, vocabulary, template.
      modules: MIXTURE_OR_TASK_MODULE(s), which register the domains.
      stages: in the order in which they run.
      evaluation: of the last stage.
      mesh: how devices are laid out.
      seed: of fresh weights and of the order of examples.
    """

    model_dir: str
    model: DecoderConfig
    data: DataConfig
    modules: str | Sequence[str]
    stages: Sequence[Stage]
    evaluation: EvaluationConfig
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    @functools.cached_property
    def decoder_config(self) -> DecoderConfig:
        """The decoder, with a vocabulary that holds the run's."""
        return self.model.with_vocab_size(self.data.vocabulary.vocab_size)

    @property
    def identity(self) -> dict[str, object]:
        """What must stay the same in a MODEL_DIR, besides model and stages."""
        return {
            "vocabulary": vocabularies.fingerprint(self.data.vocabulary),
            "data": {"template": dataclasses.asdict(self.data.template), "seed": self.seed},
        }


def from_gin(files: Sequence[str], bindings: Sequence[str], search_paths: str = "") -> Run:
    """The run that gin files and bindings describe, with its domains registered."""
    gin_config.parse(files, bindings, search_paths)
    run = gin_config.configured("run.Run")
    registry.use(run.data)
    registry.import_modules([run.modules] if isinstance(run.modules, str) else run.modules)
    return run


def from_model_dir(model_dir: str | os.PathLike, bindings: Sequence[str] = ()) -> Run:
    """The run that made MODEL_DIR, from its config.gin; `bindings` override it."""
    path = pathlib.Path(model_dir) / "config.gin"
    # The folder may have been moved since it was made.
    return from_gin([str(path)], [f"MODEL_DIR = {str(model_dir)!r}", *bindings])


def train(run: Run) -> None:
    """Runs the stages, or goes on with them. Raises as `Trainer.run` does."""
    for stage in run.stages:
        registry.load_mixture(stage.mixture)

    def make_batches(stage: Stage, split: str, start: int):
        training = split == "train"
        batches = loader.batches(
            registry.load_mixture(stage.mixture),
            stage.spec(),
            stage.task_feature_lengths,
            split=split,
            seed=run.seed,
            repeat=training,
            start=start,
            host=(jax.process_index(), jax.process_count()),
        )
        return batches if training else _first(batches, stage.validation_batches)

    trainer = Trainer(
        model_dir=pathlib.Path(run.model_dir).absolute(),
        model=run.decoder_config,
        make_batches=make_batches,
        mesh=run.mesh,
        seed=run.seed,
        identity=run.identity,
    )
    trainer.claim(run.stages)
    if jax.process_index() == 0:
        (trainer.model_dir / "config.gin").write_text(gin_config.config_string())
    trainer.run(run.stages)


def _first(batches, most: int | None):
    for n, batch in enumerate(batches):
        if n == most:
            return
        yield batch


def text_generator(run: Run, domain: str, checkpoint: str | None = None) -> TextGenerator:
    """The trained model of a run as a writer of items of `domain`.

    Args:
      checkpoint: instead of `run.evaluation.checkpoint`.
    """
    c, lengths = run.evaluation, run.stages[-1].task_feature_lengths
    mesh = make_mesh(run.mesh)
    decoder = Decoder(run.decoder_config)
    params = stages.load_params(
        pathlib.Path(run.model_dir).absolute(),
        checkpoint or c.checkpoint,
        train_state.param_shapes(decoder, mesh, run.mesh),
        run.identity,
    )
    vocabulary = registry.get_domain(domain).resolved().vocabulary
    sampler = Sampler(
        decoder,
        params,
        SamplingConfig(c.num_samples, c.temperature, c.max_new_tokens),
        eos_id=vocabulary.eos_id,
        bos_id=vocabularies.bos_id(vocabulary),
        max_prompt_tokens=lengths["inputs"],
        mesh=mesh,
        mesh_config=run.mesh,
    )
    tokens = registry.get_domain(domain).tokens(lengths)
    return TextGenerator(sampler, tokens, vocabulary.decode, c.seed)


def evaluate(run: Run) -> dict:
    """Measures the run's model as `run.evaluation` says; returns what metrics.json holds."""
    config = run.evaluation
    domain = registry.get_domain(config.domain).resolved()
    read = functools.partial(store.read_sequences, domain.data_dir, domain.dataset)
    # "best" may be another step the next time, whose predictions must not be mixed with these.
    _, step = stages.find_checkpoint(pathlib.Path(run.model_dir).absolute(), config.checkpoint)
    generator = text_generator(run, config.domain)
    return evaluator.evaluate(
        train=read("train"),
        users=read(config.split),
        catalogue=generator.tokens.catalogue,
        template=domain.template,
        generate=lambda users: generator([u.history for u in users], [u.user_id for u in users]),
        config=config,
        directory=pathlib.Path(run.model_dir) / "eval" / config.split,
        settings={"vocabulary": run.identity["vocabulary"], "step": step},
        progress=_show_progress,
    )


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total or not sys.stderr.isatty() else "\r"
    print(f"evaluated {done}/{total} users", end=end, file=sys.stderr, flush=True)


def join_processes() -> None:
    """Joins the other processes of this run, where a launcher says that there are some.

    CALREC_COORDINATOR (host:port), CALREC_NUM_PROCESSES and CALREC_PROCESS_ID describe them;
    CALREC_MULTIHOST=1 alone leaves it to JAX, which knows Cloud TPU.
    """
    coordinator = os.environ.get("CALREC_COORDINATOR")
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator,
            num_processes=int(os.environ["CALREC_NUM_PROCESSES"]),
            process_id=int(os.environ["CALREC_PROCESS_ID"]),
        )
    elif os.environ.get("CALREC_MULTIHOST") == "1":
        jax.distributed.initialize()
