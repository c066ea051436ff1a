import pathlib
import re
from collections.abc import Sequence

import pytest
from sentencepiece import sentencepiece_model_pb2

from calrec_jax.data import vocabularies
from calrec_jax.data.preparation import sentencepiece_training
from calrec_jax.data.preparation.sentencepiece_training import train
from calrec_jax.errors import CalrecError
from calrec_jax.text.templates import Template

TEXTS = [f"Title: garden hose {n} Brand: Velmo Price: ${n}.99" for n in range(200)]
MARKERS = Template().fixed_strings


def trained(folder: pathlib.Path, texts: Sequence[str], size: int, whole_pieces=()):
    """The vocabulary of these texts."""
    train(texts, folder / "trained.model", size, whole_pieces)
    return vocabularies.sentencepiece(str(folder / "trained.model"))


def test_training_again_gives_the_same_file(tmp_path):
    once, again = tmp_path / "once.model", tmp_path / "again.model"
    train(TEXTS, once, 500, MARKERS)
    train(iter(TEXTS), again, 500, MARKERS)
    assert again.read_bytes() == once.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"once.model", "again.model"}


def test_no_more_pieces_than_asked_for(tmp_path):
    assert trained(tmp_path, TEXTS, 350, MARKERS).vocab_size == 350
    assert trained(tmp_path, TEXTS, 5000, MARKERS).vocab_size < 500


def test_too_many_pieces_are_refused(tmp_path):
    with pytest.raises(CalrecError, match="no vocabulary of 1000001 pieces is made: 1000000 are m"):
        train(TEXTS, tmp_path / "a.model", 1_000_001)


def test_too_few_pieces_are_refused(tmp_path):
    with pytest.raises(CalrecError, match="no vocabulary of 20 pieces"):
        train(TEXTS, tmp_path / "a.model", 20)


def test_a_model_file_needs_its_suffix(tmp_path):
    with pytest.raises(CalrecError, match=r"ends in \.model"):
        train(TEXTS, tmp_path / "a.vocab", 500)


@pytest.mark.parametrize("size", [-1, 0, 1, 2, 3, 4, 20, 268, 291])
def test_the_size_that_is_needed_is_told_and_will_do(tmp_path, size):
    with pytest.raises(CalrecError) as error:
        trained(tmp_path, TEXTS, size, MARKERS)
    message = (
        r"no vocabulary of (-?\d+) pieces from these texts: every character is a piece, so at "
    )
    numbers = re.fullmatch(
        message + r"least (\d+) are needed: give that size or more", str(error.value)
    )
    assert int(numbers[1]) == size
    assert trained(tmp_path, TEXTS, int(numbers[2]), MARKERS).vocab_size == int(numbers[2])


@pytest.mark.parametrize("length", [4188, 4189, 6500, 100_000])  # 4 characters have two bytes
@pytest.mark.parametrize("others", [TEXTS, []])
def test_a_long_text_is_learnt(tmp_path, length, others):
    long = "Title: ёжик" + " quokka" * length
    vocabulary = trained(tmp_path, [*others, long[:length]], 500, MARKERS)
    assert len(vocabulary.encode("ёжик")) <= 4  # of 8 bytes: each character is a piece


def test_a_long_text_of_other_scripts_is_learnt(tmp_path):
    vocabulary = trained(tmp_path, [*TEXTS, "不锈钢保温杯" * 400], 500)
    assert len(vocabulary.encode("不锈钢保温杯")) <= 6  # of 18 bytes


def test_lengths_are_in_the_file_where_they_are_not_the_usual(tmp_path):
    # The same texts give the file that they always gave: a checkpoint belongs to it.
    for texts, is_set in (TEXTS, False), ([*TEXTS, "x" * 4193], True):
        trained(tmp_path, texts, 350, MARKERS)
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString((tmp_path / "trained.model").read_bytes())
        assert model.trainer_spec.HasField("max_sentence_length") == is_set


def test_a_text_with_the_librarys_own_sign_is_learnt_but_for_the_sign(tmp_path):
    texts = [f"{text} \u2585\u2585 ёжик" for text in TEXTS]
    vocabulary = trained(tmp_path, texts, 500)
    assert len(vocabulary.encode("ёжик")) <= 4
    assert vocabulary.decode(vocabulary.encode(texts[0])) == texts[0]


@pytest.mark.parametrize("texts", [[], [""], ["", "\u2585"]])
def test_no_text_is_told(tmp_path, texts):
    with pytest.raises(CalrecError, match="no vocabulary without text: the items have none of"):
        trained(tmp_path, texts, 500)


def test_a_text_of_more_than_the_library_takes_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sentencepiece_training, "_MAX_LENGTH", 100)
    with pytest.raises(CalrecError, match="from a text of 101 bytes, 100 are most"):
        trained(tmp_path, ["x" * 101], 500)


def test_a_whole_piece_may_come_twice_or_be_empty(tmp_path):
    pieces = ["garden hose", "", "garden hose", "garden\u2581hose"]
    vocabulary = trained(tmp_path, TEXTS, 500, pieces)
    assert len(vocabulary.encode("garden hose")) == 1


@pytest.mark.parametrize("piece", ["</s>", "<s>", "<unk>", "<pad>", "<0x0A>"])
def test_a_whole_piece_that_would_be_a_special_token_is_refused(tmp_path, piece):
    with pytest.raises(CalrecError, match=f"'{piece}' is the name of a special token or a byte"):
        trained(tmp_path, TEXTS, 500, ["garden", piece])


def test_whatever_else_the_library_says_is_one_line(tmp_path):
    with pytest.raises(CalrecError, match="SentencePiece says 'Internal: .*try another") as error:
        trained(tmp_path, [*TEXTS, "\udcff"], 500)
    assert "\n" not in str(error.value)
