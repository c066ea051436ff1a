"""A training process of its own, as `calrec train` would be: python worker.py MODEL_DIR JSON.

JSON: "stages" [[name, changes of small_run.STAGE]], "seconds" per batch, "kill_at" (SIGKILL when
this training batch is asked for), "nan_at" (its weights are no numbers), "watch" (seconds for which
another machine's lock is watched). Joins other processes as the command line does.
"""

import json
import os
import pathlib
import signal
import sys
import time
import traceback

from calrec_jax.errors import EXIT_STOPPED
from calrec_jax.training.preemption import Preempted

TESTS = pathlib.Path(__file__).resolve().parents[1]


def start(model_dir, *, devices: int = 1, launcher=(), **options):
    """Starts a worker, by a launcher if one is given. Returns the Popen; stderr is captured."""
    import subprocess

    clean = {name: value for name, value in os.environ.items() if not name.startswith("CALREC_")}
    environment = clean | {
        "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(model_dir).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return subprocess.Popen(
        [*launcher, sys.executable, __file__, str(model_dir), json.dumps(options)],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, code: int = 0) -> str:
    """Waits for a worker, which must leave with `code`. Returns its standard error."""
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == code, stderr
    return stderr


def wait_for_lines(model_dir, stage_name: str, lines: int, process) -> None:
    """Returns when the stage has told so many lines."""
    path = pathlib.Path(model_dir) / stage_name / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not path.exists() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no line in 200 s"
        time.sleep(0.02)


def main(
    model_dir: str,
    stages=(),
    seconds: float = 0.0,
    kill_at: int | None = None,
    nan_at: int | None = None,
    watch: float | None = None,
) -> int:
    if "CALREC_COORDINATOR" in os.environ:
        from calrec_jax.training import processes

        assert processes.join_processes()
    from training import small_run

    from calrec_jax import locks

    locks._WATCH_SECONDS = watch or locks._WATCH_SECONDS

    def make_batches(stage, split, first):
        for n, batch in enumerate(small_run.make_batches(stage, split, first), first):
            if split == "train" and n == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            if split == "train" and n == nan_at:
                batch["decoder_loss_weights"][batch["decoder_loss_weights"] != 0] = float("nan")
            yield batch

    chain = [small_run.stage(name=name, **changes) for name, changes in stages]
    try:
        small_run.run(pathlib.Path(model_dir), *chain, make_batches=make_batches)
    except Preempted as notice:
        print(notice, file=sys.stderr)
        return EXIT_STOPPED
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # as the command line does: peers would be waited for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], **json.loads(sys.argv[2])))
