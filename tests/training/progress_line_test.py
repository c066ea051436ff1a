"""The rates that the line of progress shows."""

from calrec_jax.training.progress_line import ProgressLine

METRICS = {"examples": 10.0, "tokens": 100.0}


def test_rates_leave_out_validation_and_saving(clock):
    progress = ProgressLine("stage1", 0, 10)
    clock.now += 2.0
    progress.update(1, METRICS)
    clock.now += 50.0  # validation
    progress.restart_clock()
    clock.now += 3.0
    assert progress.update(2, METRICS) == {
        "examples_per_second": 20 / 5.0,
        "tokens_per_second": 200 / 5.0,
    }


def test_the_rates_are_those_of_this_process(clock):
    clock.now += 1000.0  # before it started
    progress = ProgressLine("stage1", 500, 1000)
    clock.now += 1.0
    assert progress.update(501, METRICS)["examples_per_second"] == 10.0
