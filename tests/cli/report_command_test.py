"""`calrec report`: one run's tables and page, or a comparison of several."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from report_case import RANKS, claim, evaluate
from report_html import checked, headings, shown

from calrec_jax.cli import main as cli


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, x and y, in the working directory; y finds user d's target, too."""
    monkeypatch.chdir(tmp_path)
    evaluate(claim(tmp_path / "x"))
    evaluate(claim(tmp_path / "y"), RANKS | {"d": (1, 1)}, config={"seen": "exclude"})
    return tmp_path


@pytest.fixture
def calrec(capsys):
    """Runs `calrec report`; returns its code, and what it wrote to stdout and stderr."""

    def call(*argv):
        try:
            code = cli.main(["report", *argv])
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def test_one_run_prints_every_evaluation_and_writes_the_page(runs, calrec):
    evaluate(runs / "x", name="test_dense", config={"retrieval": "dense"})
    code, out, err = calrec("x")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines.count("toys test: 4 users, 8 items") == 2
    assert lines[-1] == "x/report.html"
    assert "toys, test split: test_dense" in headings(checked(runs / "x" / "report.html"))


def test_two_runs_are_compared(runs, calrec):
    code, out, err = calrec("x", "y")
    assert (code, err) == (0, "")
    assert "\nseen                  allow  exclude\n" in out
    assert "\ny - x " in out and "+0.2500" in out
    assert not list(runs.rglob("*.html"))


def test_the_comparison_is_a_page_too(runs, calrec):
    code, out, _ = calrec("x", "y/eval/test", "--out=both.html")
    assert code == 0 and out.splitlines()[-1] == "both.html"
    source = checked(runs / "both.html")
    assert headings(source) == ["Runs", "Metrics", "Slices of the users", "Beyond accuracy"]
    text = shown(source)
    assert "CALRec runs: x, y" in text
    assert "users evaluation x 4 x/eval/test y 4 y/eval/test 4 users that all have" in text
    assert "Settings that differ x y seen allow exclude" in text
    assert "Each minus x, on the same users recall@1" in text and "mrr y +0.2500" in text
    assert "y: recall@10 y: ndcg@10 new 3 users, 75.0% +0.0000 +.0000, +.0000" in text
    assert "repeat 1 user, 25.0% +1.0000" in text
    assert "coverage@10 gini@10 novelty@10 x 0.6250 0.1250 5.5000 y 0.6250" in text


def test_equal_settings_are_said_to_be(runs, calrec):
    evaluate(runs / "x", name="again")
    assert calrec("x", "x/eval/again", "--out=same.html")[0] == 0
    assert "All settings of the evaluations are the same." in shown(checked(runs / "same.html"))


def test_names_of_runs_are_escaped(runs, calrec):
    evil = "<script>alert(1)<b>"
    (runs / "y").rename(runs / evil)
    assert calrec("x", evil, "--out=evil.html")[0] == 0
    assert shown(checked(runs / "evil.html")).count(evil) > 3


def test_names_that_the_terminal_cannot_write_are_escaped(runs):
    (runs / "y").rename(runs / "\u00fc")
    command = [sys.executable, "-m", "calrec_jax.cli.main", "report"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    for argv, text in ((["x", "\u00fc"], b"\n\\xfc - x "), (["\u00fc"], b"\n\\xfc/report.html\n")):
        done = subprocess.run([*command, *argv], env=environment, capture_output=True, check=True)
        assert text in done.stdout


def test_another_evaluation_is_chosen(runs, calrec):
    for name in "xy":
        evaluate(runs / name, name="test_dense", config={"retrieval": "dense"})
    code, out, _ = calrec("x", "y", "--evaluation=test_dense")
    assert code == 0 and "y/eval/test_dense" in out and "settings that differ" not in out


@pytest.mark.parametrize("flag", ["--evaluation=test", "--out=page.html", "--out="])
def test_flags_of_comparisons_want_several_runs(runs, calrec, flag):
    code, _, err = calrec("x", flag)
    assert code == 2 and "--evaluation and --out go with two or more runs" in err
    assert not list(runs.rglob("*.html"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("absent",), "absent is no MODEL_DIR"),
        (("x", "absent"), "absent is no folder"),
        (("x", "y", "--evaluation=other"), "x has no evaluation 'other'; it has test"),
        (("x", "y", "--out=absent/page.html"), "cannot write absent/page.html: No such file"),
        (("x", "y", "--evaluation="), "x has no evaluation ''"),
        (("x", "y", "--out="), "cannot write .: Is a directory"),
        (("x", "gs://b/y"), "RUN is gs://b/y, and only paths"),
        (("gs://b/y",), "RUN is gs://b/y, and only paths"),
        (("x", "y", "--out=gs://b/page.html"), "--out is gs://b/page.html, and only paths"),
    ],
)
def test_mistakes_are_one_line(runs, calrec, argv, message):
    code, _, err = calrec(*argv)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"calrec report: error: {message}")


def test_no_run_is_wrong_usage(calrec):
    code, _, err = calrec()
    assert code == 2 and "the following arguments are required: RUN" in err
