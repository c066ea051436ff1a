import json
import pathlib

import pytest
import tokenizers
from tokenizers import models

from calrec_jax.data import vocabularies
from calrec_jax.errors import CalrecError
from calrec_jax.text.special_tokens import FAMILIES


def with_tokens(path: pathlib.Path, *names: str, plain: tuple[str, ...] = ()) -> str:
    """Writes a tokenizer.json with these special tokens and `plain` ones, ids in that order."""
    ids = {name: i for i, name in enumerate([*plain, "a", "b"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.add_special_tokens(list(names))
    tokenizer.save(str(path))
    return str(path)


# family: its special tokens, and the ids of BOS, EOS, padding, the start of a row.
EXPECTED = {
    "gemma": (("<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"), (4, 3, 2, 4)),
    "gpt2": (("<|endoftext|>",), (2, 2, 2, 2)),
    "llama2": (("<unk>", "<s>", "</s>"), (3, 4, 4, 3)),
    "llama3": (("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), (2, 3, 3, 2)),
    "phi3": (("<unk>", "<s>", "<|endoftext|>", "<|assistant|>"), (3, 4, 4, 3)),
    "qwen": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), (None, 2, 2, 2)),
    "t5": (("<pad>", "</s>", "<unk>", "<extra_id_0>"), (None, 3, 2, 2)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_of_a_family(tmp_path, family):
    tokens, expected = EXPECTED[family]
    path = with_tokens(tmp_path / "tokenizer.json", *tokens)
    for vocabulary in (vocabularies.huggingface(path), vocabularies.huggingface(path, family)):
        ids = (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id)
        assert (*ids, vocabularies.bos_id(vocabulary)) == expected
        assert vocabulary.vocab_size == 2 + len(tokens)


def test_only_special_tokens_tell_a_family(tmp_path):
    # Gemma has HTML's <s> and </s> as ordinary tokens.
    path = with_tokens(
        tmp_path / "tokenizer.json", "<bos>", "<eos>", "<pad>", "<unk>", plain=("<s>", "</s>")
    )
    assert vocabularies.huggingface(path).eos_id == 5
    assert vocabularies.huggingface(path, "llama2").eos_id == 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((), "are of no family that is known: give family (one of gemma, gpt2, llama2, llama3, "),
        (("<|begin_of_text|>",), "are of no family that is known"),
        (("<s>", "</s>", "<unk>", "<pad>"), "could be of llama2 and t5: give family (one of"),
        (("<bos>", "<eos>", "<pad>", "<|endoftext|>"), "could be of gemma and gpt2"),
    ],
)
def test_a_family_that_cannot_be_told(tmp_path, tokens, message):
    path = with_tokens(tmp_path / "tokenizer.json", *tokens)
    with pytest.raises(CalrecError) as error:
        vocabularies.huggingface(path)
    line = str(error.value)
    assert path in line and message in line and "\n" not in line
    assert line.endswith("or name bos_token, eos_token and pad_token ('' for none)")


def test_named_tokens_need_no_family(tmp_path):
    path = with_tokens(tmp_path / "tokenizer.json", "<s>", "</s>", "<unk>", "<pad>")
    vocabulary = vocabularies.huggingface(path, bos_token="<s>", eos_token="</s>")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (2, 3, 3)
    vocabulary = vocabularies.huggingface(path, bos_token="", eos_token="a", pad_token="<pad>")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (None, 0, 5)


def test_a_named_token_goes_before_the_familys(tmp_path):
    path = with_tokens(
        tmp_path / "tokenizer.json", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
    )
    vocabulary = vocabularies.huggingface(path, eos_token="<|eot_id|>")
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (2, 4, 4)


def test_tokenizer_config_goes_before_the_family_and_after_arguments(tmp_path):
    path = with_tokens(tmp_path / "tokenizer.json", "<pad>", "<eos>", "<bos>", "<end_of_turn>")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"eos_token": "<end_of_turn>", "pad_token": {"content": "<bos>"}, "other": 1})
    )

    def ids(**arguments):
        vocabulary = vocabularies.huggingface(path, **arguments)
        return vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id

    assert ids() == ids(family="gemma") == (4, 5, 4)
    assert ids(eos_token="<eos>") == (4, 3, 4)
    config.write_text(json.dumps({"bos_token": None, "pad_token": None}))  # it says: none
    assert ids() == (None, 3, 3)
    config.write_text(json.dumps({"model_max_length": 1024}))  # it says nothing, as GPT-2's
    assert ids() == (4, 3, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[1]", "tokenizer_config.json holds no JSON object"),
        ("{", "tokenizer_config.json is not JSON"),
        ('{"eos_token": 7}', "tokenizer_config.json: eos_token is 7, and not a string"),
        ('{"eos_token": "</s>"}', "has no token '</s>', which is to be its eos_token"),
        ('{"eos_token": null}', "has no EOS, and no item would end: name its eos_token"),
    ],
)
def test_a_tokenizer_config_that_cannot_be_used(tmp_path, config, message):
    path = with_tokens(tmp_path / "tokenizer.json", "<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(CalrecError) as error:
        vocabularies.huggingface(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "bert"}, "^no family 'bert' of tokenizers; known: gemma, gpt2, llama2, "),
        ({"family": "gemma"}, "has no token '<bos>', which is to be its bos_token"),
        ({"pad_token": "<pad>"}, "has no token '<pad>', which is to be its pad_token"),
        ({"eos_token": ""}, "has no EOS"),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, arguments, message):
    path = with_tokens(tmp_path / "tokenizer.json", "<|endoftext|>")
    with pytest.raises(CalrecError, match=message):
        vocabularies.huggingface(path, **arguments)
