"""`calrec recommend`: ranks a domain's catalogue for histories of your own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from calrec_jax.cli.main import run_command
from calrec_jax.errors import CalrecError


def main(argv: Sequence[str]) -> int:
    """A JSON line for each good history; exit code 1 if there was a bad one."""
    parser = argparse.ArgumentParser("calrec recommend", description=__doc__)
    parser.add_argument("--model_dir", required=True, help="MODEL_DIR of a finished run")
    parser.add_argument(
        "--histories",
        required=True,
        metavar="FILE",
        help='JSON lines {"history": ["item id", ...], "user_id": optional}; - = standard input',
    )
    parser.add_argument("--k", type=int, default=10, help="items a history")
    parser.add_argument("--domain", help="if not the one that the run evaluates")
    args = parser.parse_args(argv)

    lines = sys.stdin if args.histories == "-" else _open(args.histories)
    from calrec_jax import Recommender

    recommender = Recommender.load(args.model_dir, args.domain)
    bad = 0
    for batch in _batches(_read(lines, recommender.check), 32):
        good = [record for record, error in batch if error is None]
        for number, error in [error for _, error in batch if error is not None]:
            print(f"calrec recommend: line {number}: {error}", file=sys.stderr)
            bad += 1
        answers = recommender.recommend([record["history"] for record in good], args.k)
        for record, items in zip(good, answers, strict=True):
            print(json.dumps(_answer(record, items)))
    if bad:
        raise CalrecError(f"{bad} histories could not be answered, see above")
    return 0


def _open(path: str):
    try:
        return open(path)
    except OSError as error:
        raise CalrecError(f"cannot read {path}: {error.strerror}") from error


def _read(lines: Iterable[str], check) -> Iterator[tuple[dict, tuple | None]]:
    """(record, None) of each good line, ({}, (line number, what is wrong)) of each bad one."""
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            history = record.get("history") if isinstance(record, dict) else None
            if not isinstance(history, list) or not all(isinstance(i, str) for i in history):
                raise CalrecError('not an object with "history", a list of item ids')
            check(history)
            yield record, None
        except ValueError as error:
            yield {}, (number, f"not JSON: {error}")
        except CalrecError as error:
            yield {}, (number, error)


def _batches(items: Iterable, size: int) -> Iterator[list]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _answer(record: dict, items) -> dict:
    shown = [
        {"item_id": item.item_id, "score": item.score, **dict(item.fields)} for item in items
    ]
    user = {"user_id": record["user_id"]} if "user_id" in record else {}
    return user | {"items": shown}


if __name__ == "__main__":
    sys.exit(run_command("recommend"))
