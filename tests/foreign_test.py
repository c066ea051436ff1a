"""A package of another team registers its domains; it is installed beside calrec_jax, unchanged."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from cli.chain_test import calrec

from calrec_jax.data import specs

FOREIGN = pathlib.Path(__file__).resolve().parent / "foreign"
ROOT = FOREIGN.parents[1]
USERS = {"acme_tools": 30, "parts": 10}  # by dataset
MODULE = "--gin.MIXTURE_OR_TASK_MODULE='acme_calrec.tasks'"
TRAIN = [
    "--gin_file=gin/runs/two_stage.gin",
    "--gin_file=gin/models/tiny.gin",
    "--gin.MODEL_DIR='model'",
    "--gin.DATA_DIR='store'",
    "--gin.VOCABULARY=@vocabularies.byte()",
    "--gin.MIXTURE_OR_TASK_NAME='acme_all'",
    "--gin.TARGET_DOMAIN='acme_tools'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 250, 'targets': 40}",
    "--gin.stages.Stage.row_length=300",
    "--gin.stages.Stage.log_period=1",
    "--gin.stages.Stage.validation_batches=1",
    "--gin.STAGE1_STEPS=3",
    "--gin.STAGE2_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.config.DecoderConfig.num_layers=1",
    "--gin.config.DecoderConfig.d_model=32",
    "--gin.evaluation.EvaluationConfig.max_users=4",
    "--gin.sampling.SamplingConfig.num_samples=2",
    "--gin.sampling.SamplingConfig.max_new_tokens=8",
]


def write_raw(folder: pathlib.Path, dataset: str) -> None:
    """Twelve items; each user has the four after the user's first."""
    folder.mkdir(parents=True)
    items = [{"item_id": f"i{n}", "title": f"{dataset} {n}", "brand": "Acme"} for n in range(12)]
    events = [
        {"user_id": f"u{user}", "item_id": f"i{(user + n) % 12}", "order": n}
        for user in range(USERS[dataset])
        for n in range(5)
    ]
    for name, records in (("items", items), ("interactions", events)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
    """A folder that pip has installed the package in, from a copy: building leaves files behind."""
    source = shutil.copytree(FOREIGN, tmp_path_factory.mktemp("source") / "acme")
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--no-build-isolation", "--no-index", f"--target={folder}", source,
        ],
        check=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def trained(installed, tmp_path_factory) -> pathlib.Path:
    """A directory, empty before, with `store` and `model`."""
    here = tmp_path_factory.mktemp("here")
    for dataset in USERS:
        raw = tmp_path_factory.mktemp("raw") / dataset
        write_raw(raw, dataset)
        prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", "--data_dir=store"]
        calrec(here, *prepare, f"--domain={dataset}")
    calrec(here, "train", *TRAIN, MODULE, env=with_path(installed))
    return here


def with_path(installed: pathlib.Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(installed)}


def test_its_mixtures_have_their_rates(monkeypatch):
    monkeypatch.syspath_prepend(FOREIGN)
    importlib.import_module("acme_calrec.tasks")
    sizes = [100, 400]  # acme_parts, acme_tools
    mixture = specs.mixtures["acme_all"]
    assert mixture.domains == ("acme_parts", "acme_tools")
    assert mixture.weights(sizes).tolist() == [10, 20]  # roots: the temperature is 2
    assert specs.mixtures["acme_tools_mostly"].weights(sizes).tolist() == [1, 3]


@pytest.mark.slow
def test_the_package_is_not_part_of_calrec_jax(installed, tmp_path):
    assert {"acme_calrec", "acme_calrec-1.0.dist-info"} <= {p.name for p in installed.iterdir()}
    assert not (installed / "calrec_jax").exists()
    assert not [p for p in FOREIGN.rglob("*") if p.suffix == ".egg-info" or p.name == "build"]
    for folder in ("calrec_jax", "gin", "tasks"):
        files = [p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".gin", ".yaml")]
        assert files and not [p for p in files if "acme" in p.read_text()]
    missing = calrec(tmp_path, "train", *TRAIN, MODULE, code=1).stderr.splitlines()[-1]
    assert missing.startswith(
        "calrec train: error: MIXTURE_OR_TASK_MODULE 'acme_calrec.tasks' cannot be imported: "
        "ModuleNotFoundError"
    )


@pytest.mark.slow
def test_it_is_trained_on(trained):
    manifest = json.loads((trained / "model" / "manifest.json").read_text())
    data = manifest["stages"]["stage1"]["data"]
    assert data["checksums"].keys() == {"acme_tools", "acme_parts"}
    for stage, names in (("stage1", {"acme_tools", "acme_parts"}), ("stage2", {"acme_tools"})):
        lines = (trained / "model" / stage / "metrics.jsonl").read_text().splitlines()
        *_, last = [line for line in map(json.loads, lines) if line["split"] == "train"]
        epochs = {name for name in last if name.startswith("epochs/")}
        assert epochs == {f"epochs/{name}" for name in names}
        assert last["step"] == {"stage1": 3, "stage2": 2}[stage]
    assert {path.name for path in trained.iterdir()} == {"store", "model"}


@pytest.mark.slow
def test_it_is_evaluated_with_the_model_dir_alone(trained, installed):
    done = calrec(trained, "eval", "--model_dir=model", env=with_path(installed))
    assert "acme_tools test: 4 users" in done.stdout


@pytest.mark.slow
def test_it_is_inspected(trained, installed):
    inspect = ["inspect", *TRAIN, MODULE, "--json"]
    stages = json.loads(calrec(trained, *inspect, env=with_path(installed)).stdout)
    parts, tools = stages["stage1"]["domains"]
    assert (parts["name"], parts["sequences"]["train"]) == ("acme_parts", 10)
    assert (tools["name"], tools["sequences"]["train"]) == ("acme_tools", 30)
    # Rates are of examples, and those of a domain are all equally long here: so many fit a row.
    rates = {"acme_parts": 10**0.5, "acme_tools": 30**0.5}
    rows = {d["name"]: rates[d["name"]] * d["rows"] / d["examples"] for d in (parts, tools)}
    assert parts["share"] == pytest.approx(rows["acme_parts"] / sum(rows.values()), abs=1e-4)
    ((_, history), (_, target)) = parts["shown"][0]  # in the domain's own words
    assert history.startswith("Fitted so far: Title: parts ") and target.startswith("Title: parts ")
    assert history.endswith(". Fitted next: ") and "Brand" not in history
    assert "Brand: Acme" in tools["shown"][0][0][1]
