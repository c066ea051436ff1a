"""The layout of a MODEL_DIR: where each file of a run is.

MODEL_DIR/config.gin  manifest.json  data.json  lock  report.html  index/
MODEL_DIR/STAGE/checkpoints/checkpoint_STEP/
MODEL_DIR/STAGE/metrics.jsonl  events.out.tfevents.*  vectors/  diverged_STEP.npz, .jsonl
MODEL_DIR/eval/NAME/predictions.jsonl  settings.json  metrics.json  slices.json  examples.json  lock
MODEL_DIR/eval/NAME/choosing/DOMAIN/predictions.jsonl  settings.json  choice.json
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re

CHECKPOINT_PREFIX = "checkpoint"


def checkpoint_folder(checkpoints: pathlib.Path, step: int) -> pathlib.Path:
    """The folder of the checkpoint of `step`, in a folder of checkpoints."""
    return checkpoints / f"{CHECKPOINT_PREFIX}_{step}"


def checkpoint_step(folder: pathlib.Path) -> int | None:
    """The step of a checkpoint's folder, or None where its name is that of no complete one."""
    match = re.fullmatch(rf"{CHECKPOINT_PREFIX}_(\d+)", folder.name)
    return None if match is None else int(match[1])


def saved_steps(checkpoints: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, in ascending order."""
    steps = map(checkpoint_step, checkpoints.glob(f"{CHECKPOINT_PREFIX}_*"))
    return sorted(step for step in steps if step is not None)


@dataclasses.dataclass(frozen=True)
class _Folder:
    """A folder, which need not exist. It can be given where a path can, and is formatted as one.

    Attributes:
      path: where it is; made of any path or string.
    """

    path: pathlib.Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", pathlib.Path(self.path))

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.name


@dataclasses.dataclass(frozen=True)
class StageDir(_Folder):
    """MODEL_DIR/STAGE: what training a stage writes, and what is computed with its checkpoints."""

    @property
    def model_dir(self) -> ModelDir:
        """The MODEL_DIR of the stage."""
        return ModelDir(self.path.parent)

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> pathlib.Path:
        """Losses and rates by step, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def vectors(self) -> pathlib.Path:
        """The folder of the items' vectors."""
        return self.path / "vectors"

    def diverged(self, step: int, process: int | None = None) -> pathlib.Path:
        """The arrays of a batch whose loss is not finite; its texts are beside it, in a .jsonl.

        Args:
          process: whose rows they are; None where there is one process alone.
        """
        suffix = "" if process is None else f"_process_{process}"
        return self.path / f"diverged_{step}{suffix}.npz"

    def has_saved(self) -> bool:
        """Whether the stage has a checkpoint, and so needs no other start."""
        return bool(saved_steps(self.checkpoints))


@dataclasses.dataclass(frozen=True)
class EvaluationDir(_Folder):
    """MODEL_DIR/eval/NAME: the predictions of an evaluation and what was measured of them."""

    @property
    def predictions(self) -> pathlib.Path:
        """The predictions, one JSON object per user and line."""
        return self.path / "predictions.jsonl"

    @property
    def settings(self) -> pathlib.Path:
        """What the predictions depend on."""
        return self.path / "settings.json"

    @property
    def metrics(self) -> pathlib.Path:
        """What was measured; it is there when the evaluation is finished."""
        return self.path / "metrics.json"

    @property
    def slices(self) -> pathlib.Path:
        """The slices of each user."""
        return self.path / "slices.json"

    @property
    def examples(self) -> pathlib.Path:
        """The users that the report shows."""
        return self.path / "examples.json"

    @property
    def lock(self) -> pathlib.Path:
        """The lock of the process that evaluates here."""
        return self.path / "lock"

    def choosing(self, domain: str) -> EvaluationDir:
        """Predictions on validation, by which the weight of retrieval "hybrid" is chosen."""
        return EvaluationDir(self.path / "choosing" / domain)

    @property
    def choice(self) -> pathlib.Path:
        """The weight that these predictions chose."""
        return self.path / "choice.json"


@dataclasses.dataclass(frozen=True)
class ModelDir(_Folder):
    """MODEL_DIR: all that a run writes."""

    @property
    def config(self) -> pathlib.Path:
        """Everything that was configured."""
        return self.path / "config.gin"

    @property
    def manifest(self) -> pathlib.Path:
        """What must not change, see `training.manifest`."""
        return self.path / "manifest.json"

    @property
    def data(self) -> pathlib.Path:
        """What each stage trains on, for the report."""
        return self.path / "data.json"

    @property
    def lock(self) -> pathlib.Path:
        """The lock of the process that trains here."""
        return self.path / "lock"

    @property
    def report(self) -> pathlib.Path:
        """The page of `calrec report`."""
        return self.path / "report.html"

    @property
    def index(self) -> pathlib.Path:
        """The folder of BM25's indexes."""
        return self.path / "index"

    def stage(self, name: str) -> StageDir:
        """The folder of a stage."""
        return StageDir(self.path / name)

    def evaluation(self, name: str) -> EvaluationDir:
        """The folder of an evaluation."""
        return EvaluationDir(self.path / "eval" / name)

    def stages(self) -> list[StageDir]:
        """The stages that have a folder of checkpoints, by name."""
        folders = sorted(self.path.glob("*/checkpoints"))
        return [StageDir(folder.parent) for folder in folders]

    def evaluations(self) -> list[EvaluationDir]:
        """The evaluations that have a folder, by name."""
        return [EvaluationDir(folder) for folder in sorted(self.path.glob("eval/*"))]
