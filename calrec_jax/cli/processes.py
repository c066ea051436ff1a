"""Commands that run as several processes, which a launcher has started together."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

from calrec_jax.cli.main import show_error
from calrec_jax.training.processes import join_processes

# The others are connected to process 0. If it left first, after a mistake that all of them are
# about to report, each of their lines would stand among those of a lost connection.
_LINGER_SECONDS = 3


@contextlib.contextmanager
def joined_processes(command: str) -> Iterator[None]:
    """While active, this process is one of all those that a launcher started together.

    Where there are several, an error is shown and ends the process at once: it would otherwise wait
    for the others at JAX's exit barrier, for minutes.

    Args:
      command: the subcommand, as errors name it.

    Raises:
      CalrecError: as `join_processes`.
    """
    several = join_processes()
    try:
        yield
    except BaseException as error:
        if several:
            code = show_error(command, error)
            sys.stderr.flush()
            # `jax.process_index` would first wait for the peers' devices.
            if os.environ.get("CALREC_PROCESS_ID", "0") == "0":
                time.sleep(_LINGER_SECONDS)
            os._exit(code)
        raise
