"""Progress as plain lines: not too many, and right however slow the start is."""

import time
from collections.abc import Callable

import pytest

from schemabank.progress import LineReporter


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def set_clock(seconds: float) -> None:
        now[0] = 100 + seconds

    return set_clock


def test_lines_are_rare_and_tell_how_long_it_takes(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    reporter = LineReporter(every_s=10)
    reporter.start("train", 40)
    for second in range(1, 25):
        at(second)
        reporter.advance(1, f"step {second}")
    at(30)
    reporter.finish()
    assert capsys.readouterr().err.splitlines() == [
        "train: 10/40, step 10, 30 s left",
        "train: 20/40, step 20, 20 s left",
        "train: 24/40, step 24, 30 s",
    ]


def test_a_slow_start_is_no_error(
    at: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoding reports every few tokens, when no answer may be done."""
    reporter = LineReporter(every_s=10)
    reporter.start("evaluate", 4)
    for second, units in ((12, 0), (24, 1)):
        at(second)
        reporter.advance(units, "")
    assert capsys.readouterr().err.splitlines() == [
        "evaluate: 0/4, 12 s so far",
        "evaluate: 1/4, 72 s left",
    ]
