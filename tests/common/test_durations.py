from types import SimpleNamespace

import pytest

from schemabank.common import durations
from schemabank.common.durations import Stopwatch, duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.6, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (3600, "60 min"),
        (7200, "2 h"),
        (100_000, "28 h"),
        (172_800, "2 days"),
        (86_400_000, "1,000 days"),
    ],
)
def test_a_duration_is_in_the_largest_unit_of_which_there_are_two(
    seconds: float, words: str
) -> None:
    assert duration(seconds) == words


def test_a_stopwatch_adds_up_what_runs_also_if_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.5, 100.0, 100.25])
    monkeypatch.setattr(durations, "time", SimpleNamespace(monotonic=lambda: next(now)))
    watch = Stopwatch()
    with watch.running():
        pass
    assert watch.took_s == 2.5
    with pytest.raises(KeyError), watch.running():
        raise KeyError
    assert watch.took_s == 2.75
