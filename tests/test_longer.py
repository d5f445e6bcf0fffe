"""What only ``make soak`` runs is still there, parameters and all."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from longer import LONGER, SEEN

TESTS = Path(__file__).parent
FILES = sorted({name.partition("::")[0] for name in LONGER})


@cache
def collected() -> frozenset[str]:
    """The tests of all these files, as another process finds them."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, "-m", "soak or not soak", *(TESTS / file for file in FILES)],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return frozenset(line.removeprefix("tests/") for line in found.stdout.splitlines())


@pytest.mark.parametrize("file", FILES)
def test_there_are_such_tests(file: str) -> None:
    """Where all tests are run, this process has seen them."""
    missing = {name for name in LONGER if name.startswith(f"{file}::")} - SEEN
    if missing:
        missing -= collected()
    assert not missing
