"""Vocabularies as `seqio.Vocabulary`: SentencePiece, with its training, and bytes."""

from __future__ import annotations

import hashlib
import io
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence

import sentencepiece as spm

from calrec_jax.data.quiet_tensorflow import seqio
from calrec_jax.errors import CalrecError


def sentencepiece(path: str) -> seqio.Vocabulary:
    """The vocabulary of a SentencePiece model file.

    Raises:
      CalrecError: there is no such file, or it is no SentencePiece model.
    """
    if not pathlib.Path(path).is_file():
        raise CalrecError(
            f"no SentencePiece model at {path}: train one with `calrec vocab --out={path} ...`, or "
            f"set VOCABULARY"
        )
    try:
        spm.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise CalrecError(f"{path} is no SentencePiece model: {error}") from error
    return seqio.SentencePieceVocabulary(str(path))


def byte() -> seqio.Vocabulary:
    """UTF-8 bytes: pad 0, EOS 1, unknown 2, then the 256 bytes."""
    return seqio.ByteVocabulary()


def train_sentencepiece(
    texts: Iterable[str],
    path: str | pathlib.Path,
    vocab_size: int,
    whole_pieces: Sequence[str] = (),
) -> None:
    """Trains a unigram model on `texts` and writes it to `path`. The same texts, the same file.

    It has `vocab_size` pieces at most.

    It is lossless: no normalisation, no dummy prefix, all white space kept, unknown characters as
    bytes. Only NUL and U+2581, as which SentencePiece writes a space, do not come back. pad 0,
    EOS 1, unknown 2, BOS 3.

    Args:
      whole_pieces: strings that become one piece each, wherever they stand: the sentences and
        labels of a template, which would else take most of a prompt's tokens.

    Raises:
      CalrecError: the texts are too few for `vocab_size`.
    """
    path = pathlib.Path(path)
    if path.suffix != ".model":
        raise CalrecError(f"{path}: a SentencePiece model's file ends in .model")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,  # a file's name would go into the model, and into its fingerprint
            vocab_size=vocab_size,
            hard_vocab_limit=False,  # few texts give fewer pieces
            model_type="unigram",
            user_defined_symbols=[piece.replace(" ", "\u2581") for piece in whole_pieces],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            num_threads=1,  # more would make the outcome depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        needed = re.search(r"smaller than required_chars. \d+ vs (\d+)", reason)
        if needed:
            reason = f"every character is a piece, so at least {needed[1]} are needed"
        raise CalrecError(
            f"no vocabulary of {vocab_size} pieces from these texts: {reason}"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


def bos_id(vocabulary: seqio.Vocabulary) -> int:
    """The id that starts a sequence: the vocabulary's own BOS, else its pad id, as T5 does."""
    own = vocabulary.bos_id
    return own if own is not None and own >= 0 else vocabulary.pad_id


def fingerprint(vocabulary: seqio.Vocabulary) -> str:
    """A short string that differs where token ids could differ."""
    if isinstance(vocabulary, RunVocabulary):
        return fingerprint(vocabulary.current())
    kind = type(vocabulary).__name__
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        digest = hashlib.sha256(vocabulary.sp_model).hexdigest()[:16]
        return f"{kind}:{digest}"
    return f"{kind}:{vocabulary.vocab_size}"


class RunVocabulary(seqio.Vocabulary):
    """Stands in a Task for the vocabulary that the run's model brings, until the run is known.

    A domain is text; which tokens it becomes is the model's affair. `current` gives the vocabulary
    at the time of use; one that gives the same ids is equal to it.
    """

    def __init__(self, current: Callable[[], seqio.Vocabulary]):
        super().__init__()
        self.current = current

    @property
    def bos_id(self):
        return self.current().bos_id

    @property
    def eos_id(self):
        return self.current().eos_id

    @property
    def unk_id(self):
        return self.current().unk_id

    @property
    def _base_vocab_size(self):
        return self.current().vocab_size

    def _encode(self, s):
        return self.current().encode(s)

    def _decode(self, ids):
        return self.current().decode(ids)

    def _encode_tf(self, s):
        return self.current().encode_tf(s)

    def _decode_tf(self, ids):
        return self.current().decode_tf(ids)

    def __eq__(self, other):
        return isinstance(other, seqio.Vocabulary) and fingerprint(self) == fingerprint(other)

    __hash__ = None
