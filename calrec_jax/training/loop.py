"""The training loop of one stage, from top to bottom."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax

from calrec_jax.checkpoints.manager import Checkpoints
from calrec_jax.errors import CalrecError
from calrec_jax.training import divergence
from calrec_jax.training.preemption import Preempted, PreemptionNotice
from calrec_jax.training.state import TrainState
from calrec_jax.training.telemetry import Telemetry


@dataclasses.dataclass(frozen=True)
class Periods:
    """When to do what, in steps. The last step always validates and saves.

    Attributes:
      log: metrics are written and progress is shown.
      validate: validation runs, and the state is saved with its result.
      save: the state is saved besides; None = only when validated.
    """

    log: int
    validate: int
    save: int | None


def train(
    state: TrainState,
    last_step: int,
    *,
    train_step: Callable,
    validate: Callable[[TrainState], dict[str, float]],
    batches: Iterator,
    checkpoints: Checkpoints,
    telemetry: Telemetry,
    periods: Periods,
    diverged: Callable[[int, Mapping[str, float], Mapping | None], CalrecError],
) -> TrainState:
    """Trains from `state.step` to `last_step`, and stops where a number is not finite.

    A validation that was due when the run was told to stop comes first. No state is saved that is
    not finite, or whose step or validation was not.

    Args:
      train_step: jitted, (state, batch) -> (state, metrics); may donate the state.
      validate: a state's validation losses.
      batches: global batches on the device, from that of `state.step` on.
      diverged: (step, what is not finite, the step's batch or None) -> the error to end with.

    Raises:
      Preempted: SIGTERM came; the state was saved.
      CalrecError: the batches end before `last_step`; that of `diverged`; or as `Checkpoints.save`.
    """

    def validates(step: int) -> bool:
        return _due(step, periods.validate) or step == last_step

    def read(step: int, metrics, batch) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if bad := divergence.bad(values):
            raise diverged(step, bad, batch)
        telemetry.training(step, values)

    def validation(step: int) -> dict[str, float]:
        losses = validate(state)
        if bad := divergence.bad(losses):
            raise diverged(step, {f"validation {name}": bad[name] for name in bad}, None)
        telemetry.validation(step, losses)
        return losses

    first_step = int(state.step)
    pending = None  # the step before: its metrics, which are still being computed, and its batch
    with PreemptionNotice() as notice:
        if first_step and validates(first_step) and not checkpoints.validated(first_step):
            checkpoints.add_metrics(first_step, validation(first_step))
            telemetry.restart_clock()
        for step in range(first_step + 1, last_step + 1):
            batch = next(batches, None)
            if batch is None:
                raise CalrecError(f"the training batches ended at step {step} of {last_step}")
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch)
            # Step n is under way; only now wait for n - 1.
            if pending is not None:
                read(*pending)
            pending = (step, metrics, batch)

            stop = notice.received()
            if stop or validates(step) or (periods.save and _due(step, periods.save)):
                read(*pending)
                pending = None
                # An update may overflow where its loss and gradients did not.
                if not divergence.all_finite(state):
                    raise diverged(step, {"the updated state": float("nan")}, batch)
                # Told to stop: save first, there may be seconds. Validation waits for the next run.
                losses = validation(step) if validates(step) and not stop else None
                checkpoints.save(state, {"batches": step}, losses)
                telemetry.restart_clock()
            if stop:
                checkpoints.wait()
                raise Preempted(f"stopped after step {step}, saved")
        checkpoints.wait()
        if notice.received():
            raise Preempted(f"stopped after the last step, {last_step}, saved")
    return state


def _due(step: int, period: int) -> bool:
    return step % period == 0


def mean_losses(sums: Iterable, means: Callable) -> dict[str, float] | None:
    """Losses over several batches: sums added on the device, one wait at the end.

    Args:
      sums: LossSums, one a batch.
      means: LossSums -> {name: scalar}.

    Returns:
      {name: mean}, or None where there was no batch.
    """
    total = None
    for batch_sums in sums:
        total = batch_sums if total is None else jax.tree.map(lambda a, b: a + b, total, batch_sums)
    if total is None:
        return None
    return {name: float(value) for name, value in jax.device_get(means(total)).items()}
