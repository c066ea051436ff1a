"""BM25 over a whole catalogue: one index, all queries of a batch in one sparse product."""

from __future__ import annotations

import logging
import re
import types
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from calrec_jax.errors import CalrecError

_WORD = re.compile(r"\w+")


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
        self._vocabulary: dict[str, int] = index.vocab_dict
        # bm25s holds a column a word; transposed, a row a word, ready for queries @ scores.
        self._scores = scipy.sparse.csr_matrix(
            (columns["data"], columns["indices"], columns["indptr"]),
            shape=(len(columns["indptr"]) - 1, len(corpus)),
        )

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float64 [queries, items]; zeros where no word of the query is known."""
        counts = [Counter(w for w in words(q) if w in self._vocabulary) for q in queries]
        places = [self._vocabulary[word] for count in counts for word in count]
        values = [float(n) for count in counts for n in count.values()]
        splits = np.concatenate([[0], np.cumsum([len(count) for count in counts])])
        shape = (len(queries), self._scores.shape[0])
        matrix = scipy.sparse.csr_matrix((values, places, splits), shape=shape)
        return (matrix @ self._scores).toarray()
