"""Values of a wrong type are named, with the configuration that holds them."""

from __future__ import annotations

import pytest
from trained_run import bindings

from calrec_jax.configs import load
from calrec_jax.errors import CalrecError


def quickstart(*bindings):
    """The quickstart with some bindings."""
    return load.from_gin(
        ["gin/runs/quickstart.gin"], ["VOCABULARY=@vocabularies.byte()", *bindings]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"domains": None},
        {"domains": [["synthetic_sports"]]},
        {"baselines": "popularity"},
        {"baselines": None},
        {"baselines": [["popularity"]]},
        {"dense_weight": "1"},
        {"choosing_users": "all"},
        {"seed": "a"},
    ],
)
def test_a_value_of_a_wrong_type_is_named(change):
    (name,) = change
    with pytest.raises(CalrecError, match=f"EvaluationConfig.{name} is .*, which is not of type"):
        quickstart(*bindings(**change))


@pytest.mark.parametrize(
    "binding",
    [
        "SamplingConfig.num_samples='8'",
        "SamplingConfig.top_k='5'",
        "SamplingConfig.top_p=None",
        "SamplingConfig.temperature='0.5'",
        "BM25Config.k1='1'",
        "EvaluationConfig.sampling='beam'",
        "EvaluationConfig.bm25=None",
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_the_configuration_that_holds_it(binding):
    name, _, _ = binding.partition("=")
    with pytest.raises(CalrecError, match=f"{name} is .*, which is not of type"):
        quickstart(binding)
