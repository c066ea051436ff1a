"""`calrec sweep`: trains and evaluates every trial of a YAML file, and compares them."""

from __future__ import annotations

import argparse
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.errors import EXIT_STOPPED, full_disk_named

if TYPE_CHECKING:  # imported where they are used: they import libraries that --help does not need
    from calrec_jax.sweeps.results import Result
    from calrec_jax.sweeps.sweep_file import Sweep


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all trials are finished, 1 when one has failed, 42 after a signal to stop."""
    parser = argparse.ArgumentParser(
        "calrec sweep",
        description=f"{__doc__} Run it again to go on: finished trials are left as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE.yaml", help="see gin/sweeps/ablation.yaml")
    parser.add_argument(
        "--sweep_dir", required=True, help="the folder of the trials, each a MODEL_DIR"
    )
    parser.add_argument(
        "--parallel", type=positive_int, default=1, help="how many trials run at once (default: 1)"
    )
    args = parser.parse_args(argv)

    from calrec_jax.sweeps import results, sweep_file
    from calrec_jax.sweeps.run_trials import run_trials

    sweep = sweep_file.read(_sweep_file(args.file))
    sweep_dir = pathlib.Path(args.sweep_dir)
    processes = Processes()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, processes.stop)
    with full_disk_named(sweep_dir):
        code = run_trials(sweep, sweep_dir, processes, args.parallel, on_event=_print_event)
        ranked = results.read_results(sweep, sweep_dir)
        results.write_csv(ranked, sweep_dir / "results.csv")
    _print_table(sweep, ranked)
    print(sweep_dir / "results.csv")
    return code


class Processes:
    """Runs commands of `calrec`, each as a process of its own."""

    def __init__(self):
        self._running: set[subprocess.Popen] = set()
        self._stopping = threading.Event()

    def __call__(self, argv: Sequence[str], log: BinaryIO) -> int:
        """Runs `calrec ARGV`, output to `log`. Returns its exit code, or 42 if `stop` ended it."""
        if self._stopping.is_set():
            return EXIT_STOPPED
        command = [sys.executable, "-m", "calrec_jax.cli.main", *argv]
        # In a session of its own: Ctrl-C then reaches this process alone, which asks it to save.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._running.add(process)
        if self._stopping.is_set():
            process.terminate()
        code = process.wait()
        self._running.discard(process)
        return EXIT_STOPPED if code and self._stopping.is_set() else code

    def stop(self, *_: Any) -> None:
        """Asks the running commands to save and exit, and lets no other begin. A signal handler."""
        self._stopping.set()
        for process in list(self._running):
            process.terminate()


def _sweep_file(file: str) -> pathlib.Path:
    """The path of `file`: in the working directory, or beside the packaged gin files."""
    from calrec_jax.configs.gin_config import search_root

    path, packaged = pathlib.Path(file), search_root() / file
    return packaged if packaged.is_file() and not path.exists() else path


def _formatted(measured: Mapping[str, float]) -> tuple[str, str]:
    """(value, interval) of a metric."""
    return f"{measured['value']:.4f}", f"{measured['low']:.4f} to {measured['high']:.4f}"


def _print_event(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_table(sweep: Sweep, results: Sequence[Result]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, caption=f"{sweep.split} split, 95 % intervals over users")
    for name in ("trial", "state", sweep.metric, "interval", "directory"):
        table.add_column(name, justify="right" if name == sweep.metric else "left")
    for result in results:
        measured = result.metrics.get(sweep.metric)
        cells = _formatted(measured) if measured else ("", "")
        table.add_row(result.trial.name, result.state, *cells, result.trial.id)
    # A fixed width where there is no terminal, so that nothing is cut.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)


if __name__ == "__main__":
    sys.exit(calrec(["sweep", *sys.argv[1:]]))
