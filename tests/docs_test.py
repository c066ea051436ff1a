"""Every command of the README and of docs/ runs, page by page, each page in a fresh directory.

They run as they are written, but small: a `calrec` that comes first on the PATH adds a few
arguments. Commands of make are left out, because `make test` runs these tests.
"""

from __future__ import annotations

import os
import pathlib
import re
import stat
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")

_SMALL_CALREC = """#!{python}
import sys

import yaml
from calrec_jax.cli import main, sweep

TRAIN = [f"--gin.{{binding}}" for binding in (
    "TRAIN_STEPS=3", "STAGE2_STEPS=2", "BATCH_SIZE=8", "stages.Stage.validation_batches=1",
    "evaluation.EvaluationConfig.max_users=4", "sampling.SamplingConfig.num_samples=2",
    "sampling.SamplingConfig.max_new_tokens=8", "evaluation.EvaluationConfig.users_per_batch=4",
)]


def small(argv):
    if argv[:1] == ["synthetic"]:
        return [*argv, "--users=40", "--target_users=40"]
    if argv[:1] == ["train"] and "--help" not in argv:
        return [*argv, *TRAIN]
    if argv[:1] == ["sweep"]:  # the first two points of each axis
        document = yaml.safe_load(sweep._sweep_file(argv[1]).read_text())
        document["base_args"] += TRAIN
        for axis, points in document["grid"].items():
            two = list(points)[:2]
            whole = isinstance(points, dict)
            document["grid"][axis] = {{k: points[k] for k in two}} if whole else two
            for point in document["grid"][axis].values() if whole else ():
                point.pop("STAGE1_STEPS", None), point.pop("STAGE2_STEPS", None)
        with open("small.yaml", "w") as file:
            yaml.safe_dump(document, file, sort_keys=False)
        return ["sweep", "small.yaml", *argv[2:]]
    return argv


sys.exit(main.main(small(sys.argv[1:])))
"""


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
    """(language, code) of a page's blocks that can be run, in order."""
    found = [(m[1], m[2]) for m in _BLOCK.finditer(page.read_text())]
    return [(kind, code) for kind, code in found if kind in ("bash", "python")]


@pytest.fixture
def directory(tmp_path, monkeypatch) -> pathlib.Path:
    """A checkout's launch/ and examples/, no more; `calrec` and `python` are this environment's."""
    programs = tmp_path / "programs"
    programs.mkdir()
    calrec = programs / "calrec"
    calrec.write_text(_SMALL_CALREC.format(python=sys.executable))
    calrec.chmod(calrec.stat().st_mode | stat.S_IXUSR)
    python = f"{programs}:{pathlib.Path(sys.executable).parent}"
    monkeypatch.setenv("PATH", f"{python}:{os.environ['PATH']}")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    here = tmp_path / "here"
    here.mkdir()
    for folder in ("launch", "examples"):
        (here / folder).symlink_to(ROOT / folder)
    return here


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_every_command_runs(page, directory):
    for kind, code in blocks(page):
        code = re.sub(r"^make .*$", "", code, flags=re.MULTILINE)
        command = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*command, code], cwd=directory, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_small_calrec_runs_ours(directory):
    done = subprocess.run(["calrec", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("calrec ")


def test_the_first_commands_are_make_quickstart_and_make_test():
    first = blocks(ROOT / "README.md")[0][1]
    assert re.findall(r"^make (\w+)", first, re.MULTILINE) == ["quickstart", "test"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_pages(page):
    for link in _LINK.findall(page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_every_page_can_be_reached_from_the_readme():
    linked = {pathlib.Path(link).name for link in _LINK.findall((ROOT / "README.md").read_text())}
    assert {page.name for page in PAGES[1:]} <= linked
