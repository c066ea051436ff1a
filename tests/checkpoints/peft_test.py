"""Adapters in PEFT's format: the files, and the logits of PEFT's own model."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from calrec_jax.checkpoints import peft
from calrec_jax.errors import CalrecError
from calrec_jax.models import lora
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.decoder import Decoder
from calrec_jax.models.lora import LoraConfig

LLAMA = DecoderConfig(
    vocab_size=20, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_ff=12,
    activation="silu", norm_plus_one=False, scale_embedding=False, tie_embeddings=False,
)  # fmt: skip
EVERY = dataclasses.replace(LLAMA, lora=LoraConfig(rank=3, alpha=4.0, pattern=".*"))


def adapters(config, seed=0):
    return lora.split(tiny.params(config, seed))[0]


def test_the_files_are_pefts(tmp_path):
    config = dataclasses.replace(LLAMA, lora=LoraConfig(3, 4.0, "attention/out|mlp/up"))
    made = adapters(config)
    peft.write_adapters(tmp_path / "new", made, config, "meta/llama")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {peft.CONFIG, peft.WEIGHTS}
    described = json.loads((tmp_path / "new" / peft.CONFIG).read_text())
    assert described["target_modules"] == ["o_proj", "up_proj"]
    assert (described["r"], described["lora_alpha"]) == (3, 4.0)
    assert described["base_model_name_or_path"] == "meta/llama"

    written = safetensors.numpy.load_file(tmp_path / "new" / peft.WEIGHTS)
    layer = "base_model.model.model.layers.1."
    out, up = made["layers"]["attention"]["out"], made["layers"]["mlp"]["up"]
    expected = {
        f"{layer}self_attn.o_proj.lora_A.weight": np.asarray(out["lora_a"])[1].reshape(24, 3).T,
        f"{layer}self_attn.o_proj.lora_B.weight": np.asarray(out["lora_b"])[1].T,
        f"{layer}mlp.up_proj.lora_A.weight": np.asarray(up["lora_a"])[1].T,
        f"{layer}mlp.up_proj.lora_B.weight": np.asarray(up["lora_b"])[1].T,
    }
    assert written.keys() == expected.keys() | {name.replace("1", "0") for name in expected}
    for name, value in expected.items():
        np.testing.assert_array_equal(written[name], value)
        assert written[name].dtype == np.float32


def test_layers_in_a_loop_give_the_same_files(tmp_path):
    stacked = adapters(EVERY)
    peft.write_adapters(tmp_path / "scan", stacked, EVERY, "x")
    looped = dataclasses.replace(EVERY, scan_layers=False)
    apart = {
        f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked["layers"]) for i in range(2)
    }
    peft.write_adapters(tmp_path / "loop", apart, looped, "x")
    for name in (peft.CONFIG, peft.WEIGHTS):
        one, other = ((tmp_path / kind / name).read_bytes() for kind in ("scan", "loop"))
        assert one == other


def test_a_stage_without_adapters_is_refused(tmp_path):
    with pytest.raises(CalrecError, match="no adapters to write"):
        peft.write_adapters(tmp_path / "new", {}, LLAMA, "x")
    assert not (tmp_path / "new").exists()


def ours(state, config) -> dict:
    """A Llama's state_dict, {name: array}, as our base parameters."""
    c = config
    heads = {"q_proj": c.num_heads, "k_proj": c.num_kv_heads, "v_proj": c.num_kv_heads}

    def stack(name, shape):
        layers = [state[f"model.layers.{i}.{name}.weight"].T for i in range(c.num_layers)]
        return jnp.asarray(np.stack(layers).reshape(c.num_layers, *shape))

    def attention(name):
        return {"kernel": stack(f"self_attn.{name}", (c.d_model, heads[name], c.head_dim))}

    out = stack("self_attn.o_proj", (c.num_heads, c.head_dim, c.d_model))
    layers = {
        "attention": {
            "query": attention("q_proj"),
            "key": attention("k_proj"),
            "value": attention("v_proj"),
            "out": {"kernel": out},
        },
        "mlp": {
            "gate": {"kernel": stack("mlp.gate_proj", (c.d_model, c.d_ff))},
            "up": {"kernel": stack("mlp.up_proj", (c.d_model, c.d_ff))},
            "down": {"kernel": stack("mlp.down_proj", (c.d_ff, c.d_model))},
        },
        "attention_norm": {"scale": stack("input_layernorm", (c.d_model,))},
        "mlp_norm": {"scale": stack("post_attention_layernorm", (c.d_model,))},
    }
    return {
        "embedding": jnp.asarray(state["model.embed_tokens.weight"]),
        "unembedding": jnp.asarray(state["lm_head.weight"]),
        "final_norm": {"scale": jnp.asarray(state["model.norm.weight"])},
        "layers": layers,
    }


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [".*", LoraConfig().pattern])
def test_peft_gives_the_same_logits(tmp_path, pattern):
    torch = pytest.importorskip("torch")
    transformers, hf_peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    c = dataclasses.replace(LLAMA, lora=LoraConfig(rank=3, alpha=4.0, pattern=pattern))
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            rms_norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )  # fmt: skip
    ).eval()
    base = ours({name: value.numpy() for name, value in model.state_dict().items()}, c)
    made = adapters(c, seed=1)
    peft.write_adapters(tmp_path, made, c, "tiny")

    tokens = np.random.default_rng(0).integers(0, c.vocab_size, (2, 9))
    variables = {"params": lora.join(made, base)}
    positions, segments = np.tile(np.arange(9), (2, 1)), np.ones((2, 9), np.int32)
    hidden = Decoder(c).apply(variables, tokens, positions, segments)
    got = Decoder(c).apply(variables, hidden, method="unembed")
    with torch.no_grad():
        before = model(torch.as_tensor(tokens)).logits.numpy()
        adapted = hf_peft.PeftModel.from_pretrained(model, tmp_path)
        expected = adapted(torch.as_tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert np.abs(expected - before).max() > 0.1
