"""`calrec` itself: which command runs, exit codes, and the line of an error."""

import errno
import subprocess
import sys
import types

import pytest

from calrec_jax import errors
from calrec_jax.cli import main as cli
from calrec_jax.errors import CalrecError

HEAVY = ("jax", "flax", "orbax", "tensorflow", "seqio", "scipy", "rich", "yaml")


@pytest.fixture
def command(monkeypatch):
    """Makes `calrec fake` run a function."""

    def make(main):
        monkeypatch.setitem(sys.modules, "calrec_jax.cli.fake", types.SimpleNamespace(main=main))
        monkeypatch.setitem(cli.COMMANDS, "fake", "for tests")
        return lambda: cli.main(["fake"])

    return make


def raising(error):
    def main(argv):
        raise error

    return main


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["trian"], ["--nothing"]])
def test_wrong_usage_leaves_with_2(argv, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(argv)
    assert left.value.code == 2
    assert "calrec: error: " in capsys.readouterr().err


def test_help_of_every_command_imports_nothing_heavy():
    code = f"""
import sys
from calrec_jax.cli import main as cli
for argv in [["--help"], *([name, "--help"] for name in cli.COMMANDS)]:
    try:
        cli.main(argv)
    except SystemExit as left:
        assert left.code == 0, argv
heavy = [name for name in {HEAVY} if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"usage: calrec {name} " in done.stdout


@pytest.mark.parametrize("name", ["train", "eval", "sweep"])
def test_a_command_is_a_module_too(name):
    done = subprocess.run(
        [sys.executable, "-m", f"calrec_jax.cli.{name}", "--nothing"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"calrec {name}: error: " in done.stderr


def test_a_users_mistake_is_one_line(command, capsys):
    assert command(raising(CalrecError("what is wrong, where, what to do")))() == 1
    assert capsys.readouterr().err == "calrec fake: error: what is wrong, where, what to do\n"


def test_an_interrupt_is_130(command, capsys):
    assert command(raising(KeyboardInterrupt()))() == 130
    assert capsys.readouterr().err == "calrec fake: interrupted\n"


def test_a_defect_keeps_its_traceback(command):
    with pytest.raises(ZeroDivisionError):
        command(raising(ZeroDivisionError()))()


def test_exit_code_of_the_command_is_ours(command):
    assert command(lambda argv: 42)() == 42


def test_a_full_disk_is_one_line_with_the_path(command, capsys):
    def main(argv):
        with errors.full_disk_named("runs/a"), open("/dev/full", "w") as file:
            file.write("x")

    assert command(main)() == 1
    assert capsys.readouterr().err == (
        "calrec fake: error: no space left on the disk of runs/a: free some and run the same "
        "command again; nothing that was saved before is lost\n"
    )


def wrapped(inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise ValueError("saving failed") from error
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "path"),
    [
        (OSError(errno.ENOSPC, "full", "/data/x"), "/data/x"),
        (OSError(errno.EDQUOT, "quota"), "runs/a"),
        (wrapped(OSError(errno.ENOSPC, "full", "/data/x")), "/data/x"),
        (
            wrapped(
                RuntimeError(
                    'RESOURCE_EXHAUSTED: Error writing "/data/ck/0.0": [OS error 28: No space left '
                    "on device ENOSPC]"
                )
            ),
            "/data/ck/0.0",
        ),
    ],
)
def test_a_full_disk_is_found_however_deep(error, path):
    with pytest.raises(CalrecError, match=f"no space left on the disk of {path}:"):
        with errors.full_disk_named("runs/a"):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "denied", "/x"),
        ValueError("x"),
        RuntimeError("RESOURCE_EXHAUSTED: out of memory on the device"),
    ],
)
def test_other_errors_are_no_full_disk(error):
    with pytest.raises(type(error)):
        with errors.full_disk_named("runs/a"):
            raise error


def test_a_reader_that_closes_the_output_is_no_error():
    code = """
import sys, types
from calrec_jax.cli import main as cli
def main(argv):
    for number in range(100_000):
        print(number)
    return 0
sys.modules["calrec_jax.cli.fake"] = types.SimpleNamespace(main=main)
cli.COMMANDS["fake"] = "for tests"
sys.exit(cli.main(["fake"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
