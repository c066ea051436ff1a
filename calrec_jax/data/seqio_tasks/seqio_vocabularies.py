"""Vocabularies as `seqio.Vocabulary`, for SeqIO tasks and the code that reads them, such as T5X."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from calrec_jax.data.store.quiet_tensorflow import seqio, tf
from calrec_jax.data.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    encode_template,
    fingerprint,
)


def as_seqio(vocabulary: Vocabulary | seqio.Vocabulary) -> seqio.Vocabulary:
    """A seqio.Vocabulary with the same ids; one of SeqIO's own is returned as it is.

    Bytes and SentencePiece become SeqIO's own classes. For any other vocabulary, `encode_tf` takes
    a scalar string, and TensorFlow calls Python.
    """
    if isinstance(vocabulary, seqio.Vocabulary):
        return vocabulary
    # A subclass may give other ids.
    if type(vocabulary) is ByteVocabulary:
        return seqio.ByteVocabulary()
    if type(vocabulary) is SentencePieceVocabulary:
        return seqio.SentencePieceVocabulary(vocabulary.path)
    return _PythonVocabulary(vocabulary)


class _StandIn(seqio.Vocabulary):
    """A vocabulary with the ids of another one; it is equal to vocabularies with the same ids."""

    _vocabulary: Vocabulary | seqio.Vocabulary

    @property
    def bos_id(self) -> int | None:
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int:
        return self._vocabulary.eos_id

    @property
    def pad_id(self) -> int:
        return self._vocabulary.pad_id

    @property
    def unk_id(self) -> int | None:
        return self._vocabulary.unk_id

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._vocabulary)

    def encode_template(self, text: str) -> list[int]:
        """As `vocabularies.encode_template`."""
        return encode_template(self._vocabulary, text)

    @property
    def _base_vocab_size(self) -> int:
        return self._vocabulary.vocab_size

    def _encode(self, s: str) -> Sequence[int]:
        return self._vocabulary.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def __eq__(self, other: object) -> bool:
        is_vocabulary = isinstance(other, (Vocabulary, seqio.Vocabulary))
        return is_vocabulary and self.fingerprint == fingerprint(other)

    __hash__ = None


class _PythonVocabulary(_StandIn):
    """A vocabulary that only Python can use, and not TensorFlow."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self._vocabulary = vocabulary

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            text = np.asarray(text, object).item()  # eager TensorFlow gives it as an array
            return np.asarray(self._vocabulary.encode(text.decode()), np.int32)

        ids = tf.numpy_function(encode, [tf.ensure_shape(s, [])], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(ids: np.ndarray) -> np.ndarray:
            *batch, length = ids.shape
            rows = ids.reshape(math.prod(batch), length)
            texts = [self._vocabulary.decode(row.tolist()).encode() for row in rows]
            return np.array(texts, object).reshape(batch)

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        return tf.ensure_shape(texts, ids.shape[:-1])


class RunVocabulary(_StandIn):
    """The vocabulary of a SeqIO task: that of the run which is in use when the task is read.

    A domain is text; its tokens are decided by the run's model, after the task is registered.

    Args:
      current: returns the vocabulary of the run that is in use.
    """

    def __init__(self, current: Callable[[], Vocabulary | seqio.Vocabulary]):
        super().__init__()
        self.current = current

    @property
    def _vocabulary(self) -> Vocabulary | seqio.Vocabulary:
        return self.current()

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        return as_seqio(self.current()).encode_tf(s)

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return as_seqio(self.current()).decode_tf(ids)
