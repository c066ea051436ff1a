"""worker.sh on this machine, with the fake Google Cloud and a script in place of calrec."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from fake_cloud import ROOT

WORKER = "calrec/code/launch/worker.sh"
URL = "gs://b/runs/run1"


@pytest.fixture
def worker(cloud):
    """A worker that is set up; returns the function that makes its `calrec`."""
    cloud.program("curl", 'echo 3; printf "%s\\0" "$@" >"$FAKE_CLOUD/curl"')
    code = cloud.home / "calrec" / "code"
    shutil.copytree(ROOT / "launch", code / "launch")
    calrec = cloud.home / "calrec" / "venv" / "bin" / "calrec"
    calrec.parent.mkdir(parents=True)

    def make(body: str) -> None:
        calrec.write_text(f"#!/usr/bin/env bash\n{body}\n")
        calrec.chmod(0o755)

    return make


def start(cloud, *argv) -> subprocess.CompletedProcess:
    return cloud.run("bash", WORKER, "run", URL, *argv, cwd=cloud.home)


def report(cloud) -> dict:
    """The last status of the worker; {} while it is being written."""
    path = cloud.folder / "worker-3.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_a_run_leaves_its_log_and_its_exit_code(cloud, worker):
    worker('printf "%s|" "$CALREC_MULTIHOST" "$PYTHONPATH" "$@"; echo oops >&2; exit 42')
    assert start(cloud, "train", "a b", "$HOME\n'").returncode == 0
    wait_for(lambda: report(cloud).get("rc") == 42)
    started = report(cloud)["started"]
    assert report(cloud) == {"worker": 3, "started": started, "rc": 42}
    log = (cloud.folder / f"worker-3-{started}.log").read_text()
    said = f"1|{cloud.home}/calrec/code|train|a b|$HOME\n'|oops\n"
    assert log == f"{said}worker.sh: calrec left with 42\n"
    assert "Metadata-Flavor: Google" in (cloud.folder / "curl").read_text()


def test_it_returns_while_calrec_runs(cloud, worker):
    worker('touch "$HOME/runs"; until [[ -e $HOME/end ]]; do sleep 0.02; done')
    assert start(cloud, "train").returncode == 0
    # An older run's exit code is gone by now, or tpu.sh would take it for this one's.
    assert report(cloud)["rc"] is None
    wait_for((cloud.home / "runs").exists)
    second = start(cloud, "train")
    assert (second.returncode, second.stderr) == (
        1, "worker.sh: error: a run is under way here\n",
    )  # fmt: skip
    (cloud.home / "end").touch()
    wait_for(lambda: report(cloud).get("rc") == 0)


def test_sigterm_reaches_calrec_and_its_end_is_waited_for(cloud, worker):
    worker(
        "trap 'sleep 0.3; echo saved; exit 42' TERM\n"
        'echo $PPID >"$HOME/parent.tmp"; mv "$HOME/parent.tmp" "$HOME/parent"\n'
        "while :; do sleep 0.02; done"
    )
    start(cloud, "train")
    parent = cloud.home / "parent"
    wait_for(parent.exists)
    cloud.run("kill", f"-{signal.SIGTERM}", parent.read_text().strip())
    wait_for(lambda: report(cloud).get("rc") == 42)
    assert "saved" in (cloud.home / "calrec" / "log").read_text()


def test_setup_installs_the_pinned_versions_into_a_fresh_environment(cloud, worker):
    worker("")
    cloud.program("python3", 'echo "python3 $*" >>"$HOME/did"')
    uv = cloud.home / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/usr/bin/env bash\necho "uv $*, in $PWD" >>"$HOME/did"\n')
    uv.chmod(0o755)
    assert cloud.run("bash", WORKER, "setup", cwd=cloud.home).returncode == 0
    code, venv = cloud.home / "calrec" / "code", cloud.home / "calrec" / "venv"
    assert (cloud.home / "did").read_text().splitlines() == [
        "python3 -m pip install --user --quiet uv",
        f"uv venv --quiet --python 3.12 {venv}, in {cloud.home}",
        f"uv pip install --quiet --python {venv}/bin/python -c constraints.txt -e .[tpu], "
        f"in {code}",
    ]
