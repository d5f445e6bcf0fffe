"""How long the rest takes is told by the last minute, and not by what is done but once."""

import pytest

from schemabank.runs.progress.phase import Phase


def test_nothing_is_said_before_there_is_a_pace() -> None:
    phase = Phase(100)
    assert phase.left_s(0) is None
    phase.advance(1, 80)  # it was compiled
    assert phase.left_s(80) is None
    assert phase.left_s(81) is None


def test_what_is_compiled_at_the_start_does_not_count() -> None:
    phase = Phase(1001)
    for second in range(81):
        phase.advance(1, 80 + second)
    assert phase.left_s(160) == pytest.approx(920)


def test_a_slower_pace_shows_within_a_minute() -> None:
    phase = Phase(10_000)
    for second in range(1, 601):
        phase.advance(10 if second <= 500 else 1, second)
    assert phase.left_s(600) == pytest.approx(10_000 - phase.done, rel=0.02)


def test_many_short_steps_keep_few_samples() -> None:
    phase = Phase(10**6)
    for step in range(100_000):
        phase.advance(1, step / 1000)
    assert len(phase._samples) < 100
    assert phase.left_s(100) == pytest.approx(900, rel=0.02)


def test_what_is_done_takes_no_time() -> None:
    phase = Phase(2)
    phase.advance(2, 5)
    assert phase.left_s(5) == 0


def test_a_phase_of_nothing_is_done() -> None:
    assert Phase(0).left_s(0) == 0


def test_what_stands_still_takes_ever_longer() -> None:
    phase = Phase(100)
    for second in range(1, 11):
        phase.advance(1, second)
    assert phase.left_s(10) == pytest.approx(90)
    assert phase.left_s(100) == pytest.approx(990)
