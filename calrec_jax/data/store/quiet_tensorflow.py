"""TensorFlow, TFDS and SeqIO, made quiet and restricted to the CPU.

Importing TensorFlow in any other way would let it take the accelerators' memory from JAX, and show
users a page of log lines that they can do nothing about.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator

from calrec_jax.errors import CalrecError

_GREETING = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)"
    rb"|I\d{4} |[\d-]{10} [\d:.]+: I "  # information: glog's form, and TensorFlow's older one
    rb"|To enable the following instructions: "  # goes on with the line before
    rb"|.* failed call to cuInit: "  # this machine has no GPU driver
    rb"|.* Unable to register cu\w+ factory: "  # it is registered twice, by TensorFlow itself
)
_CHATTY = ("tensorflow_datasets", "seqio")


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and at the end writes all but greetings.

    TensorFlow's libraries log while they are loaded, before their settings are read.
    """
    try:
        stderr, held = os.dup(2), tempfile.TemporaryFile()
    except OSError:  # stderr is closed, or there is no place for a temporary file
        yield
        return
    os.dup2(held.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        held.seek(0)
        for line in held:
            if not _GREETING.match(line):
                os.write(2, line)
        held.close()


def _is_of_interest(record: logging.LogRecord) -> bool:
    """False for what chatty libraries log below the level of errors."""
    packages = record.pathname.split(os.sep)
    return record.levelno >= logging.ERROR or not any(name in packages for name in _CHATTY)


# The same as JAX's default: whichever is imported first, information is hidden, warnings are not.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
try:
    with _without_greetings():
        import seqio
        import tensorflow as tf
        import tensorflow_datasets as tfds

        tf.config.set_visible_devices([], "GPU")
except ModuleNotFoundError as error:
    raise CalrecError(
        f"a store needs TensorFlow, SeqIO and TensorFlow Datasets, and {error.name} is not "
        f"installed: install it, or give as DATA_DIR what `calrec batches` saved elsewhere"
    ) from error
tf.get_logger().setLevel(logging.ERROR)
logging.getLogger("absl").addFilter(_is_of_interest)
tfds.disable_progress_bar()

__all__ = ["seqio", "tf", "tfds"]
