"""BM25 over a whole catalogue: one index, which can be saved; all queries of a batch at once."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import types
import zipfile
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from calrec_jax.errors import CalrecError

_WORD = re.compile(r"\w+")
# Words of more than one item in so many are "common", like those of the template, in all items.
# Their scores are held for every item, so that they are added without looking places up.
_COMMON = 2
_FORMAT = "1"


def words(text: str) -> list[str]:
    """Lower-cased runs of letters, digits and underscores; no stop words, no stemming."""
    return _WORD.findall(text.lower())


def _bm25s() -> types.ModuleType:
    """The library, imported at its first use and not with this module.

    When it is imported, it runs a program with JAX. That takes the accelerators, after which a
    process can no longer join its peers.
    """
    import bm25s

    # It logs every step, and sets its own level to DEBUG when it is imported.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


class BM25Index:
    """An index over item texts, in the Lucene variant of BM25 (bm25s builds it, in float64).

    score(q, d) = sum over the words of q, as often as they occur, of
        ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 (1 - b + b |d| / avgdl))

    Args:
      texts: one an item, in the catalogue's order.
      k1, b: the usual parameters (unverified: read in one secondary source).

    Raises:
      CalrecError: no text has a word.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        corpus = [words(text) for text in texts]
        if not any(corpus):
            raise CalrecError("the catalogue has no text to index: its items have no fields")
        index = _bm25s().BM25(k1=k1, b=b, method="lucene", dtype="float64")
        index.index(corpus, show_progress=False)
        columns = index.scores
        # bm25s holds a column a word; transposed, a row a word.
        scores = scipy.sparse.csr_matrix(
            (columns["data"], columns["indices"], columns["indptr"]),
            shape=(len(columns["indptr"]) - 1, len(corpus)),
        )
        self._hold(index.vocab_dict, scores, _fingerprint(texts, k1, b))

    def _hold(
        self, vocabulary: dict[str, int], scores: scipy.sparse.csr_matrix, fingerprint: str
    ) -> None:
        self._vocabulary, self._scores, self._fingerprint = vocabulary, scores, fingerprint
        common = np.flatnonzero(np.diff(scores.indptr) * _COMMON > scores.shape[1])
        rows = scores[common].toarray()
        self._common = dict(zip(common.tolist(), rows, strict=True))

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float64 [queries, items]; zeros where no word of the query is known.

        A query's scores are the same to the bit in any batch: first its common words are added,
        then the others, each in the query's order.
        """
        known, common = self._vocabulary, self._common
        places = [[known[word] for word in words(query) if word in known] for query in queries]
        rare = [[place for place in some if place not in common] for some in places]
        found = self._scores[[place for some in rare for place in some]]
        ends = found.indptr[np.cumsum([0, *map(len, rare)])].tolist()
        indices = found.indices.astype(np.intp)  # which `add.at` would do in each call

        scores = np.empty((len(queries), self._scores.shape[1]))
        # Texts in the form of one template mostly have the same common words.
        sums: dict[tuple[int, ...], np.ndarray] = {}
        for row, some, start, end in zip(scores, places, ends[:-1], ends[1:], strict=True):
            key = tuple(place for place in some if place in common)
            if key not in sums:
                sums[key] = self._sum(key)
            row[:] = sums[key]
            np.add.at(row, indices[start:end], found.data[start:end])
        return scores

    def _sum(self, places: Sequence[int]) -> np.ndarray:
        """float64 [items] of common words."""
        total = np.zeros(self._scores.shape[1])
        for place in places:
            total += self._common[place]
        return total

    def save(self, path: str | os.PathLike) -> None:
        """Writes the whole file or, when killed, none of it."""
        path = pathlib.Path(path)
        temporary = path.with_name(path.name + ".tmp")
        ordered = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        with temporary.open("wb") as file:
            np.savez(
                file,
                fingerprint=np.array(self._fingerprint),
                vocabulary=np.frombuffer("\n".join(ordered).encode(), np.uint8),
                places=np.array([self._vocabulary[word] for word in ordered]),
                data=self._scores.data,
                indices=self._scores.indices,
                indptr=self._scores.indptr,
                items=np.array(self._scores.shape[1]),
            )
        os.replace(temporary, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike, texts: Sequence[str], k1: float = 1.5, b: float = 0.75
    ) -> BM25Index:
        """The index that `save` wrote, of the same texts and parameters.

        Raises:
          CalrecError: there is none, it is damaged, or it is of others.
        """
        fingerprint = _fingerprint(texts, k1, b)
        try:
            with np.load(path) as saved:
                arrays = {name: saved[name] for name in saved.files}
            there = str(arrays["fingerprint"])
            ordered = arrays["vocabulary"].tobytes().decode().split("\n")
            vocabulary = dict(zip(ordered, arrays["places"].tolist(), strict=True))
            scores = scipy.sparse.csr_matrix(
                (arrays["data"], arrays["indices"], arrays["indptr"]),
                shape=(len(arrays["indptr"]) - 1, int(arrays["items"])),
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CalrecError(f"{path} is no index of BM25 ({error}): build it anew") from error
        if there != fingerprint:
            raise CalrecError(
                f"{path} is an index of other texts, k1 or b: build it anew, or give those it is of"
            )
        index = cls.__new__(cls)
        index._hold(vocabulary, scores, fingerprint)
        return index


def _fingerprint(texts: Sequence[str], k1: float, b: float) -> str:
    """Of all that an index depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (_FORMAT, repr(float(k1)), repr(float(b)), *texts):
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
