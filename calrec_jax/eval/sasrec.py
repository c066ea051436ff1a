"""SASRec, the baseline that is trained: causal self-attention over item ids, without texts.

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
from calrec_jax.models.params import Params
from calrec_jax.text.items import Catalogue, UserSequence

_MIN_WIDTH = 4  # rows are padded to this length, or to a power of two that is longer
_SCORING_BATCH = 256  # users scored at a time
_WEIGHTS = "weights.npz"
_FACTS = {"epoch": int, "steps": int, "ndcg": float}  # of `Trained`, saved beside the weights

OnEpoch = Callable[[int, int, float, float], None]
"""Called after each epoch, with: its number, from 1; the steps done; the mean training loss; and
NDCG@10 on validation."""


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """The model and its training.

    Attributes:
      num_layers: the number of blocks.
      d_model: width of the hidden states and of the point-wise networks.
      num_heads: of each block's attention.
      max_length: how many of a history's items are read, the most recent ones.
      dropout: of embeddings, attention weights, and both branches of a block.
      learning_rate: of Adam, constant.
      batch_size: training sequences a step.
      epochs: the largest number of epochs.
      patience: training ends after so many epochs without a better NDCG@10 on validation.
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

    def __post_init__(self) -> None:
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
      config: the sizes and the dropout.
      num_items: of the catalogue.
    """

    config: SASRecConfig
    num_items: int

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(0.02)
        self.items = self.param("items", normal, (self.num_items, c.d_model))
        self.positions = self.param("positions", normal, (c.max_length, c.d_model))
        self.blocks = [_Block(c) for _ in range(c.num_layers)]
        self.final_norm = nn.LayerNorm()
        self.dropout = nn.Dropout(c.dropout)

    def __call__(self, places_BxL: jax.Array, train: bool = False) -> jax.Array:
        """Hidden states, float32 [B, L, D]. State l has read the places up to l.

        Args:
          places_BxL: int32, L at most max_length: items by their places in the catalogue, oldest
            first. Padding stands at the end, where no item before it sees it.
          train: whether to drop out; needs the rng "dropout".
        """
        length = places_BxL.shape[1]
        hidden_BxLxD = self.items[places_BxL] * self.config.d_model**0.5
        hidden_BxLxD = hidden_BxLxD + self.positions[None, :length]
        hidden_BxLxD = self.dropout(hidden_BxLxD, deterministic=not train)
        mask_Bx1xLxL = nn.make_causal_mask(places_BxL)
        for block in self.blocks:
            hidden_BxLxD = block(hidden_BxLxD, mask_Bx1xLxL, train)
        return self.final_norm(hidden_BxLxD)

    def scores(self, hidden: jax.Array) -> jax.Array:
        """Scores of all items, float32 [..., items]: their products with hidden states [..., D]."""
        return hidden @ self.items.T


class _Block(nn.Module):
    """x + attention(norm(x)), then x + network(norm(x)), the branches dropped out."""

    config: SASRecConfig

    @nn.compact
    def __call__(self, hidden_BxLxD: jax.Array, mask_Bx1xLxL: jax.Array, train: bool) -> jax.Array:
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=not train)
        attention = nn.MultiHeadDotProductAttention(
            c.num_heads,
            dropout_rate=c.dropout,
            broadcast_dropout=False,  # each pair of positions of each row by itself
            deterministic=not train,
            name="attention",
        )
        normed_BxLxD = nn.LayerNorm(name="attention_norm")(hidden_BxLxD)
        hidden_BxLxD = hidden_BxLxD + dropout(attention(normed_BxLxD, mask=mask_Bx1xLxL))
        normed_BxLxD = nn.LayerNorm(name="network_norm")(hidden_BxLxD)
        inner_BxLxD = nn.relu(nn.Dense(c.d_model, name="inner")(normed_BxLxD))
        return hidden_BxLxD + dropout(nn.Dense(c.d_model, name="outer")(dropout(inner_BxLxD)))


def loss(
    model: SASRec,
    params: Params,
    rows_BxM: jax.Array,
    lengths_B: jax.Array,
    key: jax.Array | None = None,
) -> jax.Array:
    """Mean of -log p(next item | items up to there) over all positions that have a next item.

    Args:
      rows_BxM: int32, places of M = L + 1 items; those from `lengths_B` on are padding.
      lengths_B: int32, items of each row, 0 for a row of padding alone.
      key: of dropout; None = nothing is dropped.

    Returns:
      float32 scalar.
    """
    rngs = None if key is None else {"dropout": key}
    hidden_BxLxD = model.apply({"params": params}, rows_BxM[:, :-1], key is not None, rngs=rngs)
    logits_BxLxN = model.apply({"params": params}, hidden_BxLxD, method="scores")
    losses_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxN, rows_BxM[:, 1:])
    counted_BxL = jnp.arange(1, rows_BxM.shape[1])[None, :] < lengths_B[:, None]
    return (losses_BxL * counted_BxL).sum() / jnp.maximum(counted_BxL.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
      epoch: the epoch that the weights are of, from 1: that of the best NDCG@10 on validation.
      steps: steps of all epochs, those that were no better included.
      ndcg: NDCG@10 on validation after `epoch`.
      score: scores the catalogue for histories.
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
    on_epoch: OnEpoch = lambda epoch, step, loss, ndcg: None,
) -> Trained:
    """Trains on every position of `sequences`; the epoch is chosen on `validation`.

    The same arguments give the same weights on the same machine.

    Raises:
      CalrecError: there are no sequences to train on or to choose by, an item is not in the
        catalogue, or the loss is not finite.
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
        on_epoch(epoch, steps, mean, ndcg)
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
    """The model that `save` wrote, or None where none is saved.

    Args:
      config, catalogue: as the model was trained with.

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
        saved_shapes, model_shapes = (
            jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (params, shapes)
        )
        if saved_shapes != model_shapes:
            raise ValueError("it is of another model")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CalrecError(f"{path} holds no weights ({error}): remove its folder") from error
    return Trained(**facts, score=make_score(model, params, catalogue), params=params)


def _optimizer(config: SASRecConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate, b2=0.98)  # as in the paper's code


# These are functions of the module, so that they are compiled once for all runs of a process.


@functools.partial(jax.jit, static_argnums=0)
def _step(
    model: SASRec,
    params: Params,
    state: optax.OptState,
    rows_BxM: jax.Array,
    lengths_B: jax.Array,
    key: jax.Array,
) -> tuple[Params, optax.OptState, jax.Array]:
    """One update: (params, optimizer state, loss)."""
    loss_and_gradient = jax.value_and_grad(functools.partial(loss, model))
    value, gradient = loss_and_gradient(params, rows_BxM, lengths_B, key)
    updates, state = _optimizer(model.config).update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


@functools.partial(jax.jit, static_argnums=0)
def _next_item_scores(
    model: SASRec, params: Params, rows_BxL: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Scores of the item after the last one of each row, float32 [B, items]."""
    hidden_BxLxD = model.apply({"params": params}, rows_BxL)
    last_Bx1x1 = lengths_B[:, None, None] - 1
    last_hidden_BxD = jnp.take_along_axis(hidden_BxLxD, last_Bx1x1, axis=1)[:, 0]
    return model.apply({"params": params}, last_hidden_BxD, method="scores")


def make_score(model: SASRec, params: Params, catalogue: Catalogue) -> Score:
    """A function that scores the catalogue with these weights, float64 [histories, items]."""
    longest = model.config.max_length

    def score(histories: Sequence[Sequence[str]]) -> np.ndarray:
        recent = [catalogue.places(history)[-longest:] for history in histories]
        scores = np.empty((len(recent), len(catalogue)))
        for batch in _batches_of_one_width(recent, range(len(recent)), longest, _SCORING_BATCH):
            rows, lengths = _padded([recent[i] for i in batch], longest, _SCORING_BATCH)
            # Rows of padding have no last item; what is computed for them is thrown away.
            batch_scores = _next_item_scores(model, params, rows, np.maximum(lengths, 1))
            scores[batch] = np.asarray(batch_scores, np.float64)[: len(batch)]
        return scores

    return score


def _batches(
    histories: Sequence[Sequence[int]], config: SASRecConfig, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, lengths) of the batches of an epoch: each sequence once, with others of its length."""
    rng = np.random.default_rng([config.seed, epoch])
    longest = config.max_length + 1  # its last item is a target alone
    cut = [history[-longest:] for history in histories]
    order = rng.permutation(len(cut))
    batches = _batches_of_one_width(cut, order, longest, config.batch_size)
    for i in rng.permutation(len(batches)):
        yield _padded([cut[index] for index in batches[i]], longest, config.batch_size)


def _batches_of_one_width(
    histories: Sequence[Sequence[int]], order: Sequence[int], longest: int, size: int
) -> list[list[int]]:
    """Indices of histories in `order`, in batches of at most `size`, each padded to one width."""
    by_width: dict[int, list[int]] = {}
    for index in order:
        by_width.setdefault(_width(len(histories[index]), longest), []).append(int(index))
    return [
        indices[start : start + size]
        for _, indices in sorted(by_width.items())
        for start in range(0, len(indices), size)
    ]


def _width(length: int, longest: int) -> int:
    """The width that a row of `length` items is padded to; few widths make few programs."""
    width = _MIN_WIDTH
    while width < length:
        width *= 2
    return min(width, longest)


def _padded(
    histories: Sequence[Sequence[int]], longest: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """(places int32 [size, width], lengths int32 [size]); rows beyond the histories are padding."""
    lengths = np.zeros(size, np.int32)
    lengths[: len(histories)] = [len(history) for history in histories]
    rows = np.zeros((size, _width(int(lengths.max()), longest)), np.int32)
    for row, history in zip(rows, histories, strict=False):
        row[: len(history)] = history
    return rows, lengths
