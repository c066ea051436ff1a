import json
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

TEXTS = [f"Title: garden hose {n} Brand: Velmo Price: ${n}.99" for n in range(200)]
MARKERS = Template().fixed_strings
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
# What SentencePiece gives back: all but NUL and its own sign for a space.
TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00\u2581"), max_size=60
)
TRICKY = (
    "",
    "  two spaces, a tab\t and a line\r\n\nend ",
    "emoji \U0001f6b4\u200d\u2640\ufe0f e\u0301 \ufb01 \u6f22\u5b57 \u0663",
    "<s> </s> <pad> <unk> <0x41> <extra_id_0> <|endoftext|>",
    "\ufeff\u2028 \x7f\x01",
)


def tricky(test):
    """`test` with additional texts that were a problem in the past."""
    for text in TRICKY:
        test = example(text=text)(test)
    return test


def byte_level(path: pathlib.Path, special: list[str], **settings) -> str:
    """Writes a tokenizer.json of byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE(**settings))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(special)  # at the end, as those models have them
    tokenizer.save(str(path))
    return str(path)


def unigram(path: pathlib.Path, special: list[str]) -> str:
    """Writes a tokenizer.json of Unigram with a sign for spaces, as T5 has it, and with <unk>."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    sentencepiece_training.train(TEXTS, path, 500, MARKERS)
    return path


# Session fixtures go into a hypothesis test once, not once an example.
@pytest.fixture(scope="session")
def trained(model_file):
    return vocabularies.sentencepiece(str(model_file))


@pytest.fixture(scope="session")
def seqio_trained(model_file):
    return seqio.SentencePieceVocabulary(str(model_file))


@pytest.fixture(scope="session")
def gpt2_file(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("gpt2") / "tokenizer.json", ["<|endoftext|>"])


@pytest.fixture(scope="session")
def t5_file(tmp_path_factory):
    return unigram(tmp_path_factory.mktemp("t5") / "tokenizer.json", ["<pad>", "</s>", "<unk>"])


@pytest.fixture(scope="session")
def gpt2(gpt2_file):
    return vocabularies.huggingface(gpt2_file)


@pytest.fixture(scope="session")
def t5(t5_file):
    return vocabularies.huggingface(t5_file)


@tricky
@given(text=TEXT)
def test_sentencepiece_gives_every_text_back(trained, text):
    assert trained.decode(trained.encode(text)) == text


@tricky
@given(text=ANY_TEXT)
def test_bytes_give_every_text_back(text):
    assert vocabularies.byte().decode(vocabularies.byte().encode(text)) == text


@tricky
@given(text=ANY_TEXT)
def test_ids_are_seqios(trained, seqio_trained, text):
    assert vocabularies.byte().encode(text) == seqio.ByteVocabulary().encode(text)
    assert trained.encode(text) == seqio_trained.encode(text)


@given(ids=st.lists(st.integers(0, 300), max_size=40))
@example(ids=[100, 101, 1, 102])
@example(ids=[198, 2, 0, 258, 259, 300])  # half a character, unknown, padding, beyond the last
def test_bytes_are_decoded_as_seqio_does(ids):
    assert vocabularies.byte().decode(ids) == seqio.ByteVocabulary().decode(ids)


@given(ids=st.lists(st.integers(0, 600), max_size=40))
@example(ids=[3, 2, 20, 0, 1, 30])
def test_pieces_are_decoded_as_seqio_does(trained, seqio_trained, ids):
    assert trained.decode(ids) == seqio_trained.decode(ids)


def test_attributes_are_seqios(trained, seqio_trained):
    names = ("vocab_size", "pad_id", "eos_id", "unk_id", "bos_id")
    for ours, seqios in (
        (vocabularies.byte(), seqio.ByteVocabulary()),
        (trained, seqio_trained),
    ):
        assert [getattr(ours, n) for n in names] == [getattr(seqios, n) for n in names]


def test_special_ids(trained):
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.bos_id) == (0, 1, 2, 3)
    assert vocabularies.bos_id(trained) == 3
    assert vocabularies.bos_id(vocabularies.byte()) == 0  # it has no BOS of its own: the pad id
    assert vocabularies.bos_id(seqio.FullCodepointVocabulary()) == 0  # nor this, which raises


def test_no_text_makes_special_ids(trained):
    ids = trained.encode("<s></s><pad><unk>")
    assert not {0, 1, 2, 3} & set(ids)


def test_fixed_strings_of_a_template_are_one_piece_each(trained):
    for marker in MARKERS:
        assert len(trained.encode(marker)) == 1


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(CalrecError, match="no SentencePiece model at .*nothing.model"):
        vocabularies.sentencepiece(str(tmp_path / "nothing.model"))


def test_a_damaged_model_file_is_refused(tmp_path):
    path = tmp_path / "bad.model"
    path.write_bytes(b"this is no model")
    with pytest.raises(CalrecError, match="is no SentencePiece model"):
        vocabularies.sentencepiece(str(path))


def test_a_model_without_eos_is_refused(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "endless"),
        vocab_size=60,
        eos_id=-1,
        minloglevel=2,
    )
    with pytest.raises(CalrecError, match="endless.model has no EOS"):
        vocabularies.sentencepiece(str(tmp_path / "endless.model"))


@tricky
@given(text=ANY_TEXT)
def test_ids_are_those_of_the_tokenizers_library(gpt2, gpt2_file, t5, t5_file, text):
    text = re.sub("<pad>|</s>|<unk>|<.endoftext.>", "", text)  # of which it would make tokens
    for vocabulary, path in ((gpt2, gpt2_file), (t5, t5_file)):
        library = tokenizers.Tokenizer.from_file(path)
        assert vocabulary.encode(text) == library.encode(text, add_special_tokens=False).ids


@tricky
@given(text=ANY_TEXT)
def test_byte_level_tokens_give_every_text_back(gpt2, text):
    assert gpt2.decode(gpt2.encode(text)) == text


def test_decoding_ends_at_eos(trained, gpt2, t5):
    for vocabulary in (vocabularies.byte(), trained, gpt2, t5):
        ids = vocabulary.encode("garden hose")
        assert vocabulary.decode([*ids, vocabulary.eos_id, *ids]) == "garden hose"
        assert vocabulary.decode(np.array([*ids, vocabulary.eos_id], np.int32)) == "garden hose"
        assert vocabulary.decode([vocabulary.eos_id, *ids]) == ""
        assert vocabulary.decode([]) == ""


def test_special_tokens_are_not_shown(tmp_path):
    special = ["<bos>", "<eos>", "<pad>", "<|other|>"]
    path = byte_level(tmp_path / "tokenizer.json", special)
    vocabulary = vocabularies.huggingface(path)
    bos, eos, pad, other = map(tokenizers.Tokenizer.from_file(path).token_to_id, special)
    ids = vocabulary.encode("garden")
    assert vocabulary.decode([bos, pad, *ids, other, pad, eos, *ids]) == "garden"
    # BOS and padding may be ordinary tokens.
    a, b = vocabulary.encode("a"), vocabulary.encode("b")
    plain = vocabularies.huggingface(path, bos_token="a", pad_token="b")
    assert ([plain.bos_id], [plain.pad_id]) == (a, b)
    assert plain.decode([*a, *ids, *b]) == plain.decode(ids)


def test_truncation_and_padding_of_the_file_are_left_out(gpt2, gpt2_file, tmp_path):
    library = tokenizers.Tokenizer.from_file(gpt2_file)
    library.enable_truncation(2)
    library.enable_padding(length=50)
    path = str(tmp_path / "tokenizer.json")
    library.save(path)
    vocabulary = vocabularies.huggingface(path)
    assert vocabulary.encode(TEXTS[0]) == gpt2.encode(TEXTS[0])
    assert vocabulary.encode("a") == gpt2.encode("a")
    assert vocabulary == gpt2


def test_ids_may_have_gaps(gpt2_file, tmp_path):
    path = tmp_path / "tokenizer.json"
    content = json.loads(pathlib.Path(gpt2_file).read_text())
    content["model"]["vocab"]["!"] = 5000
    path.write_text(json.dumps(content))
    vocabulary = vocabularies.huggingface(str(path))
    assert vocabulary.encode("!") == [5000]
    assert vocabulary.vocab_size == 5001


def test_the_unknown_token(gpt2, t5, tmp_path):
    assert gpt2.unk_id is None
    assert t5.unk_id == 2 and t5.encode("\u6f22")[-1] == 2
    path = byte_level(tmp_path / "tokenizer.json", ["<s>", "</s>", "<unk>"], unk_token="<unk>")
    vocabulary = vocabularies.huggingface(path)
    assert vocabulary.unk_id == tokenizers.Tokenizer.from_file(path).token_to_id("<unk>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tokenizer.json can be read at "),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"model": 3}', "is no tokenizer.json: "),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CalrecError, match=message) as error:
        vocabularies.huggingface(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("tokenizers", lambda path: vocabularies.huggingface(str(path))),
        ("sentencepiece", lambda path: vocabularies.sentencepiece(str(path))),
        ("sentencepiece", lambda path: sentencepiece_training.train(TEXTS, path, 500)),
    ],
)
def test_a_missing_library_is_one_line(monkeypatch, tmp_path, library, make):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CalrecError, match=f"needs the library {library}.*: pip install {library}$"):
        make(tmp_path / "a.model")
    assert vocabularies.byte().encode("a") == [100]


class Codepoints(seqio.FullCodepointVocabulary):
    pass


class Shifted(seqio.ByteVocabulary):
    def _encode(self, s):
        return [i + 1 for i in super()._encode(s)]


def test_fingerprints_tell_vocabularies_apart(trained, model_file, gpt2, t5, tmp_path):
    other = tmp_path / "other.model"
    sentencepiece_training.train(TEXTS[:50], other, 400)
    found = [
        trained,
        vocabularies.sentencepiece(str(other)),
        vocabularies.byte(),
        gpt2,
        t5,
        seqio.ByteVocabulary(extra_ids=10),
        seqio.SentencePieceVocabulary(str(model_file), extra_ids=10),
        seqio.FullCodepointVocabulary(),
        Codepoints(),
        seqio.UnigramVocabulary(["Garden", "hose,"], split_on_space=True),
        seqio.UnigramVocabulary(["hose,", "Garden"], split_on_space=True),
        seqio.PassThroughVocabulary(10),
    ]
    assert len({vocabularies.fingerprint(vocabulary) for vocabulary in found}) == len(found)


def test_fingerprints_stay_as_they_are(trained, seqio_trained, model_file, tmp_path):
    # Checkpoints hold them.
    assert vocabularies.fingerprint(vocabularies.byte()) == "ByteVocabulary:259"
    assert vocabularies.fingerprint(seqio.ByteVocabulary()) == "ByteVocabulary:259"
    assert vocabularies.fingerprint(trained) == vocabularies.fingerprint(seqio_trained)
    assert vocabularies.fingerprint(trained).startswith("SentencePieceVocabulary:")
    copy = tmp_path / "copy.model"
    copy.write_bytes(model_file.read_bytes())
    assert vocabularies.sentencepiece(str(copy)) == trained


def test_a_derived_class_is_another_vocabulary(model_file, trained):
    derived = [
        type("Other", (type(vocabulary),), {}) for vocabulary in (vocabularies.byte(), trained)
    ]
    assert vocabularies.fingerprint(derived[0]()) == "Other:259"
    assert derived[0]() != vocabularies.byte()
    assert derived[1](str(model_file)) != trained
    assert vocabularies.fingerprint(Shifted()) != vocabularies.fingerprint(seqio.ByteVocabulary())


def test_a_tokenizer_file_is_told_by_what_it_says(gpt2, gpt2_file, tmp_path):
    path = tmp_path / "tokenizer.json"
    content = json.loads(pathlib.Path(gpt2_file).read_text())
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert vocabularies.huggingface(str(path)) == gpt2
    assert hash(vocabularies.huggingface(str(path))) == hash(gpt2)
    assert vocabularies.huggingface(str(path), pad_token="a") != gpt2
    assert vocabularies.huggingface(str(path), bos_token="") != gpt2
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    assert vocabularies.huggingface(str(path)) != gpt2


def test_equality(trained, gpt2):
    assert vocabularies.byte() == vocabularies.byte() != trained != gpt2
    assert hash(vocabularies.byte()) == hash(vocabularies.byte())
    assert vocabularies.byte() != "ByteVocabulary:259"


def test_a_vocabulary_can_be_copied(trained, gpt2, t5):
    for vocabulary in (vocabularies.byte(), trained, gpt2, t5):
        copy = pickle.loads(pickle.dumps(vocabulary))
        assert copy == vocabulary
        assert copy.encode("garden hose 5") == vocabulary.encode("garden hose 5")
        assert copy.decode(copy.encode("garden hose 5")) == "garden hose 5"


def test_neither_tensorflow_nor_seqio_is_needed(model_file, gpt2_file):
    code = f"""
import sys
sys.modules["tensorflow"] = sys.modules["seqio"] = sys.modules["google.protobuf"] = None
from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
assert not {{"sentencepiece", "tokenizers"}} & sys.modules.keys()
for vocabulary in (
    vocabularies.byte(),
    vocabularies.sentencepiece({str(model_file)!r}),
    vocabularies.huggingface({gpt2_file!r}),
):
    ids = vocabulary.encode("garden hose")
    assert vocabulary.decode([*ids, vocabulary.eos_id]) == "garden hose"
    print(vocabularies.fingerprint(vocabulary))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = [
        vocabularies.byte(),
        vocabularies.sentencepiece(str(model_file)),
        vocabularies.huggingface(gpt2_file),
    ]
    assert done.stdout.split() == [vocabulary.fingerprint for vocabulary in expected]
