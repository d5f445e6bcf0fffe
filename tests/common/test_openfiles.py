import resource

import pytest

from schemabank.common.errors import InputError
from schemabank.common.openfiles import SPARE, allow_open_files

MOST = 5000


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process's own bound at first, and all that it was raised to."""
    found = [1024]

    def raised(_: int, both: tuple[int, int]) -> None:
        if both[0] > MOST:
            raise ValueError("not allowed to raise maximum limit")
        found.append(both[0])

    monkeypatch.setattr(resource, "getrlimit", lambda _: (found[-1], MOST))
    monkeypatch.setattr(resource, "setrlimit", raised)
    return found


def test_the_bound_is_raised_as_far_as_it_has_to_be(bounds: list[int]) -> None:
    for count in (300, 2000, 300):
        allow_open_files(count, what="a cohort", mend="")
    assert bounds == [1024, 2000 + SPARE]


def test_more_than_the_system_allows_is_refused(bounds: list[int]) -> None:
    said = r"^a cohort has 5,000 files open at once, but the system allows 5,000 in all: use fewer$"
    with pytest.raises(InputError, match=said):
        allow_open_files(5000, what="a cohort", mend="use fewer")
    assert bounds == [1024]
