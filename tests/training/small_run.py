"""A run small enough for tests: model, random batches, stages and trainer, without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from oracles.batches import packed_batch

from calrec_jax.losses import LossConfig
from calrec_jax.models.config import DecoderConfig
from calrec_jax.parallel.mesh import MeshConfig
from calrec_jax.training.identity import Identity
from calrec_jax.training.optimizer import OptimizerConfig
from calrec_jax.training.stages import Stage, Trainer

BOS, EOS = 2, 1
# Two key/value heads, so that they do not divide over a model axis of four.
MODEL = DecoderConfig(
    vocab_size=64, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_ff=32
)
LENGTHS = {"inputs": 12, "targets": 6}
STAGE = Stage(
    name="stage1",
    mixture="random",
    train_steps=4,
    batch_size=8,
    task_feature_lengths=LENGTHS,
    row_length=30,
    max_segments=3,
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.1),
    losses=LossConfig(),
    validate_period=2,
    log_period=1,
    validation_batches=2,
)
SPEC = STAGE.spec()


@functools.cache
def random_batch(seed: int) -> dict[str, np.ndarray]:
    """A valid packed batch of `SPEC`: rows of 1 to 3 segments of varied lengths, pads after."""
    rng = np.random.default_rng(seed)
    tokens = lambda n: rng.integers(3, MODEL.vocab_size, n).tolist()  # noqa: E731
    examples, rows = [], []
    for _ in range(SPEC.batch_size):
        row, room = [], SPEC.row_length
        for _ in range(rng.integers(1, SPEC.max_segments + 1)):
            history = rng.integers(1, LENGTHS["inputs"] - 1)
            target = rng.integers(1, LENGTHS["targets"])
            if history + target + 1 > room:
                break
            room -= history + target + 1
            row.append(len(examples))
            examples.append(
                {
                    "history": tokens(history),
                    "target": tokens(target),
                    "item_id": int(rng.integers(1, 1000)),
                    "domain_id": int(rng.integers(1, 3)),
                }
            )
        rows.append(row)
    return packed_batch(
        examples, rows, SPEC.row_length, SPEC.item_length, SPEC.max_segments, BOS, EOS
    )


def make_batches(stage: Stage, split: str, start: int):
    """This process's rows of the split's batch `start`, `start` + 1, ..."""
    rows = stage.batch_size // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    first, stop = (0, None) if split == "train" else (10_000, stage.validation_batches)
    for n in itertools.islice(itertools.count(), start, stop):
        yield {name: value[mine] for name, value in random_batch(first + n).items()}


@dataclasses.dataclass(frozen=True)
class Data:
    """Random batches as the data of a run."""

    make_batches: Callable = make_batches
    make_epochs: Callable = lambda stage, step: {}

    def batches(self, stage: Stage, split: str, start: int):
        return self.make_batches(stage, split, start)

    def epochs(self, stage: Stage, step: int):
        return self.make_epochs(stage, step)

    def fingerprint(self, stage: Stage):
        return {}


def stage(**changes) -> Stage:
    return dataclasses.replace(STAGE, **changes)


def trainer(
    model_dir: pathlib.Path,
    make_batches: Callable = make_batches,
    epochs: Callable = lambda stage, step: {},
    model: DecoderConfig = MODEL,
    vocabulary: str = "v1",
    seed: int = 0,
    **changes: Any,
) -> Trainer:
    """A Trainer on all devices; `changes` are its other attributes."""
    attributes = {
        "model_dir": model_dir,
        "identity": Identity(vocabulary, model, seed=seed),
        "data": Data(make_batches, epochs),
        "mesh": MeshConfig(),
    }
    return Trainer(**(attributes | changes))


def run(model_dir, *stages: Stage, **changes) -> Trainer:
    """Claims `model_dir` and runs `stages`."""
    made = trainer(model_dir, **changes)
    with made.claimed(stages):
        for stage in stages:
            made.run_stage(stage)
    return made


def metrics(model_dir, stage_name: str = "stage1", split: str | None = None) -> list[dict]:
    """The lines of a stage's metrics.jsonl."""
    text = (model_dir / stage_name / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if split in (None, line["split"])]


TIMES = ("examples_per_second", "tokens_per_second")


def curve(model_dir, stage_name: str = "stage1") -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in metrics(model_dir, stage_name)
    ]
