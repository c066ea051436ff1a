"""The training loop of one stage, from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.training import divergence
from calrec_jax.training.preemption import Preempted, PreemptionNotice
from calrec_jax.training.state import TrainState
from calrec_jax.training.step import Batch
from calrec_jax.training.telemetry import Telemetry


@dataclasses.dataclass(frozen=True)
class Periods:
    """How often each thing is done, in steps. The last step always validates and saves.

    Attributes:
      log: metrics are written and progress is shown.
      validate: validation runs, and the state is saved with its losses.
      save: the state is saved without validation too; None = only with it.
    """

    log: int
    validate: int
    save: int | None


def train(
    state: TrainState,
    last_step: int,
    *,
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, jax.Array]]],
    validate: Callable[[TrainState], dict[str, float]],
    batches: Iterator[Batch],
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    periods: Periods,
    divergence_error: Callable[[int, Mapping[str, float], Batch | None], CalrecError],
) -> TrainState:
    """Trains from `state.step` to `last_step`, and stops where a number is not finite.

    Where the last run was stopped before a validation that was due, this validation comes first.
    A state is saved only if it is finite, and so are the metrics of its step and its validation.

    Args:
      train_step: (state, batch) -> (state, metrics), jitted; may donate the state.
      validate: state -> its validation losses.
      batches: global batches on the device, from that of `state.step` on.
      divergence_error: (step, the numbers that are not finite, the step's batch or None) -> the
        error to raise.

    Raises:
      Preempted: SIGTERM came; the state was saved.
      CalrecError: the batches end before `last_step`; a number is not finite (`divergence_error`);
        or as `Checkpoints.save`.
    """

    def validates(step: int) -> bool:
        return step % periods.validate == 0 or step == last_step

    def log_metrics(step: int, metrics: Mapping[str, jax.Array], batch: Batch) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not_finite := divergence.not_finite(values):
            raise divergence_error(step, not_finite, batch)
        telemetry.log_training(step, values)

    def validation_losses(step: int) -> dict[str, float]:
        losses = validate(state)
        if not_finite := divergence.not_finite(losses):
            named = {f"validation {name}": value for name, value in not_finite.items()}
            raise divergence_error(step, named, None)
        telemetry.log_validation(step, losses)
        return losses

    first_step = int(state.step)
    pending = None  # (step, metrics, batch) of the step before, whose metrics may still be computed
    with PreemptionNotice() as notice:
        if first_step and validates(first_step) and not checkpoints.validated(first_step):
            checkpoints.add_metrics(first_step, validation_losses(first_step))
            telemetry.restart_clock()
        for step in range(first_step + 1, last_step + 1):
            batch = next(batches, None)
            if batch is None:
                raise CalrecError(f"the training batches ended at step {step} of {last_step}")
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch)
            # The device computes step n; only now wait for the metrics of step n - 1.
            if pending is not None:
                log_metrics(*pending)
            pending = (step, metrics, batch)

            stop = notice.received()
            if stop or validates(step) or (periods.save and step % periods.save == 0):
                log_metrics(*pending)
                pending = None
                # An update may overflow although its loss and gradients did not.
                if not divergence.all_finite(state):
                    raise divergence_error(step, {"the updated state": float("nan")}, batch)
                # After SIGTERM there may be only seconds: save, and let the next run validate.
                losses = validation_losses(step) if validates(step) and not stop else None
                checkpoints.save(state, {"batches": step}, losses)
                telemetry.restart_clock()
            if stop:
                checkpoints.wait()
                raise Preempted(f"stopped after step {step}, saved")
        checkpoints.wait()
        if notice.received():
            raise Preempted(f"stopped after the last step, {last_step}, saved")
    return state
