"""`calrec prepare`: turns raw files into a dataset of the store."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from calrec_jax.cli.main import main as calrec
from calrec_jax.cli.main import positive_int
from calrec_jax.errors import full_disk_named

_SECONDS_BETWEEN_LINES = 10


def main(argv: Sequence[str]) -> int:
    """Prepares the dataset, and prints its statistics as JSON."""
    args = _parser().parse_args(argv)

    from calrec_jax.data.preparation.prepare import prepare
    from calrec_jax.data.preparation.sequences import Rules

    rules = Rules(
        keep_duplicates=args.keep_duplicates,
        merge_repeats=not args.keep_repeats,
        min_events=args.min_events,
        k_core=args.k_core,
        k_core_iterated=not args.k_core_once,
        same_time=args.same_time,
        require=args.require,
        split=args.split,
        validation_from=args.validation_from,
        test_from=args.test_from,
        latest=args.latest,
        max_history=args.max_history,
        sample=args.sample,
        seed=args.seed,
        catalogue=args.catalogue,
    )
    with full_disk_named(args.data_dir), _progress() as report:
        stats = prepare(
            args.source,
            args.input_dir,
            args.data_dir,
            args.domain,
            rules,
            events=args.events,
            items=args.items,
            columns=args.columns,
            event_columns=args.event_columns,
            item_columns=args.item_columns,
            time_unit=args.time_unit,
            delimiter=args.delimiter,
            engine=args.engine,
            beam_options=args.beam_options,
            beam_scratch=args.beam_scratch,
            report=report,
            warn=_warn,
        )
    print(json.dumps(stats, indent=2))
    rejected = sum(stats["rejected_lines"].values())
    if rejected:
        _warn(f"{rejected} lines rejected, see {args.data_dir}/{args.domain}/rejects.jsonl")
    return 0


def _warn(text: str) -> None:
    print(f"calrec prepare: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Yields a function that shows (phase, number done) on stderr: one live line, or log lines."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as live:
        task = live.add_task("", total=None)
        yield lambda phase, done: live.update(task, description=f"{phase}: {done:,}")


class _Lines:
    """Shows the progress in a log: a line every few seconds."""

    def __init__(self):
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def __call__(self, phase: str, done: int) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
            _warn(f"{phase}: {done:,}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("calrec prepare", description=__doc__, allow_abbrev=False)
    _add_files(parser.add_argument_group("raw files"))
    _add_dataset(parser.add_argument_group("dataset"))
    _add_rules(parser.add_argument_group("rules: which events stay, in the order of application"))
    _add_splits(parser.add_argument_group("rules: splits and catalogue"))
    _add_engine(parser.add_argument_group("engine; all give the same dataset"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    from calrec_jax.data.sources import SOURCES

    group.add_argument(
        "--source", required=True, help=f"the files' format: {', '.join(sorted(SOURCES))}"
    )
    group.add_argument(
        "--input_dir", metavar="FOLDER", help="the folder of the files, a path or gs://..."
    )
    for kind in ("events", "items"):
        group.add_argument(
            f"--{kind}",
            type=_names,
            default=(),
            metavar="A,B",
            help=f"the files of {kind} (paths, patterns, folders of files part-*, or URLs), if "
            "they are not to be searched for in FOLDER",
        )
    group.add_argument(
        "--columns",
        type=_columns,
        metavar="NAME=COLUMN,...",
        help="which columns hold what, if they have other names: user_id=uid,title=name; the names "
        "are user_id, item_id, order, timestamp, and fields of items, also new ones",
    )
    for kind in ("event", "item"):
        group.add_argument(
            f"--{kind}_columns",
            type=_columns,
            metavar="NAME=COLUMN,...",
            help=f"the same for the files of {kind}s alone; takes precedence over --columns",
        )
    group.add_argument(
        "--time_unit",
        default="s",
        choices=("s", "ms", "us", "ns"),
        help="the unit of timestamps that are numbers; numbers like 20240401 and 2024 are dates "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="CHARACTER",
        help="what separates the cells of csv: a character, or the word tab (default: the one of "
        ", tab ; and | that separates the columns' names in the header line)",
    )


def _add_dataset(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--data_dir",
        required=True,
        type=_not_empty,
        metavar="STORE",
        help="the store; the dataset is written to STORE/DOMAIN, where it replaces an older one, "
        "with stats.json and rejects.jsonl (the lines that were not used, and why)",
    )
    group.add_argument(
        "--domain",
        required=True,
        help="the dataset's name: lower-case letters, digits and underscores, beginning with a "
        "letter",
    )


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sample",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="keep this share of the users, chosen by a hash of their ids, and all items, but see "
        "--catalogue (default: all)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the seed of --sample and of --same_time=random (default: %(default)s)",
    )
    group.add_argument("--latest", type=_time, metavar="TIME", help="leave out events after TIME")
    group.add_argument(
        "--keep_duplicates",
        action="store_true",
        help="keep all events of a user with the same item, order and time; otherwise only the "
        "first of them",
    )
    group.add_argument(
        "--require",
        type=_names,
        default=(),
        metavar="FIELD,...",
        help="leave out items that lack one of these fields, and their events",
    )
    group.add_argument(
        "--k_core",
        type=positive_int,
        default=0,
        metavar="K",
        help="leave out users and items with fewer events, until all have K (default: keep all)",
    )
    group.add_argument(
        "--k_core_once",
        action="store_true",
        help="apply --k_core once, with users and items counted on the same events",
    )
    group.add_argument(
        "--same_time",
        default="file",
        metavar="HOW",
        help="what sorts events of the same time: file (as they are in the files), item_id or "
        "random (default: %(default)s)",
    )
    group.add_argument(
        "--keep_repeats",
        action="store_true",
        help="keep all consecutive events of a user with the same item; otherwise only the first "
        "of them",
    )
    group.add_argument(
        "--min_events",
        type=positive_int,
        default=3,
        metavar="N",
        help="leave out users with fewer events, counted after merging; at least 3, or 2 for the "
        "temporal split (default: %(default)s)",
    )


def _add_splits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--split",
        default="leave_one_out",
        metavar="HOW",
        help="leave_one_out (each user's last item is the test target, the one before it the "
        "validation target), or temporal (each user's first event of a period is the target) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--validation_from",
        type=_time,
        metavar="TIME",
        help="where the temporal split's training period ends; TIME is a date, 2018-01-31 or "
        "20180131 (its beginning, UTC), or Unix seconds",
    )
    group.add_argument(
        "--test_from",
        type=_time,
        metavar="TIME",
        help="where the temporal split's test period begins",
    )
    group.add_argument(
        "--max_history",
        type=positive_int,
        metavar="N",
        help="at most N items before a target (default: all)",
    )
    group.add_argument(
        "--catalogue",
        default="listed",
        metavar="WHICH",
        help="listed (all items in the files that the rules above keep), or bought (those of them "
        "that are in any sequence) (default: %(default)s)",
    )


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        default="duckdb",
        choices=("duckdb", "beam"),
        help="duckdb (this machine), or beam (Apache Beam, for many machines: install "
        "calrec_jax[beam]) (default: %(default)s)",
    )
    group.add_argument(
        "--beam_options",
        type=shlex.split,
        default=(),
        metavar="OPTIONS",
        help='options of Beam, such as "--runner=FlinkRunner --flink_master=HOST:8081"; without a '
        "runner, Beam works in this process",
    )
    group.add_argument(
        "--beam_scratch",
        metavar="FOLDER",
        help="where Beam's machines leave files for each other: a path, or a URL such as "
        "gs://BUCKET/tmp, that is the same for all of them; a folder is made in it, and deleted at "
        "the end (default: in the store)",
    )


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names with commas in between")
    return names


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    columns = {name: column for name, _, column in pairs}
    if not all(name and column for name, column in columns.items()) or len(columns) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like user_id=uid,title=name")
    return columns


def _delimiter(text: str) -> str:
    return "\t" if text in ("tab", "\\t") else text


def _time(text: str) -> int:
    """The Unix seconds of a date's beginning in UTC, or Unix seconds as they are."""
    from calrec_jax.data.sources import times

    number = times.number(text)
    moment = times.of_iso(text) if number is None else times.date_in_digits(number)
    if moment is None and isinstance(number, int):
        return number
    if moment is None or moment[1]:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a date like 2018-01-31 nor Unix seconds"
        )
    return moment[0]


if __name__ == "__main__":
    sys.exit(calrec(["prepare", *sys.argv[1:]]))
