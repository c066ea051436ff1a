"""What weights belong to, in a manifest and against one."""

from __future__ import annotations

import dataclasses

import pytest
from training.small_run import MODEL

from calrec_jax.errors import CalrecError
from calrec_jax.models.lora import LoraConfig
from calrec_jax.text.templates import Template
from calrec_jax.training import manifest
from calrec_jax.training.identity import Identity

TEMPLATE = Template(fields=("title", "brand"))
RUN = Identity("byte-01", MODEL, TEMPLATE, seed=3)


def test_a_manifest_holds_all_that_is_given():
    assert RUN.described() == {
        "vocabulary": "byte-01",
        "model": dataclasses.asdict(MODEL),
        "data": {"template": dataclasses.asdict(TEMPLATE), "seed": 3},
    }
    assert dataclasses.replace(RUN, seed=None).described()["data"].keys() == {"template"}
    assert Identity("byte-01", MODEL).described().keys() == {"model", "vocabulary"}


@pytest.fixture
def trained(tmp_path):
    """A MODEL_DIR whose weights are those of `RUN`."""
    manifest.claim(tmp_path, {"versions": {}, "stages": {}, **RUN.described()})
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"model": dataclasses.replace(MODEL, dtype="bfloat16", scan_layers=False)},
        {"model": dataclasses.replace(MODEL, lora=LoraConfig(rank=2))},
    ],
)
def test_how_it_is_computed_and_the_seed_may_differ(trained, changes):
    other = dataclasses.replace(RUN, **changes)
    manifest.require(trained, other.required_to_train(), "stage1:best")
    manifest.require(trained, other.required_to_query(), "stage1:best")


def test_a_template_matters_to_queries_alone(trained):
    other = dataclasses.replace(RUN, template=Template(fields=("title",)))
    manifest.require(trained, other.required_to_train(), "stage1:best")
    with pytest.raises(CalrecError, match="trained with data.template.fields = "):
        manifest.require(trained, other.required_to_query(), "stage1:best")


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"vocabulary": "byte-02"}, "vocabulary"),
        ({"model": dataclasses.replace(MODEL, num_layers=3)}, "model.num_layers"),
    ],
)
def test_another_vocabulary_or_model_is_refused(trained, changes, name):
    other = dataclasses.replace(RUN, **changes)
    for required in (other.required_to_train(), other.required_to_query()):
        with pytest.raises(CalrecError, match=f"'stage1:best' was trained with {name} = "):
            manifest.require(trained, required, "stage1:best")
