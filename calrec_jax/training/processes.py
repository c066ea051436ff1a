"""What the first of a run's processes does for all of them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from calrec_jax.errors import CalrecError

_LONGEST = 4096  # bytes of an error
# Longer than a lock of another machine is watched; a collective operation waits for 30 s.
_PATIENCE_MS = 600_000
_calls = itertools.count()


def in_first(do: Callable[[], None]) -> None:
    """Calls `do` in process 0; all return when it has, so that none waits for one that failed.

    Raises:
      CalrecError: that of `do`, in every process.
    """
    error = None
    if jax.process_index() == 0:
        try:
            do()
        except CalrecError as found:
            error = found
    if jax.process_count() > 1:
        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"calrec_jax_in_first_{next(_calls)}", timeout_ms=_PATIENCE_MS)
        told = _from_first(str(error or ""))
        error = error or (CalrecError(told) if told else None)
    if error:
        raise error


@contextlib.contextmanager
def held_by_first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Process 0 enters a context, as by `in_first`, and leaves it at the end."""
    with contextlib.ExitStack() as stack:
        in_first(lambda: stack.enter_context(context))
        yield


def _from_first(text: str) -> str:
    """The text that process 0 gives."""
    data = np.zeros(_LONGEST, np.uint8)
    encoded = np.frombuffer(text.encode()[:_LONGEST], np.uint8)
    data[: len(encoded)] = encoded
    sent = np.asarray(multihost_utils.broadcast_one_to_all(data), np.uint8)
    return sent.tobytes().rstrip(b"\0").decode("utf-8", "replace")
