"""The installation: a wheel works without the checkout, and all versions are pinned."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel's content, made from what git tracks or would track."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
        check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", f"-w{built}", source], check=True)
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(built / "content")
    return built / "content"


@pytest.mark.slow
def test_a_wheel_holds_all_modules_tasks_and_gin_files_and_no_tests(wheel):
    def files(top: pathlib.Path, *patterns: str) -> set[str]:
        found = (path for pattern in patterns for path in top.rglob(pattern))
        return {path.relative_to(top).as_posix() for path in found if "/." not in str(path)}

    package = files(wheel / "calrec_jax", "*.py", "*.gin", "*.yaml")
    here = files(ROOT / "calrec_jax", "*.py")
    here |= {f"tasks/{name}" for name in files(ROOT / "tasks", "*.py")}
    here |= {f"gin/{name}" for name in files(ROOT / "gin", "*.gin", "*.yaml")}
    assert package == here
    tops = {path.name for path in wheel.iterdir()}
    assert len(tops) == 2 and "calrec_jax" in tops  # and its metadata


@pytest.mark.slow
def test_calrec_works_from_a_wheel_alone(wheel, tmp_path):
    code = "import calrec_jax, sys; from calrec_jax.cli import main; print(calrec_jax.__file__);"
    argv = ["train", "--gin_file=gin/runs/quickstart.gin", "--gin.VOCABULARY=@vocabularies.byte()"]
    done = subprocess.run(
        [sys.executable, "-c", f"{code} sys.exit(main.main({argv}))"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(wheel)) and done.returncode == 1
    # The gin files and calrec_jax.tasks.synthetic were found; the store was not made.
    assert "error: no dataset of 'synthetic_" in done.stderr.splitlines()[-1]


def test_every_requirement_is_pinned():
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    setup = (ROOT / "setup.py").read_text()
    apart = {"xpk"}  # in an environment of its own, see constraints.txt
    named = re.findall(r'"([\w-]+)(?:>=|\[)', setup)
    required = {name.replace("_", "-").lower() for name in named}
    assert {"jax", "flax", "bm25s", "importlib-resources", "pytest"} <= required
    assert required - apart <= pinned


def test_all_extras_are_there():
    setup = (ROOT / "setup.py").read_text()
    extras = re.findall(r'^ {8}"(\w+)": \[', setup, re.MULTILINE)
    assert extras == ["tpu", "cuda", "convert", "beam", "gcs", "launch", "parity", "test"]


def test_the_licence_is_apache_2():
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
    assert 'license="Apache-2.0"' in (ROOT / "setup.py").read_text()
