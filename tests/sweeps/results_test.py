"""Results of a sweep: their order, results.csv, and metrics that are damaged."""

from __future__ import annotations

import csv

import pytest
from sweeps.fake_calrec import GRID, Calrec, run, write

from calrec_jax.errors import CalrecError
from calrec_jax.sweeps import results, sweep_file


@pytest.mark.parametrize(("mode", "order"), [("max", [2, 0, 1, 3]), ("min", [1, 0, 2, 3])])
def test_results_the_best_first(tmp_path, mode, order):
    sweep = sweep_file.read(write(tmp_path, GRID.replace("max}", f"{mode}}}")))
    ids = [trial.id for trial in sweep.trials]
    values = dict(zip(ids, [0.2, 0.1, 0.3, 0.9], strict=True))
    run(sweep, tmp_path / "sweep", Calrec(values, {("train", ids[3]): 1}))
    found = results.read_results(sweep, tmp_path / "sweep")
    assert [r.trial.id for r in found] == [ids[i] for i in order]
    results.write_csv(found, tmp_path / "results.csv")
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["id"] for row in rows] == [ids[i] for i in order]
    assert rows[1]["name"] == "alpha=0, TRAIN_STEPS=10"
    assert rows[1]["losses.LossConfig.alpha"] == "0" and rows[1]["TRAIN_STEPS"] == "10"
    assert float(rows[1]["ndcg@10"]) == 0.2
    assert float(rows[1]["ndcg@10 low"]) == pytest.approx(0.1)
    assert float(rows[1]["mrr high"]) == pytest.approx(0.3)
    assert rows[3]["state"] == "failed" and rows[3]["ndcg@10"] == ""


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"metrics": 3}', "[" * 9999], ids=lambda text: text[:3]
)
def test_a_finished_trial_without_metrics_is_an_error(grid, ids, tmp_path, text):
    run(grid, tmp_path / "sweep", Calrec())
    path = tmp_path / "sweep" / ids[0] / "eval" / "validation" / "metrics.json"
    path.write_text(text)
    with pytest.raises(CalrecError, match="metrics.json of a finished trial is missing or damaged"):
        results.read_results(grid, tmp_path / "sweep")
