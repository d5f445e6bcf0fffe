import gc
import subprocess
import sys

import pytest

from schemabank.common.garbage import importing, uncollected

IMPORTING = """
import gc, sys
from schemabank.common.garbage import importing
if sys.argv[1] == "later":
    sys.modules["torch"] = sys
with importing():
    assert not gc.isenabled()
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""
ENDING = """
import atexit, sys
from schemabank.common.garbage import look_no_more_at_the_end
class Circle:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("freed")
if sys.argv[1] == "quickly":
    look_no_more_at_the_end()
atexit.register(print, "at exit")
Circle()
print("done")
sys.exit(3)
"""


def said(program: str, argument: str, *, code: int = 0) -> list[str]:
    """What a process of its own prints."""
    call = [sys.executable, "-c", program, argument]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("was_enabled", [True, False])
def test_nothing_is_collected_meanwhile_and_then_as_before(*, was_enabled: bool) -> None:
    if not was_enabled:
        gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == was_enabled
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() == was_enabled
    finally:
        gc.enable()


def test_what_a_new_process_imports_is_never_looked_at() -> None:
    assert said(IMPORTING, "first") == ["True True"]


def test_a_process_that_had_imported_torch_may_hold_garbage_which_stays_to_be_found() -> None:
    assert said(IMPORTING, "later") == ["True False"]


def test_an_import_that_fails_leaves_all_as_it_was() -> None:
    frozen = gc.get_freeze_count()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, frozen)


@pytest.mark.parametrize(("how", "at_last"), [("as ever", ["freed"]), ("quickly", [])])
def test_a_process_ends_as_ever_but_for_a_last_look_for_garbage(
    how: str, at_last: list[str]
) -> None:
    assert said(ENDING, how, code=3) == ["done", "at exit", *at_last]
