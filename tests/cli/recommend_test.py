"""`calrec recommend`: good lines are answered, bad ones reported."""

import dataclasses
import gzip
import io
import json

import pytest

import calrec_jax
from calrec_jax.cli import main as cli
from calrec_jax.cli import recommend
from calrec_jax.errors import CalrecError


@dataclasses.dataclass
class Item:
    item_id: str
    score: float
    fields: dict


class Recommender:
    """Recommends a history's own items, the last one first."""

    batches: list[int]

    def __init__(self):
        self.batches = []

    @classmethod
    def load(cls, model_dir, domain, bindings):
        cls.bindings = bindings
        if model_dir != "runs/a":
            raise CalrecError(f"{model_dir} is no MODEL_DIR")
        return cls()

    def check(self, history):
        unknown = [str(i) for i in history if not str(i).startswith("B")]
        if unknown:
            raise CalrecError(f"toys has no item {', '.join(unknown)}")

    def recommend(self, histories, k):
        self.batches.append(len(histories))
        return [
            [Item(i, 0.5, {"title": f"Title {i}", "brand": "x"}) for i in history[::-1][:k]]
            for history in histories
        ]


@pytest.fixture
def histories(tmp_path, monkeypatch):
    """lines -> the arguments of `calrec recommend`."""
    monkeypatch.setattr("calrec_jax.recommender.Recommender", Recommender)

    def make(text, *more):
        path = tmp_path / "histories.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["recommend", "--model_dir=runs/a", f"--histories={path}", *more]

    return make


def test_an_answer_a_line(histories, capsys):
    lines = '{"user_id": "u", "history": ["B1", "B2"]}\n\n{"history": ["B3"]}\n'
    assert cli.main(histories(lines, "--k=1")) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers == [
        {"user_id": "u", "items": [{"item_id": "B2", "title": "Title B2", "score": 0.5}]},
        {"items": [{"item_id": "B3", "title": "Title B3", "score": 0.5}]},
    ]


def test_bad_lines_are_named_and_the_others_answered(histories, capsys):
    lines = [
        '{"history": ["B1"]}',
        '{"history": ["A1", "B1", "A2"]}',
        "not JSON",
        '{"history": "B1"}',
        '{"histories": ["B1"]}',
        '{"history": [1]}',
        "[" * 100_000,
        "[]",
        '{"history": ["B2"]}',
    ]
    assert cli.main(histories("\n".join(lines))) == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["items"][0]["item_id"] for line in captured.out.splitlines()] == [
        "B1",
        "B2",
    ]
    errors = captured.err.splitlines()
    assert errors[0] == "calrec recommend: line 2: toys has no item A1, A2"
    assert errors[1].startswith("calrec recommend: line 3: not JSON")
    assert [line.split(":")[1] for line in errors[:-1]] == [f" line {n}" for n in range(2, 9)]
    assert errors[-1] == "calrec recommend: error: 7 of the lines could not be answered, see above"


def test_bindings_reach_the_run(histories):
    assert cli.main(histories('{"history": ["B1"]}', "--gin.DATA_DIR='store'")) == 0
    assert calrec_jax.Recommender.bindings == ["DATA_DIR='store'"]


def test_lines_are_answered_together(monkeypatch, capsys):
    recommender = Recommender()
    assert recommend.answer(['{"history": ["B1"]}'] * 70, recommender, 5) == 0
    assert recommender.batches == [32, 32, 6]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_and_gzip(histories, capsys, pack):
    lines = '\ufeff{"history": ["B1"]}\n{"history": ["B2"]}\n'
    assert cli.main(histories(pack(lines.encode()))) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_standard_input(histories, monkeypatch, capsys, mark):
    monkeypatch.setattr("sys.stdin", io.StringIO(mark + '{"history": ["B1"]}\n'))
    arguments = [*histories("")[:2], "--histories=-"]
    assert cli.main(arguments) == 0
    assert "Title B1" in capsys.readouterr().out


def test_bytes_that_are_no_text(histories, tmp_path, capsys):
    arguments = histories("")
    (tmp_path / "histories.jsonl").write_bytes(b'{"history": ["\xff"]}\n')
    assert cli.main(arguments) == 1
    assert "line 1: toys has no item \ufffd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--model_dir=runs/a", "--histories=/no/file"], "/no/file cannot be opened: No such file"),
        (["--model_dir=runs/b", "--histories=/dev/null"], "runs/b is no MODEL_DIR"),
    ],
)
def test_what_cannot_be_read(monkeypatch, capsys, argv, line):
    monkeypatch.setattr("calrec_jax.recommender.Recommender", Recommender)
    assert cli.main(["recommend", *argv]) == 1
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("k", ["0", "-1", "x", "1.5"])
def test_k_is_a_number_of_items(histories, k):
    with pytest.raises(SystemExit) as left:
        cli.main(histories("", f"--k={k}"))
    assert left.value.code == 2


def test_the_arguments_reach_the_recommender(monkeypatch):
    loaded = []

    def load(model_dir, domain=None, checkpoint=None, bindings=()):
        loaded.append((model_dir, domain, list(bindings)))
        raise CalrecError("enough")

    monkeypatch.setattr(calrec_jax.Recommender, "load", load)
    flags = ["--model_dir=runs/a", "--histories=-", "--domain=toys"]
    assert cli.main(["recommend", *flags, "--gin.RANDOM_SEED=1"]) == 1
    assert loaded == [("runs/a", "toys", ["RANDOM_SEED=1"])]
