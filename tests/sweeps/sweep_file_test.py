"""Sweep files: the trials that they describe, and files that are refused."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st
from sweeps.fake_calrec import GRID, HEAD, write

from calrec_jax.configs.gin_config import search_root
from calrec_jax.errors import CalrecError
from calrec_jax.sweeps import sweep_file


def points(tmp_path, text) -> dict[str, dict[str, str]]:
    return {
        trial.name: dict(trial.overrides) for trial in sweep_file.read(write(tmp_path, text)).trials
    }


def test_grid_is_all_combinations(tmp_path):
    alpha = "losses.LossConfig.alpha"
    assert points(tmp_path, GRID) == {
        "alpha=0, TRAIN_STEPS=10": {alpha: "0", "TRAIN_STEPS": "10"},
        "alpha=0, TRAIN_STEPS=20": {alpha: "0", "TRAIN_STEPS": "20"},
        "alpha=0.125, TRAIN_STEPS=10": {alpha: "0.125", "TRAIN_STEPS": "10"},
        "alpha=0.125, TRAIN_STEPS=20": {alpha: "0.125", "TRAIN_STEPS": "20"},
    }


def test_named_points_of_an_axis(tmp_path):
    text = HEAD + "grid: {loss: {none: {A.a: 0, A.b: 0}, full: {}}, B: [1]}"
    assert points(tmp_path, text) == {
        "none, B=1": {"A.a": "0", "A.b": "0", "B": "1"},
        "full, B=1": {"B": "1"},
    }


def test_zip_and_list(tmp_path):
    zipped = points(tmp_path, HEAD + "zip: {A: [1, 2], B: [x.y, null]}")
    assert list(zipped.values()) == [{"A": "1", "B": "x.y"}, {"A": "2", "B": "None"}]
    listed = points(tmp_path, HEAD + "list: [{name: one, overrides: {s1/A.b: 1}}]")
    assert listed == {"one": {"s1/A.b": "1"}}


def test_values_are_gin_literals(tmp_path):
    text = (
        HEAD
        + """list:
  - name: x
    overrides: {A: '"items"', B: "[@s/S()]", C: 1e-3, D: true, E: {a: 1}, F: [a, 2], G: 2, H: 0.5}
"""
    )
    assert points(tmp_path, text)["x"] == {
        "A": '"items"', "B": "[@s/S()]", "C": "1e-3", "D": "True", "E": "{'a': 1}", "F": "['a', 2]",
        "G": "2", "H": "0.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[]", "not a mapping"),
        ("a: [", "is not YAML in line 1"),
        (GRID + "grids: {}", "unknown key grids: did you mean grid?"),
        (HEAD, "one of grid, zip and list, not none"),
        (GRID + "zip: {A: [1]}", "not grid, zip"),
        (HEAD + "zip: {A: [1, 2], B: [1]}", "different lengths: [1, 2]"),
        (HEAD + "grid: {A: 5}", "the axis A of grid needs a list of values, not 5"),
        (HEAD + "grid: {A: []}", "the axis A of grid needs a list"),
        (HEAD + "grid: [1]", "grid must be a mapping"),
        (HEAD + "list: []", "list describes no trial"),
        (HEAD + "list: [{name: x}]", "an entry of list must be {name, overrides}"),
        (HEAD + "list: [{name: x, overrides: 5}]", "overrides must map"),
        (HEAD + "grid: {A: [1, 1]}", "have the same overrides"),
        (HEAD + "grid: {A: [1], x: {y: {A: 2}}}", "two axes set A"),
        (HEAD + "grid: {A b: [1]}", "'A b' is no gin name"),
        (HEAD + "grid: {A: [2020-01-01]}", "is no gin literal"),
        (HEAD + "grid: {MODEL_DIR: [a]}", "overrides set MODEL_DIR"),
        (GRID.replace("BATCH_SIZE=4", "MODEL_DIR=4"), "base_args set MODEL_DIR"),
        (GRID.replace("[--gin_file=a.gin, --gin.BATCH_SIZE=4]", "x"), "base_args must be a list"),
        (GRID.replace("ndcg@10", "ndgc@10"), "unknown name ndgc@10: did you mean ndcg@10?"),
        (GRID.replace("max}", "most}"), "unknown mode most"),
        (GRID.replace("max}", "max, split: tset}"), "unknown split tset: did you mean test?"),
        (GRID.replace("metric", "metrics"), "unknown key metrics: did you mean metric?"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, line):
    with pytest.raises(CalrecError) as error:
        sweep_file.read(write(tmp_path, text))
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "sweep.yaml"))


def test_a_missing_file(tmp_path):
    with pytest.raises(CalrecError, match="cannot read .*none.yaml: No such file"):
        sweep_file.read(tmp_path / "none.yaml")


@hypothesis.given(st.dictionaries(st.text(), st.text(), max_size=5), st.randoms())
def test_an_id_does_not_depend_on_the_order(overrides, random):
    items = list(overrides.items())
    random.shuffle(items)
    assert sweep_file.Trial("a", overrides).id == sweep_file.Trial("b", dict(items)).id


def test_ids_stay_the_same_for_ever():
    assert sweep_file.Trial("x", {"B": "2", "A": "1"}).id == "a192ac763b"


def test_the_ablation_is_the_papers():
    sweep = sweep_file.read(search_root() / "gin/sweeps/ablation.yaml")
    assert len(sweep.trials) == 12
    names = {tuple(trial.name.split(", ")) for trial in sweep.trials}
    stages = ("stage I only", "stage II only", "both stages")
    assert names == {(a, b) for a in stages for b in ("NIG", "+TT", "+UT", "+TT+UT")}
