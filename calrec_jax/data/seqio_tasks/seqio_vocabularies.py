"""Vocabularies as `seqio.Vocabulary`, for Tasks and for whoever reads them: T5X, for example."""

from __future__ import annotations

import math
from collections.abc import Callable

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
    """SeqIO's vocabulary with the same ids; one of SeqIO's is returned as it is.

    Bytes and SentencePiece become SeqIO's own classes. Of another vocabulary, `encode_tf` takes a
    scalar string, and TensorFlow calls Python for it.
    """
    if isinstance(vocabulary, seqio.Vocabulary):
        return vocabulary
    # A class derived from ours may give other ids.
    if type(vocabulary) is ByteVocabulary:
        return seqio.ByteVocabulary()
    if type(vocabulary) is SentencePieceVocabulary:
        return seqio.SentencePieceVocabulary(vocabulary.path)
    return _PythonVocabulary(vocabulary)


class _StandIn(seqio.Vocabulary):
    """Has the ids of another vocabulary, and is equal to one that gives the same."""

    _vocabulary: Vocabulary | seqio.Vocabulary

    @property
    def bos_id(self):
        return self._vocabulary.bos_id

    @property
    def eos_id(self):
        return self._vocabulary.eos_id

    @property
    def pad_id(self):
        return self._vocabulary.pad_id

    @property
    def unk_id(self):
        return self._vocabulary.unk_id

    @property
    def fingerprint(self) -> str:
        return fingerprint(self._vocabulary)

    def encode_template(self, text: str) -> list[int]:
        """As `vocabularies.encode_template`."""
        return encode_template(self._vocabulary, text)

    @property
    def _base_vocab_size(self):
        return self._vocabulary.vocab_size

    def _encode(self, s):
        return self._vocabulary.encode(s)

    def _decode(self, ids):
        return self._vocabulary.decode(ids)

    def __eq__(self, other):
        known = isinstance(other, (Vocabulary, seqio.Vocabulary))
        return known and self.fingerprint == fingerprint(other)

    __hash__ = None


class _PythonVocabulary(_StandIn):
    """One of our vocabularies, which only Python can use."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self._vocabulary = vocabulary

    def _encode_tf(self, s):
        def encode(text: bytes | np.ndarray) -> np.ndarray:
            text = np.asarray(text, object).item()  # eager TensorFlow gives it as an array
            return np.asarray(self._vocabulary.encode(text.decode()), np.int32)

        ids = tf.numpy_function(encode, [tf.ensure_shape(s, [])], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None])

    def _decode_tf(self, ids):
        def decode(ids: np.ndarray) -> np.ndarray:
            *batch, length = ids.shape
            rows = ids.reshape(math.prod(batch), length)
            texts = [self._vocabulary.decode(row.tolist()).encode() for row in rows]
            return np.array(texts, object).reshape(batch)

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        return tf.ensure_shape(texts, ids.shape[:-1])


class RunVocabulary(_StandIn):
    """Stands in a Task for the vocabulary that the run's model brings, until the run is known.

    A domain is text; which tokens it becomes is the model's affair.

    Args:
      current: gives the vocabulary at the time of use.
    """

    def __init__(self, current: Callable[[], Vocabulary | seqio.Vocabulary]):
        super().__init__()
        self.current = current

    @property
    def _vocabulary(self):
        return self.current()

    def _encode_tf(self, s):
        return as_seqio(self.current()).encode_tf(s)

    def _decode_tf(self, ids):
        return as_seqio(self.current()).decode_tf(ids)
