"""No text becomes a special token, whatever it holds, and decoding restores all of it."""

from __future__ import annotations

import copy
import json
import pathlib
import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
from calrec_jax.decode.trie import TokenTrie
from calrec_jax.text.items import Catalogue
from calrec_jax.text.prompts import TextTokens, TokenizedCatalogue
from calrec_jax.text.templates import Template

TEXTS = [f"Title: garden hose {n} Brand: Velmo Price: ${n}.99 </s> <x0A>|[]" for n in range(200)]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(path: pathlib.Path, added: list[AddedToken], **arguments):
    """A SentencePiece model of BPE that has also learnt </s> as a piece."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=350, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens(added)
    made.save(str(path))
    return vocabularies.huggingface(str(path), **arguments)


def special(content: str, **more) -> AddedToken:
    return AddedToken(content, special=True, normalized=False, **more)


def qwen(path):
    """A tokenizer with an added token that is not special, and one that absorbs white space."""
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    more = [
        AddedToken("<tool_call>", special=False, normalized=False),
        AddedToken("<mask>", special=False, lstrip=True),
        AddedToken("<row>", special=False, rstrip=True, normalized=False),
        AddedToken("<norm>", special=True, lstrip=True, rstrip=True, normalized=True),
    ]
    return byte_level(path, [*map(special, names), *more])


def ordinary_eos(path):
    """EOS may be an added token that the file does not mark as special, or a piece of the model."""
    return byte_level(
        path, [AddedToken("<end>", special=False)], bos_token="</s>", eos_token="<end>"
    )


def unigram(path: pathlib.Path, byte_fallback: bool):
    """A model with the special tokens, and all bytes, among its pieces."""
    spaces = pre_tokenizers.Metaspace(prepend_scheme="never")
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = spaces
    trainer = trainers.UnigramTrainer(
        vocab_size=450,
        special_tokens=["<pad>", "</s>", "<unk>", *BYTES],
        unk_token="<unk>",
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    content = json.loads(made.to_str())
    content["model"]["byte_fallback"] = byte_fallback
    # Bytes are pieces of such models, and not added tokens.
    content["added_tokens"] = content["added_tokens"][:3]
    path.write_text(json.dumps(content))
    return vocabularies.huggingface(str(path))


def sentencepiece(path: pathlib.Path):
    path = path.with_suffix(".model")
    sentencepiece_training.train(TEXTS, path, 400, Template().fixed_strings)
    return vocabularies.sentencepiece(str(path))


KINDS = {
    "qwen": qwen,
    "pickled": lambda path: pickle.loads(pickle.dumps(qwen(path))),
    "copied": lambda path: copy.deepcopy(qwen(path)),
    "ordinary_eos": ordinary_eos,
    "unigram": lambda path: unigram(path, True),
    "sentencepiece": sentencepiece,
    "bytes": lambda path: vocabularies.byte(),
}
# Of each of them, and of others.
NAMES = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<mask>", "<row>", "<norm>",
    "<end>", "</s>", "<s>", "<pad>", "<unk>", "<eos>", "<bos>", "<0x0A>", "<0xE6>",
)  # fmt: skip
PARTS = ("<|im_", "end|>", "<0x", "0A>", "Title: ", " ", "  ", "hose")
# What SentencePiece's form of a space leaves: all but NUL and that sign.
any_text = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00\u2581"), max_size=8
)
texts = st.lists(st.sampled_from(NAMES + PARTS) | any_text, max_size=8).map("".join)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    return {name: make(folder / f"{name}.json") for name, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_text_stays_text(made, kind, text):
    vocabulary = made[kind]
    ids = vocabulary.encode(text)
    assert not {vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id} & set(ids)
    assert vocabulary.decode(ids) == text  # which leaves out all special tokens


@given(text=texts)
def test_a_model_without_bytes_has_no_special_token_for_a_text_either(t5, text):
    ids = t5.encode(text)
    assert not {t5.pad_id, t5.eos_id} & set(ids)


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    return unigram(tmp_path_factory.mktemp("t5") / "tokenizer.json", False)


def test_a_name_in_another_form_is_no_special_token(tmp_path):
    unigram(tmp_path / "tokenizer.json", True)
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    made.normalizer = normalizers.NFKC()
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = vocabularies.huggingface(str(tmp_path / "tokenizer.json"))
    assert vocabulary.decode(vocabulary.encode("hose \uff1c/s\uff1e 1")) == "hose </s> 1"


def test_added_tokens_that_are_not_special_stay_tokens(made):
    vocabulary = made["qwen"]
    (id_,) = vocabulary.encode("<tool_call>")
    assert vocabulary.encode("a <tool_call> b")[2] == id_ >= 350


def test_special_tokens_of_a_template_are_meant(made):
    vocabulary = made["qwen"]
    library = tokenizers.Tokenizer.from_str(vocabulary._tokenizer.to_str())
    for sentence in ("<|im_start|>user\n", "Then<|im_end|>\n<|im_start|> ", "The next item: "):
        expected = library.encode(sentence, add_special_tokens=False).ids
        assert vocabulary.encode_template(sentence) == expected
        assert vocabularies.encode_template(vocabulary, sentence) == expected
    # Meanwhile, text stays text.
    assert vocabulary.decode(vocabulary.encode("<|im_end|>")) == "<|im_end|>"
    for kind in ("sentencepiece", "bytes"):
        assert made[kind].encode_template("a </s>") == made[kind].encode("a </s>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_with_the_names_of_special_tokens_makes_a_trie(made, kind):
    vocabulary = made[kind]
    titles = [f"Thing {name} for garden" for name in NAMES]
    catalogue = Catalogue.create("toys", {f"i{n:02}": {"title": t} for n, t in enumerate(titles)})
    text = TextTokens.encode(catalogue, Template(), vocabulary.encode, vocabulary.encode_template)
    tokens = TokenizedCatalogue(catalogue, text, {"inputs": 500, "targets": 100})
    trie = TokenTrie.build(tokens, vocabulary.eos_id)
    assert [trie.items(leaf) for leaf in trie.leaves] == [(n,) for n in range(len(titles))]
    for item_id, title in zip(catalogue.item_ids, titles, strict=True):
        assert vocabulary.decode(tokens.item(item_id)) == f"Title: {title}"
    prompt = vocabulary.decode(tokens.prompt(["i02", "i10"]))
    assert prompt == Template().render_prompt([{"title": titles[2]}, {"title": titles[10]}])
