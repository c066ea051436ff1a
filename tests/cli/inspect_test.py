"""`calrec inspect` as its users call it, with wrong input too."""

from __future__ import annotations

import json
import re

import pytest

from calrec_jax.cli import inspect
from calrec_jax.cli import main as cli
from calrec_jax.text.templates import Template

DOMAINS = ("synthetic_garden", "synthetic_kitchen", "synthetic_office", "synthetic_sports")
BYTES = "--gin.VOCABULARY=@vocabularies.byte()"
USERS = 12


@pytest.fixture
def calrec_inspect(small_store, tmp_path, monkeypatch, capfd):
    """Inspects the quickstart with more arguments: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        run = ["inspect", "--gin_file=gin/runs/quickstart.gin", BYTES]
        code = cli.main([*run, f"--gin.DATA_DIR={str(small_store)!r}", *argv])
        return code, *capfd.readouterr()

    return run


def test_the_text_describes_every_stage_and_domain(calrec_inspect, tmp_path):
    code, out, err = calrec_inspect("--gin.BATCH_SIZE=6")
    assert (code, err) == (0, "")
    stages = re.findall(r"^(\w+): (\w+), (\d+) steps of 6 rows of 208 tokens, ", out, re.MULTILINE)
    assert stages == [("stage1", "synthetic_all", "180"), ("stage2", "synthetic_sports", "60")]
    domains = re.findall(r"^  (\w+): 326 items; sequences: ", out, re.MULTILINE)
    assert domains == [*DOMAINS, "synthetic_sports"]
    assert len(re.findall(r"^    an epoch: ", out, re.MULTILINE)) == 5
    assert len(re.findall(r"^    \[history\] ", out, re.MULTILINE)) == 5
    assert len(re.findall(r"^    \[target\] 'Title: ", out, re.MULTILINE)) == 5
    assert not list(tmp_path.iterdir())  # no MODEL_DIR is begun


def test_json_has_the_same_numbers(calrec_inspect):
    code, out, err = calrec_inspect("--json", "--examples=2")
    assert (code, err) == (0, "")
    stages = json.loads(out)
    assert list(stages) == ["stage1", "stage2"]
    assert [d["name"] for d in stages["stage1"]["domains"]] == list(DOMAINS)
    for stage in stages.values():
        assert sum(d["share"] for d in stage["domains"]) == pytest.approx(1)
        for domain in stage["domains"]:
            splits = domain["sequences"]
            assert 0 < splits["train"] <= splits["validation"] == splits["test"] <= USERS
            assert domain["examples"] == splits["train"]
            assert sum(domain["tokens"]["histogram"]["counts"]) == domain["examples"]
            assert len(domain["shown"]) == 2
    (text,) = calrec_inspect()[1].split("\n\n")[1:2]
    (garden, *_) = stages["stage1"]["domains"]
    assert f"{garden['examples']} examples in {garden['rows']} rows" in text


def test_what_the_run_binds_is_what_is_shown(calrec_inspect):
    sizes = ["--gin.TASK_FEATURE_LENGTHS={'inputs': 500, 'targets': 90}"]
    more = ["--gin.stages.Stage.targets='all'", "--gin.stages.Stage.row_length=1200"]
    code, out, _ = calrec_inspect("--json", *sizes, *more, "--gin.stages.Stage.max_segments=5")
    stage = json.loads(out)["stage1"]
    assert code == 0
    assert (stage["targets"], stage["row_length"], stage["max_segments"]) == ("all", 1200, 5)
    for domain in stage["domains"]:
        assert domain["examples"] > domain["sequences"]["train"]
        history, target = domain["shown"][0]
        assert history[1].startswith(Template().opening) and target[1].startswith("Title: ")


def test_histories_and_numbers_as_text():
    tokens = {"mean": 30.4, "p50": 30.0, "p90": 40.6, "p99": 41.0, "max": 41}
    domain = {
        "name": "books",
        "items": 1200,
        "sequences": {"train": 3, "validation": 2, "test": 1},
        "examples": 3,
        "rows": 2,
        "share": 1.0,
        "steps_per_epoch": 0.5,
        "epochs": 4.0,
        "tokens": tokens | {"histogram": {"edges": [0.0, 20.5, 41.0], "counts": [1, 2]}},
        "histories_cut": 0.25,
        "items_cut": 0.5,
        "fill": 0.925,
        "shown": [[("history", "A\nB"), ("target", "C")]],
    }
    stage = {
        "mixture": "all",
        "rates": "given: books 2",
        "targets": "last",
        "rows": 4,
        "row_length": 50,
        "max_segments": 2,
        "steps": 2000,
        "domains": [domain],
    }
    assert list(inspect.stage_text("one", stage)) == [
        "one: all, 2,000 steps of 4 rows of 50 tokens, at most 2 examples a row, targets: last, "
        "rates: given: books 2",
        "",
        "  books: 1,200 items; sequences: 3 train, 2 validation, 1 test",
        "    an epoch: 3 examples in 2 rows, 92.5% filled; 100.0% of the rows; 0.5 steps an epoch, "
        "4.00 epochs in all",
        "    tokens: mean 30, median 30, 90 % 41, 99 % 41, longest 41; 25.0% of the histories lose "
        "their oldest items, 50.0% of the items their end",
        "         0 to     20         1  ####################",
        "        20 to     41         2  ########################################",
        "    [history] 'A\\nB'",
        "    [target] 'C'",
        "",
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.MIXTURE_OR_TASK_NAME='synthetic_al'", "did you mean 'synthetic_all'?"),
        ("--gin.TARGET_DOMAIN='synthetic_sport'", "did you mean 'synthetic_sports'?"),
        ("--gin.DATA_DIR='nowhere'", "no dataset of 'synthetic_garden' in "),
        ("--gin.DATA_DIR='gs://bucket/store'", "DATA_DIR is gs://bucket/store, and only paths"),
        ("--gin.BATCH_SIZES=4", "unknown gin macro BATCH_SIZES"),
        ("--gin.stages.Stage.row_length=100", "row_length 100 is shorter than the longest example"),
        ("--gin_file=nowhere.gin", "nowhere.gin"),
    ],
)
def test_wrong_input_is_one_line(calrec_inspect, flag, message):
    code, out, err = calrec_inspect(flag)
    (line,) = err.splitlines()
    assert (code, out) == (1, "")
    assert line.startswith("calrec inspect: error: ") and message in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--gin_file is required, for example --gin_file=gin/runs/quickstart.gin"),
        (["--gin_file=gin/runs/quickstart.gin", "--examples=0"], "'0' is not a positive whole num"),
        (["--gin_file=gin/runs/quickstart.gin", "--gin.BATCH_SIZE"], "--gin.BATCH_SIZE has no val"),
    ],
)
def test_wrong_usage_leaves_with_2(argv, message, capfd):
    with pytest.raises(SystemExit) as left:
        cli.main(["inspect", *argv])
    assert left.value.code == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("calrec inspect: error: ") and message in line
