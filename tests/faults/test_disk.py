"""What a disk may hold after a power loss: what was waited for is there, all else may be."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from faults.disk import ORDERS, Order, Recorded, left_after, put, recorded
from faults.shim import VARIABLE, Event, Watch, built, can_build, read_log

TOP = Path("/top")
OLD, NEW = b"old" * 40, b"new" * 40
CARELESS = """
import sys
from pathlib import Path
place = Path(sys.argv[1])
for text in ("old" * 40, "new" * 40):
    (place / "partial").write_text(text)
    (place / "partial").replace(place / "file")
"""
CAREFUL = """
import sys
from pathlib import Path
from schemabank.common.writing import whole_file
for text in ("old" * 40, "new" * 40):
    with whole_file(Path(sys.argv[1]) / "file") as partial:
        partial.write_text(text)
"""


def log(*rows: tuple[str, str] | tuple[str, str, bytes | str]) -> Recorded:
    """What a program did: an operation, a path, and contents or another path."""
    events = []
    for number, (what, path, *more) in enumerate(rows, 1):
        own = more[0] if more else b""
        other = f"/top/{own}" if isinstance(own, str) else ""
        content = own if isinstance(own, bytes) else b""
        place = f"/top/{path}" if path else "/top"
        events.append(Event(number, what, place, other, "", 0, content))
    return recorded(events, TOP)


def states(
    record: Recorded, at: int, orders: tuple[Order, ...] = tuple(ORDERS)
) -> list[dict[str, bytes | None]]:
    found = []
    for seed in range(60):
        for order in orders:
            state = left_after(record, at, order, random.Random(seed))
            if state not in found:
                found.append(state)
    return found


def test_what_nobody_waited_for_may_be_there_in_any_part() -> None:
    record = log(("create", "a"), ("write", "a", b"12345678"))
    found = states(record, 2)
    assert {} in found
    assert {"a": b""} in found
    assert {"a": b"12345678"} in found
    assert {"a": bytes(8)} in found
    assert any(0 < len(state.get("a") or b"") < 8 for state in found)


def test_contents_are_kept_by_a_sync_of_the_file_and_names_by_one_of_the_folder() -> None:
    begun = (("create", "a"), ("write", "a", b"1234"))
    of_file = states(log(*begun, ("fsync", "a")), 3)
    assert sorted(map(str, of_file)) == sorted(map(str, [{}, {"a": b"1234"}]))
    of_both = states(log(*begun, ("fsync", "a"), ("fsync", "")), 4)
    assert of_both == [{"a": b"1234"}]


def test_a_sync_keeps_nothing_before_it_has_ended() -> None:
    record = log(("create", "a"), ("write", "a", b"1234"), ("fsync", "a"), ("fsync", ""))
    assert {} in states(record, 3)
    assert {"a": b""} in states(record, 2)


def test_a_rename_is_there_for_both_names_or_for_none() -> None:
    steps = [("create", "a"), ("write", "a", b"1"), ("fsync", "a"), ("fsync", "")]
    found = states(log(*steps, ("rename", "a", "b")), 5)  # type: ignore[arg-type]
    assert sorted(map(str, found)) == sorted(map(str, [{"a": b"1"}, {"b": b"1"}]))


def test_what_lies_in_a_folder_without_a_name_is_gone() -> None:
    record = log(
        ("mkdir", "f"), ("create", "f/a"), ("write", "f/a", b"1"), ("fsync", "f/a"), ("fsync", "f")
    )
    assert {} in states(record, 5)
    assert {"f": None, "f/a": b"1"} in states(record, 5)
    assert not any("f" in state and "f/a" not in state for state in states(record, 5))


def test_names_in_order_end_at_one_moment() -> None:
    record = log(("create", "a"), ("create", "b"))
    assert {"b": b""} not in states(record, 2, ("names in order",))
    assert {"b": b""} in states(record, 2, ("any",))


def test_states_are_written_as_they_are(tmp_path: Path) -> None:
    put({"f": None, "f/a": b"1", "e": None}, tmp_path)
    assert (tmp_path / "f" / "a").read_bytes() == b"1"
    assert list((tmp_path / "e").iterdir()) == []


@pytest.mark.skipif(not can_build(), reason="needs a C compiler")
@pytest.mark.parametrize(("program", "is_safe"), [(CARELESS, False), (CAREFUL, True)])
def test_a_file_that_is_replaced_is_old_or_new_only_if_it_was_waited_for(
    program: str, is_safe: bool, tmp_path: Path
) -> None:
    """So a program that forgets to wait is found out."""
    (tmp_path / "watched").mkdir()
    watch = Watch(tmp_path / "watch", tmp_path / "watched", log=tmp_path / "log")
    environment = {**os.environ, "LD_PRELOAD": str(built(tmp_path)), VARIABLE: str(watch.file)}
    command = [sys.executable, "-c", program, str(tmp_path / "watched")]
    subprocess.run(command, env=environment, check=True, timeout=120)
    events = list(read_log(tmp_path / "log"))
    record = recorded(events, tmp_path / "watched")
    found = [state.get("file") for event in events for state in states(record, event.number)]
    assert {OLD, NEW} <= set(found)
    assert all(content in (None, OLD, NEW) for content in found) == is_safe
