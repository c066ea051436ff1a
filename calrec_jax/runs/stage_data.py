"""The data of a run's stages: their batches, what they are made of, and a description of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from calrec_jax.data import inspection
from calrec_jax.data.loader import Batches
from calrec_jax.runs.run import Run
from calrec_jax.training.stages import Stage


class StageData:
    """The batches of a run's stages, see `stages.TrainingData`. Each stage's are planned once."""

    def __init__(self, run: Run):
        self._run = run
        self._plans: dict[tuple[str, str], Batches] = {}

    def batches(self, stage: Stage, split: str, start: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This host's rows of the batches `start`, `start + 1`, ...; validation ends."""
        limit = None if split == "train" else stage.validation_batches
        return self._plan(stage, split).iterate(start, limit)

    def epochs(self, stage: Stage, step: int) -> dict[str, float]:
        """Epochs of each domain that the training batches before `step` hold."""
        return self._plan(stage, "train").epochs(step)

    def fingerprint(self, stage: Stage) -> dict[str, Any]:
        """What a stage trains on, of which nothing may change once it has begun."""
        mixture = self._run.mixture(stage.mixture)
        return {
            "rates": dataclasses.asdict(mixture.spec),
            "checksums": {domain.name: domain.checksums() for domain in mixture.domains},
            "own_templates": {
                domain.name: dataclasses.asdict(domain.template)
                for domain in mixture.domains
                if domain.has_own_template
            },
        }

    def description(self, examples: int) -> dict[str, dict[str, Any]]:
        """{stage: what it trains on}, see `inspection.describe`.

        Args:
          examples: shown of each domain.
        """
        return {
            stage.name: inspection.describe(self._plan(stage, "train"), stage.train_steps, examples)
            for stage in self._run.stages
        }

    def _plan(self, stage: Stage, split: str) -> Batches:
        key = stage.name, split
        if key not in self._plans:
            training = split == "train"
            self._plans[key] = Batches(
                self._run.mixture(stage.mixture),
                stage.spec(),
                stage.task_feature_lengths,
                split=split,
                seed=self._run.seed,
                targets=stage.targets if training else "last",
                one_pass=not training,
                host=(jax.process_index(), jax.process_count()),
            )
        return self._plans[key]
