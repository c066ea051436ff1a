import pathlib
from collections.abc import Sequence

import pytest

from calrec_jax.data import vocabularies
from calrec_jax.data.sentencepiece_training import train
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
