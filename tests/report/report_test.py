"""The report: everything of a finished run, and a page for every state before that."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from report_case import RANKS, claim, evaluate, example
from report_html import checked, headings, shown

from calrec_jax.errors import CalrecError
from calrec_jax.report import browser, evaluation, files, plain, run_page
from calrec_jax.report.page import delta_cell


@pytest.fixture
def model_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A MODEL_DIR that has been claimed, and no more."""
    return claim(tmp_path / "model")


def train(model_dir: pathlib.Path, stage: str, steps: int, **extra: float) -> None:
    """Writes a stage's metrics.jsonl, a line each 20 steps."""
    (model_dir / stage).mkdir()
    with (model_dir / stage / "metrics.jsonl").open("w") as file:
        for step in range(20, steps + 1, 20):
            losses = {"loss": 5 / step, "nig": 4 / step, "tt": 3.0, "ut": 3.5, "grad_norm": 1.0}
            file.write(json.dumps({"step": step, "split": "train", **losses, **extra}) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "split": "validation", **losses}) + "\n")


def page(model_dir: pathlib.Path) -> str:
    """The source of the page that is written."""
    return checked(run_page.write(model_dir))


def test_a_finished_run_shows_everything(model_dir: pathlib.Path) -> None:
    train(model_dir, "stage1", 400)
    train(model_dir, "stage2", 60)
    (model_dir / "config.gin").write_text("LossConfig.alpha = 0.125\n")
    evaluate(model_dir)
    source = page(model_dir)
    text = shown(source)
    assert source.count("<svg") == 8 + 1
    assert "4 users, the whole catalogue of 8 items, checkpoint stage2:best, retr" in text
    interval = r"[\d.]+–[\d.]+"
    assert re.search(rf" calrec 0.2500 {interval} 0.6250 {interval} ties .5000–.7500 ", text)
    assert re.search(r" popularity 0.0000 .0000–.0000 1.0000 1.0000–1.0000 1.0000 ", text)
    assert "hybrid: item_knn + 0.5 x BM25, chosen by NDCG@10 of 1,234 validation users" in text
    assert re.search(r"calrec minus each baseline, .* mrr popularity \+0.2500 \+.0000, \+", text)
    assert "coverage@10 gini@10 novelty@10 calrec 0.6250 0.1250 5.5000 popularity 0.0625" in text
    assert "stage1: all_domains, 400 steps" in text and "stage2: toys, 60 steps" in text
    assert "LossConfig.alpha = 0.125" in text and "jax 0.10.2" in text and "byte-0123" in text


def test_the_sections_are_in_order_and_linked(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    evaluate(model_dir, name="test_dense", config={"retrieval": "dense"})
    (model_dir / "data.json").write_text("{}")
    source = page(model_dir)
    assert headings(source) == [
        "toys, test split",
        "toys, test split: test_dense",
        "Training",
        "Training data",
        "Users of test",
        "Users of test_dense",
        "Configuration",
    ]
    links = re.findall(r'<a href="#(s\d)">(.*?)</a>', source)
    assert [shown(text) for _, text in links] == headings(source)
    assert re.findall(r'<section id="(s\d)">', source) == [target for target, _ in links]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"seen": "exclude"}, "8 items, without the items of a user's history, checkpoint"),
        ({"seen": "exclude_last"}, "8 items, without the last item of a user's history, check"),
        ({"shuffle_history": True}, "retrieval bm25, histories shuffled."),
        ({"retrieval": "hybrid"}, "checkpoint stage2:best, retrieval hybrid."),
    ],
)
def test_how_items_were_ranked_is_shown(
    model_dir: pathlib.Path, config: dict[str, Any], expected: str
) -> None:
    evaluate(model_dir, config=config)
    assert expected in shown(page(model_dir))


def test_a_model_that_writes_no_texts_has_no_retrieval(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, model="sasrec", config={"checkpoint": "sasrec, epoch 3"})
    text = shown(page(model_dir))
    assert "checkpoint sasrec, epoch 3. Values" in text and "sasrec minus each baseline" in text


def test_a_row_a_slice_with_its_share_and_the_best_marked(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    source = page(model_dir)
    assert "Domain" not in shown(source)  # all users are of the same
    (part,) = re.findall(r'<div data-metric="recall@10">(.*?)</div></div>', source)
    rows = [shown(row) for row in part.split("<tr>")[1:]]
    assert rows[0] == "recall@10 calrec popularity hybrid"
    assert rows[1].startswith("new 3 users, 75.0% 1.0000 ")
    assert rows[2].startswith("repeat 1 user, 25.0% 0.0000 ")
    marked = [[shown(x)[:6] for x in re.findall(r'class="best">(.*?)</td>', r)] for r in
              part.split("<tr>")[1:]]  # fmt: skip
    assert marked == [[], ["1.0000"] * 3, ["1.0000"] * 2]
    assert source.count("data-metric=") == 3
    assert re.findall(r"<option>(.*?)</option>", source) == ["ndcg@10", "recall@10", "mrr"]


def test_all_that_are_best_are_marked() -> None:
    values = [{"value": v, "low": 0.1, "high": 0.6} for v in (0.2, 0.5, 0.5, 0.0)]
    cells = evaluation._cells_with_best_marked(values)
    assert [cell.startswith('<td class="best">') for cell in cells] == [False, True, True, False]


def test_users_of_one_kind_have_no_slices_to_show(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, purchases={})
    source = page(model_dir)
    assert "All users are in the same slices." in shown(source)
    assert "<div data-metrics>" not in source


def test_the_lengths_of_histories_are_drawn(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    titles = re.findall(r"<title>(.*?)</title>", page(model_dir))
    assert titles == ["CALRec run model", "1: 1", "2: 3"]


def test_users_show_history_outputs_and_the_target_wherever_it_is(model_dir: pathlib.Path) -> None:
    user = example("a", history=["i2", "i1"], slices={"purchase": "repeat", "domain": "toys"})
    evaluate(model_dir, examples=[user])
    source = page(model_dir)
    text = shown(source)
    assert "a: target at rank 1: 2014-04-05 i2 Title: candle purchase: repeat, domain: toys" in text
    history = "2014-03-01 i2 Title: candle ✓ target 2014-03-02 i1 Title: bottle"
    assert f"History, oldest first {history} Generated" in text
    assert "log-probabilities Title: candle -1.50 ✓ target Title: drum -2.25 Retrieved" in text
    assert "with scores i2 Title: candle ✓ target 0.7500 i3 Title: drum 0.5000" in text
    assert source.count('<li class="target">') == 3
    assert "The first 1 of 4 users." in text


def test_a_text_is_the_target_only_where_it_is_equal(model_dir: pathlib.Path) -> None:
    texts = ["Title: candles", "Title: candle ", "Title: candle"]
    user = example("a", generated=[{"text": text, "logprob": -1.0} for text in texts], ranked=[])
    evaluate(model_dir, examples=[user])
    entries = re.findall(r"<li[^>]*>(.*?)</li>", page(model_dir))
    assert [shown(entry) for entry in entries if "candle" in entry] == [
        "Title: candles -1.00",
        "Title: candle -1.00 ✓ target",
        "Title: candle -1.00 ✓ target",
    ]


def test_histories_without_dates(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, examples=[example("a", dates=None)])
    text = shown(page(model_dir))
    assert "target at rank 1: i2 Title: candle" in text
    assert "oldest first i0 Title: anchor i1 Title: bottle Generated" in text


def test_where_a_trie_names_the_items_a_text_is_the_target_by_its_item(
    model_dir: pathlib.Path,
) -> None:
    generated = [
        {"text": "Title: can", "logprob": -1.0, "items": ["i2", "i3"]},  # cut
        {"text": "Title: candle", "logprob": -2.0, "items": ["i4"]},  # listed twice
    ]
    evaluate(model_dir, examples=[example("a", generated=generated)])
    text = shown(page(model_dir))
    assert "Title: can -1.00 ✓ target Title: candle -2.00 Retrieved" in text


def test_evaluations_of_whole_splits_come_first(model_dir: pathlib.Path) -> None:
    for name in ("alone", "test", "zeros"):
        evaluate(model_dir, name=name)
    assert list(files.evaluations(model_dir)) == ["test", "alone", "zeros"]


def test_a_tied_target_shows_both_bounds(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, examples=[example("a", (1, 8))])
    assert "target at rank 1–8 (tied)" in shown(page(model_dir))


def test_only_the_first_outputs_are_shown(model_dir: pathlib.Path) -> None:
    many = [{"text": f"drum {n}", "logprob": -float(n)} for n in range(25)]
    evaluate(model_dir, examples=[example("a", generated=many)])
    text = shown(page(model_dir))
    assert "drum 9 " in text and "drum 10 " not in text and "and 15 more" in text


def test_a_model_that_writes_nothing_and_one_that_writes_an_empty_text(
    model_dir: pathlib.Path,
) -> None:
    evaluate(model_dir, examples=[example("a", generated=[])])
    assert "Generated" not in shown(page(model_dir))
    evaluate(
        model_dir, name="other", examples=[example("a", generated=[{"text": "", "logprob": 0}])]
    )
    assert "Generated, with log-probabilities nothing 0.00" in shown(page(model_dir))


@pytest.mark.parametrize(
    ("rank", "group"),
    [((1, 1), "1"), ((1, 2), "10"), ((2, 10), "10"), ((9, 11), "more"), ((1, 8000), "more")],
)
def test_users_are_chosen_by_the_worst_rank_of_a_tie(
    model_dir: pathlib.Path, rank: tuple[int, ...], group: str
) -> None:
    traits = browser._traits(example("a", rank, slices={"rank": "x"}))
    assert traits == {"rank": group, "slice rank": "x"}


def test_what_users_can_be_chosen_by(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    source = page(model_dir)
    traits = [json.loads(html.unescape(x)) for x in re.findall(r'data-traits="(.*?)"', source)]
    assert [t["rank"] for t in traits] == ["1", "10", "10", "more"]
    assert [t["slice purchase"] for t in traits] == ["new", "new", "new", "repeat"]
    selects = re.findall(r'<select name="(.*?)">(.*?)</select>', source)
    assert [(name, re.findall(r'value="(.*?)"', options)) for name, options in selects] == [
        ("rank", ["", "1", "10", "more"]),
        ("slice purchase", ["", "new", "repeat"]),
    ]


def test_a_sample_says_that_it_is_one(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, users=1500)
    assert "4 users (a sample of 1,500)" in shown(page(model_dir))


@pytest.mark.parametrize(
    ("delta", "low", "high", "mark"),
    [(0.2, 0.1, 0.3, "better"), (-0.2, -0.3, -0.1, "worse"), (0.2, -0.1, 0.5, ""), (0, 0, 0, "")],
)
def test_differences_are_marked_only_where_the_interval_says_so(
    delta: float, low: float, high: float, mark: str
) -> None:
    cell = delta_cell({"delta": delta, "low": low, "high": high})
    assert f'<span class="{mark}">' in cell


def test_a_run_that_has_only_been_claimed(model_dir: pathlib.Path) -> None:
    text = shown(page(model_dir))
    assert "Not evaluated yet" in text
    assert text.count("Not begun.") == 2
    assert "config.gin is missing" in text


def test_a_run_in_training_says_how_far_it_is(model_dir: pathlib.Path) -> None:
    train(model_dir, "stage1", 200)
    with (model_dir / "stage1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 220, "spl')  # being written, or torn by a kill
    text = shown(page(model_dir))
    assert "stage1: all_domains, 200 of 400 steps" in text and "Not begun." in text


def test_losses_of_nan_do_not_stop_the_report(model_dir: pathlib.Path) -> None:
    train(model_dir, "stage1", 400, loss=float("nan"))
    assert "<svg" in page(model_dir)


def test_an_interrupted_evaluation_is_shown(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    evaluate(model_dir, name="test_dense")
    for name in ("metrics", "examples", "slices"):
        (model_dir / "eval" / "test_dense" / f"{name}.json").unlink()
    source = page(model_dir)
    assert headings(source)[:2] == ["toys, test split", "Evaluation test_dense"]
    assert "The evaluation stopped after 4 users" in shown(source)


def test_missing_examples_are_shown(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    (model_dir / "eval" / "test" / "examples.json").unlink()
    assert "examples.json is missing" in shown(page(model_dir))


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "\"'><b onclick=x>&amp;", "</script><!--", "]]>{{}}"]
)
def test_text_of_users_and_models_is_escaped(model_dir: pathlib.Path, evil: str) -> None:
    user = example(
        evil,
        domain=evil,
        target=evil,
        generated=[{"text": evil, "logprob": -1.0}],
        ranked=[{"item_id": evil, "score": 1.0}],
        history=[evil, "i1"],
        dates=[evil] * 3,
        slices={"purchase": evil, evil: evil},
        texts={evil: evil, "i1": evil},
    )
    result = evaluate(
        model_dir, examples=[user, user | {"slices": {"purchase": "new", evil: "x"}}], domain=evil
    )
    new = result["slices"]["purchase"]["new"]
    result["slices"] = {"purchase": {evil: new, "new": new}, evil: {evil: new, "x": new}}
    (model_dir / "eval" / "test" / "metrics.json").write_text(json.dumps(result))
    (model_dir / "config.gin").write_text(evil)
    source = page(model_dir)  # which fails where there is another script, or a broken tag
    assert shown(source).count(evil) > 20
    traits = re.findall(r'data-traits="(.*?)"', source)
    assert json.loads(html.unescape(traits[0])) == {
        "rank": "1",
        "slice purchase": evil,
        f"slice {evil}": evil,
    }


def test_the_page_lets_the_browser_run_its_own_script_alone(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    source = page(model_dir)
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', source, re.DOTALL)
    assert policy.split() == [
        *("default-src", "'none';", "style-src", "'unsafe-inline';"),
        *("script-src", f"'sha256-{digest}'"),
    ]


def test_half_a_surrogate_pair_does_not_stop_the_report(model_dir: pathlib.Path) -> None:
    evaluate(model_dir, examples=[example("a", history=["\ud83d"], texts={"i2": "Title: \ud83d"})])
    assert "i2 Title: ?" in shown(page(model_dir))


@pytest.mark.parametrize("use", [files.evaluations, run_page.write])
def test_a_folder_that_is_no_run_is_refused(
    tmp_path: pathlib.Path, use: Callable[..., Any]
) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CalrecError, match="is no MODEL_DIR"):
            use(folder)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(model_dir: pathlib.Path) -> None:
    evaluate(model_dir)
    (model_dir / "eval" / "test" / "metrics.json").write_text("{")
    with pytest.raises(CalrecError, match="metrics.json is damaged"):
        run_page.write(model_dir)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("eval/test/metrics.json", DEEP, "is damaged"),
        ("eval/test/metrics.json", "[]", r"is damaged, with '\[\]' for an object"),
        ("eval/test/examples.json", "null", "is damaged, with 'None' for an object"),
        ("eval/test/examples.json", "[{}]", "has no 'user_id'"),
        ("data.json", "[]", "is damaged"),
        ("data.json", '{"stage1": {"mixture": "all"}}', "has no 'steps': .* `calrec train` again"),
        ("stage1/metrics.jsonl", "\xff\n", "is damaged"),
        ("stage1/metrics.jsonl", DEEP + "\n", "is damaged"),
        ("stage1/metrics.jsonl", "null\n", "is damaged, with 'None'.*: remove the line"),
        ("stage1/metrics.jsonl", '{"step": 3}\n', "has no 'split'"),
    ],
)
def test_files_of_another_form_are_named(
    model_dir: pathlib.Path, name: str, text: str, expected: str
) -> None:
    evaluate(model_dir)
    train(model_dir, "stage1", 400)
    (model_dir / name).write_text(text, "latin-1")
    with pytest.raises(CalrecError, match=f"{name} {expected}"):
        run_page.write(model_dir)
    assert not (model_dir / "report.html").exists()


def test_a_configuration_that_is_no_text_does_not_stop_the_report(model_dir: pathlib.Path) -> None:
    (model_dir / "config.gin").write_bytes(b"A = 1  # \xff")
    assert "A = 1 # \ufffd" in shown(page(model_dir))


@pytest.mark.parametrize(
    "lacking", ["model", "n", "config", "paired", "choices", "beyond_accuracy", "slices"]
)
def test_files_of_an_earlier_version_are_refused(model_dir: pathlib.Path, lacking: str) -> None:
    result = evaluate(model_dir)
    del result[lacking]
    (model_dir / "eval" / "test" / "metrics.json").write_text(json.dumps(result))
    with pytest.raises(CalrecError) as raised:
        run_page.write(model_dir)
    message = str(raised.value)
    assert f"test/metrics.json has no '{lacking}': an earlier version made it" in message
    assert "run `calrec eval` again, which keeps the predictions" in message
    assert not (model_dir / "report.html").exists()


def test_the_table_for_the_terminal(model_dir: pathlib.Path) -> None:
    result = evaluate(model_dir)
    lines = plain.result_table(result).splitlines()
    assert lines[0] == "toys test: 4 users, 8 items"
    assert lines[1].split() == ["recall@1", "recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr"]
    assert lines[2].split()[:4] == ["calrec", "0.2500", "0.6250", "0.7500"]
    (line,) = [n for n, line in enumerate(lines) if line.startswith("calrec - popularity")]
    mrr = result["paired"]["popularity"]["mrr"]
    assert lines[line].endswith(f"{mrr['delta']:+.4f}")
    assert lines[line + 1].endswith(f"{mrr['low']:.4f},{mrr['high']:.4f}".replace("0.", "."))
    assert max(map(len, lines)) <= 120


def test_every_weight_chosen_on_validation_is_reported(model_dir: pathlib.Path) -> None:
    hybrid = {"part": "item_knn", "weight": 0.5, "ndcg": 0.25, "users": 1234}
    dense = {"weight": 2.0, "ndcg": 0.25, "users": 1000}
    result = evaluate(model_dir, choices={"toys": {"hybrid": hybrid, "calrec": dense}})
    assert plain.result_table(result).splitlines()[-2:] == [
        "hybrid: item_knn + 0.5 x BM25, chosen by NDCG@10 of 1,234 validation users",
        "calrec: BM25 + 2 x dense, chosen by NDCG@10 of 1,000 validation users",
    ]
    both = result | {"choices": {"toys": {"calrec": dense}, "books": {"calrec": dense}}}
    assert [line.partition(" + ")[0] for line in plain.result_table(both).splitlines()[-2:]] == [
        "toys: calrec: BM25",
        "books: calrec: BM25",
    ]


def test_every_user_is_there_without_the_script(model_dir: pathlib.Path) -> None:
    ranks = {f"u{n}": RANKS["a"] for n in range(100)}
    evaluate(model_dir, ranks)
    source = page(model_dir)
    assert source.count("<details data-traits=") == 100
    for element in re.findall(r"<[^>]* hidden>", source):
        assert element.startswith('<div class="controls"')
