"""Apache Beam's engine against DuckDB's: the same files give the same dataset, byte for byte."""

from __future__ import annotations

import errno
import gzip
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile
from decimal import Decimal

import pytest
from apache_beam.io.filesystem import BeamIOError
from duckdb_engine_test import IDS, RULES, some_events, some_items, write
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in_bucket import Bucket

from calrec_jax.data.preparation import beam_engine, duckdb_engine, sequences
from calrec_jax.data.preparation.beam_scratch import Scratch, own_folder
from calrec_jax.data.preparation.prepare import prepare
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.sources import Event, Item, RawFiles, get_source
from calrec_jax.data.store import datasets, shards
from calrec_jax.errors import CalrecError


def dataset(folder, engine, files, rules, source="jsonl"):
    """(what the engine returns, {name: bytes} of the dataset and of rejects.jsonl)."""
    with datasets.workspace(folder, "d") as scratch:
        writer = datasets.DomainWriter(scratch, "d")
        found = engine.run("d", get_source(source), files, rules, scratch, writer, lambda *_: None)
        made = writer.finish({})
        (scratch / "rejects.jsonl").rename(made / "rejects.jsonl")
        paths = [path for path in made.rglob("*") if path.is_file()]
        return found, {str(path.relative_to(made)): path.read_bytes() for path in paths}


def agree(folder, files, rules, source="jsonl"):
    """Asserts that both engines return and write the same; returns what they returned."""
    expected, expected_files = dataset(folder, duckdb_engine, files, rules, source)
    found, found_files = dataset(folder, beam_engine, files, rules, source)
    assert found == expected
    # Orders are written to stats.json, too.
    for name in ("counts", "rejected", "fields_left_out"):
        assert list(getattr(found, name)) == list(getattr(expected, name))
    assert found_files == expected_files
    return found


@pytest.fixture(params=["stand-in", "local"])
def scratch_parent(request, tmp_path, monkeypatch):
    """(a folder for scratch folders, a function that lists all files there and temporary files)."""
    monkeypatch.setattr(Bucket, "objects", {})
    temporary, shared = tmp_path / "temporary", tmp_path / "shared"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))

    def listed():
        return [*Bucket.objects, *map(str, [*temporary.rglob("*"), *shared.rglob("*")])]

    return {"local": str(shared), "stand-in": "stand-in://bucket/tmp"}[request.param], listed


def a_bit_of_everything(folder) -> RawFiles:
    """Two files of each kind, with unusable items, repeats, and lines that are rejected."""
    items = [Item(i, {"title": i, "brand": "B"}) for i in IDS[:-1]]
    items += [Item(IDS[0], {"title": "other"}), Item(IDS[-1], {})]
    items += [Item(f"odd{n}", {"title": True, "price": "None", "brand": ["B"]}) for n in range(3)]
    events = [Event(IDS[n % 10], IDS[(n * n + n // 7) % 11], None, 1 + n // 3) for n in range(300)]
    events += events[40:60]  # in both files
    events += [Event("mixed", IDS[n % 3], Decimal("1.5") * n, 5, n) for n in range(6)]
    events += [Event("mixed", IDS[n % 3], None, 5, n) for n in range(6)]
    events += [Event("few", IDS[0], None, 5), Event("few", "unlisted", None, 4_000_000_000)]
    paths = [], []
    for n in range(2):
        part = folder / str(n)
        part.mkdir()
        files = write(part, events[n::2], items[n::2])
        for name, found in zip(("events", "items"), paths, strict=True):
            text = gzip.decompress((part / name).read_bytes())
            (part / name).write_bytes(b"{\n" * n + text + b'{"user_id": "u"}\n[]\n')
            found.extend(getattr(files, name))
    return RawFiles(*map(tuple, paths))


def test_it_agrees_with_duckdb_on_several_files(tmp_path):
    files = a_bit_of_everything(tmp_path)
    found = agree(tmp_path / "store", files, Rules(require=("brand",), catalogue="bought"))
    assert found.rejected == {"no item_id": 4, "not a JSON object": 4, "not JSON": 2}
    assert found.times.future == 1
    assert found.users.examples["train"] == 11
    assert found.counts["events_without_item"] > 1
    assert (found.counts["events_duplicated"], found.counts["events_without_order"]) == (20, 6)
    assert found.fields_left_out == {
        "title is neither a string nor a number": 3,
        "price is no price": 3,
    }
    assert found.counts["items_listed_differently"] == 1


@pytest.mark.parametrize(
    ("bought", "listed", "apart"),
    [("éa\U0001f600", "cb", ("a", "b")), ("ab", "bc", None), ("a", "", None), ("", "b", None)],
)
def test_it_agrees_with_duckdb_on_ids_apart(tmp_path, bought, listed, apart):
    events = [Event("u", item, None, 1 + n) for n, item in enumerate(bought)]
    files = write(tmp_path, events, [Item(item, {"title": item}) for item in listed])
    assert agree(tmp_path / "store", files, Rules()).ids_apart == apart


# As in duckdb_engine_test: x is sold once; without it v is small, and so on.
@pytest.mark.parametrize(("iterated", "left_out"), [(True, [6, 2, 3]), (False, [1, 0, 2])])
def test_it_agrees_with_duckdb_on_the_core(tmp_path, iterated, left_out):
    bought = {"u": "aaabbb", "v": "xcc", "w": "cab", "t": "aab"}
    events = [Event(u, i, None, 1 + n) for u, items in bought.items() for n, i in enumerate(items)]
    files = write(tmp_path, events, [Item(i, {"title": i}) for i in "abcxz"])
    rules = Rules(k_core=3, k_core_iterated=iterated, merge_repeats=False)
    found = agree(tmp_path / "store", files, rules)
    names = ("events_not_in_core", "users_not_in_core", "items_not_in_core")
    assert [found.counts[name] for name in names] == left_out


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules", [*RULES, Rules(k_core=20), Rules(k_core=29, k_core_iterated=False)]
)
def test_it_agrees_with_duckdb_by_all_rules(tmp_path, rules):
    agree(tmp_path / "store", a_bit_of_everything(tmp_path), rules)


any_rule = {
    "keep_duplicates": st.booleans(),
    "merge_repeats": st.booleans(),
    "k_core": st.integers(0, 3),
    "k_core_iterated": st.booleans(),
    "same_time": st.sampled_from(sequences.SAME_TIME),
    "require": st.sampled_from([(), ("title",)]),
    "latest": st.none() | st.integers(40, 90),
    "max_history": st.none() | st.integers(1, 3),
    "sample": st.sampled_from([1.0, 0.6]),
    "seed": st.integers(0, 3),
    "catalogue": st.sampled_from(sequences.CATALOGUES),
}
temporal = {
    "split": st.just("temporal"),
    "min_events": st.integers(2, 3),
    "validation_from": st.integers(10, 30),
    "test_from": st.integers(31, 60),
}
some_rules = st.builds(Rules, **any_rule) | st.builds(Rules, **any_rule, **temporal)


@pytest.mark.slow
@settings(max_examples=20)
@given(some_rules, some_events, some_items, st.booleans())
def test_it_agrees_with_duckdb_on_anything(tmp_path_factory, rules, events, items, ordered):
    if not ordered:
        events = [event._replace(order=None) for event in events]
    folder = tmp_path_factory.mktemp("d")
    agree(folder / "store", write(folder, events, items), rules)


def test_records_are_in_the_shards_of_duckdb_and_none_is_missing(tmp_path, monkeypatch):
    """Seven users in shards of at most two on average, so that at least one shard is empty."""
    monkeypatch.setattr(shards, "RECORDS_PER_SHARD", {"sequences": 1, "items": 2})
    events = [Event(f"u{n % 7}", f"i{n % 5}", None, 1 + n) for n in range(35)]
    files = write(tmp_path, events, [Item(f"i{n}", {"title": "T"}) for n in range(5)])
    found = agree(tmp_path / "store", files, Rules())
    assert found.users.examples["test"] == 7
    names = dataset(tmp_path / "store", beam_engine, files, Rules())[1]
    sizes = [len(data) for name, data in names.items() if "d-test.tfrecord" in name]
    assert len(sizes) == 7
    assert 0 in sizes


def prepared(folder, files, rules=Rules(), **options) -> dict[str, bytes]:
    """{name: bytes} of the files of the store that `prepare` makes."""
    named = {"events": files.events, "items": files.items, "warn": lambda _: None}
    prepare("jsonl", None, folder, "d", rules, **named, **options)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_prepare_gives_the_same_store_with_each_engine(tmp_path):
    files = a_bit_of_everything(tmp_path)
    rules = Rules(split="temporal", validation_from=50, test_from=80)
    made = prepared(tmp_path / "beam", files, rules, engine="beam")
    assert made == prepared(tmp_path / "duckdb", files, rules, engine="duckdb")
    assert "d/stats.json" in made
    assert len(made["d/rejects.jsonl"].splitlines()) == 10


def test_workers_need_no_folder_of_the_store(tmp_path, scratch_parent, monkeypatch):
    """Workers are given paths of the scratch folder alone; only the driver has the store's."""
    parent, listed = scratch_parent
    files = a_bit_of_everything(tmp_path)
    rules, seen = Rules(k_core=2, require=("brand",)), []

    def take(self, name, path):
        seen.extend([self.folder, *listed()])
        take_itself(self, name, path)

    take_itself = Scratch.take
    monkeypatch.setattr(Scratch, "take", take)
    made = prepared(tmp_path / "beam", files, rules, engine="beam", beam_scratch=parent)
    assert made == prepared(tmp_path / "duckdb", files, rules, engine="duckdb")
    assert seen[0].startswith(f"{parent}/calrec_d_")
    names = {name.rsplit("/", 1)[-1] for name in seen}
    assert names >= {"events_0.facts", "listings_1.rejects", "shrunk_1", "written", "shard_train_0"}
    assert listed() == []


@pytest.mark.parametrize("problem", ["damaged", "broken"])
def test_a_failure_leaves_nothing_in_the_scratch_folder(
    tmp_path, scratch_parent, problem, monkeypatch
):
    def broken(*_):
        raise RuntimeError("a worker's defect")

    parent, listed = scratch_parent
    files = a_bit_of_everything(tmp_path)
    if problem == "damaged":
        path = pathlib.Path(files.events[1])
        path.write_bytes(gzip.compress(path.read_bytes())[:-9])
    else:
        monkeypatch.setattr(Scratch, "put", broken)
    with pytest.raises((CalrecError, RuntimeError), match="to its end|a worker's defect"):
        prepared(tmp_path / "store", files, engine="beam", beam_scratch=parent)
    assert listed() == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("parent", "problem"),
    [
        ("unknown://bucket/tmp", "in unknown://bucket/tmp: Unable to get filesystem"),
        ("stand-in://forbidden/tmp", "in stand-in://forbidden/tmp: .* is forbidden"),
        ("events/tmp", "in /.*/events/tmp: .*Not a directory"),
        ("tmp*", r"in tmp\*: Beam would take"),
    ],
)
def test_a_scratch_folder_that_cannot_be_used_is_one_line(tmp_path, parent, problem, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write(tmp_path, [], [])
    with pytest.raises(CalrecError, match=problem) as raised:
        prepared(tmp_path / "store", files, engine="beam", beam_scratch=parent)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("choose another folder with --beam_scratch")
    assert not (tmp_path / "store").exists()


def test_a_scratch_folder_that_stays_is_told(monkeypatch):
    monkeypatch.setattr(Bucket, "objects", {})

    def refuse(*_):
        raise BeamIOError("locked")

    with pytest.warns(
        UserWarning, match=r"stand-in://bucket/calrec_d_\w+ could not be deleted.*locked"
    ):
        with own_folder("stand-in://bucket", "d"):
            monkeypatch.setattr(Bucket, "delete", refuse)


def test_a_file_of_the_scratch_folder_is_complete_or_has_no_name(scratch_parent):
    parent, listed = scratch_parent
    with own_folder(parent, "d") as scratch:
        with pytest.raises(KeyError), scratch.create("begun") as file:
            file.write(b"a")
            raise KeyError
        with scratch.create("twice") as first:
            with scratch.create("twice") as second:
                second.write(b"same")
            first.write(b"same")
        with scratch.open("twice") as file:
            assert file.read() == b"same"
        names = [name.rsplit("/", 1)[-1] for name in listed()]
        assert "twice" in names and "begun" not in names
    assert listed() == []


@pytest.mark.slow
def test_it_works_in_several_processes(tmp_path):
    files = a_bit_of_everything(tmp_path)
    options = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    made = prepared(
        tmp_path / "several",
        files,
        engine="beam",
        beam_options=options,
        beam_scratch=str(tmp_path / "scratch"),
    )
    assert made == prepared(tmp_path / "one", files, engine="beam")
    assert os.listdir(tmp_path / "scratch") == []


@pytest.mark.parametrize(
    ("problem", "line"),
    [("empty", "1 have no item"), ("damaged", "to its end"), ("untimed", "1 events of d have no")],
)
def test_what_cannot_be_prepared_is_the_line_of_duckdb(tmp_path, problem, line):
    events = [Event("u", "i", 1, None), Event("u", "i", 2, 5), Event("u", "j", 3, 6)]
    files = write(tmp_path, events, [Item("i", {"title": "T"})])
    if problem == "damaged":
        (tmp_path / "events").write_bytes((tmp_path / "events").read_bytes()[:-9])
    rules = Rules(latest=9) if problem == "untimed" else Rules()
    lines = []
    for engine in ("duckdb", "beam"):
        with pytest.raises(CalrecError, match=line) as raised:
            prepared(tmp_path / "store", files, rules, engine=engine)
        lines.append(str(raised.value))
    assert lines[0] == lines[1]
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files = a_bit_of_everything(tmp_path)
    monkeypatch.setattr(Scratch, "put", full)
    with pytest.raises(CalrecError, match="no space left on the disk"):
        dataset(tmp_path / "store", beam_engine, files, Rules())
    assert capfd.readouterr().err == ""


def test_the_options_of_beam_are_checked(tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(CalrecError, match="options --runner=Foo: Unexpected pipeline runner: Foo"):
        beam_engine.pipeline_options(["--runner=Foo"])
    with pytest.raises(CalrecError, match="direct_num_workers: invalid int value: 'x'"):
        beam_engine.pipeline_options(["--direct_num_workers=x"])
    assert capfd.readouterr().err == ""
    beam_engine.pipeline_options(["--direct_num_worker=2"])
    assert "Did you mean '--direct_num_workers'" in caplog.text


def test_a_store_that_beam_takes_for_a_wild_card_is_refused(tmp_path):
    files = write(tmp_path, [], [])
    with pytest.raises(CalrecError, match=r"cannot work in .*store\[1\]"):
        dataset(tmp_path / "store[1]", beam_engine, files, Rules())


def test_it_is_imported_without_a_word():
    code = (
        "import logging, calrec_jax.data.preparation.quiet_beam; assert not logging.root.handlers"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "calrec_jax.data.preparation.quiet_beam")
    with pytest.raises(CalrecError, match=r"apache_beam is not installed: pip .*calrec_jax\[beam"):
        importlib.import_module("calrec_jax.data.preparation.quiet_beam")


@pytest.mark.parametrize(
    ("engine", "options", "problem"),
    [
        ("spark", {}, "unknown engine 'spark'"),
        ("duckdb", {"beam_options": ["--runner=X"]}, "with the engine 'beam'"),
        ("duckdb", {"beam_scratch": "folder"}, "with the engine 'beam'"),
    ],
)
def test_engines_and_options_that_do_not_go_together(tmp_path, engine, options, problem):
    with pytest.raises(CalrecError, match=problem):
        prepare("jsonl", tmp_path, tmp_path, "d", engine=engine, **options)
