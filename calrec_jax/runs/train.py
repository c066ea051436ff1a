"""Training of a run: its stages, one after another."""

from __future__ import annotations

import pathlib

import jax

from calrec_jax import files
from calrec_jax.model_dir import ModelDir
from calrec_jax.runs import config_text
from calrec_jax.runs.checks import check
from calrec_jax.runs.run import Run
from calrec_jax.runs.stage_data import StageData
from calrec_jax.training.stages import Trainer


def train(run: Run, config_gin: str | None = None) -> None:
    """Runs the stages of a run, or goes on with them. Finished stages are left as they are.

    Args:
      config_gin: the text of MODEL_DIR/config.gin, from which the run can be made again; None = one
        is written from the run itself.

    Raises:
      CalrecError: a later stage or the evaluation could not work, MODEL_DIR is another run's or in
        use, or a stage's start cannot be had.
      Preempted: told to stop; everything is saved.
    """
    check(run)
    stage_data = StageData(run)
    trainer = Trainer(
        model_dir=pathlib.Path(run.model_dir).absolute(),
        identity=run.identity,
        data=stage_data,
        mesh=run.mesh,
        decode=run.data.vocabulary.decode,
    )
    model_dir = ModelDir(trainer.model_dir)
    with trainer.claimed(run.stages):
        if jax.process_index() == 0:
            text = config_text.of_run(run) if config_gin is None else config_gin
            files.write_text(model_dir.config, text)
            files.write_json(model_dir.data, stage_data.description(examples=3))
        for stage in run.stages:
            trainer.run_stage(stage)
