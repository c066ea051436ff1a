"""The optimizer and its learning-rate schedule, from a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from calrec_jax.errors import CalrecError
from calrec_jax.models.params import Params

OPTIMIZERS = ("adamw", "adafactor")
DECAYS = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer. The paper's values are not known, so a run states its own.

    Attributes:
      name: "adamw" or "adafactor".
      learning_rate: the peak, which update number `warmup_steps` has.
      warmup_steps: updates during which the rate grows linearly from zero.
      decay: "constant", or "cosine"/"linear" down to `final_fraction` of the peak at the last step.
      weight_decay: decoupled, times the learning rate, on matrices only.
      b1, b2: decay rates of adamw's moments.
      clip_norm: upper bound of the gradient's global norm.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay: str = "cosine"
    final_fraction: float = 0.1
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise CalrecError(f"OptimizerConfig.name {self.name!r} is none of {OPTIMIZERS}")
        if self.learning_rate < 0 or self.warmup_steps < 0 or self.clip_norm <= 0:
            raise CalrecError(
                f"OptimizerConfig: learning_rate {self.learning_rate} and warmup_steps "
                f"{self.warmup_steps} must not be negative, clip_norm {self.clip_norm} be positive"
            )
        if self.decay not in DECAYS:
            raise CalrecError(f"OptimizerConfig.decay {self.decay!r} is none of {DECAYS}")


def make_schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Learning rate by step: warm-up, then decay over the rest of `train_steps`."""
    peak, warmup = config.learning_rate, max(min(config.warmup_steps, train_steps), 1)
    rest = max(train_steps - warmup, 1)
    decays = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, rest),
    }
    # The rate starts above zero, since the first update would otherwise change nothing. Update
    # number `warmup` (schedules count from 0) has the peak, so the last one ends the decay.
    growth = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([growth, decays[config.decay]()], [warmup - 1])


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The optax transformation: clip by global norm, then the optimizer with `schedule`."""
    if config.name == "adamw":
        optimizer = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_is_matrix,
        )
    else:
        # The decay of optax.adafactor would not be multiplied by the learning rate. Updates of
        # adafactor already point downhill, and the decay has to as well.
        optimizer = optax.chain(
            optax.adafactor(None, multiply_by_parameter_scale=False, clipping_threshold=1.0),
            optax.add_decayed_weights(-config.weight_decay, mask=_is_matrix),
            optax.scale_by_schedule(schedule),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def _is_matrix(params: Params) -> Params:
    """The tree of bools that is True for kernels and embeddings, and False for scales and biases.

    It goes by names and not by rank: a scanned norm's scale has two axes.
    """

    def is_matrix(path: tuple[Any, ...], _: jax.Array) -> bool:
        return jax.tree_util.keystr(path[-1:], simple=True) not in ("scale", "bias")

    return jax.tree_util.tree_map_with_path(is_matrix, params)
