"""What only ``make soak`` runs is still there."""

from pathlib import Path

import pytest

from longer import LONGER


@pytest.mark.parametrize("name", sorted(LONGER))
def test_there_is_such_a_test(name: str) -> None:
    file, _, test = name.partition("::")
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert f"def {test.partition('[')[0]}(" in text
