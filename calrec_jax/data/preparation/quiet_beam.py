"""Apache Beam, without the many lines that it logs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from calrec_jax.errors import CalrecError


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides warnings of the root logger: Beam warns of optional libraries that are missing."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers  # the first warning adds one


try:
    with _without_warnings():
        import apache_beam as beam
        from apache_beam.io.filesystem import BeamIOError
        from apache_beam.io.filesystems import FileSystems
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.pvalue import TaggedOutput
        from apache_beam.typehints.decorators import no_annotations
except ModuleNotFoundError as error:
    raise CalrecError(
        f"the engine 'beam' needs Apache Beam, and {error.name} is not installed: "
        f"pip install 'calrec_jax[beam]'"
    ) from error

# It would also log each exception over many lines.
logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)

__all__ = [
    "BeamIOError",
    "FileSystems",
    "PipelineOptions",
    "StandardOptions",
    "TaggedOutput",
    "beam",
    "no_annotations",
]
