"""A run that has begun: what its report shows of its data, and its store prepared anew."""

from __future__ import annotations

import html
import json
import shutil

import pytest

from calrec_jax.cli import main as cli
from calrec_jax.training.stages import Trainer

QUICKSTART = ["--gin_file=gin/runs/quickstart.gin", "--gin.VOCABULARY=@vocabularies.byte()"]
QUICKSTART += ["--gin.DATA_DIR='store'", "--gin.MODEL_DIR='model'"]
DOMAIN = "synthetic_kitchen"


@pytest.fixture
def calrec(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty directory: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = cli.main(list(argv))
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def prepare(calrec, small_store):
    """Prepares DOMAIN of `store` again, by other rules; returns its checksums."""

    def run(*rules):
        raw = small_store.parent / "raw" / DOMAIN
        files = ["--source=jsonl", f"--input_dir={raw}", "--data_dir=store", f"--domain={DOMAIN}"]
        code, out, _ = calrec("prepare", *files, *rules)
        assert code == 0
        return json.loads(out)["checksums"]

    return run


@pytest.fixture
def trained(calrec, small_store, tmp_path, monkeypatch):
    """Begins the quickstart in `model`, from `store`. The list of stages that `calrec train` runs.

    A stage computes nothing, and leaves nothing but a checkpoint.
    """
    shutil.copytree(small_store, tmp_path / "store")
    stages = []

    def run_stage(self, stage):
        stages.append(stage.name)
        checkpoint = self.model_dir / stage.name / "checkpoints" / "checkpoint_1"
        checkpoint.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(Trainer, "run_stage", run_stage)
    assert calrec("train", *QUICKSTART)[0] == 0
    assert stages == ["stage1", "stage2"]
    return stages


def test_a_domain_prepared_anew_to_the_same_bytes_is_gone_on_with(trained, prepare, calrec):
    assert prepare() == prepare("--seed=5")  # which decides nothing here
    assert calrec("train", *QUICKSTART) == (0, "", "")
    assert trained == ["stage1", "stage2"] * 2


@pytest.mark.parametrize("rule", ["--min_events=6", "--max_history=2", "--require=price"])
def test_a_domain_prepared_anew_by_other_rules_is_refused(trained, prepare, calrec, tmp_path, rule):
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*.*")}
    prepare(rule)
    code, out, err = calrec("train", *QUICKSTART)
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(
        f"calrec train: error: MODEL_DIR {tmp_path}/model was made with "
        f"stage1.data.checksums.{DOMAIN}."
    )
    assert line.endswith("give the run a MODEL_DIR of its own, or the old data")
    assert trained == ["stage1", "stage2"]
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").rglob("*.*")}
    # What the line says to do does help, both ways.
    assert calrec("train", *QUICKSTART, "--gin.MODEL_DIR='own'")[0] == 0
    prepare()
    assert calrec("train", *QUICKSTART)[0] == 0


def test_the_report_shows_what_inspect_shows(trained, calrec, tmp_path):
    """report/training_data writes all that the description has."""
    stages = json.loads(calrec("inspect", *QUICKSTART, "--json", "--examples=3")[1])
    assert calrec("report", "model")[0] == 0
    page = (tmp_path / "model" / "report.html").read_text()
    section = page[page.index("<h2>Training data</h2>") :]
    for name, stage in stages.items():
        assert f"<h3>{name}: {stage['mixture']}</h3>" in section
        assert f"{stage['steps']:,} steps of {stage['rows']:,} rows of" in section
        for d in stage["domains"]:
            cells = [
                f"{d['items']:,}", f"{d['examples']:,}", f"{d['share']:.1%}", f"{d['fill']:.1%}",
                f"{d['steps_per_epoch']:,.1f}", f"{d['epochs']:.2f}",
                f"{d['tokens']['mean']:,.0f}", f"{d['tokens']['p99']:,.0f}",
                f"{d['histories_cut']:.1%}", f"{d['items_cut']:.1%}",
            ]  # fmt: skip
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            assert f"<tr><td>{d['name'].replace('_', '_<wbr>')}</td>{row}</tr>" in section
            counts, edges = (d["tokens"]["histogram"][part] for part in ("counts", "edges"))
            for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
                assert f"<title>{low:,.0f} to {high:,.0f}: {count:,}</title>" in section
            assert len(d["shown"]) == 3
            for example in d["shown"]:
                for span, text in example:
                    assert f'<h4>{span}</h4><p class="text">{html.escape(text)}</p>' in section
