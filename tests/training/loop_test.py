"""The order in which the loop calls its parts, which only record the calls here.

What comes of it with the real parts is in stages_test.py and resume_test.py.
"""

import os
import signal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calrec_jax.errors import CalrecError
from calrec_jax.training import loop
from calrec_jax.training.preemption import Preempted


@flax.struct.dataclass
class State:
    step: jax.Array
    weight: jax.Array


class Diary:
    """Stands for step, validation, checkpoints and telemetry; `events` records the calls.

    Args:
      metrics: {step: more of its metrics}.
      losses: {step: validation's, if not 1}.
      overflow: the step that makes the state infinite.
    """

    def __init__(self, terminate_at=None, validated=(), metrics=None, losses=None, overflow=None):
        self.events = []
        self._terminate_at = terminate_at
        self._validated = set(validated)
        self._metrics, self._losses = metrics or {}, losses or {}
        limit = overflow or 1_000
        self._add = jax.jit(
            lambda state, batch: State(
                state.step + batch,
                jnp.where(state.step + batch < limit, state.weight, jnp.inf),
            )
        )

    def train_step(self, state, batch):
        step = int(jax.device_get(state.step)) + 1
        self.events.append(f"dispatch {step}")
        if self._terminate_at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._add(state, batch), {"n": step} | self._metrics.get(step, {})

    def validate(self, state):
        self.events.append(f"validate {int(state.step)}")
        if self._terminate_at == f"validate {int(state.step)}":
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": self._losses.get(int(state.step), 1.0)}

    # Telemetry
    def log_training(self, step, metrics):
        assert metrics == {"n": step} | self._metrics.get(step, {})
        self.events.append(f"read {step}")

    def log_validation(self, step, losses):
        self.events.append(f"log {step}")

    def restart_clock(self):
        self.events.append("clock")

    # Checkpoints
    def save(self, state, position, metrics):
        assert position == {"batches": int(state.step)}
        self.events.append(f"save {int(state.step)}" + (" with losses" if metrics else ""))

    def validated(self, step):
        return step in self._validated

    def add_metrics(self, step, metrics):
        self.events.append(f"add losses {step}")

    def wait(self):
        self.events.append("wait")


def divergence_error(step, found, batch):
    return CalrecError(f"step {step}: {found}, batch {batch}")


def train(diary, last_step, first_step=0, log=100, validate=100, save=None, batches=None):
    ones = [jnp.int32(1)] * (last_step - first_step)
    return loop.train(
        State(jnp.int32(first_step), jnp.float32(1.0)),
        last_step,
        train_step=diary.train_step,
        validate=diary.validate,
        batches=iter(ones if batches is None else batches),
        checkpoints=diary,
        telemetry=diary,
        periods=loop.Periods(log, validate, save),
        divergence_error=divergence_error,
    )


def test_metrics_are_read_once_the_next_step_is_dispatched():
    diary = Diary()
    assert int(train(diary, 3).step) == 3
    assert diary.events == [
        *["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2"],
        *["read 3", "validate 3", "log 3", "save 3 with losses", "clock", "wait"],
    ]


def test_what_is_due_when_and_the_last_step_always_validates_and_saves():
    diary = Diary()
    train(diary, 7, validate=4, save=3)
    found = [event for event in diary.events if event.startswith(("save", "validate"))]
    assert found == [
        *["save 3", "validate 4", "save 4 with losses"],
        *["save 6", "validate 7", "save 7 with losses"],
    ]


def test_nothing_is_read_or_saved_twice():
    diary = Diary()
    train(diary, 12, validate=4, save=2)
    for kind in ("dispatch", "read", "save"):
        steps = [int(event.split()[1]) for event in diary.events if event.startswith(kind)]
        assert len(steps) == len(set(steps)) == (6 if kind == "save" else 12)


def test_it_goes_on_from_the_steps_that_are_done():
    diary = Diary()
    train(diary, 5, first_step=3)
    assert [event for event in diary.events if "dispatch" in event] == ["dispatch 4", "dispatch 5"]


def test_after_sigterm_it_saves_at_once_and_says_so():
    diary = Diary(terminate_at=2)
    with pytest.raises(Preempted, match="stopped after step 2, saved"):
        train(diary, 5)
    assert diary.events[-4:] == ["read 2", "save 2", "clock", "wait"]


@pytest.mark.parametrize("step", [2, 5])
def test_after_sigterm_a_validation_that_is_due_is_left_to_the_next_run(step):
    """Also at the last step: otherwise the stage would end without its best checkpoint."""
    diary = Diary(terminate_at=step)
    with pytest.raises(Preempted):
        train(diary, 5, validate=2)
    assert diary.events[-3:] == [f"save {step}", "clock", "wait"]
    assert f"validate {step}" not in diary.events

    again = Diary(validated=[4])
    train(again, 5, first_step=step, validate=2)
    assert again.events[:4] == [
        f"validate {step}",
        f"log {step}",
        f"add losses {step}",
        "clock",
    ]


@pytest.mark.parametrize("first_step", [0, 3, 4])
def test_it_makes_up_for_nothing_that_was_not_due_or_is_done(first_step):
    diary = Diary(validated=[4])
    train(diary, 5, first_step=first_step, validate=2)
    assert f"validate {first_step}" not in diary.events


def test_after_sigterm_during_the_last_validation_it_stops_before_the_next_stage():
    diary = Diary(terminate_at="validate 3")
    with pytest.raises(Preempted, match="stopped after the last step, 3, saved"):
        train(diary, 3)
    assert diary.events[-3:] == ["save 3 with losses", "clock", "wait"]


def test_after_sigterm_during_a_validation_it_stops_after_the_next_step():
    diary = Diary(terminate_at="validate 2")
    with pytest.raises(Preempted, match="after step 3"):
        train(diary, 9, validate=2)
    assert "save 2 with losses" in diary.events


@pytest.mark.parametrize("metrics", [{"loss": np.nan}, {"loss": 1.0, "grad_norm": np.inf}], ids=str)
def test_a_step_that_is_not_finite_ends_it_when_it_is_read(metrics):
    """The next step is dispatched by then, and its results are dropped."""
    diary = Diary(metrics={2: metrics})
    ((name, value),) = (pair for pair in metrics.items() if not np.isfinite(pair[1]))
    with pytest.raises(CalrecError, match=f"^step 2: {{'{name}': {value}}}, batch 1$"):
        train(diary, 9)
    assert diary.events == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3"]


@pytest.mark.parametrize("due", [{"validate": 2}, {"save": 2}, {"terminate_at": 2}], ids=str)
def test_it_is_not_saved_where_that_is_due(due):
    diary = Diary(metrics={2: {"loss": np.nan}}, terminate_at=due.pop("terminate_at", None))
    with pytest.raises(CalrecError, match="^step 2: {'loss': nan}, batch 1$"):
        train(diary, 9, **due)
    assert diary.events == ["dispatch 1", "dispatch 2", "read 1"]


@pytest.mark.parametrize("due", [{"validate": 2}, {"save": 2}, {"terminate_at": 2}], ids=str)
def test_an_update_that_overflows_is_not_saved(due):
    diary = Diary(overflow=2, terminate_at=due.pop("terminate_at", None))
    with pytest.raises(CalrecError, match="^step 2: {'the updated state': nan}, batch 1$"):
        train(diary, 9, **due)
    assert diary.events == ["dispatch 1", "dispatch 2", "read 1", "read 2"]


@pytest.mark.parametrize("first_step", [0, 2])
def test_a_validation_that_is_not_finite_ends_it(first_step):
    """Also one that the last run left to this one."""
    diary = Diary(losses={2: np.inf})
    with pytest.raises(CalrecError, match="^step 2: {'validation loss': inf}, batch None$"):
        train(diary, 9, first_step=first_step, validate=2)
    assert diary.events[-1] == "validate 2"


def test_a_hidden_transfer_in_the_step_is_an_error():
    class Careless(Diary):
        def train_step(self, state, batch):
            return self._add(state, np.int32(1)), {"n": 1}

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(Careless(), 1)


def test_batches_that_end_too_early_are_an_error():
    with pytest.raises(CalrecError, match="the training batches ended at step 3 of 5"):
        train(Diary(), 5, batches=[jnp.int32(1)] * 2)
