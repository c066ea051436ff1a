"""`calrec prepare`, `synthetic` and `vocab` as their users call them, with wrong input too."""

from __future__ import annotations

import gzip
import json
import pathlib

import pytest
import sentencepiece
from small_disk import fill, small_disk

from calrec_jax.cli import main as cli
from calrec_jax.data import store


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


def test_prepare_prints_statistics_and_tells_of_rejected_lines(prepared):
    data_dir, (code, out, err) = prepared
    assert code == 0 and json.loads(out)["users"] == 12
    assert err == (
        f"calrec prepare: 1 lines rejected, see {data_dir}/things/rejects.jsonl\n"
    )
    (reject,) = (data_dir / "things" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(reject)["reason"] == "not a JSON object"


WRONG = {
    "--source=jsonlines": "unknown source 'jsonlines': did you mean 'jsonl'?",
    "--source=amazon2018": "meta.json.gz is missing",
    "--input_dir=gs://bucket/raw": "the folder of raw files is gs://bucket/raw, and only paths",
    "--data_dir=gs://bucket/store": "the store is gs://bucket/store, and only paths of a file sys",
    "--input_dir=nowhere": "nowhere/items.jsonl.gz is missing",
    "--domain=Things": "'Things' cannot name a domain",
    "--min_events=9": "things is empty: of 60 events 0 have no item with text, and 12 users",
    "--min_events=2": "min_events 2: leave-one-out takes",
}


@pytest.mark.parametrize("flag", WRONG)
def test_wrong_input_of_prepare_is_one_line_and_writes_nothing(calrec, raw, tmp_path, flag):
    flags = {"--source": "jsonl", "--input_dir": raw, "--data_dir": tmp_path / "store"}
    flags |= {"--domain": "things"} | dict([flag.split("=")])
    code, out, err = calrec("prepare", *(f"{name}={value}" for name, value in flags.items()))
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith("calrec prepare: error: ") and WRONG[flag] in line
    assert not (tmp_path / "store").exists()


def test_a_full_disk_is_one_line_and_the_old_dataset_stays(calrec, raw, tmp_path):
    with small_disk(tmp_path / "disk", 256) as disk:
        prepare = ["prepare", "--source=jsonl", f"--input_dir={raw}", f"--data_dir={disk}"]
        assert calrec(*prepare, "--domain=things")[0] == 0
        before = store.read_sequences(disk, "things", "test")
        fill(disk, free=8192)
        code, _, err = calrec(*prepare, "--domain=things")
        assert code == 1 and "no space left on the disk" in err.splitlines()[-1]
        assert "Traceback" not in err
        assert store.read_sequences(disk, "things", "test") == before
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "things"]


def test_synthetic_writes_all_domains_of_the_sizes_asked_for(calrec, tmp_path):
    sizes = ["--users=9", "--target_users=8", "--seed=3"]
    code, out, _ = calrec("synthetic", f"--data_dir={tmp_path}", *sizes)
    assert code == 0 and len(out.splitlines()) == 4
    for line in out.splitlines():
        name, _, rest = line.partition(": ")
        users = len(store.read_sequences(tmp_path, name, "test"))
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
        (["--out=gs://bucket/a.model"], "--out is gs://bucket/a.model, and only paths of a file"),
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
