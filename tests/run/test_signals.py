"""Ctrl-C and SIGTERM are deferred to a consistent point."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from adadelta_cli.run import signals


@pytest.fixture(autouse=True)
def terminated():
    """Let SIGTERM raise, as the program does."""

    def terminate(_number, _frame):
        raise SystemExit

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def work_while(numbers, done, *, released=True):
    """Take two steps, the first of which gets these signals."""
    with signals.defer_signals() as release:
        for step in (1, 2):
            if released:
                release()
            for number in numbers if step == 1 else ():
                os.kill(os.getpid(), number)
            done.append(step)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_waits_until_it_is_released(number, error):
    """The work goes on to the next whole moment; then the handler from before is called."""
    done = []
    with pytest.raises(error):
        work_while([number], done)
    assert done == [1]


def test_a_signal_that_was_not_released_comes_at_the_end():
    """None is lost."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        work_while([signal.SIGINT], done, released=False)
    assert done == [1, 2]


def test_a_second_signal_does_not_wait():
    """The user wants the program to end now."""
    done = []
    with pytest.raises(KeyboardInterrupt):
        work_while([signal.SIGINT, signal.SIGINT], done)
    assert not done


def test_the_handlers_are_as_before():
    """After the block both signals act as they did."""
    before = [signal.getsignal(each) for each in signals.SIGNALS]
    with signals.defer_signals():
        assert [signal.getsignal(each) for each in signals.SIGNALS] != before
    assert [signal.getsignal(each) for each in signals.SIGNALS] == before


def test_another_thread_defers_nothing():
    """Handlers belong to the main thread; elsewhere the block does nothing, and raises nothing."""
    outcome = []

    def work():
        with signals.defer_signals() as release:
            release()
            outcome.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == ["done"]
