"""Two runs in one process, with other stores: each reads its own, whichever was loaded last."""

from __future__ import annotations

import json
import pathlib
import shutil
import tarfile

import pytest

from calrec_jax import CalrecError, Recommender, evaluate, load_run
from calrec_jax.configs import load

ARCHIVE = pathlib.Path(__file__).parents[1] / "model_dirs" / "0.1.tar.xz"


@pytest.fixture
def folders(tmp_path):
    """A trained run with its arrays, and the same run with arrays of which all titles differ."""
    for name in ("first", "second"):
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(tmp_path / name, filter="data")
        shutil.rmtree(tmp_path / name / "model" / "eval")
    catalogue = tmp_path / "second" / "arrays" / "shoes" / "catalogue.jsonl"
    items = [json.loads(line) for line in catalogue.read_text().splitlines()]
    for item in items:
        item["fields"]["title"] = f"another {item['fields']['title']}"
    catalogue.write_text("".join(json.dumps(item) + "\n" for item in items))
    return tmp_path / "first", tmp_path / "second"


def where(folder: pathlib.Path) -> list[str]:
    return [f"DATA_DIR={str(folder / 'arrays')!r}"]


def written(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model/eval/test").iterdir()}


def test_a_run_is_evaluated_on_its_own_store_after_another_was_loaded(folders):
    first, second = folders
    alone = evaluate(load_run(first / "model", where(first)))
    files = written(first)
    shutil.rmtree(first / "model" / "eval")

    run = load_run(first / "model", where(first))
    other = load_run(second / "model", where(second))
    assert other.domain("shoes").catalogue.fields[0]["title"].startswith("another")
    assert evaluate(run) == alone
    assert written(first) == files
    assert evaluate(other)["data"]["shoes"]["texts"] != alone["data"]["shoes"]["texts"]


def test_two_recommenders_show_their_own_items(folders):
    first, second = (
        Recommender.load(folder / "model", bindings=where(folder)) for folder in folders
    )
    shown = [
        [item.fields["title"].startswith("another") for item in found]
        for recommender in (first, second, first)
        for found in recommender.recommend([["s1", "s2"]], k=3)
    ]
    assert shown == [[False] * 3, [True] * 3, [False] * 3]


def test_what_a_run_has_read_is_read_once(folders):
    run = load_run(folders[0] / "model", where(folders[0]))
    assert run.domain("shoes") is run.domain("shoes") is run.mixture("shoes").domains[0]
    assert run.domain("shoes").text is run.mixture("both").domains[0].text


def test_an_unknown_domain_is_told_of_the_runs_own(folders):
    run = load.load_run(folders[0] / "model", where(folders[0]))
    with pytest.raises(CalrecError, match="no domain 'shoe' .did you mean 'shoes'.*: shoes, tools"):
        run.domain("shoe")
