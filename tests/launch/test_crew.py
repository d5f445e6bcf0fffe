"""The processes of a crew; what they do is a few lines each, without the seconds of an import."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch import crew
from schemabank.launch.crew import Crew, _Hand
from schemabank.launch.rounds import ROUNDS, WORK, Round, Unit, open_round
from schemabank.runs.launched import Launched
from schemabank.runs.progress import SAVING
from tinyruns import Notes

LEASE_S = 2.0
TALK_S = 40.0  # at most; much longer than two leases
# Does what is asked for at the first claim of a unit, and the unit at any other.
WORKER = """
import json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
from schemabank.launch.queue import Queue, share

folder, lease_s, asked = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
SAVING, TALK_S = sys.argv[4], float(sys.argv[5])
print(json.dumps({"note": "ready"}), flush=True)
if asked == "refuse":
    print(json.dumps({"refused": "lora.r is 'x', allowed are numbers"}), flush=True)
    sys.exit(2)
if asked == "plan":
    lease = Queue(folder, 60.0).claim("plan")
    print(json.dumps({"unit": lease.unit, "number": lease.number}), flush=True)
    os._exit(3)
if asked == "nothing":
    sys.exit(0)
if asked == "break" or asked.get("break") == os.environ["NUMBER"]:
    with (folder / "broke").open("a") as file:
        file.write("x")
    sys.exit("no such library")

def do(lease):
    print(json.dumps({"unit": lease.unit, "number": lease.number}), flush=True)
    harm = asked.get(lease.unit) if lease.number == 1 else None
    if harm == "crash":
        os._exit(3)
    if harm == "slow":
        while not (folder / "broke").exists() or (folder / "broke").stat().st_size < 2:
            time.sleep(0.1)
        time.sleep(2)
    if harm == "torn":
        os.write(1, b'{"note": "half a li')
        os.kill(os.getpid(), 9)
    if harm == "talk":
        end = time.monotonic() + TALK_S
        while time.monotonic() < end and not (folder / "seen").exists():
            print(json.dumps({"note": "busy"}), flush=True)
            time.sleep(0.02)
        (folder / ("heard" if time.monotonic() < end else "unheard")).touch()
    if harm == "child":
        subprocess.Popen(["sleep", "60"])
        os._exit(3)
    if asked.get("full"):
        raise OSError(28, "No space left on device")
    if harm in ("deaf", "saving"):
        def told(*_):
            if harm == "saving":
                print(json.dumps({"note": SAVING}), flush=True)
                time.sleep(1.5)
                (folder / "saved").touch()
                os._exit(0)
        signal.signal(signal.SIGTERM, told)
        (folder / "ready").touch()
        time.sleep(60)
    if harm == "hang":
        os.kill(os.getpid(), 19)
    print(json.dumps({"run": lease.unit, "state": "finished", "detail": ""}), flush=True)
    print(json.dumps({"done": lease.unit}), flush=True)
    return {"failed": []}

share(Queue(folder, lease_s), ["1", "2", "3"], do, pause_s=0.05, on_lost=lambda: os._exit(75))
if asked.get("end"):
    if asked["end"] == "gone":
        shutil.rmtree(folder.parent)
    os._exit(3)
"""
RUNS = [RunConfig(arm="lora", seed=seed) for seed in (1, 2, 3)]


def decided(out: Path) -> Round:
    found = open_round(RUNS, out, planned=RUNS, num_workers=2, lease_s=LEASE_S)
    found.decide([Unit(str(n), [run_id(run)], [], 1) for n, run in enumerate(RUNS, start=1)])
    return found


def worked(
    out: Path,
    asked: object,
    monkeypatch: pytest.MonkeyPatch,
    *,
    num_workers: int = 1,
    notes: Notes | None = None,
) -> tuple[Round, Notes]:
    found, notes = decided(out), notes or Notes()
    notes.runs({number: number for number in "123"})

    def command(folder: Path, parent: int, launched: Launched, *, speaks: bool) -> list[str]:
        assert launched == Launched("gpus", num_workers)
        del parent, speaks
        words = [str(folder / WORK), str(LEASE_S), json.dumps(asked), SAVING, str(TALK_S)]
        return [sys.executable, "-c", WORKER, *words]

    monkeypatch.setattr(crew, "command", command)
    environments = [{"NUMBER": str(number)} for number in range(num_workers)]
    Crew(found, environments, notes, launcher="gpus").work()
    return found, notes


def marks(found: Round, what: str) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in found.folder.glob(f"{WORK}/*/{what}-*")}


def test_waiting_for_what_a_lost_call_held_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 0.05)
    for unit in "123":
        assert decided(tmp_path).queue.claim(unit) is not None
    found, notes = worked(tmp_path, {}, monkeypatch)
    said = "still waiting for a worker to begin a part (what others hold is free once silent for"
    assert said in "\n".join(notes.lines)
    assert marks(found, "claim") == {f"{unit}/claim-{number}" for unit in "123" for number in "12"}


def test_nothing_more_is_waited_for_once_all_processes_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "PAUSE_S", 60.0)
    began = time.monotonic()
    found, notes = worked(tmp_path, {}, monkeypatch, num_workers=2)
    assert time.monotonic() - began < 30
    assert marks(found, "done") == {"1/done-1", "2/done-1", "3/done-1"}
    assert notes.states == {number: [("finished", "")] for number in "123"}


def test_one_worker_is_replaced_when_it_crashes_and_when_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, notes = worked(tmp_path, {"1": "crash", "2": "hang"}, monkeypatch)
    assert marks(found, "claim") == {
        "1/claim-1",
        "1/claim-2",
        "2/claim-1",
        "2/claim-2",
        "3/claim-1",
    }
    assert (marks(found, "crashed"), marks(found, "lost")) == ({"1/crashed-1"}, {"2/lost-1"})
    assert marks(found, "done") == {"1/done-2", "2/done-2", "3/done-1"}
    assert notes.done == 3
    assert set(notes.states) == {"1", "2", "3"}
    said = [line for line in notes.lines if line != "ready"]
    assert said == [
        "3 runs in 3 parts: 3",
        "worker 1 was lost (exit code 3: no message), another one is started",
        "worker 1 takes over part 1, which was not done",
        "worker 1 was lost (SIGKILL), another one is started",
        "worker 1 takes over part 2, which was not done",
    ]


class Seeing(Notes):
    """Notes of a user who lets the worker that talks know when something is done."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def advance(self, units: int, detail: str) -> None:
        super().advance(units, detail)
        (found,) = self._folder.glob(f"{ROUNDS}/*/{WORK}")
        (found / "seen").touch()


@pytest.mark.parametrize("harm", ["hang", "child"])
def test_who_always_has_something_to_tell_hides_neither_the_loss_of_another_nor_what_is_done(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As workers that train do: they tell of their steps without a pause."""
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", TALK_S / 2)
    monkeypatch.setattr(crew, "DRAIN_S", 0.5)
    notes = Seeing(tmp_path)
    found, _ = worked(tmp_path, {"1": "talk", "2": harm}, monkeypatch, num_workers=2, notes=notes)
    assert marks(found, "done") == {"1/done-1", "2/done-2", "3/done-1"}
    assert (found.folder / WORK / "heard").exists(), "it did not talk in vain"
    assert sum("another one is started" in line for line in notes.lines) == 1
    assert not any(line.startswith("still") for line in notes.lines)


def test_a_worker_is_not_called_silent_on_what_it_has_done_while_the_screen_stood_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a terminal that was paused."""
    monkeypatch.setattr(crew, "PAUSE_S", 0.05)
    monkeypatch.setattr(crew, "SILENT", 0.05)
    notes, found = Notes(), decided(tmp_path)
    monkeypatch.setattr(notes, "note", lambda _: time.sleep(0.1 * LEASE_S))
    lease = found.queue.claim("1")
    with subprocess.Popen(["sleep", "60"], text=True) as process:
        team, hand = Crew(found, [{}], notes, launcher="gpus"), _Hand(0, process, tmp_path, 0)
        team._hands[0], hand.lease = hand, lease
        team._kill_silent()
        for message in ({"note": "busy"}, {"done": "1"}):
            team._inbox.put((hand, message))
        team._listen()
        team._kill_silent()
        assert not hand.is_killed
        process.kill()


class Interrupting(Notes):
    """Notes of a user who gives up as soon as a worker is ready for it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def note(self, text: str) -> None:
        super().note(text)
        if text == "ready":
            while not list(self._folder.glob(f"{ROUNDS}/*/{WORK}/ready")):
                time.sleep(0.01)
            raise KeyboardInterrupt


@pytest.mark.parametrize(("harm", "saved"), [("deaf", False), ("saving", True)])
def test_who_is_told_to_end_and_does_not_is_killed_but_for_one_that_saves(
    harm: str, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "ENDING_S", 0.5)
    notes, began = Interrupting(tmp_path), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        worked(tmp_path, {"1": harm}, monkeypatch, notes=notes)
    assert bool(list(tmp_path.glob(f"{ROUNDS}/*/{WORK}/saved"))) == saved
    assert time.monotonic() - began < 60


def test_what_a_worker_refuses_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"lora\.r is 'x', allowed are numbers"):
        worked(tmp_path, "refuse", monkeypatch)


def test_workers_that_cannot_begin_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=r"before they begin \(exit code 1: no such library\)"):
        worked(tmp_path, "break", monkeypatch)


def test_workers_that_end_well_and_do_nothing_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as of a package that was replaced while the call ran."""
    with pytest.raises(RuntimeError, match=r"before they begin \(it ended before all was done\)"):
        worked(tmp_path, "nothing", monkeypatch)


@pytest.mark.parametrize("harm", ["torn", "child"])
def test_the_end_of_a_worker_is_seen_whatever_becomes_of_its_pipe(
    harm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a line, or outlived by a child that keeps the pipe open."""
    monkeypatch.setattr(crew, "DRAIN_S", 0.5)
    found, notes = worked(tmp_path, {"1": harm}, monkeypatch)
    assert marks(found, "done") == {"1/done-2", "2/done-1", "3/done-1"}
    assert sum("another one is started" in line for line in notes.lines) == 1


def test_a_worker_that_cannot_begin_is_left_out_while_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one whose GPU is broken: the other one does all."""
    asked = {"break": "1", "1": "slow"}
    found, notes = worked(tmp_path, asked, monkeypatch, num_workers=2)
    assert marks(found, "done") == {"1/done-1", "2/done-1", "3/done-1"}
    assert "worker 2 ends before it begins (exit code 1: no such library): left out" in notes.lines


def test_workers_that_get_nothing_done_are_not_started_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as on a full disk, which takes no record of a unit either."""
    with pytest.raises(RuntimeError, match=r"^6 workers were lost .*No space left on device"):
        worked(tmp_path, {"full": True}, monkeypatch)


@pytest.mark.parametrize("end", ["there", "gone"])
def test_a_worker_that_crashes_when_all_is_done_is_not_replaced(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call may have removed the round by then."""
    _, notes = worked(tmp_path, {"end": end}, monkeypatch)
    assert not any("lost" in line for line in notes.lines)


def test_a_worker_that_is_lost_while_it_plans_gives_that_free_and_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match=r"^workers end before they begin \(exit code 3"):
        worked(tmp_path, "plan", monkeypatch)
    assert [*tmp_path.glob(f"{ROUNDS}/*/{WORK}/plan/crashed-1")]
