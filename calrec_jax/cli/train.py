"""`calrec train`: runs the stages of a gin configuration, or goes on with them."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from calrec_jax.cli import gin_config
from calrec_jax.cli.main import run_command


def main(argv: Sequence[str]) -> int:
    """Exit code 0 when all stages are done, 42 when told to stop and saved."""
    bindings, rest = gin_config.split_bindings(argv)
    parser = argparse.ArgumentParser("calrec train", description=__doc__)
    gin_config.add_arguments(parser)
    args = parser.parse_args(rest)
    if not args.gin_file:
        parser.error("--gin_file is required, for example --gin_file=gin/runs/quickstart.gin")

    from calrec_jax.cli import run
    from calrec_jax.train.preemption import EXIT_CODE, Preempted

    run.join_processes()
    try:
        run.train(run.from_gin(args.gin_file, bindings, args.gin_search_paths))
    except Preempted as notice:
        print(f"calrec train: {notice}; run the same command to go on", file=sys.stderr)
        return EXIT_CODE
    except BaseException:
        _leave_at_once_if_others_wait()
        raise
    return 0


def _leave_at_once_if_others_wait() -> None:
    """A process that fails would else wait minutes for its peers at JAX's exit barrier."""
    if "CALREC_COORDINATOR" in os.environ or "CALREC_MULTIHOST" in os.environ:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


if __name__ == "__main__":
    sys.exit(run_command("train"))
