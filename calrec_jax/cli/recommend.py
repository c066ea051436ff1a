"""`calrec recommend`: ranks a domain's catalogue for histories of your own."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from calrec_jax.cli import gin_arguments
from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.errors import CalrecError

if TYPE_CHECKING:  # it imports JAX, which --help does not need
    from calrec_jax.recommender import Recommendation, Recommender

_BATCH = 32  # histories that are answered together


def main(argv: Sequence[str]) -> int:
    """Prints a JSON line for each good history. Exit code 1 if there was a bad one."""
    parser = argparse.ArgumentParser("calrec recommend", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a finished run")
    parser.add_argument(
        "--histories",
        required=True,
        metavar="FILE",
        help='JSON lines {"history": ["item id", ...], "user_id": optional}; - = standard input',
    )
    parser.add_argument(
        "--k",
        type=positive_int,
        default=10,
        help="the number of items for each history (default: 10)",
    )
    parser.add_argument(
        "--domain", help="the domain to rank (default: the first that the run evaluates)"
    )
    args = gin_arguments.parse_arguments(parser, argv, files=False)

    with _open(args.histories) as lines:
        from calrec_jax.recommender import Recommender

        recommender = Recommender.load(args.model_dir, args.domain, bindings=args.gin_bindings)
        bad = answer(lines, recommender, args.k)
    if bad:
        raise CalrecError(f"{bad} of the lines could not be answered, see above")
    return 0


def answer(lines: Iterable[str], recommender: Recommender, k: int) -> int:
    """Prints an answer for each good line, and what is wrong with each bad one.

    Returns:
      The number of bad lines.
    """
    bad = 0
    records = _records(lines, recommender.check)
    while batch := list(itertools.islice(records, _BATCH)):
        for number, _, error in batch:
            if error:
                print(f"calrec recommend: line {number}: {error}", file=sys.stderr)
                bad += 1
        good = [record for _, record, error in batch if not error]
        answers = recommender.recommend([record["history"] for record in good], k)
        for record, items in zip(good, answers, strict=True):
            user = {"user_id": record["user_id"]} if "user_id" in record else {}
            print(json.dumps(user | {"items": [_as_json(item) for item in items]}), flush=True)
    return bad


def _as_json(item: Recommendation) -> dict[str, Any]:
    return {"item_id": item.item_id, "title": item.fields.get("title", ""), "score": item.score}


@contextlib.contextmanager
def _open(path: str) -> Iterator[Iterable[str]]:
    if path == "-":
        yield sys.stdin
        return
    from calrec_jax.data.sources.files import opened

    with opened(path) as file:
        yield io.TextIOWrapper(file, "utf-8", errors="replace")


def _records(
    lines: Iterable[str], check: Callable[[Sequence], None]
) -> Iterator[tuple[int, dict[str, Any], str]]:
    """(line number, record, "") for each good line, (line number, {}, error) for each bad one."""
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix("\ufeff") if number == 1 else line  # in standard input
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            history = record.get("history") if isinstance(record, dict) else None
            if not isinstance(history, list):
                raise CalrecError('not an object with "history", a list of item ids')
            check(history)
            yield number, record, ""
        except (CalrecError, RecursionError, ValueError) as error:
            reason = str(error) if isinstance(error, CalrecError) else f"not JSON: {error}"
            yield number, {}, reason


if __name__ == "__main__":
    sys.exit(calrec(["recommend", *sys.argv[1:]]))
