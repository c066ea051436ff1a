"""The processes of a run: how they are connected, and what the first does for all of them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from calrec_jax.errors import CalrecError

_MAX_MESSAGE_BYTES = 4096
# Long enough for process 0 to watch a lock of another machine; a collective operation would wait
# for 30 s only.
_TIMEOUT_MS = 600_000
_calls = itertools.count()


def join_processes() -> bool:
    """Connects this process with the others of its run, if a launcher has started several.

    The environment says so: CALREC_COORDINATOR (host:port), CALREC_NUM_PROCESSES and
    CALREC_PROCESS_ID describe them, or CALREC_MULTIHOST=1 leaves it to JAX, which knows Cloud TPU.

    Returns:
      Whether there are several.

    Raises:
      CalrecError: CALREC_COORDINATOR is set, and one of the other two is no number.
    """
    coordinator = os.environ.get("CALREC_COORDINATOR")
    if coordinator:
        count, index = _whole_number("CALREC_NUM_PROCESSES"), _whole_number("CALREC_PROCESS_ID")
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, num_processes=count, process_id=index)
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


def in_first(do: Callable[[], None]) -> None:
    """Calls `do` in process 0. All processes return when it has returned, or raise its error.

    So none waits for a process that failed.

    Raises:
      CalrecError: the error of `do`, in every process.
    """
    error = None
    if jax.process_index() == 0:
        try:
            do()
        except CalrecError as raised:
            error = raised
    if jax.process_count() > 1:
        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"calrec_jax_in_first_{next(_calls)}", timeout_ms=_TIMEOUT_MS)
        message = _broadcast_from_first(str(error or ""))
        error = error or (CalrecError(message) if message else None)
    if error:
        raise error


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """A context that process 0 enters for all, as by `in_first`, and leaves at the end."""
    with contextlib.ExitStack() as stack:
        in_first(lambda: stack.enter_context(context))
        yield


def _broadcast_from_first(text: str) -> str:
    """The text that process 0 passed, in every process."""
    data = np.zeros(_MAX_MESSAGE_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:_MAX_MESSAGE_BYTES], np.uint8)
    data[: len(encoded)] = encoded
    sent = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
    return sent.tobytes().rstrip(b"\0").decode("utf-8", "replace")
