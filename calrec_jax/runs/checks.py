"""What a run needs, looked for before anything is trained."""

from __future__ import annotations

from calrec_jax.model_dir import ModelDir
from calrec_jax.runs.run import Run
from calrec_jax.training import weights


def check(run: Run) -> None:
    """Finds the mistakes of later stages and of the evaluation before the first stage has trained.

    Raises:
      CalrecError: a stage or the evaluation could not work.
    """
    earlier: list[str] = []
    for stage in run.stages:
        stage.spec()
        for domain in run.mixture(stage.mixture).domains:
            domain.num_sequences("train")
            domain.tokens(stage.task_feature_lengths)
        # A begun stage goes on without what it started from, which may be gone by now. And what an
        # evaluation reads may come from a stage that is run later, alone.
        is_made_here = stage.init_from is None or stage.init_from.rpartition(":")[0] in earlier
        if not is_made_here and not ModelDir(run.model_dir).stage(stage.name).has_saved():
            _check_start(run.model_dir, stage.init_from)
        earlier.append(stage.name)
    for name in run.evaluated_domains:
        run.domain(name).num_sequences(run.evaluation.split)


def _check_start(model_dir: str, init_from: str) -> None:
    """Raises CalrecError where a stage could not start from the checkpoint `init_from`."""
    stage_dir, step = weights.find_checkpoint(model_dir, init_from)
    weights.require_whole(stage_dir, step)
    if weights.lora_of(stage_dir) is not None:
        weights.base_checkpoint(stage_dir)
