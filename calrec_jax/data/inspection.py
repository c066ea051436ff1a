"""A description of the data of a stage, made before anything is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from calrec_jax.data.domains import Mixture
from calrec_jax.data.loader import Batches
from calrec_jax.data.schedule import DomainRows
from calrec_jax.text.items import SPLITS

_BINS = 16


def describe(batches: Batches, steps: int, shown: int = 1) -> dict[str, Any]:
    """The training data of a stage as numbers and a few examples, ready for JSON.

    Args:
      batches: the batches of the training split.
      steps: the number of steps of the stage.
      shown: the number of examples of each domain.

    Returns:
      {"mixture", "rates" in words, "targets", "rows" of a batch, "row_length", "max_segments",
      "steps", "domains": [...]}, each domain with its name, items, sequences by split, examples and
      rows of an epoch, its share of the rows, steps of an epoch and epochs in `steps`; tokens of
      joint sequences {mean, p50, p90, p99, max, histogram}; the shares of examples whose history is
      cut and of items that are cut; the fill of its rows; and examples as [(span, text)].
    """
    spec = batches.spec
    epochs = batches.epochs(steps)
    domains = [
        _domain(batches, index, share, epochs) | {"shown": _shown(batches, index, shown)}
        for index, share in enumerate(batches.shares)
    ]
    return {
        "mixture": batches.mixture.name,
        "rates": _rates(batches.mixture),
        "targets": batches.examples[0].targets,
        "rows": spec.batch_size,
        "row_length": spec.row_length,
        "max_segments": spec.max_segments,
        "steps": steps,
        "domains": domains,
    }


def _rates(mixture: Mixture) -> str:
    """How the domains share the examples, in words."""
    spec = mixture.spec
    rates = spec.rates
    if not isinstance(rates, str):
        pairs = zip(spec.domains, rates, strict=True)
        rates = "given: " + ", ".join(f"{name} {rate:g}" for name, rate in pairs)
    return rates if spec.temperature == 1 else f"{rates}; temperature {spec.temperature:g}"


def _domain(batches: Batches, index: int, share: float, epochs: dict[str, float]) -> dict[str, Any]:
    examples, rows, spec = batches.examples[index], batches.rows[index], batches.spec
    domain = batches.mixture.domains[index]
    spans, tokens = examples.spans(0), examples.tokens
    cut = np.diff(tokens.text.splits) > tokens.max_item_tokens
    return {
        "name": domain.name,
        "items": len(tokens.catalogue),
        "sequences": {split: domain.num_sequences(split) for split in SPLITS},
        "examples": len(spans),
        "rows": rows.per_epoch,
        "share": share,
        "steps_per_epoch": rows.per_epoch / (spec.batch_size * share),
        "epochs": epochs[domain.name],
        "tokens": _lengths(spans.lengths),
        "histories_cut": float(spans.truncated.mean()),
        "items_cut": float(cut.mean()) if len(cut) else 0.0,
        "fill": float(spans.lengths.sum() / (rows.per_epoch * spec.row_length)),
    }


def _lengths(lengths: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(lengths, bins=_BINS, range=(0, max(int(lengths.max()), _BINS)))
    p50, p90, p99 = np.percentile(lengths, [50, 90, 99]).tolist()
    return {
        "mean": float(lengths.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(lengths.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _shown(batches: Batches, index: int, count: int) -> list[list[tuple[str, str]]]:
    """Examples of a domain as training reads them: [("history", text), ("target", text)]."""
    vocabulary = batches.vocabulary
    shown = []
    for span in _first_spans(batches.rows[index], count):
        example = batches.examples[index].example(*span)
        spans = (("history", example.inputs), ("target", example.targets))
        shown.append([(kind, vocabulary.decode(ids.tolist())) for kind, ids in spans])
    return shown


def _first_spans(rows: DomainRows, count: int) -> list[tuple[int, int]]:
    spans = (span for number in range(rows.per_epoch) for span in rows.row(number))
    return [span for span, _ in zip(spans, range(count), strict=False)]
