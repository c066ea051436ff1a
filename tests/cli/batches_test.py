"""`calrec batches` as its users call it, with wrong input too. runs/ tests what it saves."""

from __future__ import annotations

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError

BYTES = "VOCABULARY=@vocabularies.byte()"
DOMAINS = ["synthetic_garden", "synthetic_kitchen", "synthetic_office", "synthetic_sports"]


@pytest.fixture
def calrec_batches(small_store, tmp_path, monkeypatch, capfd):
    """Saves the quickstart, with more arguments: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        run = ["batches", "--gin_file=gin/runs/quickstart.gin", f"--gin.{BYTES}"]
        code = cli.main([*run, f"--gin.DATA_DIR={str(small_store)!r}", *argv])
        return code, *capfd.readouterr()

    return run


def test_the_folder_and_the_output(calrec_batches, tmp_path):
    (tmp_path / "saved").mkdir()  # an empty one is taken
    code, out, err = calrec_batches("--out=saved")
    assert (code, err) == (0, "")
    *domains, last = out.splitlines()
    assert last == "saved: give it as DATA_DIR"
    assert [line.partition(": 326 items, ")[0] for line in domains] == DOMAINS
    index = arrays.read_index("saved")
    assert list(index["domains"]) == DOMAINS
    assert list(index["mixtures"]) == ["synthetic_all"]  # a domain is no mixture
    assert not list((tmp_path / "saved").rglob("*.tmp"))


@pytest.mark.parametrize("error", [CalrecError("no"), OSError(13, "denied")], ids=str)
def test_a_failure_is_one_line_and_leaves_no_parents(calrec_batches, monkeypatch, tmp_path, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(arrays, "write_index", fails)
    assert calrec_batches("--out=new/saved")[0] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--out=full", "full is there already: give a new folder, or remove that one"),
        ("--out=gs://bucket/saved", "--out is gs://bucket/saved, and only paths of a file system"),
        ("--out=/proc/saved", "cannot write /proc/saved: "),
        ("--gin.DATA_DIR='nowhere'", "no dataset of 'synthetic_garden' in "),
        ("--gin.DATA_DIR='gs://bucket/store'", "DATA_DIR is gs://bucket/store, and only paths"),
        ("--gin.MIXTURE_OR_TASK_NAME='synthetic_al'", "did you mean 'synthetic_all'?"),
        ("--gin.MIXTURE_OR_TASK_MODULE='no.such'", "'no.such' cannot be imported: ModuleNotFound"),
        ("--gin.templates.Template.fields=('titel',)", "did you mean 'title'?"),
    ],
)
def test_wrong_input_is_one_line(calrec_batches, tmp_path, flag, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    code, out, err = calrec_batches("--out=saved", flag)
    (line,) = err.splitlines()
    assert (code, out) == (1, "")
    assert line.startswith("calrec batches: error: ") and message in line
    assert not arrays.is_saved("saved")
    assert (tmp_path / "full" / "mine").read_text() == "kept"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out=saved"], "--gin_file is required, for example --gin_file=gin/runs/quickstart.gin"),
        (["--gin_file=gin/runs/quickstart.gin"], "arguments are required: --out"),
    ],
)
def test_wrong_usage_leaves_with_2(argv, message, capfd):
    with pytest.raises(SystemExit) as left:
        cli.main(["batches", *argv])
    assert left.value.code == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("calrec batches: error: ") and message in line
