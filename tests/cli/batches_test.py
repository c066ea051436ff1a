"""`calrec batches` as its users call it: the folder, wrong input, and runs that do not fit it."""

from __future__ import annotations

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.configs import load
from calrec_jax.data.store import arrays
from calrec_jax.errors import CalrecError
from calrec_jax.runs.checks import check
from calrec_jax.runs.stage_data import StageData

BYTES = "VOCABULARY=@vocabularies.byte()"
DOMAINS = ["synthetic_garden", "synthetic_kitchen", "synthetic_office", "synthetic_sports"]


@pytest.fixture
def calrec_batches(small_store, tmp_path, monkeypatch, capfd):
    """Saves the quickstart's, with more arguments: (exit code, standard output and error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        run = ["batches", "--gin_file=gin/runs/quickstart.gin", f"--gin.{BYTES}"]
        code = cli.main([*run, f"--gin.DATA_DIR={str(small_store)!r}", *argv])
        return code, *capfd.readouterr()

    return run


def run_from(data_dir, *bindings):
    return load.from_gin(
        ["gin/runs/quickstart.gin"], [BYTES, f"DATA_DIR={str(data_dir)!r}", *bindings]
    )


def test_the_folder_and_what_is_said_of_it(calrec_batches, tmp_path):
    (tmp_path / "saved").mkdir()  # empty: as good as none
    code, out, err = calrec_batches("--out=saved")
    assert (code, err) == (0, "")
    *told, last = out.splitlines()
    assert last == "saved: give it as DATA_DIR"
    assert [line.partition(": 326 items, ")[0] for line in told] == DOMAINS
    index = arrays.read_index("saved")
    assert list(index["domains"]) == DOMAINS
    assert list(index["mixtures"]) == ["synthetic_all"]  # a domain is no mixture
    assert not list((tmp_path / "saved").rglob("*.tmp"))


def test_a_run_reads_it_as_it_reads_the_store(calrec_batches, small_store):
    assert calrec_batches("--out=saved")[0] == 0
    of_store = run_from(small_store)
    identity, data = of_store.identity, StageData(of_store).fingerprint(of_store.stages[0])
    saved = run_from("saved", "MIXTURE_OR_TASK_MODULE='no.such.module'")
    check(saved)
    assert saved.identity == identity
    assert StageData(saved).fingerprint(saved.stages[0]) == data
    assert data["checksums"]["synthetic_sports"]


def test_a_stage_alone_saves_its_domains_and_the_evaluations(calrec_batches):
    alone = ["--gin.STAGES=[@stage1/stages.Stage()]", "--gin.CHECKPOINT='stage1:best'"]
    one = ["--gin.MIXTURE_OR_TASK_NAME='synthetic_garden'"]
    assert calrec_batches("--out=saved", *alone, *one)[0] == 0
    index = arrays.read_index("saved")
    assert list(index["domains"]) == ["synthetic_garden", "synthetic_sports"]
    assert index["mixtures"] == {}


@pytest.mark.parametrize("of", ["['synthetic_garden', 'synthetic_sports']",
                                "('synthetic_garden', 'synthetic_sports')"])  # fmt: skip
def test_all_domains_of_the_evaluation_are_saved(calrec_batches, of):
    one = ["--gin.STAGES=[@stage1/stages.Stage()]", "--gin.MIXTURE_OR_TASK_NAME='synthetic_office'"]
    assert calrec_batches("--out=saved", *one, f"--gin.EvaluationConfig.domains={of}")[0] == 0
    index = arrays.read_index("saved")
    assert list(index["domains"]) == ["synthetic_garden", "synthetic_office", "synthetic_sports"]


def test_a_run_without_an_evaluation_saves_what_it_trains_on(calrec_batches):
    one = ["--gin.STAGES=[@stage1/stages.Stage()]", "--gin.MIXTURE_OR_TASK_NAME='synthetic_office'"]
    assert calrec_batches("--out=saved", *one, "--gin.Run.evaluation=None")[0] == 0
    assert list(arrays.read_index("saved")["domains"]) == ["synthetic_office"]


@pytest.mark.parametrize(
    "error", [TypeError("broken"), CalrecError("no"), OSError(13, "denied")], ids=str
)
def test_any_failure_leaves_no_folder(calrec_batches, monkeypatch, tmp_path, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(arrays, "write_index", fails)
    if isinstance(error, TypeError):
        with pytest.raises(TypeError):
            calrec_batches("--out=new/saved")
    else:
        assert calrec_batches("--out=new/saved")[0] == 1
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
def test_a_run_that_does_not_fit_the_folder_is_refused_in_one_line(
    calrec_batches, binding, message
):
    assert calrec_batches("--out=saved")[0] == 0
    with pytest.raises(CalrecError) as error:
        check(run_from("saved", binding))
    assert message in str(error.value) and "\n" not in str(error.value)


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
