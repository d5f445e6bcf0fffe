import pytest

from schemabank.common.durations import duration


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
