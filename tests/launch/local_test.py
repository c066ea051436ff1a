import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = str(ROOT / "launch" / "local.sh")


def local(*argv, **more) -> subprocess.CompletedProcess:
    more = {"capture_output": True, "text": True, "timeout": 60} | more
    return subprocess.run([LOCAL, *argv], **more)


def test_each_process_knows_its_place(tmp_path):
    said = (
        'echo "$CALREC_PROCESS_ID of $CALREC_NUM_PROCESSES at $CALREC_COORDINATOR,'
        ' $JAX_PLATFORMS,$XLA_FLAGS"'
    )
    env = os.environ | {"XLA_FLAGS": "--mine=1", "JAX_PLATFORMS": "tpu"}
    done = local("--processes=3", "--devices=2", "--port=23456", "--", "bash", "-c", said, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    flags = "--mine=1 --xla_force_host_platform_device_count=2"
    assert sorted(done.stdout.splitlines()) == [
        f"{i} of 3 at 127.0.0.1:23456, cpu,{flags}" for i in range(3)
    ]


def test_without_flags_it_is_two_processes_of_four_devices_on_a_free_port():
    done = local("--", "bash", "-c", 'echo "$CALREC_COORDINATOR $XLA_FLAGS"', env=_without_flags())
    first, second = done.stdout.splitlines()
    assert first == second and first.endswith("device_count=4")
    port = int(first.split()[0].rpartition(":")[2])
    assert 20000 <= port < 30000


def _without_flags() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}


def test_arguments_are_passed_on_as_they_are():
    odd = ["--gin.A={'a b': \"$HOME\"}", "two\nlines", "", "-n", "*"]
    done = local("--processes=1", "--", "printf", "%s\\0", *odd)
    assert done.stdout.split("\0")[:-1] == odd


WRONG = {
    "": "nothing to run: give -- COMMAND",
    "--processes=2 --": "nothing to run: give -- COMMAND",
    "true": "unknown argument 'true'",
    "--processes 2 -- true": "unknown argument '--processes'",
    "--processes=0 -- true": "--processes=0 is not a positive number",
    "--devices=x -- true": "--devices=x is not a positive number",
    "--port=http -- true": "--port=http is not a port",
}


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_is_one_line_and_exit_code_2(argv):
    done = local(*argv.split())
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("local.sh: error: ") and WRONG[argv] in line


# --- ends ------------------------------------------------------------------------------------

WAITS = "trap 'exit 0' TERM; echo up; while :; do sleep 0.02; done"


def by_place(first: str, second: str) -> list[str]:
    """A command that is `first` in process 0 and `second` in process 1."""
    return ["bash", "-c", f"if ((CALREC_PROCESS_ID == 0)); then {first}\nelse {second}\nfi"]


@pytest.mark.parametrize("code", [1, 42, 134])
@pytest.mark.parametrize("failing", [0, 1])
def test_the_first_failure_ends_the_others_and_its_code_is_returned(code, failing):
    two = [f"sleep 0.1; exit {code}", f"trap 'exit 7' TERM; {WAITS.partition(';')[2]}"]
    done = local("--", *by_place(*(two if failing == 0 else reversed(two))), timeout=4)
    assert done.returncode == code


def test_one_that_does_not_end_after_a_signal_is_killed():
    begun = time.monotonic()
    stubborn = "trap '' TERM; while :; do sleep 0.02; done"
    done = local("--", *by_place("exit 3", stubborn))
    assert done.returncode == 3 and 5 <= time.monotonic() - begun < 15


def test_the_others_may_go_on_when_one_is_done():
    done = local("--", *by_place("exit 0", "sleep 0.5; echo late; exit 0"))
    assert (done.returncode, done.stdout) == (0, "late\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_all_as_sigterm_and_they_may_save(tmp_path, number):
    saves = "trap 'sleep 0.$((2 + 3 * CALREC_PROCESS_ID)); echo saved; exit 42' TERM"
    log = tmp_path / "log"
    with open(log, "w") as opened:
        argv = [LOCAL, "--", "bash", "-c", f"{saves}; echo up; while :; do sleep 0.02; done"]
        process = subprocess.Popen(argv, stdout=opened, stderr=opened)
    try:
        end = time.monotonic() + 10
        while log.read_text().count("up") < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(10) == 42
    finally:
        process.kill()
    assert log.read_text().split() == ["up", "up", "saved", "saved"]


# --- calrec ----------------------------------------------------------------------------------

CALREC = [sys.executable, "-m", "calrec_jax.cli.main"]
TRAIN = [
    "train",
    "--gin_file=gin/runs/quickstart.gin",
    "--gin.VOCABULARY=@vocabularies.byte()",
    "--gin.DATA_DIR='../store'",
    "--gin.MODEL_DIR='model'",
    "--gin.TRAIN_STEPS=3",
    "--gin.STAGE2_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.stages.Stage.validation_batches=1",
]


@pytest.mark.slow
def test_a_wrong_configuration_ends_all_at_once_with_one_line(tmp_path):
    begun = time.monotonic()
    done = local("--", *CALREC, *TRAIN, "--gin.BATCH_SIZ=8", cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    lines = set(done.stderr.splitlines())
    assert len(lines) == 1 and "did you mean BATCH_SIZE?" in lines.pop()
    assert time.monotonic() - begun < 60
