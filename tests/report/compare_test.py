"""Comparison of runs: on the users that all have, and not where the data differ."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_case import claim, evaluate

from calrec_jax.errors import CalrecError
from calrec_jax.report import compare, comparison_page

FIRST = {"a": (1, 1), "b": (2, 2), "c": (11, 11), "d": (1, 1)}
SECOND = {"a": (1, 1), "b": (1, 1), "c": (1, 1), "d": (11, 11)}


@pytest.fixture
def run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a run and its evaluation `test`; returns its MODEL_DIR."""
    monkeypatch.chdir(tmp_path)

    def make(
        folder: str,
        ranks: dict[str, tuple[int, ...]] = FIRST,
        **changes: dict[str, Any] | int | str,
    ) -> pathlib.Path:
        model_dir = claim(tmp_path / folder)
        evaluate(model_dir, ranks, **changes)
        return model_dir

    return make


def deltas(values: dict[str, dict[str, float]]) -> dict[str, float]:
    return {metric: round(d["delta"], 6) for metric, d in values.items()}


def refused(*runs: pathlib.Path | str, **options: Any) -> str:
    with pytest.raises(CalrecError) as raised:
        compare.compare(runs, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_metrics_and_differences_to_the_first(run: Callable[..., Any]) -> None:
    compared = compare.compare([run("x"), run("y", SECOND), run("z")])
    assert list(compared.folders) == ["x", "y", "z"]
    assert compared.users == {"x": 4, "y": 4, "z": 4}
    assert (compared.common, compared.items, compared.settings) == (4, 8, {})
    recall = {name: values["recall@1"]["value"] for name, values in compared.metrics.items()}
    assert recall == {"x": 0.5, "y": 0.75, "z": 0.5}
    assert list(compared.paired) == ["y", "z"]
    ndcg = round((1 - 0.6309297535714574) / 4, 6)  # only b moves within ten: c comes as d goes
    assert deltas(compared.paired["y"]) == {
        "recall@1": 0.25,
        "recall@5": 0.0,
        "recall@10": 0.0,
        "ndcg@5": ndcg,
        "ndcg@10": ndcg,
        "mrr": 0.125,
    }
    zero = {"delta": 0.0, "low": 0.0, "high": 0.0}
    assert set(map(str, compared.paired["z"].values())) == {str(zero)}  # and not -0.0


def test_the_other_way_round_only_the_signs_change(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y", SECOND)
    there, back = compare.compare([x, y]).paired["y"], compare.compare([y, x]).paired["x"]
    assert there["recall@1"]["low"] < 0 < there["recall@1"]["high"]
    for metric, d in there.items():
        other = back[metric]
        assert (d["delta"], d["low"], d["high"]) == pytest.approx(
            (-other["delta"], -other["high"], -other["low"])
        )


def test_users_that_not_all_have_are_left_out_and_counted(run: Callable[..., Any]) -> None:
    first, second = FIRST | {"e": (1, 1)}, {"f": (1, 1), "g": (9, 9)} | SECOND
    compared = compare.compare([run("x", first), run("y", second)])
    assert compared.users == {"x": 5, "y": 6} and compared.common == 4
    alone = compare.compare([run("only/x"), run("only/y", SECOND)])
    assert list(compared.metrics.values()) == list(alone.metrics.values())
    assert list(compared.paired.values()) == list(alone.paired.values())
    assert (
        "4 users that all have, 8 items; left out, since others do not have them: 1 of x, 2 of y"
        in comparison_page.text(compared).splitlines()
    )


def test_users_are_distinguished_by_domain(run: Callable[..., Any]) -> None:
    message = refused(run("x", domain="toys"), run("y", domain="books"))
    assert message == "x, y have no users in common: nothing can be compared"


def test_other_data_is_not_compared(tmp_path: pathlib.Path) -> None:
    for name, sequences in (("one", "aaaa"), ("two", "cccc")):
        evaluate(tmp_path / name)
        path = tmp_path / name / "eval" / "test" / "metrics.json"
        result = json.loads(path.read_text())
        result["data"]["toys"]["sequences"] = sequences
        path.write_text(json.dumps(result))
    folders = [tmp_path / name / "eval" / "test" for name in ("one", "two")]
    with pytest.raises(CalrecError, match="the users, histories or items of toys differ"):
        compare.compare(folders)


def test_predictions_of_users_that_were_not_measured_do_not_count(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y", SECOND)
    line = {"user_id": "e", "domain": "toys", "target": "i2", "rank": {"low": 5, "high": 5}}
    line |= {"generated": [], "ranked": []}
    for model_dir in (x, y):
        with (model_dir / "eval" / "test" / "predictions.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    assert compare.compare([x, y]).users == {"x": 4, "y": 4}


def test_slices_of_the_first_run(run: Callable[..., Any]) -> None:
    first = {"a": "new", "b": "new", "c": "repeat", "d": "repeat", "e": "alone"}
    compared = compare.compare([
        run("x", FIRST | {"e": (1, 1)}, purchases=first),
        run("y", SECOND, purchases={"a": "repeat"}),
    ])  # fmt: skip
    assert list(compared.slices) == ["purchase"]  # all are of one domain
    parts = compared.slices["purchase"]
    assert [(part, of["n"]) for part, of in parts.items()] == [("new", 2), ("repeat", 2)]
    assert deltas(parts["new"]["paired"]["y"])["recall@1"] == 0.5
    assert deltas(parts["repeat"]["paired"]["y"])["recall@1"] == 0.0


def test_settings_that_differ_are_reported(run: Callable[..., Any]) -> None:
    dense = {"retrieval": "dense", "temperature": 1.0, "users_per_batch": 7, "name": "n"}
    x, y = run("x"), run("y", config=dense, split="validation", model="sasrec",
        beyond_accuracy={"sasrec": {"coverage@10": 0.5}})  # fmt: skip
    assert compare.compare([x, y]).settings == {
        "model": {"x": "calrec", "y": "sasrec"},
        "retrieval": {"x": "bm25", "y": "dense"},
        "split": {"x": "test", "y": "validation"},
        "temperature": {"x": "-", "y": "1.0"},
    }


def test_beyond_accuracy_is_that_of_each_model(run: Callable[..., Any]) -> None:
    values = {"coverage@10": 0.125, "gini@10": 0.5, "novelty@10": 7.0}
    y = run("y", model="sasrec", beyond_accuracy={"popularity": {}, "sasrec": values})
    compared = compare.compare([run("x"), y])
    assert compared.beyond_accuracy["y"] == values
    assert compared.beyond_accuracy["x"]["coverage@10"] == 0.625
    lines = comparison_page.text(compared).splitlines()
    assert lines[-1].split() == ["y", "0.1250", "0.5000", "7.0000"]


def test_an_evaluation_is_named_by_its_folder_or_chosen(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y")
    for model_dir in (x, y):
        evaluate(model_dir, SECOND, name="test_dense")
    compared = compare.compare([x, x / "eval" / "test_dense"])
    assert list(compared.folders) == ["test", "test_dense"]
    assert deltas(compared.paired["test_dense"])["recall@1"] == 0.25
    chosen = compare.compare([x, y], evaluation="test_dense")
    assert chosen.folders == {
        name: run / "eval" / "test_dense" for name, run in [("x", x), ("y", y)]
    }
    assert chosen.metrics["x"]["recall@1"]["value"] == 0.75


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["r/a/model/eval/test", "r/b/model/eval/test"], ["a/model", "b/model"]),
        (["r/a/m/eval/test", "r/a/n/eval/test"], ["m", "n"]),
        (["r/a/m/eval/test", "r/a/m/eval/val"], ["test", "val"]),
        (
            ["r/a/m/eval/test", "r/b/m/eval/test", "r/b/m/eval/val"],
            ["a/m/test", "b/m/test", "val"],
        ),
        (["m/eval/test", "r/m/eval/test"], ["{here}/m", "r/m"]),
    ],
)
def test_names_are_the_shortest_ends_of_paths(
    tmp_path: pathlib.Path, folders: list[str], names: list[str]
) -> None:
    found = compare.names([tmp_path / folder for folder in folders])
    assert found == [name.format(here=tmp_path.name) for name in names]


parts = st.sampled_from("abc")
paths = st.tuples(st.lists(parts, max_size=3), parts).map(
    lambda p: pathlib.Path("/root", *p[0], "model", "eval", p[1])
)


@given(st.lists(paths, min_size=2, max_size=5, unique=True))
def test_names_tell_all_runs_apart(folders: list[pathlib.Path]) -> None:
    found = compare.names(folders)
    assert len(set(found)) == len(folders)
    same = len({folder.name for folder in folders}) == 1
    for name, folder in zip(found, folders, strict=True):
        whole = folder.parent.parent if same else folder.parent.parent / folder.name
        assert f"/{whole}".endswith(f"/{name}")


def test_a_run_twice_is_refused(run: Callable[..., Any]) -> None:
    x = run("x")
    assert refused(x, "x") == f"{x}/eval/test is given twice"


def test_what_is_no_run_is_refused(run: Callable[..., Any], tmp_path: pathlib.Path) -> None:
    x = run("x")
    (tmp_path / "empty").mkdir()
    assert refused(x, "absent").startswith("absent is no folder: give a MODEL_DIR")
    assert refused(x, "empty").startswith("empty is neither a MODEL_DIR, which has a manifest.json")


def test_an_evaluation_that_is_not_there_is_reported_with_those_that_are(
    run: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    x, y = run("x"), run("y", name="test_dense")
    assert refused(x, y) == f"{y} has no evaluation 'test'; it has test_dense: give --evaluation"
    bare = claim(tmp_path / "bare")
    assert refused(x, bare) == f"{bare} has no evaluation 'test'; run `calrec eval`"


@pytest.mark.parametrize("name", ["metrics.json", "slices.json"])
def test_an_evaluation_that_is_not_finished_is_refused(run: Callable[..., Any], name: str) -> None:
    x, y = run("x"), run("y")
    (y / "eval" / "test" / name).unlink()
    assert refused(x, y) == f"{y}/eval/test has no {name}: run `calrec eval` to its end"


def test_files_that_do_not_belong_together_are_refused(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y")
    path = y / "eval" / "test" / "predictions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert refused(x, y) == (
        f"{y}/eval/test is not whole: metrics.json is of 4 users, slices.json of 4, and "
        f"predictions.jsonl lacks 1: run `calrec eval` again"
    )
    z = run("z", n=3)
    assert "metrics.json is of 3 users, slices.json of 4" in refused(x, z)


@pytest.mark.parametrize(
    "line",
    [
        '{"user_id": "c", "dom',
        "[]",
        "\n",
        '{"user_id": "c", "domain": "toys", "target": "i2"}',
        '{"user_id": "c", "domain": "toys", "target": "i2", "rank": {"low": 0, "high": 3}}',
        '{"user_id": "c", "domain": "toys", "target": "i2", "rank": {"low": "1", "high": 3}}',
        '{"user_id": [], "domain": "toys", "target": "i2", "rank": {"low": 1, "high": 3}}',
        "\udc80",
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_named(run: Callable[..., Any], line: str) -> None:
    x, y = run("x"), run("y")
    path = y / "eval" / "test" / "predictions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, lines[3]]), errors="surrogateescape")
    assert refused(x, y).startswith(f"{path} is damaged in line 3: ")


def test_other_targets_are_refused(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y", targets={"b": "i7"})
    assert refused(x, y) == (
        "x and y cannot be compared: the target of user 'b' of toys is i2 in the one and i7 in the "
        "other; they are of other splits or data"
    )


def test_other_catalogues_are_refused(run: Callable[..., Any]) -> None:
    assert refused(run("x"), run("y", items=9)) == (
        "x and y cannot be compared: their catalogues have 8 and 9 items"
    )


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"toys": []}', '{"toys": {"a": {}}}', "[" * 100_000]
)
def test_slices_of_another_form_are_named(run: Callable[..., Any], text: str) -> None:
    x, y = run("x"), run("y")
    path = y / "eval" / "test" / "slices.json"
    path.write_text(text)
    assert refused(x, y).startswith(f"{path} ")


def test_an_earlier_version_is_named(run: Callable[..., Any]) -> None:
    x, y = run("x"), run("y")
    path = y / "eval" / "test" / "metrics.json"
    path.write_text(json.dumps({"metrics": {}}))
    assert refused(x, y).startswith(f"{path} has no 'model': an earlier version made it")


def test_the_tables_for_the_terminal(run: Callable[..., Any]) -> None:
    compared = compare.compare([
        run("x", purchases={"d": "repeat"}),
        run("y", SECOND, config={"retrieval": "dense"}),
    ])  # fmt: skip
    lines = comparison_page.text(compared).splitlines()
    assert lines[0].split() == ["run", "users", "evaluation"]
    assert lines[1].split()[:2] == ["x", "4"] and lines[1].endswith("x/eval/test")
    assert "4 users that all have, 8 items" in lines
    place = lines.index("settings that differ  x     y")
    assert lines[place + 1] == "retrieval             bm25  dense"
    (row,) = [line.split() for line in lines if line.startswith("y  ") and "0.7500" in line]
    assert row[:4] == ["y", "0.7500", "0.7500", "0.7500"]
    (row,) = [line.split() for line in lines if line.startswith("y - x ")]
    assert row[3:6] == ["+0.2500", "+0.0000", "+0.0000"]
    place = lines.index("Purchase: the target is new to the user, or a repeat")
    assert lines[place + 1].split() == ["recall@10", "ndcg@10"]
    # c comes first from beyond ten, b from the second place: (1 + 1 - 0.6309) / 3
    assert lines[place + 2].split() == [*"new (3 users): y - x".split(), "+0.3333", "+0.4564"]
    assert lines[place + 4].split() == [*"repeat (1 user): y - x".split(), "-1.0000", "-1.0000"]
