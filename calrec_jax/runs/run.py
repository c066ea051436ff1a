"""A run: all that it is configured with, and the domains that it reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from calrec_jax.data import specs, vocabularies
from calrec_jax.data.domains import DataConfig, Domain, Domains, Mixture
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.models.config import DecoderConfig
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.training.identity import Identity
from calrec_jax.training.stages import Stage


@dataclasses.dataclass(frozen=True)
class Run:
    """A chain of stages and the evaluation of what comes out.

    What it reads of its domains stays in memory as long as this object does, and is no other run's.

    Attributes:
      model_dir: MODEL_DIR, where everything is written.
      model: the decoder.
      data: store, vocabulary, template.
      stages: in the order in which they run.
      evaluation: of one checkpoint, on domains; None = the run is trained and not evaluated.
      modules: MIXTURE_OR_TASK_MODULE(s), which register the domains; imported when one is needed.
      mesh: how devices are laid out.
      seed: of fresh weights and of the order of examples.

    Raises:
      CalrecError: there is no stage.
    """

    model_dir: str
    model: DecoderConfig
    data: DataConfig
    stages: Sequence[Stage]
    evaluation: EvaluationConfig | None = None
    modules: str | Sequence[str] = ()
    mesh: MeshConfig = MeshConfig()
    seed: int = 0

    def __post_init__(self):
        if not self.stages:
            raise CalrecError("STAGES is empty: a run needs at least one stage")

    @functools.cached_property
    def decoder_config(self) -> DecoderConfig:
        """The decoder, with a vocabulary that holds the run's.

        Raises:
          CalrecError: it does not, or has adapters, which are a stage's.
        """
        if self.model.lora is not None:
            raise CalrecError("DecoderConfig.lora is bound: adapters are a stage's, Stage.lora")
        return self.model.with_vocab_size(self.data.vocabulary.vocab_size)

    @functools.cached_property
    def vocabulary_fingerprint(self) -> str:
        """The fingerprint of the run's vocabulary."""
        return vocabularies.fingerprint(self.data.vocabulary)

    def domain(self, name: str) -> Domain:
        """The domain that the run knows by `name`.

        Raises:
          CalrecError: there is none, or its tokens are not those of the run's model.
        """
        domain = self._domains.domain(name)
        vocabulary = vocabularies.fingerprint(domain.vocabulary)
        if vocabulary != self.vocabulary_fingerprint:
            raise CalrecError(
                f"domain {name!r} is registered with vocabulary {vocabulary}, and the run's model "
                f"has {self.vocabulary_fingerprint}: register it without one, or bind VOCABULARY "
                f"to the same"
            )
        return domain

    def mixture(self, name: str) -> Mixture:
        """The mixture that the run knows by `name`, or the domain of that name as one of its own.

        Raises:
          CalrecError: there is none, or as `domain`.
        """
        mixture = self._domains.mixture(name)
        for domain in mixture.domains:
            self.domain(domain.name)
        return mixture

    @functools.cached_property
    def _domains(self) -> Domains:
        # Saved arrays bring their domains along; the modules may need TensorFlow.
        if not arrays.is_saved(self.data.data_dir):
            modules = [self.modules] if isinstance(self.modules, str) else self.modules
            specs.import_modules(modules)
        return Domains(self.data)

    @property
    def evaluated_domains(self) -> tuple[str, ...]:
        """The names of the domains of the evaluation, if there is one."""
        return () if self.evaluation is None else self.evaluation.domains

    def require_evaluation(self) -> EvaluationConfig:
        """The evaluation. Raises CalrecError where there is none."""
        if self.evaluation is None:
            raise CalrecError(
                "Run.evaluation is None, so nothing says how the model is queried: bind it to "
                "@evaluation.EvaluationConfig(), as gin/stages/two_stage.gin does"
            )
        return self.evaluation

    @property
    def identity(self) -> Identity:
        """What must stay the same in a MODEL_DIR, besides the stages."""
        return Identity(
            self.vocabulary_fingerprint, self.decoder_config, self.data.template, self.seed
        )
