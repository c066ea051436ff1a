"""`calrec sweep`: the processes that it starts and stops, and the table that it prints."""

from __future__ import annotations

import signal
import stat
import sys
import threading
import time

from sweeps.fake_calrec import GRID, Calrec, write

from calrec_jax.cli import sweep as sweep_command


def test_processes_run_calrec(tmp_path):
    with (tmp_path / "log").open("ab") as log:
        assert sweep_command.Processes()(["--version"], log) == 0
        assert sweep_command.Processes()(["nothing"], log) == 2
    assert (tmp_path / "log").read_text().startswith("calrec 0")


def test_processes_are_stopped(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho running\nexec sleep 100\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    processes = sweep_command.Processes()
    codes = []
    with (tmp_path / "log").open("ab") as log:
        thread = threading.Thread(target=lambda: codes.append(processes(["train"], log)))
        thread.start()
        while not (tmp_path / "log").read_text():
            time.sleep(0.01)
        processes.stop()
        thread.join()
        assert codes == [42]
        assert processes(["train"], log) == 42  # and no other begins
    assert (tmp_path / "log").read_text() == "running\n"


def test_command_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep_command, "Processes", lambda: Fake())

    class Fake(Calrec):
        def stop(self, *_):
            pass

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    file = write(tmp_path, GRID)
    try:
        assert sweep_command.main([str(file), f"--sweep_dir={tmp_path / 'sweep'}"]) == 0
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers, strict=True):
            signal.signal(number, handler)
    out = capsys.readouterr().out
    assert "alpha=0.125, TRAIN_STEPS=20" in out and "0.4000 to 0.6000" in out
    assert (tmp_path / "sweep" / "results.csv").is_file()
