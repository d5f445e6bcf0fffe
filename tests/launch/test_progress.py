from pathlib import Path

import pytest

from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.progress import RoundProgress
from schemabank.launch.queue import Queue, Record
from schemabank.launch.rounds import Round, Unit, open_round
from tinyruns import Notes

RUNS = [RunConfig(arm="lora", seed=seed) for seed in (1, 2, 3)]


def opened(out: Path) -> Round:
    return open_round(RUNS, out, planned=RUNS, num_workers=2, lease_s=9.0)


def decide(found: Round) -> None:
    found.decide([Unit(str(number), [run_id(run)], [], 1) for number, run in enumerate(RUNS)])


def do(found: Round, name: str) -> None:
    lease = found.queue.claim(name)
    assert lease is not None
    lease.done({"failed": []})


def test_units_are_told_once_whoever_does_them(tmp_path: Path) -> None:
    found, notes = opened(tmp_path), Notes()
    progress = RoundProgress(found, notes, 2)
    assert progress.done() == []
    assert (notes.lines, progress.is_over()) == ([], False)
    decide(found)
    do(found, "1")
    assert [unit.name for unit in progress.done()] == ["1"]
    assert progress.done() == []
    do(found, "0")
    do(found, "2")
    assert [unit.name for unit in progress.done()] == ["0", "2"]
    assert progress.is_over()
    assert (notes.lines, notes.done) == (["3 runs in 3 parts: 3"], 3)


def test_a_round_that_another_call_has_removed_is_over(tmp_path: Path) -> None:
    found = opened(tmp_path)
    progress = RoundProgress(found, Notes(), 2)
    decide(found)
    progress.done()
    found.remove()
    assert progress.is_over()


def test_workers_that_have_nothing_to_do_are_told(tmp_path: Path) -> None:
    found, notes = opened(tmp_path), Notes()
    decide(found)
    RoundProgress(found, notes, 5).done()
    assert notes.lines[1].startswith("2 of 5 workers have nothing to do")


def test_a_look_asks_only_for_units_that_were_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be thousands, each a few questions to a file system of the network."""
    found, asked, record = opened(tmp_path), list[str](), Queue.record

    def counted(queue: Queue, unit: str) -> Record | None:
        asked.append(unit)
        return record(queue, unit)

    monkeypatch.setattr(Queue, "record", counted)
    decide(found)
    do(found, "1")
    asked.clear()
    RoundProgress(found, Notes(), 2).done()
    assert asked == ["1"]
