"""The processes that a launcher has started together, of which this is one."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import jax

from calrec_jax.cli.main import show_error
from calrec_jax.errors import CalrecError

# Process 0 is who the others are connected to: were it to leave first on a mistake that all of them
# are about to find, their own line would stand among those of a lost connection.
_LINGER_SECONDS = 3


@contextlib.contextmanager
def joined_processes(command: str) -> Iterator[None]:
    """While active, this process is one of all those that a launcher started together.

    Where there are several, an error ends this one at once: it would otherwise wait minutes for
    its peers at JAX's exit barrier.

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


def join_processes() -> bool:
    """Joins the other processes of this run, where a launcher says that there are some.

    CALREC_COORDINATOR (host:port), CALREC_NUM_PROCESSES and CALREC_PROCESS_ID describe them;
    CALREC_MULTIHOST=1 alone leaves it to JAX, which knows Cloud TPU.

    Returns:
      Whether there are.

    Raises:
      CalrecError: the variables do not describe them.
    """
    coordinator = os.environ.get("CALREC_COORDINATOR")
    if coordinator:
        count, place = _whole_number("CALREC_NUM_PROCESSES"), _whole_number("CALREC_PROCESS_ID")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, num_processes=count, process_id=place)
        return True
    if os.environ.get("CALREC_MULTIHOST") == "1":
        jax.distributed.initialize()
        return True
    return False


def _whole_number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise CalrecError(f"CALREC_COORDINATOR is set, but {name} is {value!r}: give a number")
    return int(value)
