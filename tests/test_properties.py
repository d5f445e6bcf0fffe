"""Properties draw the same examples for everybody; only exploration draws new ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from properties import SOAK_FACTOR_VARIABLE, examples

TESTS = Path(__file__).parent
PROPERTY = """
from hypothesis import given, strategies as st
from properties import examples

@examples(7)
@given(number=st.integers())
def test_drawn(number):
    print("drew", number)
"""


def drawn(folder: Path, *options: str, **environment: str) -> list[str]:
    """The lines in which a property of its own says what it drew, in a process of its own."""
    (folder / "test_drawn.py").write_text(PROPERTY)
    (folder / "conftest.py").write_text("import properties\nproperties.register_profiles()\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *options, folder],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("drew")]


def test_properties_draw_the_same_examples_in_every_process(tmp_path: Path) -> None:
    first, second = drawn(tmp_path), drawn(tmp_path)
    assert first == second
    assert len(first) == 7


def test_exploration_draws_others_and_more(tmp_path: Path) -> None:
    soak = "--hypothesis-profile=soak"
    first, second = (drawn(tmp_path, soak, **{SOAK_FACTOR_VARIABLE: "9"}) for _ in range(2))
    assert first != second
    assert len(first) == len(second) == 63


def test_settings_of_a_single_test_keep_the_profile() -> None:
    if not settings.default.derandomize:
        pytest.skip("this is an exploration")
    for found in (settings(max_examples=5), examples(5), settings(examples(5), deadline=9)):
        assert found.derandomize
        assert found.print_blob
        assert found.database is None
        assert found.max_examples == 5


def test_no_property_here_draws_freely(request: pytest.FixtureRequest) -> None:
    """Of all tests of this process that are properties."""
    if not settings.default.derandomize:
        pytest.skip("this is an exploration")

    @given(st.none())
    def marked(value: None) -> None:
        del value

    name = next(n for n in vars(marked) if n.endswith("use_settings"))
    loose = [
        item.nodeid
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and (own := getattr(item.obj, name, None)) is not None
        and not (own.derandomize and own.print_blob and own.database is None)
    ]
    assert loose == []
