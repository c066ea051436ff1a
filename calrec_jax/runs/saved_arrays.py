"""A run's domains and mixtures as arrays, in place of the store."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from calrec_jax import files
from calrec_jax.data.store import arrays
from calrec_jax.runs.run import Run


def save(run: Run, out: pathlib.Path) -> dict[str, dict[str, int]]:
    """Writes the arrays of all domains of a run, and its mixtures.

    Returns:
      {domain: {"items", "tokens", "train"}}, its sizes.

    Raises:
      OSError: the folder cannot be written.
    """
    mixtures = {stage.mixture: run.mixture(stage.mixture) for stage in run.stages}
    names = {domain.name for mixture in mixtures.values() for domain in mixture.domains}
    index: dict[str, dict[str, Any]] = {}
    sizes: dict[str, dict[str, int]] = {}
    with files.new_folder(out) as making:
        for name in sorted(names.union(run.evaluated_domains)):
            domain = run.domain(name)
            catalogue, text = domain.catalogue, domain.text
            sequences = {split: domain.sequences(split) for split in arrays.SPLITS}
            arrays.write_domain(making, name, catalogue, text, sequences)
            index[name] = {
                "dataset": domain.dataset,
                "template": files.as_json(dataclasses.asdict(domain.template)),
                "own_template": domain.has_own_template,
                "checksums": domain.checksums(),
                "sizes": arrays.sizes(catalogue, text, sequences),
            }
            train = len(sequences["train"])
            sizes[name] = {"items": len(catalogue), "tokens": len(text.values), "train": train}
        saved = {
            name: {
                "domains": mixture.spec.domains,
                "rates": mixture.spec.rates,
                "temperature": mixture.spec.temperature,
            }
            for name, mixture in mixtures.items()
            if name not in names
        }
        arrays.write_index(making, run.data.vocabulary, index, saved)
    return sizes
