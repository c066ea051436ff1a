"""The values that an EvaluationConfig may hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from calrec_jax.errors import CalrecError
from calrec_jax.eval.baselines import BASELINES
from calrec_jax.retrieval.fusion import SEEN

if TYPE_CHECKING:
    from calrec_jax.eval.config import EvaluationConfig

_FOLDER = re.compile(r"[\w-][\w.-]*")
_LONGEST_NAME = 200  # bytes; file systems take 255
_COUNTS = (
    "num_samples",
    "max_new_tokens",
    "users_per_batch",
    "max_users",
    "choosing_users",
    "top_k",
    "sampling_top_k",
    "bootstrap_samples",
)
_AMOUNTS = ("epsilon", "k1", "temperature", "dense_weight", "seed")
_CHOICES = {
    "split": ("test", "validation"),
    "decoding": ("sample", "beam"),
    "retrieval": ("bm25", "trie", "dense", "hybrid"),
    "seen": SEEN,
}


def check(config: EvaluationConfig) -> None:
    """Raises CalrecError where a value is out of its range; the line names it.

    Values of other types are left to whoever knows the types: gin binds whatever it is given.
    """
    for name, known in _CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            raise CalrecError(f"EvaluationConfig.{name} {value!r} is none of {known}")
    for name, value in _numbers(config, ["sampling_top_p"]):
        if not 0 < value <= 1:
            raise CalrecError(f"EvaluationConfig.{name} is {value}: give one in (0, 1]")
    for name, value in _numbers(config, ["b"]):
        if not 0 <= value <= 1:
            raise CalrecError(f"EvaluationConfig.{name} is {value}: give one in [0, 1]")
    for name, value in _numbers(config, _COUNTS):
        if value < 1:
            raise CalrecError(f"EvaluationConfig.{name} is {value}: it must be at least 1")
    for name, value in _numbers(config, _AMOUNTS):
        if not 0 <= value < float("inf"):
            raise CalrecError(
                f"EvaluationConfig.{name} is {value}: it must be finite and not negative"
            )
    if config.decoding == "beam" and (config.sampling_top_k, config.sampling_top_p) != (None, 1):
        raise CalrecError(
            "EvaluationConfig.sampling_top_k and .sampling_top_p filter what is drawn, and "
            "decoding 'beam' draws nothing: unset them"
        )
    _check_name(config.name)
    _check_names("domain", config.domain)
    _check_names("baselines", config.baselines)
    for name in config.baselines if isinstance(config.baselines, tuple) else ():
        if isinstance(name, str) and name not in BASELINES:
            raise CalrecError(
                f"EvaluationConfig.baselines names {name!r}, which is none of "
                f"{', '.join(BASELINES)}"
            )


def _numbers(config: EvaluationConfig, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Those of the fields that hold a number."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)):
            yield name, value


def _check_name(name: str | None) -> None:
    if not isinstance(name, str):
        return
    if not _FOLDER.fullmatch(name):
        raise CalrecError(
            f"EvaluationConfig.name {name!r} is no name of a folder: use letters, digits, dots, "
            f"dashes and underscores"
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise CalrecError(
            f"EvaluationConfig.name {name[:20]!r}... has {len(name.encode())} bytes: give one of "
            f"at most {_LONGEST_NAME}"
        )


def _check_names(field: str, value: object) -> None:
    """Of a list: that no name is there twice; of domains: that there is one."""
    if not isinstance(value, (list, tuple)):
        return
    if field == "domain" and not value:
        raise CalrecError("EvaluationConfig.domain is empty: name at least one")
    for place, name in enumerate(value):
        if name in value[:place]:
            raise CalrecError(f"EvaluationConfig.{field} names {name!r} twice")
