"""`calrec convert` as its users call it, in both directions, with wrong input too."""

from __future__ import annotations

import json
import pathlib
import shutil

import hf_models
import jax
import numpy as np
import pytest
import tokenizers
from checkpoints import small_hf
from small_disk import fill, small_disk
from training import small_run

from calrec_jax.checkpoints.hf_maps import Entry
from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.cli import main as cli
from calrec_jax.data import vocabularies
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig
from calrec_jax.parallel.mesh import MeshConfig, make_mesh
from calrec_jax.training import pretrained
from calrec_jax.training import state as train_state

REASON = "it loads what was written: pip install -c constraints.txt -e '.[parity]'"


def tokenizer(folder: pathlib.Path, size: int = 20) -> pathlib.Path:
    """Puts a tokenizer of `size` ids beside weights: words w3, w4, ..."""
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<pad>"))
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    described = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    described["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def calrec(capfd, tmp_path, monkeypatch):
    """Runs `calrec convert` in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = cli.main(["convert", *map(str, argv)])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def llama(tmp_path) -> pathlib.Path:
    return tokenizer(small_hf.write(tmp_path / "llama", small_hf.mixed(), files=2))


def files(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_there_and_back(calrec, llama, tmp_path):
    assert calrec("--from_hf=llama", "--to=ours") == (
        0,
        "ours: llama, 1,206 parameters in bfloat16, float32\n",
        "",
    )
    assert files(tmp_path / "ours") == {"manifest.json", "pretrained", "hf"}
    carried = {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert files(tmp_path / "ours" / "hf") == carried
    for name in carried:
        assert (tmp_path / "ours/hf" / name).read_bytes() == (llama / name).read_bytes()

    back = ["--from=ours/pretrained:latest", "--to_hf=back"]
    output = "back: llama, 1,206 parameters in bfloat16\n"
    assert calrec(*back) == (0, output, "")
    assert files(tmp_path / "back") == carried | {"model.safetensors"}
    small_hf.assert_same(small_hf.read(tmp_path / "back"), small_hf.mixed())
    described = json.loads((tmp_path / "back" / "config.json").read_text())
    expected = {name: value for name, value in small_hf.LLAMA.items() if name != "torch_dtype"}
    assert described == expected | {"dtype": "bfloat16"}


def test_the_manifest_describes_the_weights(calrec, llama, tmp_path):
    calrec("--from_hf=llama", "--to=ours")
    there = json.loads((tmp_path / "ours" / "manifest.json").read_text())
    assert there["pretrained"] == {
        "family": "llama",
        "dtypes": ["bfloat16", "float32"],
        "source": str(llama),
    }
    assert there["vocabulary"] == vocabularies.fingerprint(vocabularies.carried("ours"))
    assert there["stages"] == {}
    config = pretrained.decoder("ours")
    assert (config.d_model, config.num_layers, config.head_dim) == (6, 2, 4)
    assert pretrained.checkpoint("ours") == "ours/pretrained:latest"


def test_an_empty_folder_is_taken_and_parents_are_made(calrec, llama, tmp_path):
    (tmp_path / "empty").mkdir()
    assert calrec("--from_hf=llama", "--to=empty")[0] == 0
    assert files(tmp_path / "empty") == {"manifest.json", "pretrained", "hf"}
    assert calrec("--from_hf=llama", "--to=a/b")[0] == 0
    assert files(tmp_path / "a") == {"b"}


def test_weights_are_rounded_and_split(calrec, llama, tmp_path):
    calrec("--from_hf=llama", "--to=ours")
    back = ["--from=ours/pretrained:0", "--to_hf=back", "--dtype=float32", "--max_shard_gb=1e-6"]
    assert calrec(*back)[0] == 0
    expected = {name: values.astype(np.float32) for name, values in small_hf.mixed().items()}
    small_hf.assert_same(small_hf.read(tmp_path / "back"), expected)
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "float32"
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3


# What is refused


def one_line(calrec, tmp_path, *argv) -> str:
    """The error of a call that writes nothing."""
    before = sorted(tmp_path.rglob("*"))
    code, out, err = calrec(*argv)
    (line,) = err.splitlines()
    assert (code, out) == (1, "") and sorted(tmp_path.rglob("*")) == before
    return line.removeprefix("calrec convert: error: ")


@pytest.mark.parametrize("way", ["to", "to_hf"])
def test_a_folder_that_is_not_empty_is_left_alone(calrec, llama, tmp_path, way):
    calrec("--from_hf=llama", "--to=ours")
    other = "--from_hf=llama" if way == "to" else "--from=ours/pretrained:latest"
    line = "llama is there already: give a folder that is empty or new"
    assert one_line(calrec, tmp_path, other, f"--{way}=llama") == line
    line = "llama/config.json is there already: give a folder that is empty or new"
    assert one_line(calrec, tmp_path, other, f"--{way}=llama/config.json") == line


def test_weights_without_a_tokenizer(calrec, llama, tmp_path):
    (llama / "tokenizer.json").unlink()
    assert one_line(calrec, tmp_path, "--from_hf=llama", "--to=ours") == (
        "llama has neither tokenizer.json nor tokenizer.model: put the model's tokenizer beside "
        "its weights"
    )


def test_a_tokenizer_of_more_ids_than_the_embedding_has(calrec, llama, tmp_path):
    tokenizer(llama, 21)
    line = one_line(calrec, tmp_path, "--from_hf=llama", "--to=ours")
    assert line.startswith("the vocabulary has 21 ids but the model only 20: ")


def test_an_added_token_that_has_no_embedding_is_text_as_any_other(calrec, llama):
    """Like the token of images in the tokenizer of Gemma 3 for text."""
    path = llama / "tokenizer.json"
    content = json.loads(path.read_text())
    image = content["added_tokens"][0] | {"id": 20, "content": "<image>"}
    path.write_text(json.dumps(content | {"added_tokens": [*content["added_tokens"], image]}))
    assert tokenizers.Tokenizer.from_file(str(path)).encode("w5 <image> w7").ids == [5, 20, 7]
    assert calrec("--from_hf=llama", "--to=ours")[0] == 0
    vocabulary = vocabularies.carried("ours")
    assert vocabulary.encode("w5 <image> w7") == [5, 0, 7]  # a word that it does not know
    assert vocabulary.vocab_size == 20


def test_weights_that_are_damaged(calrec, llama, tmp_path):
    path = llama / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    line = one_line(calrec, tmp_path, "--from_hf=llama", "--to=a/ours")
    assert line.startswith("llama/model-00001-of-00002.safetensors is cut off: ")
    path.unlink()
    line = one_line(calrec, tmp_path, "--from_hf=llama", "--to=a/ours")
    assert line == "llama has no model-00001-of-00002.safetensors"


def test_wrong_paths(calrec, llama, tmp_path):
    calrec("--from_hf=llama", "--to=ours")
    for argv, start in (
        (["--from_hf=nowhere", "--to=x"], "nowhere/config.json cannot be read: "),
        (["--from_hf=llama", "--to=gs://bucket/x"], "--to is gs://bucket/x, and only paths of a"),
        (["--from=ours", "--to_hf=x"], "'ours' names no checkpoint: write 'stage1:best'"),
        (["--from=ours/stage1:best", "--to_hf=x"], "'ours/stage1:best': no checkpoints in "),
        (["--from=ours/pretrained:7", "--to_hf=x"], "no checkpoint '7' in "),
        (["--from=ours/pretrained:latest", "--to_hf=gs://b/x"], "--to_hf is gs://b/x, and only"),
        (
            ["--from=ours/pretrained:latest", "--to_hf=x", "--family=qwen2"],
            "no family can express this decoder: qwen2 has another query_key_value_bias",
        ),
        (["--from=ours/pretrained:latest", "--to_hf=x", "--family=gpt2"], "no family 'gpt2'; know"),
    ):
        assert one_line(calrec, tmp_path, *argv).startswith(start)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "one of the arguments --from_hf --from --from_t5x is required"),
        (["--from_hf=a"], "one of the arguments --to --to_hf --to_peft is required"),
        (["--from_hf=a", "--to_hf=b"], "--from with --to_hf or --to_peft"),
        (["--from=a/x:best", "--to=b"], "--from with --to_hf or --to_peft"),
        (["--from_hf=a", "--to_peft=b"], "--from with --to_hf or --to_peft"),
        (["--from=a/x:best", "--to_peft=b", "--dtype=float32"], "--max_shard_gb go with --to_hf"),
        (["--from_hf=a", "--from=b", "--to=c"], "not allowed with argument --from_hf"),
        (["--from_hf=a", "--to=b", "--dtype=float32"], "--max_shard_gb go with --to_hf"),
        (["--from_hf=a", "--to=b", "--family=llama"], "--max_shard_gb go with --to_hf"),
        (["--from_hf=a", "--to=b", "--max_shard_gb=1"], "--max_shard_gb go with --to_hf"),
        (["--from=a/x:best", "--to_hf=b", "--dtype=int8"], "invalid choice: 'int8'"),
        (["--from=a/x:best", "--to_hf=b", "--max_shard_gb=0"], "'0' is not a positive number"),
        (["--from=a/x:best", "--to_hf=b", "--max_shard_gb=nan"], "'nan' is not a positive number"),
        (["--from=a/x:best", "--to_hf=b", "--max_shard_gb=x"], "invalid _gigabytes value: 'x'"),
    ],
)
def test_flags_that_do_not_go_together_are_wrong_usage(calrec, capfd, argv, message):
    with pytest.raises(SystemExit) as exit:
        calrec(*argv)
    assert exit.value.code == 2 and message in capfd.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("way", ["to", "to_hf"])
def test_an_interrupted_conversion_leaves_nothing(calrec, llama, tmp_path, monkeypatch, way, error):
    calrec("--from_hf=llama", "--to=ours")
    before, calls = sorted(tmp_path.rglob("*")), []
    method = {"to": "from_hf", "to_hf": "to_hf"}[way]
    unbroken = getattr(Entry, method)

    def broken(self, part):
        calls.append(part)
        if len(calls) > 3:
            raise error
        return unbroken(self, part)

    monkeypatch.setattr(Entry, method, broken)
    source = {"to": "--from_hf=llama", "to_hf": "--from=ours/pretrained:latest"}[way]
    code, out, err = calrec(source, f"--{way}=new")
    assert out == "" and sorted(tmp_path.rglob("*")) == before
    if isinstance(error, KeyboardInterrupt):
        assert (code, err) == (130, "calrec convert: interrupted\n")
    else:
        assert code == 1 and "no space left on the disk" in err.splitlines()[-1]


# With 0 no folder can be made; then the tokenizer is what does not fit, and then the weights.
@pytest.mark.parametrize("free", [0, 4096, 8192, 12288, 16384])
@pytest.mark.parametrize("way", ["to", "to_hf"])
def test_the_full_one_of_two_disks_is_named(calrec, llama, tmp_path, way, free):
    source = {"to": "--from_hf=llama", "to_hf": "--from=ours/pretrained:latest"}[way]
    if way == "to_hf":
        calrec("--from_hf=llama", "--to=ours")
    with small_disk(tmp_path / "full", 64) as disk:
        fill(disk, free)
        code, out, err = calrec(source, f"--{way}={disk}/new")
        assert (code, out) == (1, "")
        (line,) = err.splitlines()
        assert f"no space left on the disk of {disk}/" in line
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_files_of_a_killed_conversion_are_removed(calrec, llama, tmp_path):
    (tmp_path / ".making_ours" / "hf").mkdir(parents=True)
    (tmp_path / ".making_ours" / "hf" / "old.json").write_text("{}")
    assert calrec("--from_hf=llama", "--to=ours")[0] == 0
    assert files(tmp_path) == {"llama", "ours"}
    assert "old.json" not in files(tmp_path / "ours" / "hf")


# From a run


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A MODEL_DIR that began with fresh weights."""
    model_dir = tmp_path_factory.mktemp("trained")
    small_run.run(model_dir, small_run.stage(train_steps=2))
    return model_dir


@pytest.fixture
def run(trained, tmp_path) -> pathlib.Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.slow
def test_a_run_of_fresh_weights_gets_a_config_and_no_tokenizer(run, calrec, tmp_path):
    code, out, err = calrec("--from=run/stage1:latest", "--to_hf=out", "--dtype=bfloat16")
    assert (code, out) == (0, "out: gemma, 5,712 parameters in bfloat16\n")
    assert err == (
        "calrec convert: run/stage1:latest came from no checkpoint of transformers: config.json is "
        "made for it, and there is no tokenizer; put the one that it was trained with beside it\n"
    )
    assert files(tmp_path / "out") == {"config.json", "model.safetensors"}
    described = json.loads((tmp_path / "out/config.json").read_text())
    assert (described["dtype"], described["max_position_embeddings"]) == ("bfloat16", 18)


@pytest.mark.slow
def test_weights_whose_origin_is_gone(run, calrec, tmp_path):
    path = run / "manifest.json"
    there = json.loads(path.read_text())
    there["stages"]["stage1"]["init_from"] = "gone/pretrained:latest"
    path.write_text(json.dumps(there))
    assert one_line(calrec, tmp_path, "--from=run/stage1:latest", "--to_hf=out") == (
        "the weights came from gone, where no manifest.json is: paths are from the working "
        "directory; run this where the training was run"
    )


# In transformers


@pytest.fixture
def loaded():
    pytest.importorskip("torch", reason=REASON)
    pytest.importorskip("transformers", reason=REASON)

    def logits(folder, text=(5, 3, 9, 4, 11, 17, 6, 8, 3)):
        import torch

        with torch.no_grad():
            return hf_models.load(folder)(torch.tensor([text])).logits.numpy()

    return logits


def test_what_is_written_again_loads_and_gives_the_same_logits(calrec, loaded, tmp_path):
    for case in ("gemma 2", "llama 3, old"):
        name = case.split()[0]
        tokenizer(hf_models.save(case, tmp_path / name, dtype="bfloat16"))
        calrec(f"--from_hf={name}", f"--to={name}.ours")
        calrec(f"--from={name}.ours/pretrained:latest", f"--to_hf={name}.back")
        back = tmp_path / f"{name}.back"
        assert hf_models.tensors(back) == hf_models.tensors(tmp_path / name)
        np.testing.assert_array_equal(loaded(back), loaded(tmp_path / name))
        import transformers

        tokens = transformers.AutoTokenizer.from_pretrained(back)
        assert tokens("w5 w7", add_special_tokens=False)["input_ids"] == [5, 7]
        assert tokens.eos_token_id == 2
        auto = transformers.AutoModelForCausalLM.from_pretrained(back)
        assert str(auto.dtype) == "torch.bfloat16"


def test_a_gemma_3_with_images_becomes_one_of_text_alone(calrec, loaded, tmp_path):
    text = tokenizer(hf_models.save("gemma 3", tmp_path / "text"))
    images = tmp_path / "images"
    tensors = {f"language_model.{n}": values for n, values in small_hf.read(text).items()}
    tensors["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(3, np.float32)
    described = json.loads((text / "config.json").read_text())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    small_hf.write(images, tensors, config | {"text_config": described, "vision_config": {}})
    tokenizer(images)
    assert calrec("--from_hf=images", "--to=ours")[0] == 0
    assert calrec("--from=ours/pretrained:latest", "--to_hf=back")[0] == 0
    assert hf_models.tensors(tmp_path / "back") == hf_models.tensors(text)
    np.testing.assert_array_equal(loaded(tmp_path / "back"), loaded(text))


@pytest.mark.slow
def test_a_run_of_fresh_weights_loads_and_gives_the_same_logits(run, calrec, loaded, tmp_path):
    assert calrec("--from=run/stage1:latest", "--to_hf=out")[0] == 0
    mesh, config = make_mesh(MeshConfig(1), jax.devices()[:1]), MeshConfig(1)
    decoder = Decoder(small_run.MODEL)
    shapes = train_state.param_shapes(decoder, mesh, config)
    params = {"params": Checkpoints(run / "stage1/checkpoints").restore_params(2, shapes)}
    tokens, positions = np.array([[5, 3, 9, 4, 11, 17, 6, 8, 3]]), np.arange(9)[None]
    hidden = decoder.apply(params, tokens, positions, np.ones_like(tokens))
    logits = decoder.apply(params, hidden, method="unembed")
    np.testing.assert_allclose(loaded(tmp_path / "out", tokens[0]), logits, atol=1e-4)


# Adapters

ADAPTERS = LoraConfig(rank=2, alpha=6.0, pattern="attention/(query|out)|mlp/down")


@pytest.fixture
def adapted(loaded, calrec, tmp_path):
    """A run that trained adapters over a checkpoint of transformers, `original`."""
    tokenizer(hf_models.save("llama 3, biases, tied", tmp_path / "original"))
    calrec("--from_hf=original", "--to=ours")
    small_run.run(
        tmp_path / "run",
        small_run.stage(lora=ADAPTERS, init_from=str(tmp_path / "ours/pretrained:latest")),
        model=pretrained.decoder("ours", dtype="float32", remat="none"),
        vocabulary=vocabularies.fingerprint(vocabularies.carried("ours")),
    )


def test_adapters_merged_or_on_their_model_give_the_same_logits(loaded, adapted, calrec, tmp_path):
    peft = pytest.importorskip("peft", reason=REASON)
    import torch

    original = str(tmp_path / "original")
    code, out, _ = calrec("--from=run/stage1:latest", "--to_peft=adapters")
    assert (code, out) == (0, f"adapters: adapters of rank 2, of {original}\n")
    assert calrec("--from=run/stage1:latest", "--to_hf=merged")[0] == 0
    assert {"tokenizer.json", "tokenizer_config.json"} < files(tmp_path / "merged")

    described = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == original
    text = torch.tensor([[5, 3, 9, 4, 11, 17, 6, 8, 3]])
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(hf_models.load(original), tmp_path / "adapters")
        apart = model(text).logits.numpy()
    merged = loaded(tmp_path / "merged")
    np.testing.assert_allclose(apart, merged, atol=1e-4)
    assert np.abs(merged - loaded(original)).max() > 1e-3  # they were trained


def test_a_folder_that_is_no_checkpoint_of_t5x(calrec, tmp_path):
    assert one_line(calrec, tmp_path, "--from_t5x=runs/checkpoint_3", "--to=run/stage2") == (
        "'runs/checkpoint_3' is no checkpoint of T5X, which are folders checkpoint_STEP with "
        f"`state` inside; there are, in {tmp_path}/runs: []"
    )


def test_whole_weights_have_no_adapters_to_write(calrec, llama, tmp_path):
    calrec("--from_hf=llama", "--to=ours")
    assert one_line(calrec, tmp_path, "--from=ours/pretrained:latest", "--to_peft=out") == (
        "'ours/pretrained:latest' holds whole weights and no adapters: give --to_hf"
    )
