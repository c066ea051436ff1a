"""Small checkpoints of Hugging Face's, written down by hand: no transformers, no torch."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors.numpy

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 6,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
GEMMA_2 = {
    **LLAMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "tie_word_embeddings": True,
    "attention_bias": True,
    "sliding_window": 5,
}
_LAYER = {
    "input_layernorm.weight": (6,),
    "mlp.down_proj.weight": (6, 10),
    "mlp.gate_proj.weight": (10, 6),
    "mlp.up_proj.weight": (10, 6),
    "post_attention_layernorm.weight": (6,),
    "self_attn.k_proj.weight": (8, 6),
    "self_attn.o_proj.weight": (6, 16),
    "self_attn.q_proj.weight": (16, 6),
    "self_attn.v_proj.weight": (8, 6),
}
_GEMMA_2_LAYER = _LAYER | {
    "post_feedforward_layernorm.weight": (6,),
    "pre_feedforward_layernorm.weight": (6,),
    "self_attn.k_proj.bias": (8,),
    "self_attn.o_proj.bias": (6,),
    "self_attn.q_proj.bias": (16,),
    "self_attn.v_proj.bias": (8,),
}
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def shapes(config: Mapping = LLAMA) -> dict[str, tuple[int, ...]]:
    """{tensor: shape}, in their order."""
    layer = _LAYER if config["model_type"] == "llama" else _GEMMA_2_LAYER
    layers = range(config["num_hidden_layers"])
    found = {f"model.layers.{n}.{name}": shape for n in layers for name, shape in layer.items()}
    head = {} if config["tie_word_embeddings"] else {HEAD: (config["vocab_size"], 6)}
    return {EMBEDDING: (config["vocab_size"], 6), NORM: (6,)} | found | head


def random(config: Mapping = LLAMA, dtype=np.float32) -> dict[str, np.ndarray]:
    """{tensor: values}."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes(config).items()}


def mixed() -> dict[str, np.ndarray]:
    """Tensors of Llama with norms in float32 and the rest in bfloat16, as some are published."""
    return {
        name: values if "norm" in name else values.astype(BFLOAT16)
        for name, values in random().items()
    }


def write(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping = LLAMA,
    files: int = 1,
) -> pathlib.Path:
    """A folder as transformers writes one; several files have an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
        return folder
    names, weight_map = list(tensors), {}
    for n in range(files):
        file, part = f"model-{n + 1:05d}-of-{files:05d}.safetensors", names[n::files]
        safetensors.numpy.save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """{tensor: values} of all files, by the library."""
    found: dict[str, np.ndarray] = {}
    for path in folder.glob("*.safetensors"):
        part = safetensors.numpy.load_file(path)
        assert not part.keys() & found.keys()
        found |= part
    return found


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same tensors to the byte."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        assert found[name].tobytes() == values.tobytes(), name
