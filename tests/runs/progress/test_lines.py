"""Progress as plain lines: not too many, and right however slow the start is."""

import time
from collections.abc import Callable

import pytest

from schemabank.runs.progress import LineReporter
from schemabank.runs.progress import reporter as choose
from schemabank.runs.progress.live import LiveReporter


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
        "evaluate: 1/4, 36 s left",
    ]


def test_a_line_is_said_whenever_a_run_ends(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = LineReporter()
    reporter.runs({"a": "lora seed 1", "b": "lora seed 2", "c": "base"})
    reporter.runs({"d": "lora seed 3"})
    reporter.run_state("c", "reused")
    reporter.run_steps([])
    reporter.run_state("a", "evaluating")
    reporter.run_state("a", "finished", "correct 0.500 all")
    reporter.run_state("b", "failed", "no finite gradient\nin 3 steps")
    reporter.run_state("d", "finished")
    assert capsys.readouterr().err.splitlines() == [
        "lora seed 1: finished, correct 0.500 all, 2 of 4 runs",
        "lora seed 2: failed, no finite gradient in 3 steps, 3 of 4 runs",
        "lora seed 3: finished, 4 of 4 runs",
    ]


@pytest.mark.parametrize("terminal", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", terminal)
    with choose() as chosen:
        assert isinstance(chosen, LineReporter)
    monkeypatch.setenv("TERM", "xterm")
    with choose() as chosen:
        assert isinstance(chosen, LiveReporter)
