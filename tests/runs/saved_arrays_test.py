"""Saved arrays of a run: the domains in them, what a failure leaves, and runs that read them."""

from __future__ import annotations

import pathlib

import pytest

from calrec_jax.configs import load
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError
from calrec_jax.runs import saved_arrays
from calrec_jax.runs.checks import check
from calrec_jax.runs.stage_data import StageData

BYTES = "VOCABULARY=@vocabularies.byte()"
STAGE1_ON_OFFICE = [
    "STAGES=[@stage1/stages.Stage()]",
    "MIXTURE_OR_TASK_NAME='synthetic_office'",
]


def run_from(data_dir, *bindings):
    """The quickstart, with data from the store or from saved arrays."""
    data = f"DATA_DIR={str(data_dir)!r}"
    return load.from_gin(["gin/runs/quickstart.gin"], [BYTES, data, *bindings])


@pytest.fixture
def save(small_store, tmp_path, monkeypatch):
    """Saves the quickstart, with some bindings, in `saved`."""
    monkeypatch.chdir(tmp_path)
    return lambda *bindings: saved_arrays.save(
        run_from(small_store, *bindings), pathlib.Path("saved")
    )


def test_a_run_reads_it_as_it_reads_the_store(save, small_store):
    save()
    of_store = run_from(small_store)
    identity, data = of_store.identity, StageData(of_store).fingerprint(of_store.stages[0])
    saved = run_from("saved", "MIXTURE_OR_TASK_MODULE='no.such.module'")
    check(saved)
    assert saved.identity == identity
    assert StageData(saved).fingerprint(saved.stages[0]) == data
    assert data["checksums"]["synthetic_sports"]


def test_sizes_are_returned(save):
    sizes = save(*STAGE1_ON_OFFICE, "Run.evaluation=None")
    (office,) = sizes.values()
    domain = run_from("saved", *STAGE1_ON_OFFICE).domain("synthetic_office")
    assert office["items"] == len(domain.catalogue) == 326
    assert office["tokens"] == len(domain.text.values)
    assert office["train"] == domain.num_sequences("train")


def test_a_stage_alone_saves_its_domains_and_the_evaluations(save):
    save("STAGES=[@stage1/stages.Stage()]", "MIXTURE_OR_TASK_NAME='synthetic_garden'")
    index = arrays.read_index("saved")
    assert list(index["domains"]) == ["synthetic_garden", "synthetic_sports"]
    assert index["mixtures"] == {}


@pytest.mark.parametrize(
    "domains",
    ["['synthetic_garden', 'synthetic_sports']", "('synthetic_garden', 'synthetic_sports')"],
)
def test_all_domains_of_the_evaluation_are_saved(save, domains):
    save(*STAGE1_ON_OFFICE, f"EvaluationConfig.domains={domains}")
    index = arrays.read_index("saved")
    assert list(index["domains"]) == ["synthetic_garden", "synthetic_office", "synthetic_sports"]


def test_a_run_without_an_evaluation_saves_what_it_trains_on(save):
    save(*STAGE1_ON_OFFICE, "Run.evaluation=None")
    assert list(arrays.read_index("saved")["domains"]) == ["synthetic_office"]


@pytest.mark.parametrize(
    "error", [TypeError("broken"), CalrecError("no"), OSError(13, "denied")], ids=str
)
def test_any_failure_leaves_no_folder(save, monkeypatch, tmp_path, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(arrays, "write_index", fails)
    with pytest.raises(type(error)):
        save()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("templates.Template.separator=' then '", "was saved with template {"),
        ("templates.Template.fields=('title',)", "was saved with template {"),
        ("MIXTURE_OR_TASK_NAME='synthetic_al'", "did you mean 'synthetic_all'?"),
        ("TARGET_DOMAIN='synthetic_toys'", "no mixture or task 'synthetic_toys'"),
    ],
)
def test_a_run_that_does_not_fit_the_folder_is_refused_in_one_line(save, binding, message):
    save()
    with pytest.raises(CalrecError) as error:
        check(run_from("saved", binding))
    assert message in str(error.value) and "\n" not in str(error.value)
