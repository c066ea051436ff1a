"""SASRec, the baseline that is trained: causal self-attention over item ids, without any text.

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018: learned positions, blocks of
attention and a point-wise network, each with layer norm before it, dropout and a residual, and the
items' embedding as the output layer too. Trained with cross-entropy over the whole catalogue in
place of the paper's one sampled negative, which is known to be worth much (Klenitskiy & Vasilev,
"Turning Dross Into Gold Loss", RecSys 2023).
"""

from __future__ import annotations

import dataclasses
import functools
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from calrec_jax import files, metrics
from calrec_jax.errors import CalrecError
from calrec_jax.eval.outcomes import Score, outcome
from calrec_jax.model_dir import StageDir, checkpoint_folder, saved_steps
from calrec_jax.text.items import Catalogue, UserSequence

_SHORTEST = 4  # rows are padded to this length, or to a power of two that is longer
_SCORED = 256  # users scored at a time
_WEIGHTS = "weights.npz"
_FACTS = {"epoch": int, "steps": int, "ndcg": float}  # of `Trained`, saved beside the weights

Params = Any
Told = Callable[[int, int, float, float], None]
"""Told of each epoch: its number from 1, steps done, mean training loss, NDCG@10 on validation."""


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """The model and its training.

    Attributes:
      num_layers, d_model, num_heads: of the blocks; the point-wise network is as wide as d_model.
      max_length: most recent items of a history that are read.
      dropout: of embeddings, attention weights, and both branches of a block.
      learning_rate: of Adam, constant.
      batch_size: training sequences a step.
      epochs: at most.
      patience: epochs without a better NDCG@10 on validation, after which training ends.
      seed: of weights, order and dropout.

    Raises:
      CalrecError: a value is out of its range.
    """

    num_layers: int = 2
    d_model: int = 64
    num_heads: int = 2
    max_length: int = 50
    dropout: float = 0.5
    learning_rate: float = 3e-3
    batch_size: int = 128
    epochs: int = 100
    patience: int = 10
    seed: int = 0

    def __post_init__(self):
        positive = ("num_layers", "d_model", "num_heads", "max_length", "batch_size", "epochs")
        for name in (*positive, "patience"):
            if getattr(self, name) < 1:
                raise CalrecError(f"SASRecConfig.{name} is {getattr(self, name)}: give at least 1")
        if self.d_model % self.num_heads:
            raise CalrecError(
                f"SASRecConfig.d_model {self.d_model} is no multiple of num_heads {self.num_heads}"
            )
        if not (0 <= self.dropout < 1 and 0 < self.learning_rate < float("inf")):
            raise CalrecError(
                f"SASRecConfig: dropout {self.dropout} must be in [0, 1), learning_rate "
                f"{self.learning_rate} positive"
            )


class SASRec(nn.Module):
    """Scores of the next item at every position.

    Attributes:
      num_items: of the catalogue.
    """

    config: SASRecConfig
    num_items: int

    def setup(self):
        c = self.config
        normal = nn.initializers.normal(0.02)
        self.items = self.param("items", normal, (self.num_items, c.d_model))
        self.positions = self.param("positions", normal, (c.max_length, c.d_model))
        self.blocks = [_Block(c) for _ in range(c.num_layers)]
        self.final_norm = nn.LayerNorm()
        self.dropout = nn.Dropout(c.dropout)

    def __call__(self, places: jax.Array, train: bool = False) -> jax.Array:
        """Hidden states, float32 [B, L, D]. State l has read the places up to l.

        Args:
          places: int32 [B, L], L at most max_length, items by their places in the catalogue, oldest
            first. Padding stands at the end, where no item before it sees it.
          train: whether to drop out; needs the rng "dropout".
        """
        x = self.items[places] * self.config.d_model**0.5
        x = self.dropout(x + self.positions[None, : places.shape[1]], deterministic=not train)
        mask = nn.make_causal_mask(places)
        for block in self.blocks:
            x = block(x, mask, train)
        return self.final_norm(x)

    def scores(self, hidden: jax.Array) -> jax.Array:
        """float32 [..., items] of hidden states [..., D]: the inner products with all items."""
        return hidden @ self.items.T


class _Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)), the branches dropped out."""

    config: SASRecConfig

    @nn.compact
    def __call__(self, x, mask, train):
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(
            c.num_heads,
            dropout_rate=c.dropout,
            broadcast_dropout=False,  # each pair of positions of each row by itself
            deterministic=not train,
            name="attention",
        )
        x = x + dropout(attention(nn.LayerNorm(name="attention_norm")(x), mask=mask))
        hidden = nn.relu(nn.Dense(c.d_model, name="inner")(nn.LayerNorm(name="network_norm")(x)))
        return x + dropout(nn.Dense(c.d_model, name="outer")(dropout(hidden)))


def loss(
    model: SASRec, params: Params, rows: jax.Array, lengths: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Mean over all positions that have a next item of -log p(next item | items up to there).

    Args:
      rows: int32 [B, L + 1], places; those from `lengths` on are padding.
      lengths: int32 [B], items of each row, 0 for a row of padding alone.
      key: of dropout; None = none is dropped.
    """
    rngs = None if key is None else {"dropout": key}
    hidden = model.apply({"params": params}, rows[:, :-1], key is not None, rngs=rngs)
    logits = model.apply({"params": params}, hidden, method="scores")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    counted = jnp.arange(1, rows.shape[1])[None, :] < lengths[:, None]
    return (losses * counted).sum() / jnp.maximum(counted.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training leaves.

    Attributes:
      epoch: whose weights these are, from 1: that of the best NDCG@10 on validation.
      steps: trained in all, with the epochs that were no better.
      ndcg: NDCG@10 on validation, at `epoch`.
      score: the model as a scorer of users.
      params: the weights, as `SASRec` names them.
    """

    epoch: int
    steps: int
    ndcg: float
    score: Score
    params: Params


def train(
    sequences: Sequence[UserSequence],
    validation: Sequence[UserSequence],
    catalogue: Catalogue,
    config: SASRecConfig,
    told: Told = lambda epoch, step, loss, ndcg: None,
) -> Trained:
    """Trains on every position of `sequences`; the epoch is chosen on `validation`.

    The same arguments give the same weights on the same machine.

    Raises:
      CalrecError: there is nothing to train on or to choose by, an item is not in the catalogue, or
        the loss is not finite.
    """
    if not sequences or not validation:
        raise CalrecError(
            f"{catalogue.domain} has {len(sequences)} training sequences and {len(validation)} "
            f"validation users: SASRec needs both"
        )
    model = SASRec(config, len(catalogue))
    key = jax.random.key(config.seed, impl="rbg")  # of little cost to compile and to draw from
    params = model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    state = _optimizer(config).init(params)
    histories = [catalogue.places(user.item_ids) for user in sequences]
    steps, best = 0, None
    for epoch in range(1, config.epochs + 1):
        losses = []
        for rows, lengths in _batches(histories, config, epoch):
            steps += 1
            dropout = jax.random.fold_in(key, steps)
            params, state, value = _step(model, params, state, rows, lengths, dropout)
            losses.append(value)
        mean = float(np.mean(jax.device_get(losses)))
        if not np.isfinite([mean, float(optax.tree.norm(params))]).all():
            raise CalrecError(
                f"SASRec's loss is {mean} in epoch {epoch}: lower SASRecConfig.learning_rate"
            )
        score = make_score(model, params, catalogue)
        bounds = outcome(score, validation, catalogue).bounds
        ndcg = float(metrics.per_user(*bounds)["ndcg@10"].mean())
        told(epoch, steps, mean, ndcg)
        if best is None or ndcg > best.ndcg:
            best = Trained(epoch, steps, ndcg, score, params)
        if epoch - best.epoch >= config.patience:
            break
    return dataclasses.replace(best, steps=steps)


def save(stage: StageDir, trained: Trained) -> None:
    """Writes the weights as a checkpoint: all of them or, when killed, none."""
    checkpoint = checkpoint_folder(stage.checkpoints, trained.steps)
    weights = flax.traverse_util.flatten_dict(jax.device_get(trained.params), sep="/")
    facts = {name: getattr(trained, name) for name in _FACTS}
    with files.new_folder(checkpoint) as making:
        files.save_npz(making / _WEIGHTS, **weights, **facts)


def restore(stage: StageDir, config: SASRecConfig, catalogue: Catalogue) -> Trained | None:
    """What `save` wrote, or None where nothing is saved.

    Args:
      config, catalogue: those that it was trained with.

    Raises:
      CalrecError: the weights are damaged, or of another model.
    """
    folders = [checkpoint_folder(stage.checkpoints, n) for n in saved_steps(stage.checkpoints)]
    path = next((p / _WEIGHTS for p in folders if (p / _WEIGHTS).exists()), None)
    if path is None:
        return None
    model = SASRec(config, len(catalogue))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    try:
        with np.load(path) as saved:
            facts = {name: kind(saved[name]) for name, kind in _FACTS.items()}
            weights = {name: saved[name] for name in saved.files if name not in facts}
        params = flax.traverse_util.unflatten_dict(weights, sep="/")
        found, wanted = (jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, shapes))
        if found != wanted:
            raise ValueError("it is of another model")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CalrecError(f"{path} holds no weights ({error}): remove its folder") from error
    return Trained(**facts, score=make_score(model, params, catalogue), params=params)


def _optimizer(config: SASRecConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b2=0.98)  # as in the paper's code


# Functions of the module, and so compiled once for all epochs and runs of a process.


@functools.partial(jax.jit, static_argnums=0)
def _step(model, params, state, rows, lengths, key):
    """One update: (params, optimizer state, loss)."""
    value, gradient = jax.value_and_grad(functools.partial(loss, model))(params, rows, lengths, key)
    updates, state = _optimizer(model.config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


@functools.partial(jax.jit, static_argnums=0)
def _last_scores(model, params, rows, lengths):
    """float32 [B, items]: what follows the last item of each row."""
    hidden = model.apply({"params": params}, rows)
    state = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    return model.apply({"params": params}, state, method="scores")


def make_score(model: SASRec, params: Params, catalogue: Catalogue) -> Score:
    """The model with these weights as a scorer, float64 [histories, items]."""
    longest = model.config.max_length

    def score(histories: Sequence[Sequence[str]]) -> np.ndarray:
        recent = [catalogue.places(history)[-longest:] for history in histories]
        scores = np.empty((len(recent), len(catalogue)))
        for chosen in _alike(recent, range(len(recent)), longest, _SCORED):
            rows, lengths = _padded([recent[i] for i in chosen], longest, _SCORED)
            # Rows of padding have no last item; what is computed for them is thrown away.
            some = _last_scores(model, params, rows, np.maximum(lengths, 1))
            scores[chosen] = np.asarray(some, np.float64)[: len(chosen)]
        return scores

    return score


def _batches(
    histories: Sequence[Sequence[int]], config: SASRecConfig, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, lengths) of an epoch: each sequence once, with others of about its length."""
    rng = np.random.default_rng([config.seed, epoch])
    longest = config.max_length + 1  # its last item is a target alone
    cut = [history[-longest:] for history in histories]
    batches = _alike(cut, rng.permutation(len(cut)), longest, config.batch_size)
    for i in rng.permutation(len(batches)):
        yield _padded([cut[place] for place in batches[i]], longest, config.batch_size)


def _alike(
    histories: Sequence[Sequence[int]], order: Sequence[int], longest: int, size: int
) -> list[list[int]]:
    """Places of `histories` in `order`, in groups of at most `size` that are padded alike."""
    by_width: dict[int, list[int]] = {}
    for place in order:
        by_width.setdefault(_width(len(histories[place]), longest), []).append(int(place))
    return [
        places[start : start + size]
        for _, places in sorted(by_width.items())
        for start in range(0, len(places), size)
    ]


def _width(length: int, longest: int) -> int:
    """What a row of `length` items is padded to: few widths, so that few programs are compiled."""
    width = _SHORTEST
    while width < length:
        width *= 2
    return min(width, longest)


def _padded(
    histories: Sequence[Sequence[int]], longest: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [size, width] places, int32 [size] lengths); rows beyond the histories are padding."""
    lengths = np.zeros(size, np.int32)
    lengths[: len(histories)] = [len(history) for history in histories]
    rows = np.zeros((size, _width(int(lengths.max()), longest)), np.int32)
    for row, history in zip(rows, histories, strict=False):
        row[: len(history)] = history
    return rows, lengths
