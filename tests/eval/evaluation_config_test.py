"""What an evaluation's configuration holds, and which of its settings predictions depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from evaluation_case import config

from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.eval.evaluation import EvaluationConfig
from calrec_jax.retrieval.bm25 import BM25Config

# Another value of each setting, by its name in the files of an evaluation, which are flat.
OTHER = {
    "num_samples": {"sampling": {"num_samples": 5}},
    "temperature": {"sampling": {"temperature": 0.9}},
    "max_new_tokens": {"sampling": {"max_new_tokens": 7}},
    "decoding": {"sampling": {"method": "beam"}},
    "sampling_top_k": {"sampling": {"top_k": 3}},
    "sampling_top_p": {"sampling": {"top_p": 0.5}},
    "epsilon": {"epsilon": 0.1},
    "k1": {"bm25": {"k1": 1.2}},
    "b": {"bm25": {"b": 0.5}},
    "dense_weight": {"dense_weight": 2.0},
    "choosing_users": {"choosing_users": 9},
    "seen": {"seen": "exclude"},
    "shuffle_history": {"shuffle_history": True},
    "top_k": {"top_k": 11},
    "seed": {"seed": 1},
    "split": {"split": "validation"},
    "checkpoint": {"checkpoint": "stage1:best"},
    "retrieval": {"retrieval": "dense"},
}
MEASURED = {
    "name": "mine",
    "domains": "games",
    "users_per_batch": 3,
    "bootstrap_samples": 7,
    "max_users": 1,
    "baselines": (),
}
TEXTS = {
    "num_samples", "temperature", "max_new_tokens", "decoding", "sampling_top_k", "sampling_top_p",
    "epsilon",
}  # fmt: skip
ALWAYS = {"seen", "shuffle_history", "top_k", "seed", "split", "checkpoint", "retrieval"}
BEAM = {"sampling": {"method": "beam"}}


def changed(first: EvaluationConfig, changes: dict[str, Any]) -> EvaluationConfig:
    """The configuration with other values; a nested one is changed as a dictionary says."""
    values = {
        field: dataclasses.replace(getattr(first, field), **value)
        if isinstance(value, dict)
        else value
        for field, value in changes.items()
    }
    return dataclasses.replace(first, **values)


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
        (BEAM, ALWAYS | {"num_samples", "max_new_tokens", "decoding", "epsilon", "k1", "b"}),
    ],
)
def test_predictions_depend_on_what_the_retriever_reads(
    given: dict[str, Any], read: set[str]
) -> None:
    first = changed(config(), given)
    settings, found = first.prediction_settings(), set()
    for name, change in OTHER.items():
        if name == "decoding" and given == BEAM:
            change = {"sampling": {"method": "sample"}}
        if name == "retrieval" and given.get("retrieval") == "dense":
            change = {"retrieval": "bm25"}
        if given == BEAM and name in ("sampling_top_k", "sampling_top_p"):
            continue  # are refused there
        if changed(first, change).prediction_settings() != settings:
            found.add(name)
    assert found == read
    assert all(
        changed(first, {field: value}).prediction_settings() == settings
        for field, value in MEASURED.items()
    )


def test_the_settings_of_predictions_have_the_names_and_the_order_of_version_0_1() -> None:
    sampling = SamplingConfig(3, 0.7, 60, "sample", 5, 0.9)
    made = config(sampling=sampling, bm25=BM25Config(1.2, 0.5), retrieval="hybrid", seed=4)
    assert list(made.prediction_settings().items()) == [
        ("retrieval", "hybrid"),
        ("decoding", "sample"),
        ("split", "test"),
        ("checkpoint", "stage2:best"),
        ("num_samples", 3),
        ("temperature", 0.7),
        ("max_new_tokens", 60),
        ("sampling_top_k", 5),
        ("sampling_top_p", 0.9),
        ("dense_weight", None),
        ("choosing_users", 1000),
        ("seen", "allow"),
        ("shuffle_history", False),
        ("epsilon", 0.0002),
        ("k1", 1.2),
        ("b", 0.5),
        ("top_k", 100),
        ("seed", 4),
    ]


def test_all_settings_have_the_names_and_the_order_of_version_0_1() -> None:
    sampling = SamplingConfig(3, 0.7, 60, "beam")
    made = EvaluationConfig(
        "toys", sampling=sampling, bm25=BM25Config(1.2, 0.5), baselines=["popularity"]
    )
    assert list(made.flat().items()) == [
        ("domain", "toys"),
        ("split", "test"),
        ("name", None),
        ("checkpoint", "stage2:best"),
        ("num_samples", 3),
        ("temperature", 0.7),
        ("max_new_tokens", 60),
        ("decoding", "beam"),
        ("sampling_top_k", None),
        ("sampling_top_p", 1.0),
        ("retrieval", "bm25"),
        ("dense_weight", None),
        ("choosing_users", 1000),
        ("seen", "allow"),
        ("shuffle_history", False),
        ("epsilon", 0.0002),
        ("k1", 1.2),
        ("b", 0.5),
        ("users_per_batch", 32),
        ("max_users", None),
        ("top_k", 100),
        ("baselines", ["popularity"]),
        ("bootstrap_samples", 1000),
        ("seed", 0),
    ]


@pytest.mark.parametrize("domains", ["toys", ["toys"], ("toys",)])
def test_domains_are_a_tuple_of_names_however_they_are_given(
    domains: list[str] | str | tuple[str, ...],
) -> None:
    made = EvaluationConfig(domains)
    assert made.domains == ("toys",)
    assert made.flat()["domain"] == "toys"


def test_several_domains_are_a_list_in_files() -> None:
    made = EvaluationConfig(["toys", "games"])
    assert made.domains == ("toys", "games")
    assert made.flat()["domain"] == ["toys", "games"]
