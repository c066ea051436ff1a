"""Which number of a tensor of transformers is which number of a parameter, one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from checkpoints import small_hf
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.checkpoints import hf_io, safetensors_io
from calrec_jax.checkpoints.hf_families import read_config
from calrec_jax.checkpoints.hf_maps import Entry, entries, plain_name
from calrec_jax.errors import CalrecError

D, F, H, G, K = 6, 10, 4, 2, 4  # small_hf's


def table(config) -> dict[str, Entry]:
    shapes = hf_io.parameter_shapes(read_config(config)[1])
    return {entry.name: entry for entry in entries(shapes)}


LLAMA = {
    "embedding": ((20, D), ["model.embed_tokens.weight"]),
    "unembedding": ((20, D), ["lm_head.weight"]),
    "final_norm/scale": ((D,), ["model.norm.weight"]),
    "layers/attention_norm/scale": ((D,), ["input_layernorm.weight"]),
    "layers/mlp_norm/scale": ((D,), ["post_attention_layernorm.weight"]),
    "layers/attention/query/kernel": ((D, H, K), ["self_attn.q_proj.weight"]),
    "layers/attention/key/kernel": ((D, G, K), ["self_attn.k_proj.weight"]),
    "layers/attention/value/kernel": ((D, G, K), ["self_attn.v_proj.weight"]),
    "layers/attention/out/kernel": ((H, K, D), ["self_attn.o_proj.weight"]),
    "layers/mlp/gate/kernel": ((D, F), ["mlp.gate_proj.weight"]),
    "layers/mlp/up/kernel": ((D, F), ["mlp.up_proj.weight"]),
    "layers/mlp/down/kernel": ((F, D), ["mlp.down_proj.weight"]),
}
GEMMA_2 = {name: tensor for name, tensor in LLAMA.items() if name != "unembedding"} | {
    "layers/attention_post_norm/scale": ((D,), ["post_attention_layernorm.weight"]),
    "layers/mlp_norm/scale": ((D,), ["pre_feedforward_layernorm.weight"]),
    "layers/mlp_post_norm/scale": ((D,), ["post_feedforward_layernorm.weight"]),
    "layers/attention/query/bias": ((H, K), ["self_attn.q_proj.bias"]),
    "layers/attention/key/bias": ((G, K), ["self_attn.k_proj.bias"]),
    "layers/attention/value/bias": ((G, K), ["self_attn.v_proj.bias"]),
    "layers/attention/out/bias": ((D,), ["self_attn.o_proj.bias"]),
}


@pytest.mark.parametrize(
    ("config", "expected"), [(small_hf.LLAMA, LLAMA), (small_hf.GEMMA_2, GEMMA_2)], ids="lg"
)
def test_the_table_is_all_of_both(config, expected):
    found = table(config)
    assert found.keys() == expected.keys()
    hf_shapes = {}
    for name, (shape, (tensor,)) in expected.items():
        stacked = name.startswith("layers/")
        tensors = [f"model.layers.{n}.{tensor}" for n in (0, 1)] if stacked else [tensor]
        assert found[name].shape == shape and found[name].stacked == stacked
        assert list(found[name].tensors) == tensors
        hf_shapes |= dict.fromkeys(tensors, found[name].hf_shape)
    assert hf_shapes == small_hf.shapes(config)


def test_norms_of_queries_and_keys():
    config = small_hf.LLAMA | {"model_type": "qwen3"}
    found = table(config)
    for ours, tensor in (("query", "q_norm"), ("key", "k_norm")):
        entry = found[f"layers/attention/{ours}_norm/scale"]
        assert entry.shape == entry.hf_shape == (K,)
        assert entry.tensors[1] == f"model.layers.1.self_attn.{tensor}.weight"


def test_each_number_of_a_projection_is_in_its_place():
    found = table(small_hf.LLAMA)
    query = np.arange(H * K * D).reshape(H * K, D)
    ours = found["layers/attention/query/kernel"].from_hf(query)
    out = np.arange(D * H * K).reshape(D, H * K)
    our_out = found["layers/attention/out/kernel"].from_hf(out)
    for d in range(D):
        for h in range(H):
            for k in range(K):
                assert ours[d, h, k] == query[h * K + k, d]
                assert our_out[h, k, d] == out[d, h * K + k]
    gate = np.arange(F * D).reshape(F, D)
    np.testing.assert_array_equal(found["layers/mlp/gate/kernel"].from_hf(gate), gate.T)
    embedding = np.arange(20 * D).reshape(20, D)
    np.testing.assert_array_equal(found["embedding"].from_hf(embedding), embedding)


def test_a_bias_of_heads_is_in_its_place():
    entry = table(small_hf.GEMMA_2)["layers/attention/query/bias"]
    bias = np.arange(H * K)
    ours = entry.from_hf(bias)
    assert ours.shape == (H, K) and ours[2, 1] == 2 * K + 1
    np.testing.assert_array_equal(entry.to_hf(ours), bias)


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=3),
    num_inputs=st.integers(0, 2),
    most=st.integers(1, 200),
)
def test_pieces_are_the_whole_in_both_directions(shape, num_inputs, most):
    num_inputs = min(num_inputs, len(shape) - 1)
    if num_inputs == 0:
        shape = shape[:2]
    entry = Entry("layers/x/kernel", tuple(shape), ("x",), stacked=False, num_inputs=num_inputs)
    hf_tensor = np.arange(math.prod(shape), dtype=np.float32).reshape(entry.hf_shape)
    ours, again, axis = np.zeros(shape, np.float32), [], entry.split_axis
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_io, "_MAX_PIECE_BYTES", most)
        for rows, places in entry.blocks(4):
            part = entry.from_hf(hf_tensor[rows])
            where = (*[slice(None)] * axis, places)
            ours[where] = part
            np.testing.assert_array_equal(entry.to_hf(part), hf_tensor[rows])
            again.append(entry.to_hf(part))
    np.testing.assert_array_equal(np.concatenate(again), hf_tensor)
    np.testing.assert_array_equal(entry.from_hf(hf_tensor), ours)


@pytest.mark.parametrize(
    "name",
    ["layers/attention/query/scale", "layers/mlp/kernel", "extra", "blocks/mlp/up/kernel"],
)
def test_a_parameter_without_a_place_is_named(name):
    with pytest.raises(CalrecError, match=f"^parameter {name} has no place in a checkpoint of Hu"):
        entries({name: (2, 3, 4)})


def test_of_files_with_images_the_decoder_of_text_is_taken():
    assert plain_name("language_model.model.norm.weight") == "model.norm.weight"
    assert plain_name("language_model.lm_head.weight") == "lm_head.weight"
    assert plain_name("model.language_model.norm.weight") == "model.norm.weight"
    assert plain_name("model.norm.weight") == "model.norm.weight"
    for name in (
        "vision_tower.vision_model.post_layernorm.weight",
        "model.vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "model.layers.3.self_attn.rotary_emb.inv_freq",
    ):
        assert plain_name(name) is None
