"""Adapters as users train them: gin files, and the chain of commands to the evaluation."""

import json
import shutil

import jax
import pytest
from cli.chain_test import SMALL, calrec

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.configs import load
from calrec_jax.errors import CalrecError
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import manifest, weights
from calrec_jax.training import state as train_state

FILES = ["gin/runs/quickstart.gin", "gin/stages/lora.gin"]
BYTES = "VOCABULARY=@vocabularies.byte()"  # no file is needed


def adapters_of_stages(*bindings):
    return [stage.lora for stage in load.from_gin(FILES, [BYTES, *bindings]).stages]


def test_the_file_gives_every_stage_adapters():
    assert adapters_of_stages() == [LoraConfig(), LoraConfig()]
    assert [stage.lora for stage in load.from_gin(FILES[:1], [BYTES]).stages] == [None, None]


def test_a_stage_can_have_its_own_or_none():
    first, second = adapters_of_stages(
        "stage1/stages.Stage.lora=None", "lora.LoraConfig.rank=4", "LoraConfig.pattern='.*'"
    )
    assert first is None and second == LoraConfig(rank=4, pattern=".*")
    first, second = adapters_of_stages("stage2/lora.LoraConfig.rank=2")
    assert (first, second) == (LoraConfig(), LoraConfig(rank=2))


@pytest.mark.parametrize(
    ("binding", "line"),
    [
        ("lora.LoraConfig.rank='8'", "LoraConfig.rank is '8', which is not of type int"),
        ("lora.LoraConfig.pattern='query'", "'query' matches no projection: they are attention/qu"),
        ("stages.Stage.lora=5", "Stage.lora is 5, which is not of type LoraConfig | None"),
    ],
)
def test_a_wrong_binding_is_one_line(binding, line):
    with pytest.raises(CalrecError) as error:
        adapters_of_stages(binding)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_adapters_of_the_model_instead_of_a_stage_are_refused():
    made = load.from_gin(FILES, [BYTES, "DecoderConfig.lora=@lora.LoraConfig()"])
    with pytest.raises(CalrecError, match="adapters are a stage's, Stage.lora"):
        _ = made.decoder_config  # what is trained, evaluated and recommended with


def with_merged_weights(model_dir, target, step: int):
    """A copy of a MODEL_DIR in which stage2 holds weights in place of adapters and base."""
    decoder = Decoder(load.load_run(model_dir).decoder_config)
    shapes = train_state.param_shapes(
        decoder, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig()
    )
    params = weights.load_params(model_dir, f"stage2:{step}", shapes, {})
    shutil.copytree(model_dir, target)
    shutil.rmtree(target / "stage1")
    shutil.rmtree(target / "stage2")
    checkpoints = Checkpoints(target / "stage2" / "checkpoints")
    state = train_state.TrainState(jax.numpy.int32(step), params, {})
    checkpoints.save(state, {"batches": step}, {"loss": 1.0})
    checkpoints.close()
    there = manifest.read(model_dir)
    there["stages"]["stage2"]["lora"] = None
    (target / "manifest.json").write_text(json.dumps(there))


@pytest.mark.slow
def test_evaluation_and_recommendations_are_those_of_the_merged_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = "runs/quickstart/store"
    calrec(tmp_path, "synthetic", f"--data_dir={store}", "--users=60", "--target_users=60")
    files = [f"--gin_file={file}" for file in FILES]
    large = "--gin.stage2/optimizer.OptimizerConfig.learning_rate=0.05"  # so that they matter
    calrec(
        tmp_path, "train", *files, f"--gin.{BYTES}", "--gin.MODEL_DIR='apart'", *SMALL, large,
        "--gin.stage1/stages.Stage.lora=None", "--gin.lora.LoraConfig.pattern='.*'",
    )  # fmt: skip
    assert manifest.read("apart")["stages"]["stage2"]["base"]["checkpoint"] == "stage1:3"
    with_merged_weights(tmp_path / "apart", tmp_path / "merged", step=2)

    found = []
    for model_dir in ("apart", "merged"):
        calrec(tmp_path, "eval", f"--model_dir={model_dir}")
        lines = (tmp_path / model_dir / "eval/test/predictions.jsonl").read_text().splitlines()
        item = json.loads(lines[0])["target"]
        history = json.dumps({"history": [item]})
        answer = calrec(
            tmp_path, "recommend", f"--model_dir={model_dir}", "--histories=-", input=history
        )
        predictions = [json.loads(line) for line in lines]
        texts = [[output["text"] for output in p["generated"]] for p in predictions]
        found.append((texts, json.loads(answer.stdout)["items"][0]["item_id"]))
    assert found[0] == found[1]
    shutil.rmtree(tmp_path / "apart" / "stage1")
    assert calrec(tmp_path, "eval", "--model_dir=apart").stdout  # nobody has to be asked
    other = "--gin.evaluation.EvaluationConfig.name='other'"
    gone = calrec(tmp_path, "eval", "--model_dir=apart", other, code=1)
    assert "apart/stage2 were trained on is gone: 'stage1:3'" in gone.stderr.splitlines()[-1]
