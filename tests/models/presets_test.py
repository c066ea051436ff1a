"""Presets of open models: sizes to the parameter, config.json and back, names, gin."""

from __future__ import annotations

import pytest

from calrec_jax.checkpoints import hf_families, hf_io
from calrec_jax.configs import gin_config, load
from calrec_jax.errors import CalrecError
from calrec_jax.models.config import DecoderConfig
from calrec_jax.models.presets import PRESETS, preset


def _text(total: int, d_model: int) -> int:
    """The parameters of the text decoder of a Gemma 3 that reads images: without the image tower,
    the projection and its norm."""
    return total - 416_866_032 - 1152 * d_model - 1152


# Counted in the files of the published weights.
PUBLISHED = {
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": _text(4_300_079_472, 2560),
    "gemma3_12b": _text(12_187_325_040, 3840),
    "gemma3_27b": _text(27_432_406_640, 5376),
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "qwen25_0_5b": 494_032_768,
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen25_14b": 14_770_033_664,
    "qwen25_32b": 32_763_876_352,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
}
MODEL_TYPES = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "llama2": "llama",
    "llama3": "llama",
    "llama31": "llama",
    "llama32": "llama",
    "qwen25": "qwen2",
    "qwen3": "qwen3",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GEMMA3_IMAGES = {
    "model_type": "gemma3_text",
    "sliding_window": 1024,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
# One published config.json of each kind, without fields that do not concern the decoder.
CONFIG_JSON = {
    "gemma_2b": {
        "model_type": "gemma",
        "attention_bias": False,
        "head_dim": 256,
        "hidden_act": "gelu",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "vocab_size": 256000,
    },
    "gemma2_27b": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_hidden_layers": 46,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 144,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma3_1b": {
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
    "gemma3_4b": {
        "model_type": "gemma3",
        "text_config": GEMMA3_IMAGES
        | {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
    },
    "gemma3_27b": {
        "model_type": "gemma3",
        "text_config": GEMMA3_IMAGES
        | {
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168,
        },
    },
    "llama2_13b": {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "num_key_value_heads": 40,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "llama31_70b": {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_ROPE | {"factor": 8.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "llama32_1b": {
        "model_type": "llama",
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": LLAMA3_ROPE | {"factor": 32.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "qwen25_14b": {
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "max_window_layers": 48,
        "num_attention_heads": 40,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "qwen3_4b": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}


def counted(c: DecoderConfig) -> int:
    """The number of parameters, computed from the sizes alone."""
    query, both = c.num_heads * c.head_dim, 2 * c.num_kv_heads * c.head_dim
    norms = (4 if c.post_norms else 2) * c.d_model + 2 * c.head_dim * c.query_key_norm
    biases = (query + both) * c.query_key_value_bias
    matrices = c.d_model * (query + both) + query * c.d_model + 3 * c.d_model * c.d_ff
    tables = 1 if c.tie_embeddings else 2
    layers = c.num_layers * (matrices + norms + biases)
    return tables * c.vocab_size * c.d_model + layers + c.d_model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_was_published(name):
    assert counted(PRESETS[name]) == PUBLISHED[name]


def test_every_preset_is_compared_with_published_sizes():
    assert PRESETS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_the_decoder_has_the_parameters_that_were_counted(family):
    name, config = next((n, c) for n, c in PRESETS.items() if n.partition("_")[0] == family)
    assert hf_io.num_parameters(hf_io.parameter_shapes(config)) == PUBLISHED[name]


@pytest.mark.parametrize("name", CONFIG_JSON)
def test_the_published_config_json_is_the_preset(name):
    family, config = hf_families.read_config(CONFIG_JSON[name])
    assert family.model_type == MODEL_TYPES[name.partition("_")[0]]
    assert config == PRESETS[name]


@pytest.mark.parametrize("model_type", [None, "its own"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_config_json_is_read_as_the_preset_that_it_was_written_of(name, model_type):
    own = MODEL_TYPES[name.partition("_")[0]]
    written = hf_families.write_config(
        PRESETS[name], own if model_type else None, "bfloat16", length=8192
    )
    family, config = hf_families.read_config(written)
    assert family.model_type == own
    assert config == PRESETS[name]


def test_the_arguments_of_a_preset_set_how_it_is_computed():
    config = preset("gemma2_2b")
    assert (config.dtype, config.param_dtype, config.remat) == ("bfloat16", "float32", "full")
    assert config.scan_layers and config.meaning() == PRESETS["gemma2_2b"].meaning()
    other = preset("gemma2_2b", "float32", "bfloat16", "dots", False, 4096)
    assert (other.dtype, other.param_dtype, other.remat) == ("float32", "bfloat16", "dots")
    assert not other.scan_layers and other.vocab_size == 4096
    assert other.meaning() == PRESETS["gemma2_2b"].meaning() | {"vocab_size": 4096}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("gemma2-9b", "gemma2_9b"), ("qwen3_600m", "qwen3_"), ("Llama-3.2-1B", "llama32_1b")],
)
def test_an_unknown_name_is_an_error_that_lists_the_most_similar_first(name, nearest):
    with pytest.raises(CalrecError) as error:
        preset(name)
    line = str(error.value)
    assert line.startswith(f"no preset {name!r}; known: {nearest}") and "\n" not in line
    assert all(line.count(f" {known},") + line.endswith(f" {known}") == 1 for known in PRESETS)


FILES = ["gin/runs/quickstart.gin", "gin/models/preset.gin"]
BYTES = "VOCABULARY=@vocabularies.byte()"  # no file is needed


def test_gin_gives_a_preset_with_fresh_weights(tmp_path):
    bindings = [
        BYTES,
        "PRESET='qwen3_0_6b'",
        "presets.preset.vocab_size=384",
        "preset.remat='dots'",
    ]
    made = load.from_gin(FILES, bindings)
    assert made.model == preset("qwen3_0_6b", vocab_size=384, remat="dots")
    assert {stage.init_from for stage in made.stages[:1]} == {None}
    (tmp_path / "config.gin").write_text(gin_config.operative_config())
    assert load.load_run(tmp_path).model == made.model


def test_gin_says_that_a_preset_is_required_or_unknown():
    with pytest.raises(CalrecError, match="no value for PRESET"):
        load.from_gin(FILES, [BYTES])
    with pytest.raises(CalrecError, match="no preset 'gemma9'; known: gemma"):
        load.from_gin(FILES, [BYTES, "PRESET='gemma9'"])
