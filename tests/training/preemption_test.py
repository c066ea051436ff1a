"""SIGTERM as a flag that the loop reads."""

import os
import signal
import threading

from calrec_jax.training.preemption import PreemptionNotice


def test_sigterm_is_a_flag_inside_and_what_it_was_before_outside():
    before = signal.getsignal(signal.SIGTERM)
    with PreemptionNotice() as notice:
        assert not notice.received()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.received() and notice.received()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_notice_starts_without_the_one_before():
    with PreemptionNotice():
        os.kill(os.getpid(), signal.SIGTERM)
    with PreemptionNotice() as notice:
        assert not notice.received()


def test_a_thread_that_may_not_set_handlers_trains_without():
    found = []

    def elsewhere():
        with PreemptionNotice() as notice:
            found.append(notice.received())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]


def test_with_several_processes_the_numbers_only_grow_over_stages(monkeypatch):
    """JAX agrees on a number that no process has passed yet; each stage begins at step 1."""
    passed = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point",
        lambda number: passed.append(number) or len(passed) == 5,
    )
    answers = []
    for _ in ("stage1", "stage2"):
        with PreemptionNotice() as notice:
            answers += [notice.received() for _ in range(3)]
    assert passed == list(range(passed[0], passed[0] + 6))
    assert answers == [False] * 4 + [True, False]
