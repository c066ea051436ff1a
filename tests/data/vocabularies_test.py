import pickle

import pytest
import seqio
from hypothesis import example, given
from hypothesis import strategies as st

from calrec_jax.data import vocabularies
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

TEXTS = [f"Title: garden hose {n} Brand: Velmo Price: ${n}.99" for n in range(200)]
MARKERS = Template().fixed_strings


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.model"
    vocabularies.train_sentencepiece(TEXTS, path, 500, MARKERS)
    return path


@pytest.fixture(scope="session")
def trained(model_file):
    return vocabularies.sentencepiece(str(model_file))


# Session fixtures go into a hypothesis test once, not once an example.
TEXT = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00\u2581"), max_size=60
)


@given(text=TEXT)
@example(text="")
@example(text="  two spaces, a tab\t and a line\r\n\nend ")
@example(text="emoji \U0001f6b4\u200d\u2640\ufe0f e\u0301 \ufb01 \u6f22\u5b57 \u0663")
@example(text="<s> </s> <pad> <unk> <0x41> <extra_id_0>")
@example(text="\ufeff\u2028 \x7f\x01")
def test_sentencepiece_gives_every_text_back(trained, text):
    assert trained.decode(trained.encode(text)) == text


@given(text=st.text(st.characters(blacklist_categories=("Cs",))))
def test_bytes_give_every_text_back(text):
    assert vocabularies.byte().decode(vocabularies.byte().encode(text)) == text


def test_special_ids(trained):
    assert (trained.pad_id, trained.eos_id, trained.unk_id, trained.bos_id) == (0, 1, 2, 3)
    assert vocabularies.bos_id(trained) == 3
    assert vocabularies.bos_id(vocabularies.byte()) == 0  # it has no BOS of its own: the pad id
    assert vocabularies.byte().eos_id == 1


def test_no_text_makes_special_ids(trained):
    ids = trained.encode("<s></s><pad><unk>")
    assert not {0, 1, 2, 3} & set(ids)


def test_decoding_ends_at_eos(trained):
    ids = trained.encode("garden hose")
    assert trained.decode([*ids, 1, *ids]) == "garden hose"


def test_fixed_strings_of_a_template_are_one_piece_each(trained):
    for marker in MARKERS:
        assert len(trained.encode(marker)) == 1


def test_training_again_gives_the_same_file(model_file, tmp_path):
    again = tmp_path / "again.model"
    vocabularies.train_sentencepiece(iter(TEXTS), again, 500, MARKERS)
    assert again.read_bytes() == model_file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


def test_no_more_pieces_than_asked_for(trained):
    assert trained.vocab_size <= 500


def test_too_few_pieces_are_refused(tmp_path):
    with pytest.raises(CalrecError, match="no vocabulary of 20 pieces"):
        vocabularies.train_sentencepiece(TEXTS, tmp_path / "a.model", 20)


def test_a_model_file_needs_its_suffix(tmp_path):
    with pytest.raises(CalrecError, match=r"ends in \.model"):
        vocabularies.train_sentencepiece(TEXTS, tmp_path / "a.vocab", 500)


def test_a_missing_model_file_is_named(tmp_path):
    with pytest.raises(CalrecError, match="no SentencePiece model at .*nothing.model"):
        vocabularies.sentencepiece(str(tmp_path / "nothing.model"))


def test_a_damaged_model_file_is_refused(tmp_path):
    path = tmp_path / "bad.model"
    path.write_bytes(b"this is no model")
    with pytest.raises(CalrecError, match="is no SentencePiece model"):
        vocabularies.sentencepiece(str(path))


def test_fingerprints_tell_vocabularies_apart(trained, model_file, tmp_path):
    other = tmp_path / "other.model"
    vocabularies.train_sentencepiece(TEXTS[:50], other, 400)
    prints = [
        vocabularies.fingerprint(vocabulary)
        for vocabulary in (
            trained,
            vocabularies.sentencepiece(str(other)),
            vocabularies.byte(),
            seqio.ByteVocabulary(extra_ids=10),
        )
    ]
    assert len(set(prints)) == 4
    copy = tmp_path / "copy.model"
    copy.write_bytes(model_file.read_bytes())
    assert vocabularies.fingerprint(vocabularies.sentencepiece(str(copy))) == prints[0]


def test_a_vocabulary_can_be_copied_by_gin(trained):
    copy = pickle.loads(pickle.dumps(trained))
    assert copy.encode("garden hose 5") == trained.encode("garden hose 5")


def test_the_stand_in_follows_the_run(trained):
    current = [vocabularies.byte()]
    stand_in = vocabularies.RunVocabulary(lambda: current[0])
    assert stand_in.encode("ab") == [100, 101]
    assert stand_in == vocabularies.byte() and stand_in != trained
    current[0] = trained
    assert stand_in.encode("garden") == trained.encode("garden")
    assert stand_in.decode(trained.encode("garden")) == "garden"
    assert (stand_in.bos_id, stand_in.eos_id, stand_in.unk_id) == (3, 1, 2)
    assert stand_in.vocab_size == trained.vocab_size
    assert vocabularies.fingerprint(stand_in) == vocabularies.fingerprint(trained)
    assert stand_in == trained and stand_in != vocabularies.byte()
