"""How long the rest takes is told by the last minute, and not by what is done but once."""

import pytest

from schemabank.runs.progress.pace import PhaseProgress


def test_nothing_is_said_before_there_is_a_pace() -> None:
    pace = PhaseProgress(100)
    assert pace.left_s(0) is None
    pace.advance(1, 80)  # it was compiled
    assert pace.left_s(80) is None
    assert pace.left_s(81) is None


def test_what_is_compiled_at_the_start_does_not_count() -> None:
    pace = PhaseProgress(1001)
    for second in range(81):
        pace.advance(1, 80 + second)
    assert pace.left_s(160) == pytest.approx(920)


def test_a_slower_pace_shows_within_a_minute() -> None:
    pace = PhaseProgress(10_000)
    for second in range(1, 601):
        pace.advance(10 if second <= 500 else 1, second)
    assert pace.left_s(600) == pytest.approx(10_000 - pace.done, rel=0.02)


def test_many_short_steps_keep_few_samples() -> None:
    pace = PhaseProgress(10**6)
    for step in range(100_000):
        pace.advance(1, step / 1000)
    assert len(pace._samples) < 100
    assert pace.left_s(100) == pytest.approx(900, rel=0.02)


def test_what_is_done_takes_no_time() -> None:
    pace = PhaseProgress(2)
    pace.advance(2, 5)
    assert pace.left_s(5) == 0


def test_a_phase_of_nothing_is_done() -> None:
    assert PhaseProgress(0).left_s(0) == 0


def test_what_stands_still_takes_ever_longer() -> None:
    pace = PhaseProgress(100)
    for second in range(1, 11):
        pace.advance(1, second)
    assert pace.left_s(10) == pytest.approx(90)
    assert pace.left_s(100) == pytest.approx(990)
