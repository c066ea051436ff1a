"""Work that the first of a run's processes does for all of them."""

from __future__ import annotations

import contextlib
import itertools
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
