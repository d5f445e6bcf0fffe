"""Signals that ask a training to end: the first waits until runs are saved, a second does not."""

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from schemabank.runs import leaving
from schemabank.runs.leaving import SIGNALS, Leaving


class TerminatedError(Exception):
    """What the program of these tests does at SIGTERM."""


@pytest.fixture(autouse=True)
def program() -> Iterator[None]:
    """A program that handles SIGTERM itself, as ours does."""

    def ended(*_args: object) -> None:
        raise TerminatedError

    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGTERM, ended)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)]
)
def test_the_first_signal_waits_until_it_is_answered(
    number: int, error: type[BaseException]
) -> None:
    handlers = [signal.getsignal(each) for each in SIGNALS]
    with Leaving() as asking:
        assert asking.asked is None
        asking.leave()
        signal.raise_signal(number)
        assert asking.asked == number
        assert not asking.at_once
        with pytest.raises(error):
            asking.leave()
        assert asking.asked is None
    assert [signal.getsignal(each) for each in SIGNALS] == handlers


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_wait(second: int) -> None:
    with Leaving() as asking:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises((KeyboardInterrupt, TerminatedError)):
            signal.raise_signal(second)
        assert asking.at_once
    assert asking.asked is None


def test_one_that_is_not_answered_in_time_does_not_wait_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leaving, "GRACE_S", 0.05)
    began = time.monotonic()
    with Leaving() as asking:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(TerminatedError):
            time.sleep(60)
    assert asking.at_once
    assert time.monotonic() - began < 30


def test_what_is_done_before_leaving_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "GRACE_S", 0.2)
    with Leaving() as asking:
        signal.raise_signal(signal.SIGTERM)
        asking.answer()
        time.sleep(0.6)
        assert asking.asked == signal.SIGTERM
        with pytest.raises(TerminatedError):
            asking.leave()
        assert not asking.at_once


def test_a_program_that_goes_on_at_a_second_signal_is_saved_again() -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with Leaving() as asking:
        for number in (1, 2):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert told == [signal.SIGTERM] * number
            assert not asking.at_once
            assert asking.asked is None


def test_one_that_comes_when_all_is_over_counts() -> None:
    with pytest.raises(TerminatedError), Leaving():
        signal.raise_signal(signal.SIGTERM)


def test_what_the_program_ignores_or_does_not_handle_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with Leaving() as asking:
        signal.raise_signal(signal.SIGINT)
        assert asking.asked is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_another_thread_changes_nothing() -> None:
    before, found = signal.getsignal(signal.SIGINT), list[object]()

    def other() -> None:
        with Leaving():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [before]
