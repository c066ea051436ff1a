"""`calrec prepare`, `synthetic` and `vocab` as users call them, also with wrong input."""

from __future__ import annotations

import dataclasses
import gzip
import json
import pathlib
import shutil
import subprocess

import pytest
import sentencepiece
from small_disk import fill, small_disk

from calrec_jax.cli import main as cli
from calrec_jax.cli import prepare as prepare_command
from calrec_jax.data.preparation.sequences import Rules
from calrec_jax.data.store import datasets, reader
from calrec_jax.text.items import Catalogue, UserSequence


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """A folder in the format `jsonl`, with one line that is broken."""
    folder = tmp_path / "raw"
    folder.mkdir()
    items = [{"item_id": f"i{n}", "title": f"Thing {n} of many"} for n in range(9)]
    events = [
        {"user_id": f"u{user}", "item_id": f"i{(user + n) % 9}", "order": n}
        for user in range(12)
        for n in range(5)
    ]
    for name, records in (("items", items), ("interactions", [*events, "broken"])):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def calrec(capfd):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        code = cli.main([str(word) for word in argv])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def prepared(calrec, raw, tmp_path):
    data_dir = tmp_path / "store"
    prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={data_dir}"]
    return data_dir, calrec(*prepare, "--domain=things")


def test_prepare_prints_statistics_and_warns_of_rejected_lines(prepared):
    data_dir, (code, out, err) = prepared
    assert code == 0 and json.loads(out)["users"] == 12
    assert err == (f"calrec prepare: 1 lines rejected, see {data_dir}/things/rejects.jsonl\n")
    (reject,) = (data_dir / "things" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["reason"] == "not a JSON object"


WRONG = {
    "--source=jsonlines": "unknown source 'jsonlines', did you mean jsonl?",
    "--source=amazon2018": "amazon2018 reads them from",
    "--columns=user_id=who": "no who",
    "--columns=title=name": "--columns has title=name, and no item has anything in 'name'",
    "--item_columns=title=name": "--item_columns has title=name, and no item has anything in 'nam",
    "--event_columns=title=name": "--event_columns has title=name: events have user_id, item_id, o",
    "--delimiter=;": "jsonl has no delimiter: --delimiter is for csv",
    "--data_dir=gs://bucket/store": "the store is gs://bucket/store, and only paths of a file sys",
    "--input_dir=nowhere": "there is no folder nowhere",
    "--events=nowhere": "no file matches nowhere",
    "--domain=Things": "'Things' cannot name a domain",
    "--domain=1zh": "'1zh' cannot name a domain: use lower-case letters, digits and unders",
    "--domain=a-b": "underscores, beginning with a letter, and no more than 100",
    f"--domain={'a' * 101}": "cannot name a domain: use lower-case letters, dig",
    "--min_events=9": "things is empty: of 60 events 0 have no item with text, and 12 users",
    "--min_events=2": "min_events 2: leave-one-out takes",
    "--same_time=files": "same_time 'files' is none of file, item_id, random",
    "--split=temporal": "split='temporal' needs validation_from and test_from",
    "--latest=2018-01-31": "60 events of things have no timestamp",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_input_of_prepare_is_one_line_and_writes_nothing(calrec, raw, tmp_path, flag):
    flags = {"--source": "jsonl", "--input_dir": raw, "--data_dir": tmp_path / "store"}
    flags |= {"--domain": "things"} | dict([flag.split("=", 1)])
    code, out, err = calrec("prepare", *(f"{name}={value}" for name, value in flags.items()))
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("calrec prepare: error: ") and WRONG[flag] in line
    assert not (tmp_path / "store").exists()


MISUSED = {
    "--latest=31.1.2018": "'31.1.2018' is neither a date like 2018-01-31 nor Unix seconds",
    "--test_from=20180132x": "'20180132x' is neither a date like",
    "--validation_from=1520000000.5": "'1520000000.5' is neither a date like",
    "--columns=user_id": "'user_id' is not like user_id=uid,title=name",
    "--columns=a=b,a=c": "'a=b,a=c' is not like user_id=uid,title=name",
    "--event_columns=user_id": "'user_id' is not like user_id=uid,title=name",
    "--require=title,": "'title,' is not a list of names with commas in between",
    "--k_core=0": "'0' is not a positive whole number",
    "--data_dir=": "is empty",
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2018-01-31", 1_517_356_800),
        ("20180131", 1_517_356_800),
        ("2018-01-31T00:00:01Z", 1_517_356_801),
        ("2018-01", 1_514_764_800),
        ("2018", 1_514_764_800),
        ("1520000000", 1_520_000_000),
        ("5", 5),
    ],
)
def test_times_of_flags_are_dates_or_unix_seconds(text, seconds):
    args = ["--source=csv", "--data_dir=store", "--domain=things", f"--latest={text}"]
    assert prepare_command._parser().parse_args(args).latest == seconds


@pytest.mark.parametrize("flag", MISUSED)
def test_empty_flags_are_wrong_usage(calrec, capfd, raw, tmp_path, flag):
    prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={tmp_path}/store"]
    with pytest.raises(SystemExit) as exit:
        calrec(*prepare, "--domain=things", flag)
    assert exit.value.code == 2 and MISUSED[flag] in capfd.readouterr().err


def test_every_rule_has_a_flag(calrec, raw, tmp_path, monkeypatch):
    given = {}

    def prepare(*args, **more):
        given.update(more, args=args)
        return {"rejected_lines": {}}

    monkeypatch.setattr("calrec_jax.data.preparation.prepare.prepare", prepare)
    flags = (
        "--keep_duplicates --keep_repeats --min_events=4 --k_core=5 --k_core_once "
        "--same_time=random --require=title,brand --split=temporal --validation_from=2018-01-31 "
        "--test_from=1520000000 --latest=2018-06-01 --max_history=50 --sample=0.5 --seed=7 "
        "--catalogue=bought --columns=user_id=uid,title=name --event_columns=item_id=a "
        "--item_columns=item_id=b,author=c --delimiter=tab --time_unit=ms --events=a,b --items=c "
        "--engine=beam --beam_options=--runner=X --beam_scratch=tmp"
    )
    files = ["--source=csv", "--data_dir=store", "--domain=things"]
    assert calrec("prepare", *files, *flags.split())[0] == 0
    rules = Rules(
        keep_duplicates=True,
        merge_repeats=False,
        min_events=4,
        k_core=5,
        k_core_iterated=False,
        same_time="random",
        require=("title", "brand"),
        split="temporal",
        validation_from=1517356800,  # date -u -d 2018-01-31 +%s
        test_from=1520000000,
        latest=1527811200,
        max_history=50,
        sample=0.5,
        seed=7,
        catalogue="bought",
    )
    different = [f for f, v in dataclasses.asdict(Rules()).items() if getattr(rules, f) != v]
    assert len(different) == len(dataclasses.fields(Rules))
    assert given.pop("args") == ("csv", None, "store", "things", rules)
    for callback in ("report", "warn"):
        given.pop(callback)
    assert given == {
        "events": ("a", "b"),
        "items": ("c",),
        "columns": {"user_id": "uid", "title": "name"},
        "event_columns": {"item_id": "a"},
        "item_columns": {"item_id": "b", "author": "c"},
        "time_unit": "ms",
        "delimiter": "\t",
        "engine": "beam",
        "beam_options": ["--runner=X"],
        "beam_scratch": "tmp",
    }
    assert calrec("prepare", *files)[0] == 0
    assert given["args"][-1] == Rules()


def test_progress_is_a_line_every_few_seconds(capfd, monkeypatch):
    now = [0]
    monkeypatch.setattr(prepare_command.time, "monotonic", lambda: now[0])
    with prepare_command._progress() as report:
        for now[0] in (3, 9, 12, 13, 21, 22, 40):
            report("reading events", 1000 * now[0])
    assert capfd.readouterr().err == "".join(
        f"calrec prepare: reading events: {thousands},000\n" for thousands in (12, 22, 40)
    )


def test_future_events_give_a_warning(calrec, raw, tmp_path):
    events = gzip.decompress((raw / "interactions.jsonl.gz").read_bytes()).splitlines()[:-1]
    future = [{**json.loads(event), "timestamp": 4_000_000_000} for event in events]
    text = "".join(json.dumps(event) + "\n" for event in future)
    (raw / "interactions.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={tmp_path}/store"]
    code, _, err = calrec(*prepare, "--domain=things")
    assert (code, err) == (
        0,
        "calrec prepare: 60 events are dated in the future; --latest=DATE leaves them out\n",
    )


@pytest.mark.parametrize("free", [0, 8192, 100_000, 800_000])  # DuckDB itself takes a megabyte
def test_a_full_disk_is_one_line_and_the_old_dataset_stays(calrec, raw, tmp_path, free):
    with small_disk(tmp_path / "disk", 8192) as disk:
        prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={disk}"]
        assert calrec(*prepare, "--domain=things")[0] == 0
        before = reader.read_sequences(disk, "things", "test")
        fill(disk, free)
        code, _, err = calrec(*prepare, "--domain=things")
        assert code == 1 and "no space left on the disk" in err.splitlines()[-1]
        assert "Traceback" not in err
        assert reader.read_sequences(disk, "things", "test") == before
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "things"]


ODD = ["it's", "a b", "50%", "a#b", 'a"b', "a*b", "a[b]", "{a}", "~a", "a:b", "é", "a,b=c$d@2"]


def folders(calrec, raw, name: str, **flags) -> tuple[int, str, str]:
    """Prepares from and into folders with a given name, by relative paths."""
    shutil.copytree(raw, pathlib.Path(name, "raw"))
    flags = {"source": "jsonl", "input_dir": f"{name}/raw", "data_dir": f"{name}/store"} | flags
    return calrec("prepare", "--domain=things", *(f"--{flag}={v}" for flag, v in flags.items()))


@pytest.mark.parametrize("name", ODD)
def test_folders_may_have_odd_names(calrec, raw, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert folders(calrec, raw, name)[0] == 0
    assert len(reader.read_sequences(f"{name}/store", "things", "test")) == 12
    vocab = ["vocab", f"--data_dir={name}/store", "--domains=things", "--size=300"]
    assert calrec(*vocab, f"--out={name}/a.model")[0] == 0


@pytest.mark.parametrize(
    ("name", "engine", "said"),
    [
        (
            "a?b",
            "duckdb",
            "DuckDB has another meaning for ? and \\ in a path; choose another folder",
        ),
        ("a\\b", "duckdb", "the engine 'duckdb' cannot work in "),
        ("a[b", "beam", "Beam would take * ? and [ for wild cards; choose another folder"),
    ],
)
def test_a_store_whose_name_the_engine_cannot_take_is_one_line(
    calrec, raw, tmp_path, monkeypatch, name, engine, said
):
    monkeypatch.chdir(tmp_path)
    code, out, err = folders(calrec, raw, name, engine=engine)
    (line,) = err.splitlines()
    assert (code, out) == (1, "") and said in line
    assert not pathlib.Path(name, "store").exists()
    flags = {"engine": engine, "data_dir": "store"}
    shutil.rmtree(name)
    assert folders(calrec, raw, name, **flags)[0] == 0  # where the files are is no matter


def test_a_directory_that_cannot_be_written_is_one_line(calrec, raw, tmp_path):
    with small_disk(tmp_path / "disk", 8192) as disk:
        prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={disk}"]
        assert calrec(*prepare, "--domain=things")[0] == 0
        before = reader.read_sequences(disk, "things", "test")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for domain in ("things", "others"):
            code, out, err = calrec(*prepare, f"--domain={domain}")
            assert (code, out) == (1, "")
            (line,) = err.splitlines()
            assert line.startswith(f"calrec prepare: error: cannot write {disk}/{domain}: ")
            assert "Read-only file system" in line
        assert reader.read_sequences(disk, "things", "test") == before
        assert [path.name for path in disk.iterdir()] == ["things"]


def test_a_second_run_at_the_same_time_is_one_line(calrec, prepared, raw):
    data_dir, _ = prepared
    prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={data_dir}"]
    with datasets.workspace(data_dir, "things"):
        code, _, err = calrec(*prepare, "--domain=things")
        assert code == 1 and f"another process is making {data_dir}/things: wait" in err
    assert calrec(*prepare, "--domain=things")[0] == 0


def test_synthetic_writes_all_domains_with_the_numbers_of_users(calrec, tmp_path):
    sizes = ["--users=9", "--target_users=8", "--seed=3"]
    code, out, _ = calrec("synthetic", f"--data_dir={tmp_path}", *sizes)
    assert code == 0 and len(out.splitlines()) == 4
    for line in out.splitlines():
        name, _, rest = line.partition(": ")
        users = len(reader.read_sequences(tmp_path, name, "test"))
        assert rest.startswith(f"{users} users, 326 items, ")
        assert users <= (8 if name == "synthetic_sports" else 9)


def test_vocab_learns_from_the_items_of_training_histories(calrec, prepared, tmp_path):
    data_dir, _ = prepared
    out = tmp_path / "v" / "a.model"
    vocab = ["vocab", f"--data_dir={data_dir}", "--domains=things", "--size=300"]
    code, said, _ = calrec(*vocab, f"--out={out}")
    model = sentencepiece.SentencePieceProcessor(model_file=str(out))
    assert code == 0 and said == f"{out}: {len(model)} pieces, from 9 items\n"
    text = "\nThe next item bought is as follows. Title: Thing 4 of many"
    ids = model.encode(text)
    assert model.decode(ids) == text
    pieces = [model.id_to_piece(i).replace("\u2581", " ") for i in ids[:2]]
    assert pieces == ["\nThe next item bought is as follows. ", "Title: "]  # sentences are whole
    assert calrec(*vocab, f"--out={tmp_path}/b.model")[0] == 0
    assert out.read_bytes() == (tmp_path / "b.model").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--domains=thing"], "no dataset of 'thing' in "),
        (["--domains=1zh"], "'1zh' cannot name a domain: use lower-case letters, digits and un"),
        (
            [f"--domains={'a' * 300}"],
            "cannot name a domain: use lower-case letters, digits and under",
        ),
        (["--out=gs://bucket/a.model"], "--out is gs://bucket/a.model, and only paths of a file"),
        (["--size=1"], "every character is a piece, so at least "),
        (["--size=4"], "every character is a piece, so at least "),
        (["--size=20"], "every character is a piece, so at least "),
        (["--out=a.txt"], "a.txt: a SentencePiece model's file ends in .model"),
        (["--out=/proc/a.model"], "cannot write /proc/a.model: "),
    ],
)
def test_wrong_input_of_vocab_is_one_line(calrec, prepared, tmp_path, flags, message):
    vocab = ["vocab", f"--data_dir={prepared[0]}", "--domains=things", f"--out={tmp_path}/a.model"]
    code, out, err = calrec(*vocab, *flags)
    assert (code, out) == (1, "")
    assert message in err.splitlines()[-1] and "Traceback" not in err


def test_vocab_of_items_without_text_is_one_line(calrec, tmp_path):
    items = {f"i{n}": {"director": f"Someone {n}"} for n in range(3)}
    sequences = [UserSequence("u", "films", tuple(items))]
    splits = {split: sequences for split in ("train", "validation", "test")}
    datasets.write_domain(tmp_path, Catalogue.create("films", items), splits, {})
    vocab = ["vocab", f"--data_dir={tmp_path}", "--domains=films", f"--out={tmp_path}/a.model"]
    code, out, err = calrec(*vocab)
    assert (code, out) == (1, "")
    assert "the items have none of the fields that the template shows" in err.splitlines()[-1]


def test_vocab_learns_a_long_title_too(calrec, tmp_path):
    items = {"a": {"title": "Tape"}, "b": {"title": "ёжик" * 820 + "Tape"}}  # 6,564 bytes
    sequences = [UserSequence("u", "things", ("a", "b"))]
    splits = {split: sequences for split in ("train", "validation", "test")}
    datasets.write_domain(tmp_path, Catalogue.create("things", items), splits, {})
    vocab = ["vocab", f"--data_dir={tmp_path}", "--domains=things", "--size=300"]
    assert calrec(*vocab, f"--out={tmp_path}/a.model")[0] == 0
    model = sentencepiece.SentencePieceProcessor(model_file=f"{tmp_path}/a.model")
    assert len(model.encode("ёжик")) <= 4  # of 8 bytes
