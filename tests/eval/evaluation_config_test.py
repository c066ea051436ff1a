"""What of a configuration predictions depend on: what nothing reads may change."""

from __future__ import annotations

import pytest
from evaluation_case import config

from calrec_jax.errors import CalrecError

OTHER = {
    "num_samples": 5,
    "temperature": 0.9,
    "max_new_tokens": 7,
    "decoding": "beam",
    "sampling_top_k": 3,
    "sampling_top_p": 0.5,
    "epsilon": 0.1,
    "k1": 1.2,
    "b": 0.5,
    "dense_weight": 2.0,
    "choosing_users": 9,
    "seen": "exclude",
    "shuffle_history": True,
    "top_k": 11,
    "seed": 1,
    "split": "validation",
    "checkpoint": "stage1:best",
}
MEASURED = {
    "name": "mine",
    "domain": "games",
    "users_per_batch": 3,
    "bootstrap_samples": 7,
    "max_users": 1,
    "baselines": (),
}
TEXTS = {
    "num_samples", "temperature", "max_new_tokens", "decoding", "sampling_top_k", "sampling_top_p",
    "epsilon",
}  # fmt: skip
ALWAYS = {"seen", "shuffle_history", "top_k", "seed", "split", "checkpoint"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, ALWAYS | TEXTS | {"k1", "b"}),
        ({"retrieval": "trie"}, ALWAYS | TEXTS),
        ({"retrieval": "dense"}, ALWAYS),
        ({"retrieval": "hybrid"}, ALWAYS | TEXTS | {"k1", "b", "dense_weight", "choosing_users"}),
        (
            {"retrieval": "hybrid", "dense_weight": 1.0},
            ALWAYS | TEXTS | {"k1", "b", "dense_weight"},
        ),
        (
            {"decoding": "beam"},
            ALWAYS | {"num_samples", "max_new_tokens", "decoding", "epsilon", "k1", "b"},
        ),
    ],
)
def test_predictions_depend_on_what_the_retriever_reads(given, read):
    asked = config(**given).asked()
    found = set()
    for name, value in OTHER.items():
        value = "sample" if name == "decoding" and given.get("decoding") == "beam" else value
        if "beam" in given.values() and name in ("sampling_top_k", "sampling_top_p"):
            continue  # are refused there
        if config(**given | {name: value}).asked() != asked:
            found.add(name)
    assert found == read
    assert all(config(**given | {k: v}).asked() == asked for k, v in MEASURED.items())


@pytest.mark.parametrize("change", [{"sampling_top_k": 3}, {"sampling_top_p": 0.9}])
def test_beams_have_no_filters_of_draws(change):
    with pytest.raises(CalrecError, match="'beam' draws nothing: unset them"):
        config(decoding="beam", **change)
