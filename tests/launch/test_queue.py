"""Several processes on one folder: here each is a queue of its own, as they share nothing else."""

import errno
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.launch.queue import End, Lease, Queue, Record, beating, publish, share

LEASE_S = 0.4
LONG_S = 2.0  # of a lease that no busy machine may let lapse
DONE: Record = {"failed": []}


def never() -> None:
    raise AssertionError("a lease was lost")


def taken(queue: Queue, unit: str) -> Lease:
    lease = queue.claim(unit)
    assert lease is not None
    return lease


def test_a_unit_is_held_by_one_and_done_once(tmp_path: Path) -> None:
    ours, theirs = Queue(tmp_path, LEASE_S), Queue(tmp_path, LEASE_S)
    lease = taken(ours, "a")
    assert theirs.claim("a") is None
    assert taken(theirs, "b").unit == "b"
    lease.done({"failed": [{"run_id": "x"}]})
    assert theirs.record("a") == {"failed": [{"run_id": "x"}]}
    assert ours.claim("a") is theirs.claim("a") is None


def test_who_is_silent_loses_the_unit_and_what_he_says_of_it(tmp_path: Path) -> None:
    ours, theirs = Queue(tmp_path, LEASE_S), Queue(tmp_path, LEASE_S)
    lost = taken(ours, "a")
    assert theirs.claim("a") is None
    time.sleep(LEASE_S)
    lease = taken(theirs, "a")
    assert (lost.is_ours(), lease.is_ours(), lease.number) == (False, True, 2)
    lost.done({"failed": [{"run_id": "x"}]})
    lost.beat(7)
    assert ours.record("a") is None
    lease.done(DONE)
    assert ours.record("a") == DONE


def test_who_is_heard_keeps_the_unit(tmp_path: Path) -> None:
    ours, theirs = Queue(tmp_path, LONG_S), Queue(tmp_path, LONG_S)
    with beating(taken(ours, "a"), LONG_S, never):
        until = time.monotonic() + 1.5 * LONG_S
        while time.monotonic() < until:
            assert theirs.claim("a") is None
            time.sleep(LONG_S / 10)
    assert theirs.claim("a") is None
    time.sleep(LONG_S)
    assert taken(theirs, "a").number == 2


def test_a_holder_is_told_that_another_has_the_unit(tmp_path: Path) -> None:
    told = threading.Event()
    lease = taken(Queue(tmp_path, LEASE_S), "a")
    with beating(lease, LEASE_S, told.set):
        (lease.folder / "claim-2").touch()
        assert told.wait(10 * LEASE_S)


def test_a_holder_goes_on_to_be_heard_when_the_folder_cannot_be_read_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, is_ours, asked = taken(Queue(tmp_path, LEASE_S), "a"), Lease.is_ours, threading.Event()

    def stale(lease: Lease) -> bool:
        if not asked.is_set():
            asked.set()
            raise OSError(errno.ESTALE, "Stale file handle")
        return is_ours(lease)

    monkeypatch.setattr(Lease, "is_ours", stale)
    until = time.monotonic() + 100 * LEASE_S
    with beating(ours, LEASE_S, never):
        while not (ours.folder / "beat-1").exists():
            assert time.monotonic() < until
            time.sleep(LEASE_S / 10)


def test_work_that_another_has_taken_over_is_not_told(tmp_path: Path) -> None:
    told: list[str] = []

    def work(lease: Lease) -> Record:
        (lease.folder / "claim-2").touch()
        (lease.folder / "done-2").write_text('{"failed": []}')
        return {"failed": [{"run_id": "x"}]}

    share(Queue(tmp_path, 1000.0), ["a"], work, pause_s=0, on_lost=lambda: told.append("lost"))
    assert set(told) == {"lost"}
    assert not (tmp_path / "a" / "done-1").exists()


@pytest.mark.parametrize(
    ("error", "crashes"),
    [(RuntimeError, 1), (InputError, 0), (SystemExit, 0), (KeyboardInterrupt, 0)],
)
def test_what_a_worker_raises_gives_the_unit_free_at_once(
    error: type[BaseException], crashes: int, tmp_path: Path
) -> None:
    ours, theirs = Queue(tmp_path, 1000.0), Queue(tmp_path, 1000.0)

    def work(_: Lease) -> Record:
        raise error("of this unit")

    with pytest.raises(error):
        share(ours, ["a"], work, pause_s=0, on_lost=never)
    assert len(list((tmp_path / "a").glob("crashed-*"))) == crashes
    assert taken(theirs, "a").number == 2


def begun(queue: Queue, kept: str, how: End | None = None, *, by: str = "me") -> Lease:
    """Claim a unit whose holder has ended, and say what of it is kept."""
    lease = taken(queue, "a")
    lease.begin(by, {"run": kept})
    if how is not None:
        lease.end(how)
    return lease


def test_holders_count_as_lost_in_vain_until_more_of_the_unit_is_kept(tmp_path: Path) -> None:
    queue = Queue(tmp_path, 0.0)  # who says nothing is silent at once
    for how in ("crashed", "crashed", None, "lost"):
        begun(queue, "step-2", how)
    begun(queue, "step-2")
    assert queue.in_vain("a") == {"crashed": 2, None: 1, "lost": 1}
    begun(queue, "step-4", "crashed")
    assert queue.in_vain("a") == {}
    begun(queue, "step-4", "left")
    begun(queue, "step-4")
    assert queue.in_vain("a") == {}, "one that was asked to end breaks the row"
    taken(queue, "a")  # killed before it could say anything
    begun(queue, "step-4")
    assert queue.in_vain("a") == {}


def test_who_started_a_holder_finds_what_it_held(tmp_path: Path) -> None:
    queue = Queue(tmp_path, 0.0)
    assert queue.begun_by("first") == set()
    lost = begun(queue, "nothing", by="first")
    assert queue.begun_by("first") == {"a"}
    assert (queue.held_by("first"), queue.held_by("second")) == ([lost], [])
    lost.end("crashed")
    assert queue.held_by("first") == []
    later = begun(queue, "nothing", by="second")
    later.done(DONE)
    assert queue.held_by("second") == []


def test_many_share_and_each_unit_is_done_once(tmp_path: Path) -> None:
    units = [f"{number:02}" for number in range(40)]
    did: Counter[str] = Counter()
    gone = taken(Queue(tmp_path, LONG_S), "03")  # its holder is never heard of again

    def one() -> None:
        def work(lease: Lease) -> Record:
            did[lease.unit] += 1
            time.sleep(0.002)
            return {"failed": [], "number": lease.number}

        share(Queue(tmp_path, LONG_S), units, work, pause_s=0.01, on_lost=never)

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert did == Counter(units)
    queue = Queue(tmp_path, LONG_S)
    assert {unit: (queue.record(unit) or {}).get("number") for unit in units} == {
        unit: 2 if unit == gone.unit else 1 for unit in units
    }


def test_what_was_published_first_stays(tmp_path: Path) -> None:
    publish(tmp_path / "units.json", {"units": [1]})
    publish(tmp_path / "units.json", {"units": [2]})
    assert read_json(tmp_path / "units.json") == {"units": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["units.json"]
