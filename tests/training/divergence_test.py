"""A training that diverges: where it stops, which batch it keeps, and from where it can go on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from training.small_run import make_batches, metrics, random_batch, run, stage

from calrec_jax.batch import HISTORY, TARGET
from calrec_jax.errors import CalrecError
from calrec_jax.training.optimizer import OptimizerConfig

pytestmark = pytest.mark.usefixtures("one_device")

LONG = stage(train_steps=8, validate_period=8, save_period=2)


def with_nan(split, number):
    """Makes batches of which one, number `number` of `split`, has weights that are NaN."""

    def make(stage, batch_split, start):
        for n, batch in enumerate(make_batches(stage, batch_split, start), start):
            if (batch_split, n) == (split, number):
                weights = batch["decoder_loss_weights"]
                batch |= {"decoder_loss_weights": np.where(weights != 0, np.float32(np.nan), 0)}
            yield batch

    return make


def saved(model_dir) -> list[str]:
    return sorted(path.name for path in (model_dir / "stage1" / "checkpoints").iterdir())


def test_it_stops_with_the_batch_and_the_last_good_checkpoint(tmp_path):
    nan_in_step_5 = with_nan("train", 4)
    with pytest.raises(CalrecError) as error:
        run(tmp_path, LONG, make_batches=nan_in_step_5, decode=lambda ids: " ".join(map(str, ids)))
    kept = tmp_path / "stage1" / "diverged_5.npz"
    assert str(error.value) == (
        "stage1 stopped at step 5: grad_norm is nan, loss is nan, nig is nan; its batch is in "
        f"{kept}, and as texts in diverged_5.jsonl; the last good checkpoint is stage1:4: train on "
        f"from there in a MODEL_DIR of its own, with Stage.init_from='{tmp_path}/stage1:4' and a "
        "lower OptimizerConfig.learning_rate"
    )
    assert saved(tmp_path) == ["checkpoint_4"]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]

    batch = random_batch(4)
    with np.load(kept) as found:
        assert set(found.files) == set(batch)
        for name in found.files:
            if name != "decoder_loss_weights":
                np.testing.assert_array_equal(found[name], batch[name])
        assert np.isnan(found["decoder_loss_weights"]).any()
    examples = [json.loads(line) for line in kept.with_suffix(".jsonl").open()]
    assert len(examples) == (batch["target_item_ids"] != 0).sum()
    for example in examples:
        row, slot = example["row"], example["segment"] - 1
        assert example["target_item_id"] == batch["target_item_ids"][row, slot]
        assert example["domain_id"] == batch["domain_ids"][row, slot]
        in_segment = batch["decoder_segment_ids"][row] == example["segment"]
        for name, span in (("history", HISTORY), ("target", TARGET)):
            in_span = in_segment & (batch["decoder_span_ids"][row] == span)
            tokens = batch["decoder_input_tokens"][row, in_span]
            assert example[name] == " ".join(map(str, tokens))

    # The advice of the message works.
    own = dataclasses.replace(LONG, init_from=f"{tmp_path}/stage1:4")
    run(tmp_path / "own", own)
    assert metrics(tmp_path / "own")[-1]["step"] == 8


def test_without_a_checkpoint_the_message_says_so(tmp_path):
    with pytest.raises(CalrecError, match="diverged_1.npz; nothing was saved before: lower"):
        run(tmp_path, LONG, make_batches=with_nan("train", 0))
    assert not saved(tmp_path) and not (tmp_path / "stage1" / "diverged_1.jsonl").exists()


def test_an_update_that_overflows_is_not_saved(tmp_path):
    """Its loss and gradients are finite."""
    wild = OptimizerConfig(learning_rate=1e20, warmup_steps=1, weight_decay=1e20)
    with pytest.raises(CalrecError, match="stage1 stopped at step 1: the updated state is nan"):
        run(tmp_path, dataclasses.replace(LONG, optimizer=wild, save_period=1))
    assert not saved(tmp_path)


def test_a_validation_that_is_not_finite_is_not_saved(tmp_path):
    with pytest.raises(CalrecError) as error:
        run(tmp_path, LONG, make_batches=with_nan("validation", 1))
    assert "step 8: validation loss is nan, validation nig is nan; the last good" in str(
        error.value
    )
    assert "stage1:6" in str(error.value)
    assert saved(tmp_path) == ["checkpoint_6"]


def test_a_batch_that_cannot_be_kept_does_not_hide_the_divergence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calrec_jax.files.save_npz", full)
    line = r"loss is nan, .*diverged_1.npz \(No space left on device\); nothing was saved before"
    with pytest.raises(CalrecError, match=line):
        run(tmp_path, LONG, make_batches=with_nan("train", 0))
