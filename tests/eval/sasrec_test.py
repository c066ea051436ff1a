"""SASRec against an oracle, and as something that learns, repeatably, and sees no future."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_case import CATALOGUE, TRAIN, user

from calrec_jax import metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval import sasrec
from calrec_jax.eval.outcomes import outcome
from calrec_jax.eval.sasrec import Params, SASRec, SASRecConfig
from calrec_jax.text.items import UserSequence

TINY = SASRecConfig(num_layers=2, d_model=8, num_heads=2, max_length=4, dropout=0.0, batch_size=8)
ITEMS = len(CATALOGUE)


@pytest.fixture(scope="module")
def made() -> tuple[SASRec, Params]:
    """(model, parameters that are far from their start, so that each of them matters)."""
    model = SASRec(TINY, ITEMS)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return model, jax.tree.unflatten(tree, moved)


def oracle_hidden(params: dict[str, Any], places: list[int]) -> np.ndarray:
    """Hidden states [L, D] of one history, position by position, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x: np.ndarray, name: dict[str, np.ndarray]) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * name["scale"] + name["bias"]

    x = np.array([p["items"][i] * TINY.d_model**0.5 for i in places])
    x = x + p["positions"][: len(places)]
    for n in range(TINY.num_layers):
        block = p[f"blocks_{n}"]
        a, normed = block["attention"], norm(x, block["attention_norm"])
        out = np.zeros_like(x)
        for head in range(TINY.num_heads):
            q, k, v = (
                normed @ a[name]["kernel"][:, head] + a[name]["bias"][head]
                for name in ("query", "key", "value")
            )
            for t in range(len(places)):
                scores = np.exp(k[: t + 1] @ q[t] / np.sqrt(q.shape[-1]))
                out[t] += (scores / scores.sum()) @ v[: t + 1] @ a["out"]["kernel"][head]
        x = x + out + a["out"]["bias"]
        hidden = norm(x, block["network_norm"]) @ block["inner"]["kernel"] + block["inner"]["bias"]
        x = x + np.maximum(hidden, 0) @ block["outer"]["kernel"] + block["outer"]["bias"]
    return norm(x, p["final_norm"])


def test_the_loss_is_that_of_the_oracle_over_every_position_and_no_padding(
    made: tuple[SASRec, Params],
) -> None:
    model, params = made
    histories = [[1, 5, 2, 7, 0], [3, 3], [6], [4, 0, 1]]
    losses = []
    for history in (history for history in histories if len(history) > 1):
        logits = oracle_hidden(params, history[:-1]) @ np.asarray(params["items"], np.float64).T
        log_z = np.log(np.exp(logits).sum(-1))
        losses += [z - row[i] for z, row, i in zip(log_z, logits, history[1:], strict=True)]
    rows, lengths = sasrec._padded(histories, longest=5, size=6)
    rows = np.where(np.arange(5) < lengths[:, None], rows, 5)  # whatever padding holds
    value = sasrec.loss(model, params, rows, lengths)
    assert len(losses) == 7
    assert float(value) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_row_of_padding_alone_has_no_loss(
    made: tuple[SASRec, Params],
) -> None:
    model, params = made
    assert sasrec.loss(model, params, np.zeros((2, 4), np.int32), np.zeros(2, np.int32)) == 0.0


def test_a_later_item_changes_no_earlier_prediction(
    made: tuple[SASRec, Params],
) -> None:
    model, params = made
    rows = np.array([[1, 5, 2, 7], [1, 5, 2, 0], [1, 5, 6, 7]], np.int32)
    hidden = model.apply({"params": params}, rows)
    np.testing.assert_array_equal(hidden[0, :3], hidden[1, :3])
    np.testing.assert_array_equal(hidden[0, :2], hidden[2, :2])
    assert (np.abs(hidden[0, 2:] - hidden[2, 2:]) > 1e-3).any(axis=-1).all()


def test_a_user_is_scored_by_the_most_recent_items_whatever_the_others_of_the_batch(
    made: tuple[SASRec, Params],
) -> None:
    model, params = made
    score = sasrec.make_score(model, params, CATALOGUE)
    users = [user("a", 6, 6, 1, 5, 2, 7, 3), user("b", 4, 0), user("c", 2, 1, 3, 0)]
    histories = [u.history for u in users]
    together = score(histories)
    for row, history in zip(together, ([1, 5, 2, 7], [4], [2, 1, 3]), strict=True):
        expected = oracle_hidden(params, history)[-1] @ np.asarray(params["items"], np.float64).T
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    for n, one in enumerate(histories):
        np.testing.assert_allclose(score([one])[0], together[n], rtol=1e-5, atol=1e-6)
    assert score([]).shape == (0, ITEMS) and together.dtype == np.float64


def test_an_epoch_holds_each_sequence_once_with_its_most_recent_items() -> None:
    histories = [[n % 5] * (1 + n % 9) for n in range(50)]
    config = dataclasses.replace(TINY, max_length=6)
    seen = []
    for rows, lengths in sasrec._batches(histories, config, epoch=1):
        assert rows.shape in {(8, 4), (8, 7)} and rows.dtype == np.int32
        seen += [row[:n].tolist() for row, n in zip(rows, lengths, strict=True) if n]
    assert sorted(seen) == sorted(history[-7:] for history in histories)


def test_the_order_depends_on_the_epoch_and_the_seed() -> None:
    histories = [[n] for n in range(32)]

    def order(config: SASRecConfig, epoch: int) -> list[int]:
        return [row[0] for rows, _ in sasrec._batches(histories, config, epoch) for row in rows]

    assert order(TINY, 1) == order(TINY, 1)
    assert order(TINY, 1) != order(TINY, 2)
    assert order(TINY, 1) != order(dataclasses.replace(TINY, seed=1), 1)


# After item n comes n + 3, wherever it stands.
CYCLES = [user(f"u{s}", *((s + 3 * n) % ITEMS for n in range(4))) for s in range(ITEMS)]
LEARNS = dataclasses.replace(TINY, num_layers=1, dropout=0.1, learning_rate=0.02, epochs=60)


def test_it_learns_a_rule_and_the_same_seed_learns_the_same() -> None:
    epochs_done = []
    first = sasrec.train(
        CYCLES * 4, CYCLES, CATALOGUE, LEARNS, lambda *line: epochs_done.append(line)
    )
    unseen = [user("a", 7, 2, 5), user("b", 1, 4, 7)]  # two items, where training had three
    summary = metrics.per_user(*outcome(first.score, unseen, CATALOGUE).bounds)
    assert summary["recall@1"].tolist() == [1.0, 1.0]
    epochs, steps, losses, gains = zip(*epochs_done, strict=True)
    assert losses[-1] < 0.5 < 1.5 < losses[0]
    # The best epoch, the first of equals; then so many in vain.
    assert first.epoch == 1 + int(np.argmax(gains)) and first.ndcg == max(gains) == 1.0
    assert epochs[-1] == first.epoch + LEARNS.patience and steps[-1] == first.steps
    assert steps[0] == 4

    again = sasrec.train(CYCLES * 4, CYCLES, CATALOGUE, LEARNS)
    assert (again.epoch, again.ndcg, again.steps) == (first.epoch, first.ndcg, first.steps)
    jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def test_dropout_drops_only_where_there_is_a_key(
    made: tuple[SASRec, Params],
) -> None:
    _, params = made
    model = SASRec(dataclasses.replace(TINY, dropout=0.5), ITEMS)
    rows, lengths = sasrec._padded([[1, 5, 2, 7, 0]], longest=5, size=1)
    plain = [float(sasrec.loss(model, params, rows, lengths)) for _ in range(2)]
    dropped = [float(sasrec.loss(model, params, rows, lengths, jax.random.key(n))) for n in (0, 1)]
    assert plain[0] == plain[1] and len({plain[0], *dropped}) == 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_layers": 0}, "num_layers"),
        ({"patience": 0}, "patience"),
        ({"num_heads": 3}, "num_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_a_bad_configuration_is_refused(change: dict[str, Any], name: str) -> None:
    with pytest.raises(CalrecError, match=rf"SASRecConfig.*{name}"):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(("train", "validation"), [([], TRAIN), (TRAIN, [])])
def test_it_needs_training_and_validation(
    train: list[UserSequence], validation: list[UserSequence]
) -> None:
    with pytest.raises(CalrecError, match="toys has .* training sequences and .* needs both"):
        sasrec.train(train, validation, CATALOGUE, TINY)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    config = dataclasses.replace(LEARNS, learning_rate=1e38, epochs=5)
    with pytest.raises(CalrecError, match="SASRec's loss is .*lower SASRecConfig.learning_rate"):
        sasrec.train(CYCLES, CYCLES, CATALOGUE, config)
