"""config.json of published models as a DecoderConfig, and back where a family can express it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calrec_jax.checkpoints.hf_families import FAMILIES, read_config, write_config
from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.rotary import RopeScaling

PLAIN = {"norm_plus_one": False, "scale_embedding": False}
GEMMA_2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "vocab_size": 256000,
}
GEMMA_3_TEXT = {
    "head_dim": 256,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_attention_heads": 8,
    "num_hidden_layers": 34,
    "num_key_value_heads": 4,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
    "vocab_size": 262208,
}
LLAMA_3 = {
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
QWEN_2 = {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN_3 = {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA = {
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
LLAMA_2 = {
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
}


def decoder(v, d, layers, heads, kv, width, f, **fields) -> DecoderConfig:
    return DecoderConfig(d, layers, heads, kv, width, f, v, **fields)


SIX = (*["sliding"] * 5, "global")
PUBLISHED = {
    "Gemma 2B": (GEMMA, decoder(256000, 2048, 18, 8, 1, 256, 16384)),
    "Gemma 2 2B": (
        GEMMA_2,
        decoder(
            *(256000, 2304, 26, 8, 4, 256, 9216),
            attention_pattern=("sliding", "global"),
            sliding_window=4096,
            attention_softcap=50.0,
            logit_softcap=30.0,
            post_norms=True,
        ),
    ),
    "Gemma 3 4B, text": (
        GEMMA_3_TEXT,
        decoder(
            *(262208, 2560, 34, 8, 4, 256, 10240),
            attention_pattern=SIX,
            sliding_window=1024,
            rope_theta=1e6,
            local_rope_theta=1e4,
            rope_scaling=RopeScaling("linear", 8.0),
            post_norms=True,
            query_key_norm=True,
        ),
    ),
    "Llama 2 7B": (
        LLAMA_2,
        decoder(
            *(32000, 4096, 32, 32, 32, 128, 11008),
            activation="silu",
            norm_eps=1e-5,
            tie_embeddings=False,
            **PLAIN,
        ),
    ),
    "Llama 3.1 8B": (
        LLAMA_3,
        decoder(
            *(128256, 4096, 32, 32, 8, 128, 14336),
            activation="silu",
            rope_theta=5e5,
            rope_scaling=RopeScaling("llama3", 8.0, 8192, 1.0, 4.0),
            norm_eps=1e-5,
            tie_embeddings=False,
            **PLAIN,
        ),
    ),
    "Qwen 2.5 7B": (
        QWEN_2,
        decoder(
            *(152064, 3584, 28, 28, 4, 128, 18944),
            activation="silu",
            rope_theta=1e6,
            rope_scaling=RopeScaling("yarn", 4.0, 32768),
            query_key_value_bias=True,
            tie_embeddings=False,
            **PLAIN,
        ),
    ),
    "Qwen 3 0.6B": (
        QWEN_3,
        decoder(
            *(151936, 1024, 28, 16, 8, 128, 3072),
            activation="silu",
            rope_theta=1e6,
            query_key_norm=True,
            **PLAIN,
        ),
    ),
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_config_is_read(model):
    described, expected = PUBLISHED[model]
    family, found = read_config(described)
    assert found == expected
    assert family.model_type == described["model_type"]


@pytest.mark.parametrize("model", PUBLISHED)
def test_a_published_config_is_written_and_read_again(model):
    described, expected = PUBLISHED[model]
    written = json.loads(json.dumps(write_config(expected, described["model_type"], "float16", 99)))
    assert read_config(written)[1] == expected
    assert (written["dtype"], written["max_position_embeddings"]) == ("float16", 99)
    assert written["architectures"] == [FAMILIES[described["model_type"]].architecture]


def test_of_gemma_3_with_images_the_decoder_of_text_is_read():
    described = {"model_type": "gemma3", "text_config": GEMMA_3_TEXT, "vision_config": {}}
    assert read_config(described)[1] == PUBLISHED["Gemma 3 4B, text"][1]


def test_layers_that_slide_are_listed_or_counted():
    sliding = QWEN_2 | {"use_sliding_window": True, "max_window_layers": 26}
    found = read_config(sliding)[1]
    assert found.layer_kinds == ("global",) * 26 + ("sliding",) * 2
    assert found.sliding_window == 131072
    listed = GEMMA_2 | {"layer_types": ["full_attention", "sliding_attention"] * 13}
    assert read_config(listed)[1].attention_pattern == ("global", "sliding")
    third = GEMMA_3_TEXT | {"sliding_window_pattern": 3}
    assert read_config(third)[1].attention_pattern == ("sliding", "sliding", "global")


def test_what_a_family_passes_over_is_passed_over():
    more = {
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "layer_types": ["sliding_attention"] * 32,
        "sliding_window": 7,
        "query_pre_attn_scalar": 3,
    }
    assert read_config(LLAMA_3 | more) == read_config(LLAMA_3)
    # The code of Gemma 3 has no cap of attention, though its config.json has a place for one.
    capped = GEMMA_3_TEXT | {"attn_logit_softcapping": 50.0}
    assert read_config(capped) == read_config(GEMMA_3_TEXT)


REFUSED = {
    "another family": (GEMMA | {"model_type": "gpt2"}, "has model_type 'gpt2', which is none of"),
    "no family": ({"hidden_size": 3}, "has model_type None, which is none of gemma, gemma2, "),
    "no size": (
        {k: v for k, v in LLAMA_3.items() if k != "intermediate_size"},
        "has no intermediate_size",
    ),
    "both ways": (
        GEMMA_2 | {"use_bidirectional_attention": True},
        "has use_bidirectional_attention = True, which is not built here",
    ),
    "experts": (QWEN_3 | {"num_experts": 8}, "has num_experts = 8, which is not built here"),
    "part of a head": (LLAMA_3 | {"partial_rotary_factor": 0.5}, "has partial_rotary_factor = 0.5"),
    "part of a head, in the parameters": (
        LLAMA_2 | {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "'partial_rotary_factor': 0.5}: not built here",
    ),
    "another activation": (LLAMA_3 | {"hidden_act": "relu"}, "has activation 'relu', which is no"),
    "exact gelu": (LLAMA_3 | {"hidden_act": "gelu"}, "has activation 'gelu', which is none of"),
    "another scaling": (
        LLAMA_2 | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "scales rotations by 'dynamic', which is none of ('linear', 'llama3', 'yarn')",
    ),
    "no factor": (
        LLAMA_2 | {"rope_scaling": {"rope_type": "linear"}},
        "scales rotations by 'linear' and has no factor",
    ),
    "local rotations scaled": (
        GEMMA_3_TEXT
        | {
            "rope_parameters": {
                "full_attention": {"rope_theta": 1e6},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0},
            }
        },
        "scales the rotations of layers that slide: not built here",
    ),
    "another kind of attention": (
        QWEN_3 | {"layer_types": ["chunked_attention"] * 28},
        "has layer_types 'chunked_attention'",
    ),
    "too few kinds of attention": (
        QWEN_3 | {"layer_types": ["full_attention"] * 27},
        "has 27 layer_types and 28 layers",
    ),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_what_is_not_built_is_one_line_that_names_it(refused):
    described, message = REFUSED[refused]
    with pytest.raises(CalrecError) as error:
        read_config(described, "DIR/config.json")
    assert str(error.value).startswith("DIR/config.json ") and message in str(error.value)
    assert "\n" not in str(error.value)


# Any decoder


positive = st.floats(0.5, 1e6).map(float)
scalings = st.one_of(
    st.builds(RopeScaling, st.just("linear"), st.floats(1.0, 64.0)),
    st.builds(
        RopeScaling,
        st.just("llama3"),
        st.floats(1.0, 64.0),
        st.integers(1, 8192),
        st.floats(0.25, 2.0),
        st.floats(3.0, 8.0),
    ),
    st.builds(
        RopeScaling,
        st.just("yarn"),
        st.floats(1.0, 64.0),
        st.integers(1, 8192),
        beta_fast=st.floats(2.0, 64.0),
        beta_slow=st.floats(0.5, 1.5),
        attention_factor=st.none() | st.floats(0.5, 2.0),
        truncate=st.booleans(),
    ),
)


@st.composite
def decoders(draw, **fields):
    """Any DecoderConfig, with what `fields` says: strategies."""
    kv, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    pattern = draw(st.lists(st.sampled_from(["global", "sliding"]), min_size=1, max_size=7))
    any_of = {
        "activation": st.sampled_from(["gelu", "silu"]),
        "attention_pattern": st.just(tuple(pattern)),
        "sliding_window": st.integers(1, 9999),
        "rope_theta": positive,
        "local_rope_theta": st.none() | positive,
        "rope_scaling": st.none() | scalings,
        "query_scalar": st.none() | st.integers(1, 300).map(float),
        "query_key_norm": st.booleans(),
        "attention_softcap": st.none() | positive,
        "logit_softcap": st.none() | positive,
        "query_key_value_bias": st.booleans(),
        "attention_out_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "post_norms": st.booleans(),
        "norm_eps": st.floats(1e-8, 1e-3),
        "norm_plus_one": st.booleans(),
        "tie_embeddings": st.booleans(),
        "scale_embedding": st.booleans(),
    }
    sizes = st.integers(1, 300)
    drawn = {name: draw(strategy) for name, strategy in (any_of | fields).items()}
    v, d, f, layers = (draw(sizes) for _ in range(4))
    width = 2 * draw(st.integers(1, 64))
    return decoder(v, d, layers, heads * kv, kv, width, f, **drawn)


never, always, none = st.just(False), st.just(True), st.none()
ALL_GLOBAL = {"attention_pattern": st.just(("global",)), "local_rope_theta": none}
NO_GEMMA_2 = {"query_scalar": none, "attention_softcap": none, "logit_softcap": none}
GEMMAS = {"norm_plus_one": always, "scale_embedding": always, "mlp_bias": never}
OTHERS = NO_GEMMA_2 | {"norm_plus_one": never, "scale_embedding": never, "post_norms": never}
EXPRESSED = {
    "gemma": GEMMAS | ALL_GLOBAL | NO_GEMMA_2 | {"post_norms": never, "query_key_norm": never},
    "gemma2": GEMMAS | {"post_norms": always, "query_key_norm": never, "local_rope_theta": none},
    "gemma3_text": GEMMAS
    | {
        "post_norms": always,
        "query_key_norm": always,
        "attention_softcap": none,
        "local_rope_theta": positive,
    },
    "llama": OTHERS | ALL_GLOBAL | {"query_key_norm": never},
    "qwen2": OTHERS
    | {
        "query_key_norm": never,
        "query_key_value_bias": always,
        "attention_out_bias": never,
        "mlp_bias": never,
        "local_rope_theta": none,
    },
    "qwen3": OTHERS | {"query_key_norm": always, "mlp_bias": never, "local_rope_theta": none},
}


def same_function(a: DecoderConfig, b: DecoderConfig) -> bool:
    """Whether they differ in nothing that a layer of transformers reads."""

    def seen(c: DecoderConfig) -> dict:
        meaning = c.meaning() | {"attention_pattern": c.layer_kinds}
        meaning["query_scalar"] = c.query_scalar or c.head_dim
        local = (c.local_rope_theta, None) if c.local_rope_theta else (c.rope_theta, c.rope_scaling)
        meaning["local_rope_theta"] = local
        if "sliding" not in c.layer_kinds:
            del meaning["sliding_window"], meaning["local_rope_theta"]
        return meaning

    return seen(a) == seen(b)


@pytest.mark.parametrize("family", EXPRESSED)
def test_what_a_family_can_express_comes_back(family):
    @given(decoders(**EXPRESSED[family]), st.booleans())
    def check(config, bias):
        if family != "qwen2":  # whose biases are fixed; others have all or none
            config = dataclasses.replace(config, query_key_value_bias=bias, attention_out_bias=bias)
        written = json.loads(json.dumps(write_config(config, family, "bfloat16", 64)))
        assert written["model_type"] == family
        assert same_function(read_config(written)[1], config)

    check()


@given(decoders())
def test_any_decoder_comes_back_or_is_refused_in_one_line(config):
    try:
        written = write_config(config, None, "bfloat16", 64)
    except CalrecError as error:
        (line,) = str(error).splitlines()
        fields = {field.name for field in dataclasses.fields(DecoderConfig)}
        start, *_ = line.partition(": ")
        assert start == "no family can express this decoder"
        for problem in line.removeprefix(f"{start}: ").split("; "):
            family, has, another, field = problem.split()
            assert family in FAMILIES and (has, another) == ("has", "another")
            assert field in fields
    else:
        assert same_function(read_config(json.loads(json.dumps(written)))[1], config)


CANNOT = {
    "gemma": ("logit_softcap", 3.0),
    "gemma2": ("query_key_norm", True),
    "gemma3_text": ("attention_softcap", 3.0),
    "llama": ("scale_embedding", True),
    "qwen2": ("attention_out_bias", True),
    "qwen3": ("mlp_bias", True),
}


@pytest.mark.parametrize("family", CANNOT)
def test_what_a_family_cannot_express_is_named(family):
    field, value = CANNOT[family]
    model = next(m for m, (hf, _) in PUBLISHED.items() if hf["model_type"] == family)
    config = dataclasses.replace(PUBLISHED[model][1], **{field: value})
    with pytest.raises(CalrecError, match=f"^no family can .*: {family} has another {field}$"):
        write_config(config, family, "float32", 64)


def test_a_query_scalar_that_is_no_whole_number_is_refused():
    config = dataclasses.replace(PUBLISHED["Gemma 2 2B"][1], query_scalar=12.5)
    with pytest.raises(CalrecError, match="gemma2 has another query_scalar$"):
        write_config(config, "gemma2", "float32", 64)


def test_an_unknown_family_is_named_with_those_known():
    with pytest.raises(CalrecError, match="^no family 'gpt2'; known: gemma, gemma2, gemma3_text, "):
        write_config(PUBLISHED["Gemma 2B"][1], "gpt2", "float32", 64)


def test_the_first_family_that_can_is_taken():
    for model, family in (("Gemma 2B", "gemma"), ("Llama 2 7B", "llama"), ("Qwen 3 0.6B", "qwen3")):
        assert write_config(PUBLISHED[model][1], None, "float32", 8)["model_type"] == family
