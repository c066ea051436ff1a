"""The time and memory that `calrec prepare` takes for a synthetic dump of a given size.

    python benchmarks/prepare.py FOLDER --events=5000000 --items=500000

The dump is in the format amazon2018; it is made once, seeded, and kept in FOLDER. Other flags are
passed to `calrec prepare`.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

_WORDS = (
    "steel blade cordless drill garden hose kit pack replacement filter premium heavy duty small "
    "large black white set with for and compatible adjustable portable universal stand holder"
).split()


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--items", type=int, default=500_000)
    args, flags = parser.parse_known_args()
    raw = args.folder / f"raw_{args.events}_{args.items}"
    if not raw.exists():
        _write_dump(raw, args.events, args.items)
    measured = _measure(raw, args.folder / "store", flags)
    print(json.dumps({"events": args.events, "items": args.items, **measured}))


def _write_dump(folder: pathlib.Path, events: int, items: int) -> None:
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    rng = random.Random(0)
    _write_lines(making / "meta.json.gz", (_item(rng, number) for number in range(items)))
    _write_lines(making / "reviews.json.gz", itertools.islice(_events(rng, items), events))
    making.rename(folder)


def _item(rng: random.Random, number: int) -> dict:
    return {
        "asin": f"B{number:09d}",
        "title": _text(rng, 10),
        "category": ["Tools", _text(rng, 2), _text(rng, 2)],
        "brand": _text(rng, 1),
        "price": f"${rng.randrange(5, 200)}.99",
        "description": [_text(rng, 40)],
    }


def _events(rng: random.Random, items: int) -> Iterator[dict]:
    """Events of user after user, 5 on average; a few items are bought often, most rarely."""
    for user in itertools.count():
        first = 1_300_000_000 + rng.randrange(200_000_000)
        for _ in range(min(50, 1 + int(rng.expovariate(1 / 4.5)))):
            first += rng.randrange(3) * 86_400
            yield {
                "overall": float(rng.randrange(1, 6)),
                "verified": True,
                "reviewerID": f"A{user * 2_654_435_761 % 2**40:013d}",
                "asin": f"B{int(items * rng.random() ** 3):09d}",
                "reviewerName": "Someone",
                "reviewText": _text(rng, 30),
                "summary": _text(rng, 4),
                "unixReviewTime": first,
            }


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _write_lines(path: pathlib.Path, records: Iterator[dict]) -> None:
    with gzip.open(path, "wt", compresslevel=1) as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def _measure(raw: pathlib.Path, store: pathlib.Path, flags: list[str]) -> dict:
    command = [sys.executable, "-m", "calrec_jax.cli.prepare", "--source=amazon2018"]
    command += [f"--input_dir={raw}", f"--data_dir={store}", "--domain=benchmark", *flags]
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = _PeakMemory(process.pid)
    peak.start()
    out, _ = process.communicate()
    peak.join()
    if process.returncode:
        sys.exit(f"calrec prepare ended with {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    stats = json.loads(out)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(peak.bytes / 1e9, 2),
        "users": stats["users"],
        "events_left": stats["events"],
        "checksums": stats["checksums"],
    }


class _PeakMemory(threading.Thread):
    """Measures the resident memory of a process and its descendants, ten times a second."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._pid, self.bytes = pid, 0

    def run(self) -> None:
        while now := sum(map(_resident, _tree(self._pid))):
            self.bytes = max(self.bytes, now)
            time.sleep(0.1)


def _tree(pid: int) -> list[int]:
    try:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(below for child in children for below in _tree(int(child)))]


def _resident(pid: int) -> int:
    try:
        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
