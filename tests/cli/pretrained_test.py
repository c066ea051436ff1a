"""The way from weights of Hugging Face to trained weights that transformers loads."""

from __future__ import annotations

import json
import subprocess
import sys

import hf_models
import numpy as np
import pytest
import tokenizers

from calrec_jax.data.preparation import synthetic

pytest.importorskip("torch", reason="the way begins and ends with transformers: .[parity]")
pytest.importorskip("transformers", reason="the way begins and ends with it: .[parity]")

DOMAINS = ("synthetic_garden", "synthetic_sports")
SMALL = [
    "--gin.TRAIN_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.MIXTURE_OR_TASK_MODULE='calrec_jax.tasks.synthetic'",
    "--gin.MIXTURE_OR_TASK_NAME='synthetic_all'",
    "--gin.TARGET_DOMAIN='synthetic_sports'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 192, 'targets': 64}",
    "--gin.stages.Stage.row_length=256",
    "--gin.stages.Stage.max_segments=2",
    "--gin.stages.Stage.validation_batches=1",
    "--gin.optimizer.OptimizerConfig.learning_rate=0.01",
    "--gin.EvaluationConfig.max_users=4",
    "--gin.SamplingConfig.num_samples=2",
    "--gin.SamplingConfig.max_new_tokens=8",
]


def calrec(cwd, *argv) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "calrec_jax.cli.main", *argv]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def tokenizer(folder, texts, size: int) -> None:
    """A BPE of bytes, with the special tokens of hf_models' configs."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.save(str(folder / "tokenizer.json"))
    described = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma 2", "llama 3, biases, tied"])
def test_both_stages_evaluation_and_back(case, small_store, tmp_path):
    folder = hf_models.save(case, tmp_path / "hf", dtype="bfloat16", vocab_size=512)
    raw = synthetic.generate(synthetic.SyntheticConfig(users=12, target_users=12))
    texts = [
        " ".join(fields.values()) for domain in raw.values() for fields in domain.items.values()
    ]
    tokenizer(folder, texts, 500)
    calrec(tmp_path, "convert", "--from_hf=hf", "--to=ours")

    train = ["train", "--gin_file=gin/runs/pretrained.gin", "--gin.PRETRAINED='ours'"]
    train += [f"--gin.DATA_DIR={str(small_store)!r}", "--gin.MODEL_DIR='run'", *SMALL]
    assert "stage2 2/2" in calrec(tmp_path, *train).stderr
    assert "synthetic_sports test: 4 users" in calrec(tmp_path, "eval", "--model_dir=run").stdout
    output = calrec(tmp_path, "convert", "--from=run/stage2:best", "--to_hf=out").stdout
    assert output.startswith(f"out: {case.split()[0]}") and "in float32" in output

    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert described["dtype"] == "float32"
    carried = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert carried == (folder / "tokenizer.json").read_bytes()
    before, after = hf_models.tensors(folder), hf_models.tensors(tmp_path / "out")
    assert {n: shape for n, (_, shape, _) in before.items()} == {
        n: shape for n, (_, shape, _) in after.items()
    }
    model, start = hf_models.load(tmp_path / "out"), hf_models.load(folder)
    for (name, new), old in zip(model.named_parameters(), start.parameters(), strict=True):
        moved = np.abs((new - old).detach().numpy()).max()
        # Four steps of 0.01: all has been trained, from the weights that were given.
        assert 0 < moved < 1, name
