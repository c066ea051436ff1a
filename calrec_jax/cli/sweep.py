"""`calrec sweep`: trains and evaluates every trial of a YAML file, and compares them."""

from __future__ import annotations

import argparse
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import BinaryIO

from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.errors import EXIT_STOPPED, full_disk_named


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when all trials are done, 1 when some failed, 42 when told to stop."""
    parser = argparse.ArgumentParser(
        "calrec sweep",
        description=f"{__doc__} Launch it again to go on: finished trials are left as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE.yaml", help="see gin/sweeps/ablation.yaml")
    parser.add_argument("--sweep_dir", required=True, help="for the trials, each a MODEL_DIR in it")
    parser.add_argument(
        "--parallel", type=positive_int, default=1, help="trials at once (default: 1)"
    )
    args = parser.parse_args(argv)

    from calrec_jax.sweeps import sweep_file, trials

    sweep = sweep_file.read(_found(args.file))
    sweep_dir = pathlib.Path(args.sweep_dir)
    processes = Processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, processes.stop)
    with full_disk_named(sweep_dir):
        code = trials.run(sweep, sweep_dir, processes, args.parallel, told=_tell)
        results = trials.results(sweep, sweep_dir)
        trials.write_csv(results, sweep_dir / "results.csv")
    _print_table(sweep, results)
    print(sweep_dir / "results.csv")
    return code


class Processes:
    """Runs commands of `calrec` as processes of their own."""

    def __init__(self):
        self._running: set[subprocess.Popen] = set()
        self._stopping = threading.Event()

    def __call__(self, argv: Sequence[str], log: BinaryIO) -> int:
        """Runs `calrec ARGV`, output to `log`; returns its exit code, 42 if it was told to stop."""
        if self._stopping.is_set():
            return EXIT_STOPPED
        command = [sys.executable, "-m", "calrec_jax.cli.main", *argv]
        # In a session of its own: an interrupt is for us, who pass it on as a request to save.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._running.add(process)
        if self._stopping.is_set():
            process.terminate()
        code = process.wait()
        self._running.discard(process)
        return EXIT_STOPPED if code and self._stopping.is_set() else code

    def stop(self, *_) -> None:
        """Asks the running commands to save and leave; starts no other."""
        self._stopping.set()
        for process in list(self._running):
            process.terminate()


def _found(file: str) -> pathlib.Path:
    """`file`, or where it is beside the packaged gin files."""
    from calrec_jax.configs.gin_config import search_root

    packaged = search_root() / file
    return (
        packaged if packaged.is_file() and not pathlib.Path(file).exists() else pathlib.Path(file)
    )


def _shown(measured) -> tuple[str, str]:
    return f"{measured['value']:.4f}", f"{measured['low']:.4f} to {measured['high']:.4f}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_table(sweep, results) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, caption=f"{sweep.split} split, 95 % intervals over users")
    for name in ("trial", "state", sweep.metric, "interval", "directory"):
        table.add_column(name, justify="right" if name == sweep.metric else "left")
    for result in results:
        measured = result.metrics.get(sweep.metric)
        shown = _shown(measured) if measured else ("", "")
        table.add_row(result.trial.name, result.state, *shown, result.trial.id)
    # Not cut to a terminal's width where there is none.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)


if __name__ == "__main__":
    sys.exit(calrec(["sweep", *sys.argv[1:]]))
