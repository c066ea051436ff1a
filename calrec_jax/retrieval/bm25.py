"""BM25 over a whole catalogue: one index, which can be saved; all queries of a batch at once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import pathlib
import types
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse import _sparsetools

from calrec_jax import files, ranges
from calrec_jax.errors import CalrecError, is_read_only, local_path
from calrec_jax.retrieval.round_robin import ranked_rows
from calrec_jax.retrieval.words import words

# Words of more than one item in so many are "common", like those of the template, in all items.
# Their scores are held for every item, so that they are added without looking places up.
_COMMON = 2
_BLOCK_SCORES = 2**16  # of a block of queries: they stay in a cache while they are added up
_FORMAT = "2"  # of the file, and of the words that a text is cut into


@dataclasses.dataclass(frozen=True)
class BM25Config:
    """The parameters of BM25.

    Attributes:
      k1: how soon a word's score stops growing with its frequency in an item; 0 = at once.
      b: how much longer texts are discounted, from 0, not at all, to 1.

    Raises:
      CalrecError: a value is out of its range.
    """

    k1: float = 1.5  # unverified: read in one secondary source
    b: float = 0.75  # unverified: read in one secondary source

    def __post_init__(self) -> None:
        ranges.require_not_negative(self, "k1")
        ranges.require_at_most_one(self, "b", zero=True)


class _Queries(NamedTuple):
    """Queries whose words are looked up in an index.

    Attributes:
      totals: for each query the summed scores of its common words, float64 [items].
      rows: rows of the index, one for each word of all queries, int [words]; an empty row where
        there is nothing to add.
      bounds: int [queries + 1]; the rows of query n are rows[bounds[n] : bounds[n + 1]].
    """

    totals: list[np.ndarray]
    rows: np.ndarray
    bounds: np.ndarray


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
      config: k1 and b.

    Raises:
      CalrecError: no text has a word.
    """

    def __init__(self, texts: Sequence[str], config: BM25Config = BM25Config()) -> None:
        corpus = [words(text) for text in texts]
        if not any(corpus):
            raise CalrecError("the catalogue has no text to index: its items have no fields")
        index = _bm25s().BM25(k1=config.k1, b=config.b, method="lucene", dtype="float64")
        index.index(corpus, create_empty_token=False, show_progress=False)
        columns = index.scores
        # bm25s holds a column a word; transposed, a row a word.
        scores = scipy.sparse.csr_matrix(
            (columns["data"], columns["indices"], columns["indptr"]),
            shape=(len(columns["indptr"]) - 1, len(corpus)),
        )
        self._hold(index.vocab_dict, scores, _fingerprint(texts, config))

    def _hold(
        self, vocabulary: dict[str, int], scores: scipy.sparse.csr_matrix, fingerprint: str
    ) -> None:
        self._vocabulary, self._scores, self._fingerprint = vocabulary, scores, fingerprint
        sizes = np.diff(scores.indptr)
        common = np.flatnonzero(sizes * _COMMON > scores.shape[1])
        self._common = dict(zip(common.tolist(), scores[common].toarray(), strict=True))
        # The row with the scores of each word. Common words, which are added apart, and unknown
        # words share an empty row at the end.
        self._empty_row = len(sizes)
        self._rows = np.arange(self._empty_row + 1, dtype=scores.indices.dtype)
        self._rows[common] = self._empty_row
        self._starts = np.append(scores.indptr, scores.indptr[-1])

    @property
    def num_items(self) -> int:
        """The number of items in the catalogue."""
        return self._scores.shape[1]

    def __contains__(self, word: str) -> bool:
        """Whether an item has the word, which is one that `words` returns."""
        return word in self._vocabulary

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """Scores of all items, float64 [queries, items]; zeros where no word of a query is known.

        A query's scores are the same to the bit in any batch: first its common words are added,
        then the others, each in the query's order.
        """
        scores = np.empty((len(queries), self._scores.shape[1]))
        looked_up = self._look_up(queries)
        for block in self._blocks(len(queries)):
            self._fill(scores[block], looked_up, block)
        return scores

    def top_k(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each query, ordered as by `ranked_rows`; not all scores are held.

        Returns:
          float64 scores and int64 places, [queries, min(k, items)] each, best first.
        """
        k = min(k, self._scores.shape[1])
        scores, places = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
        looked_up = self._look_up(queries)
        for block in self._blocks(len(queries)):
            rows = np.empty((block.stop - block.start, self._scores.shape[1]))
            self._fill(rows, looked_up, block)
            places[block] = ranked_rows(rows, k)
            scores[block] = np.take_along_axis(rows, places[block], axis=1)
        return scores, places

    def _look_up(self, queries: Sequence[str]) -> _Queries:
        word_ids, bounds, totals = [], [0], []
        # Texts in the form of one template mostly have the same common words.
        sums: dict[tuple[int, ...], np.ndarray] = {}
        unknown = itertools.repeat(self._empty_row)
        for query in queries:
            query_ids = list(map(self._vocabulary.get, words(query), unknown))
            common = tuple(filter(self._common.__contains__, query_ids))
            if common not in sums:
                sums[common] = self._sum_common(common)
            totals.append(sums[common])
            word_ids += query_ids
            bounds.append(len(word_ids))
        rows = self._rows[np.fromiter(word_ids, np.intp, len(word_ids))]
        return _Queries(totals, rows, np.array(bounds))

    def _sum_common(self, common: Sequence[int]) -> np.ndarray:
        """The summed scores of common words, float64 [items]."""
        total = np.zeros(self._scores.shape[1])
        for word in common:
            total += self._common[word]
        return total

    def _blocks(self, num_queries: int) -> list[slice]:
        """All queries, in blocks of about `_BLOCK_SCORES` scores."""
        size = max(1, _BLOCK_SCORES // self._scores.shape[1])
        starts = range(0, num_queries, size)
        return [slice(start, min(start + size, num_queries)) for start in starts]

    def _fill(self, scores: np.ndarray, queries: _Queries, block: slice) -> None:
        """Puts the scores of a block of the queries into `scores`, float64 [queries, items]."""
        for row, total in zip(scores, queries.totals[block], strict=True):
            row[:] = total
        bounds = queries.bounds[block.start : block.stop + 1]
        rows = queries.rows[bounds[0] : bounds[-1]]
        sizes = self._starts[rows + 1] - self._starts[rows]
        ends = np.zeros(len(rows) + 1, rows.dtype)
        np.cumsum(sizes, out=ends[1:])
        places, values = np.empty(ends[-1], rows.dtype), np.empty(ends[-1])
        # The loops in C behind `csr_matrix.__getitem__` and `toarray`. Those copy more and cannot
        # add to what there is, and `np.add.at` takes half as long again.
        _sparsetools.csr_row_index(
            len(rows), rows, self._starts, self._scores.indices, self._scores.data, places, values
        )
        ends = ends[bounds - bounds[0]]
        _sparsetools.csr_todense(*scores.shape, ends, places, values, scores)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the whole file or, when it fails or is killed, none of it."""
        ordered = sorted(self._vocabulary, key=self._vocabulary.__getitem__)
        files.save_npz(
            pathlib.Path(path),
            fingerprint=np.array(self._fingerprint),
            vocabulary=np.frombuffer("\n".join(ordered).encode(), np.uint8),
            places=np.array([self._vocabulary[word] for word in ordered]),
            data=self._scores.data,
            indices=self._scores.indices,
            indptr=self._scores.indptr,
            items=np.array(self._scores.shape[1]),
        )

    @classmethod
    def load(
        cls, path: str | os.PathLike, texts: Sequence[str], config: BM25Config = BM25Config()
    ) -> BM25Index:
        """The index that `save` wrote, of the same texts and parameters.

        Raises:
          CalrecError: there is no index, it is damaged, or it is of other texts or parameters.
        """
        return cls._load(pathlib.Path(path), _fingerprint(texts, config))

    @classmethod
    def cached(
        cls,
        folder: str | os.PathLike,
        name: str,
        texts: Sequence[str],
        config: BM25Config = BM25Config(),
    ) -> BM25Index:
        """The index that is saved in `folder`; if there is none yet, it is built and saved there.

        Where nothing may be written, as in the folder of a served run, it is built and not saved.

        Args:
          folder: made where it is missing.
          name: of the catalogue. The file's name begins with it and goes on with a fingerprint of
            all that the index depends on, so that an index of other texts is another file.
          texts, config: as in the constructor.

        Raises:
          CalrecError: the file is damaged, the index cannot be saved, `folder` is a URL, or no text
            has a word.
        """
        fingerprint = _fingerprint(texts, config)
        path = local_path(folder, "the folder of indexes") / f"{name}-{fingerprint}.npz"
        if path.exists():
            return cls._load(path, fingerprint)
        index = cls(texts, config)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            index.save(path)
        except OSError as error:
            if not is_read_only(error):
                raise CalrecError(f"cannot save the index of BM25 as {path}: {error}") from error
        return index

    @classmethod
    def _load(cls, path: pathlib.Path, fingerprint: str) -> BM25Index:
        try:
            with np.load(path) as saved:
                arrays = {name: saved[name] for name in saved.files}
            saved_fingerprint = str(arrays["fingerprint"])
            ordered = arrays["vocabulary"].tobytes().decode().split("\n")
            vocabulary = dict(zip(ordered, arrays["places"].tolist(), strict=True))
            scores = scipy.sparse.csr_matrix(
                (arrays["data"], arrays["indices"], arrays["indptr"]),
                shape=(len(arrays["indptr"]) - 1, int(arrays["items"])),
            )
        except FileNotFoundError as error:
            raise CalrecError(f"there is no index of BM25 at {path}: build it") from error
        except files.DAMAGED_NPZ as error:
            raise CalrecError(
                f"{path} is no index of BM25, or a damaged one ({error}): remove it and build it "
                f"anew"
            ) from error
        if saved_fingerprint != fingerprint:
            raise CalrecError(
                f"{path} is an index of other texts, k1 or b: build it anew, or give those that it "
                f"was built with"
            )
        index = cls.__new__(cls)
        index._hold(vocabulary, scores, fingerprint)
        return index


def _fingerprint(texts: Sequence[str], config: BM25Config) -> str:
    """The fingerprint of all that an index depends on."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (_FORMAT, repr(float(config.k1)), repr(float(config.b)), *texts):
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
