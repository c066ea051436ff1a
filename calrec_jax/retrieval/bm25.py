"""BM25 over a whole catalogue: one index, which can be saved; all queries of a batch at once."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import types
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from calrec_jax.errors import CalrecError
from calrec_jax.retrieval.round_robin import ranked

_WORD = re.compile(r"\w+")
# Words of more than one item in so many are "common", like those of the template, in all items.
# Their scores are held for every item, so that they are added without looking places up.
_COMMON = 2
_FORMAT = "1"
_NO_PLACES, _NO_VALUES = np.zeros(0, np.intp), np.zeros(0)


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
        # Of each word. `add.at` would make int64 of the places in each call.
        self._places = np.split(scores.indices.astype(np.intp), scores.indptr[1:-1])
        self._values = np.split(scores.data, scores.indptr[1:-1])

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float64 [queries, items]; zeros where no word of the query is known.

        A query's scores are the same to the bit in any batch: first its common words are added,
        then the others, each in the query's order.
        """
        scores = np.empty((len(queries), self._scores.shape[1]))
        for row, (total, places, values) in zip(scores, self._parts(queries), strict=True):
            row[:] = total
            np.add.at(row, places, values)
        return scores

    def top_k(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query as `ranked` has them, without holding all scores.

        Returns:
          float64 scores and int64 places, [queries, min(k, items)] each, best first.
        """
        row = np.empty(self._scores.shape[1])
        k = min(k, len(row))
        scores, found = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        for n, (total, places, values) in enumerate(self._parts(queries)):
            row[:] = total
            np.add.at(row, places, values)
            found[n] = ranked(row, k)
            scores[n] = row[found[n]]
        return scores, found

    def _parts(self, queries: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each query: the sum of its common words, float64 [items], and what the others add.

        That are places of items, in which one may stand several times, and a value for each.
        """
        known, common = self._vocabulary, self._common
        # Texts in the form of one template mostly have the same common words.
        sums: dict[tuple[int, ...], np.ndarray] = {}
        for query in queries:
            some = [word for word in map(known.get, words(query)) if word is not None]
            key = tuple(word for word in some if word in common)
            if key not in sums:
                sums[key] = self._sum(key)
            # Copies of one query's postings are small: the allocator has room for them at hand.
            rare = [word for word in some if word not in common]
            places = np.concatenate([_NO_PLACES, *map(self._places.__getitem__, rare)])
            values = np.concatenate([_NO_VALUES, *map(self._values.__getitem__, rare)])
            yield sums[key], places, values

    def _sum(self, common: Sequence[int]) -> np.ndarray:
        """float64 [items], the sum of common words."""
        total = np.zeros(self._scores.shape[1])
        for word in common:
            total += self._common[word]
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
