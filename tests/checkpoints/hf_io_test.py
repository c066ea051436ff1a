"""Checkpoints of Hugging Face's, in and out: the same bytes, or one line and nothing written."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from checkpoints import small_hf
from checkpoints.small_hf import BFLOAT16, EMBEDDING, HEAD, NORM

from calrec_jax.checkpoints import hf_io, safetensors_io, streamed
from calrec_jax.errors import CalrecError

INDEX = "model.safetensors.index.json"


def there_and_back(folder, target, max_file_bytes=10**9):
    """Imports `folder` and exports what was imported as `target`."""
    weights = hf_io.read(folder)
    hf_io.import_weights(weights, target / "checkpoints")
    stores = streamed.open_params(target / "checkpoints", 0)
    back = target / "back"
    back.mkdir()
    hf_io.export_weights(
        back,
        {name: store.shape for name, store in stores.items()},
        {name: store.dtype for name, store in stores.items()},
        lambda name, where: stores[name].read(where),
        max_file_bytes,
    )
    return stores, back


TENSORS = {
    "float32": (small_hf.random(), small_hf.LLAMA),
    "bfloat16": (small_hf.random(dtype=BFLOAT16), small_hf.LLAMA),
    "float16": (small_hf.random(dtype=np.float16), small_hf.LLAMA),
    "mixed": (small_hf.mixed(), small_hf.LLAMA),
    "gemma 2": (small_hf.random(small_hf.GEMMA_2, BFLOAT16), small_hf.GEMMA_2),
}


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("kind", TENSORS)
def test_there_and_back_is_the_same_to_the_byte(tmp_path, kind, files):
    tensors, config = TENSORS[kind]
    folder = small_hf.write(tmp_path / "hf", tensors, config, files)
    stores, back = there_and_back(folder, tmp_path)
    small_hf.assert_same(small_hf.read(back), tensors)
    query = stores["layers/attention/query/kernel"]
    assert query.shape == (2, 6, 4, 4)
    weight = tensors["model.layers.1.self_attn.q_proj.weight"]
    assert query.dtype == weight.dtype
    expected = weight.reshape(4, 4, 6).transpose(2, 0, 1)
    assert query.read((1,)).tobytes() == expected.tobytes()


def test_tensors_go_in_small_pieces_all_the_same(tmp_path, monkeypatch):
    tensors = small_hf.mixed()
    folder = small_hf.write(tmp_path / "hf", tensors)
    monkeypatch.setattr(safetensors_io, "_MAX_PIECE_BYTES", 50)
    stores, back = there_and_back(folder, tmp_path)
    small_hf.assert_same(small_hf.read(back), tensors)
    assert stores["embedding"].store.chunk_layout.read_chunk.shape == (4, 6)  # 4 rows of 12 bytes


def test_weights_in_several_files_have_an_index(tmp_path):
    tensors = small_hf.random()
    _, back = there_and_back(small_hf.write(tmp_path / "hf", tensors), tmp_path, 1000)
    files = sorted(path.name for path in back.glob("*.safetensors"))
    assert files == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    index = json.loads((back / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in tensors.values())
    for file in files:
        header = safetensors_io.read_header(back / file)
        assert {index["weight_map"][name] for name in header} == {file}
        size = sum(tensors[name].nbytes for name in header)
        assert size <= 1000 or len(header) == 1
    assert index["weight_map"].keys() == tensors.keys()
    small_hf.assert_same(small_hf.read(back), tensors)
    assert hf_io._tensors(back).keys() == tensors.keys()


def test_layer_10_comes_after_layer_9(tmp_path):
    config = small_hf.LLAMA | {"num_hidden_layers": 11}
    folder = small_hf.write(tmp_path / "hf", small_hf.random(config), config)
    _, back = there_and_back(folder, tmp_path)
    layers = [int(n.split(".")[2]) for n in safetensors_io.read_header(back / "model.safetensors")
              if ".layers." in n]  # fmt: skip
    assert layers == sorted(layers) and layers[-1] == 10


def test_another_kind_of_numbers_is_rounded_to_it(tmp_path):
    tensors = small_hf.random()
    hf_io.import_weights(hf_io.read(small_hf.write(tmp_path / "hf", tensors)), tmp_path / "c")
    stores = streamed.open_params(tmp_path / "c", 0)
    hf_io.export_weights(
        tmp_path,
        {name: store.shape for name, store in stores.items()},
        dict.fromkeys(stores, BFLOAT16),
        lambda name, where: stores[name].read(where),
        10**9,
    )
    expected = {name: values.astype(BFLOAT16) for name, values in tensors.items()}
    small_hf.assert_same(small_hf.read(tmp_path), expected)


def test_what_is_too_large_for_float16_is_named(tmp_path):
    tensors = small_hf.random()
    tensors[NORM][3] = 70_000
    hf_io.import_weights(hf_io.read(small_hf.write(tmp_path / "hf", tensors)), tmp_path / "c")
    stores = streamed.open_params(tmp_path / "c", 0)
    with pytest.raises(CalrecError) as error:
        hf_io.export_weights(
            tmp_path,
            {name: store.shape for name, store in stores.items()},
            dict.fromkeys(stores, np.dtype(np.float16)),
            lambda name, where: stores[name].read(where),
            10**9,
        )
    assert str(error.value) == (
        "model.norm.weight holds numbers that float16 has no place for: write it in bfloat16"
    )


def test_a_second_copy_of_a_tied_embedding_is_left_out(tmp_path):
    config = small_hf.LLAMA | {"tie_word_embeddings": True}
    tensors = small_hf.random(config)
    folder = small_hf.write(tmp_path / "hf", tensors | {HEAD: tensors[EMBEDDING]}, config)
    _, back = there_and_back(folder, tmp_path)
    small_hf.assert_same(small_hf.read(back), tensors)


def test_of_files_with_images_the_text_is_read(tmp_path):
    text = small_hf.random(small_hf.GEMMA_2)
    tensors = {f"language_model.{name}": values for name, values in text.items()}
    tensors["vision_tower.vision_model.post_layernorm.weight"] = np.zeros(3, np.float32)
    config = small_hf.GEMMA_2
    folder = small_hf.write(tmp_path / "hf", tensors, config)
    _, back = there_and_back(folder, tmp_path)
    small_hf.assert_same(small_hf.read(back), text)


# What is refused


def refused(folder) -> str:
    with pytest.raises(CalrecError) as error:
        hf_io.read(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


DOWN = "model.layers.1.mlp.down_proj.weight"


def test_a_missing_tensor(tmp_path):
    tensors = small_hf.random()
    del tensors[DOWN]
    folder = small_hf.write(tmp_path, tensors)
    assert refused(folder) == (
        f"{folder}: {DOWN} is absent, and by config.json it is to be [6, 10]"
    )


def test_an_extra_tensor(tmp_path):
    more = {"model.layers.2.input_layernorm.weight": np.zeros(6, np.float32)}
    folder = small_hf.write(tmp_path, small_hf.random() | more)
    assert refused(folder) == (
        f"{folder}: model.layers.2.input_layernorm.weight is [6], and by config.json it is to be "
        f"absent"
    )


def test_a_misshapen_tensor(tmp_path):
    tensors = small_hf.random()
    folder = small_hf.write(tmp_path, tensors | {DOWN: tensors[DOWN].T.copy()})
    assert refused(folder) == (
        f"{folder}: {DOWN} is [10, 6], and by config.json it is to be [6, 10]"
    )


def test_an_untied_head_that_is_missing(tmp_path):
    tensors = small_hf.random()
    del tensors[HEAD]
    assert f"{HEAD} is absent, and by config.json it is to be [20, 6]" in refused(
        small_hf.write(tmp_path, tensors)
    )


@pytest.mark.parametrize("change", ["value", "shape", "dtype"])
def test_a_head_that_is_not_its_tied_embedding(tmp_path, change):
    config = small_hf.LLAMA | {"tie_word_embeddings": True}
    tensors = small_hf.random(config)
    head = tensors[EMBEDDING].copy()
    if change == "value":
        head[19, 5] += 1
    head = {"value": head, "shape": head[:19], "dtype": head.astype(np.float16)}[change]
    assert refused(small_hf.write(tmp_path, tensors | {HEAD: head}, config)) == (
        f"{tmp_path}: lm_head.weight {_described(head)} is not model.embed_tokens.weight "
        f"float32[20, 6], and by config.json (tie_word_embeddings) it is to be"
    )


def _described(array) -> str:
    return f"{array.dtype}{list(array.shape)}"


def test_layers_of_different_kinds(tmp_path):
    tensors = small_hf.random()
    folder = small_hf.write(tmp_path, tensors | {DOWN: tensors[DOWN].astype(np.float16)})
    assert refused(folder) == (
        f"model.layers.0.mlp.down_proj.weight is float32 and {DOWN} is float16: all layers must "
        f"be of one kind"
    )


def test_another_family(tmp_path):
    folder = small_hf.write(tmp_path, small_hf.random(), small_hf.LLAMA | {"model_type": "gpt2"})
    assert f"{folder}/config.json has model_type 'gpt2', which is none of" in refused(folder)


def test_a_family_that_its_tensors_are_not_of(tmp_path):
    config = small_hf.LLAMA | {"model_type": "qwen2"}
    line = refused(small_hf.write(tmp_path, small_hf.random(), config))
    assert line.endswith(
        "model.layers.0.self_attn.k_proj.bias is absent, and by config.json it is to be [8]"
    )


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a_pickle_alone(tmp_path, pickle):
    folder = small_hf.write(tmp_path, small_hf.random())
    (folder / "model.safetensors").rename(folder / pickle)
    assert refused(folder) == (
        f"{folder} has {pickle} but not model.safetensors: pickled weights run code when they are "
        f"loaded and are not read; save the model as safetensors"
    )


def test_no_weights_at_all(tmp_path):
    folder = small_hf.write(tmp_path, small_hf.random())
    (folder / "model.safetensors").unlink()
    assert refused(folder) == f"{folder} has no model.safetensors"


def test_no_config(tmp_path):
    assert refused(tmp_path).startswith(f"{tmp_path}/config.json cannot be read: ")
    (tmp_path / "config.json").write_text("{")
    assert refused(tmp_path).startswith(f"{tmp_path}/config.json cannot be read: ")
    (tmp_path / "config.json").write_text("[]")
    assert refused(tmp_path) == f"{tmp_path}/config.json is no JSON object"


def test_a_cut_shard(tmp_path):
    folder = small_hf.write(tmp_path, small_hf.random(), files=3)
    path = folder / "model-00002-of-00003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    line = refused(folder)
    assert line.startswith(f"{path} is cut off: ")
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    (last,) = [name for name, e in header.items() if e["data_offsets"][1] == len(whole) - 8 - len(
        whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])]  # fmt: skip
    assert f"{last} {header[last]['shape']} ends at byte {len(whole)}, the file at" in line


def test_a_missing_shard(tmp_path):
    folder = small_hf.write(tmp_path, small_hf.random(), files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert refused(folder) == f"{folder} has no model-00002-of-00003.safetensors"


def test_a_tensor_that_is_in_two_shards(tmp_path):
    folder = small_hf.write(tmp_path, small_hf.random(), files=2)
    tensors = small_hf.random()
    small_hf.write(tmp_path / "more", tensors)
    (tmp_path / "more" / "model.safetensors").replace(folder / "model-00002-of-00002.safetensors")
    assert f" is in {folder}/model-00001-of-00002.safetensors and again in " in refused(folder)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {}}',
     '{"weight_map": {"a": "../x.safetensors"}}'],
)  # fmt: skip
def test_a_damaged_index(tmp_path, content):
    folder = small_hf.write(tmp_path, small_hf.random(), files=2)
    (folder / INDEX).write_text(content)
    assert refused(folder).startswith(f"{folder}/{INDEX} is damaged: ")


def test_nothing_but_what_goes_with_weights_is_carried(tmp_path):
    carried = ["config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
               "special_tokens_map.json", "vocab.json", "merges.txt", "generation_config.json",
               "chat_template.jinja", "added_tokens.json"]  # fmt: skip
    for name in (*carried, "model.safetensors", "pytorch_model.bin", "README.md", "run.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tokenizer_cache").mkdir()
    hf_io.carry(tmp_path, tmp_path / "to")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted(carried)
    assert (tmp_path / "to" / "vocab.json").read_text() == "vocab.json"
