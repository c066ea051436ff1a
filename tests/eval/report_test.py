"""The report: everything of a finished run, and a page for every state before that."""

from __future__ import annotations

import html.parser
import json
import re

import pytest
from evaluation_case import CATALOGUE, FakeModel, run, said, user

from calrec_jax.errors import CalrecError
from calrec_jax.eval import report
from calrec_jax.eval.baselines import BASELINES
from calrec_jax.text.items import Catalogue

MANIFEST = {
    "versions": {"jax": "0.10.2", "calrec_jax": "0.1.0"},
    "vocabulary": "byte-0123",
    "stages": {
        "stage1": {"mixture": "all_domains", "train_steps": 400},
        "stage2": {"mixture": "toys", "train_steps": 60},
    },
}


@pytest.fixture
def model_dir(tmp_path):
    """A MODEL_DIR that has been claimed, and no more."""
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    return tmp_path


def train(model_dir, stage: str, steps: int, **extra) -> None:
    """Writes a stage's metrics.jsonl, a line each 20 steps."""
    (model_dir / stage).mkdir()
    with (model_dir / stage / "metrics.jsonl").open("w") as file:
        for step in range(20, steps + 1, 20):
            losses = {"loss": 5 / step, "nig": 4 / step, "tt": 3.0, "ut": 3.5, "grad_norm": 1.0}
            file.write(json.dumps({"step": step, "split": "train", **losses, **extra}) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "split": "validation", **losses}) + "\n")


def evaluate(model_dir, *args, split="test", **changes):
    return run(model_dir / "eval" / split, *args, split=split, **changes)


def page(model_dir) -> str:
    """The page's source, once it is sure to be well formed and to ask for nothing from outside."""
    source = report.write_report(model_dir).read_text("utf-8")
    Balanced().feed(source)
    assert not re.search(r"https?:|<script|<link|<img|url\(|@import", source)
    return source


class Balanced(html.parser.HTMLParser):
    """Fails where an element is closed that is not the one that is open."""

    EMPTY = ("meta", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def shown(source: str) -> str:
    """The text that a reader sees."""
    text = re.sub(r"<style.*?</style>", "", source, flags=re.DOTALL)
    text = re.sub(r"</?(span|wbr|code|small)[^>]*>", "", text)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_a_finished_run_shows_everything(model_dir):
    train(model_dir, "stage1", 400)
    train(model_dir, "stage2", 60)
    (model_dir / "config.gin").write_text("LossConfig.alpha = 0.125\n")
    result = evaluate(model_dir)
    source = page(model_dir)
    text = shown(source)
    assert source.count("<svg") == 8
    for name in BASELINES:
        assert len(re.findall(rf"(?<!\S){name} [+-]?\d", text)) == 2
        assert f"{result['baselines'][name]['mrr']['value']:.4f}" in text
        assert f"{result['paired'][name]['ndcg@10']['delta']:+.4f}" in text
    mrr = result["baselines"]["popularity"]["mrr"]
    assert f"{mrr['low']:.4f}–{mrr['high']:.4f}" in text
    assert f"ties {mrr['tie_low']:.4f}–{mrr['tie_high']:.4f}" in text
    assert "4 users, the whole catalogue of 8 items, checkpoint stage2:best" in text
    assert "stage1: all_domains, 400 steps" in text and "stage2: toys, 60 steps" in text
    assert "LossConfig.alpha = 0.125" in text and "jax 0.10.2" in text and "byte-0123" in text


def test_examples_show_history_outputs_and_the_marked_target(model_dir):
    evaluate(model_dir, users=[user("a", 0, 1, 2)])
    source = page(model_dir)
    text = shown(source)
    assert "a: target at rank 1: i2 Title: candle" in text
    assert "History, oldest first i0 Title: anchor i1 Title: bottle" in text
    assert "Title: candle -1.50" in text and "Title: drum -2.25" in text
    (marked,) = re.findall(r'<li class="better">(.*?)</li>', source)
    assert "i2" in marked and "candle" in marked


def test_a_tied_target_shows_both_bounds(model_dir):
    evaluate(model_dir, lambda users: [said(("", -1.0)) for _ in users])
    assert "target at rank 1–8 (tied)" in shown(page(model_dir))


def test_only_the_first_outputs_are_shown(model_dir):
    many = [(f"drum {n}", -float(n)) for n in range(25)]
    evaluate(model_dir, lambda users: [said(*many) for _ in users], users=[user("a", 0, 1, 2)])
    text = shown(page(model_dir))
    assert "drum 9 " in text and "drum 10 " not in text and "and 15 more" in text


def test_a_sample_says_that_it_is_one(model_dir):
    evaluate(model_dir, max_users=3)
    assert "3 users (a sample of 4)" in shown(page(model_dir))


@pytest.mark.parametrize(
    ("delta", "low", "high", "mark"),
    [(0.2, 0.1, 0.3, "better"), (-0.2, -0.3, -0.1, "worse"), (0.2, -0.1, 0.5, ""), (0, 0, 0, "")],
)
def test_differences_are_marked_only_where_the_interval_says_so(delta, low, high, mark):
    cell = report._delta_cell({"delta": delta, "low": low, "high": high})
    assert f'<span class="{mark}">' in cell


def test_a_run_that_has_only_been_claimed(model_dir):
    text = shown(page(model_dir))
    assert "Not evaluated yet" in text
    assert text.count("Not begun.") == 2
    assert "config.gin is missing" in text


def test_a_run_in_training_says_how_far_it_is(model_dir):
    train(model_dir, "stage1", 200)
    with (model_dir / "stage1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 220, "spl')  # being written, or torn by a kill
    text = shown(page(model_dir))
    assert "stage1: all_domains, 200 of 400 steps" in text and "Not begun." in text


def test_losses_of_nan_do_not_stop_the_report(model_dir):
    train(model_dir, "stage1", 400, loss=float("nan"))
    assert "<svg" in page(model_dir)


def test_an_interrupted_evaluation_is_said(model_dir):
    with pytest.raises(KeyboardInterrupt):
        evaluate(model_dir, FakeModel(dies_after=1))
    assert "The evaluation stopped after 2 users" in shown(page(model_dir))


def test_two_splits_stand_beside_each_other(model_dir):
    evaluate(model_dir)
    evaluate(model_dir, split="validation")
    text = shown(page(model_dir))
    assert "toys, test split" in text and "toys, validation split" in text


def test_missing_examples_are_said(model_dir):
    evaluate(model_dir)
    (model_dir / "eval" / "test" / "examples.json").unlink()
    assert "examples.json is missing" in shown(page(model_dir))


def test_text_of_users_and_models_is_escaped(model_dir):
    evil = "<script>alert(1)</script>"
    titles = [{"title": f"{evil} {n}"} for n in range(len(CATALOGUE))]
    evaluate(
        model_dir,
        lambda users: [said((evil, -1.0)) for _ in users],
        users=[user(evil, 0, 1, 2)],
        catalogue=Catalogue("toys", CATALOGUE.item_ids, tuple(titles)),
    )
    (model_dir / "config.gin").write_text(evil)
    assert page(model_dir).count("&lt;script&gt;") > 3


@pytest.mark.parametrize("use", [report.read_metrics, report.write_report])
def test_a_folder_that_is_no_run_is_refused(tmp_path, use):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CalrecError, match="is no MODEL_DIR"):
            use(folder)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(model_dir):
    evaluate(model_dir)
    (model_dir / "eval" / "test" / "metrics.json").write_text("{")
    with pytest.raises(CalrecError, match="metrics.json is damaged"):
        report.write_report(model_dir)


def test_the_table_for_the_terminal(model_dir):
    result = evaluate(model_dir)
    lines = report.text_table(result).splitlines()
    assert lines[0] == "toys test: 4 users, 8 items"
    assert lines[1].split() == ["recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"]
    assert lines[2].split() == ["calrec"] + ["1.0000"] * 6
    (line,) = [n for n, line in enumerate(lines) if line.startswith("calrec - popularity")]
    mrr = result["paired"]["popularity"]["mrr"]
    assert lines[line].endswith(f"{mrr['delta']:+.4f}")
    assert lines[line + 1].endswith(f"{mrr['low']:.4f},{mrr['high']:.4f}".replace("0.", "."))
    assert max(map(len, lines)) <= 120
