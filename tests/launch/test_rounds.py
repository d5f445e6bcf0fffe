from pathlib import Path

from schemabank.common.failure import Failure
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.launch.queue import publish
from schemabank.launch.rounds import ROUNDS, UNITS, Round, failed_rows, open_round, read_round
from schemabank.runs.members import Outcome

RUNS = [RunConfig(arm="lora", seed=1), RunConfig(arm="schemabank", seed=2)]
NAMES = [run_id(run) for run in RUNS]
FULL = Failure("disk", "No space left on device")


def opened(out: Path, *, num_workers: int = 2) -> Round:
    return open_round(RUNS, out, planned=RUNS, num_workers=num_workers, lease_s=9.0)


def decided(found: Round) -> None:
    rows = [
        {"name": name, "runs": [name], "planned": NAMES, "slots": 1} for name in reversed(NAMES)
    ]
    publish(found.folder / UNITS, {"units": rows})


def do(found: Round, name: str, failure: Failure | None = None) -> None:
    queue = found.queue
    lease = queue.claim(name)
    assert lease is not None
    place = found.out / f"{name}.unfinished-1"
    inputs = {"data": "abc"}
    ended = Outcome(place, None, failure=failure, inputs=inputs, kept="a checkpoint")
    lease.done(failed_rows({name: ended}))


def test_a_round_is_read_by_others_as_it_was_opened(tmp_path: Path) -> None:
    found = opened(tmp_path)
    assert list(found.configs) == NAMES
    assert list(found.configs.values()) == RUNS
    assert read_round(found.folder) == found
    assert opened(tmp_path, num_workers=7) == found, "a round under way stays as it is"
    assert found.units() is None
    decided(found)
    assert [unit.name for unit in found.units() or ()] == NAMES[::-1]


def test_failures_are_told_as_they_were_and_tried_again_in_the_next_round(tmp_path: Path) -> None:
    found = opened(tmp_path)
    decided(found)
    do(found, NAMES[0], FULL)
    assert not found.is_over(found.queue)
    assert opened(tmp_path) == found
    do(found, NAMES[1])
    assert found.is_over(found.queue)
    failed, gone = found.outcomes(RUNS).values()
    assert failed.failure == FULL
    assert (failed.folder, failed.kept) == (tmp_path / f"{NAMES[0]}.unfinished-1", "a checkpoint")
    assert failed.inputs == {"data": "abc"}
    assert gone.failure is not None
    assert "was removed after its run was finished" in gone.failure.message
    again = opened(tmp_path, num_workers=7)
    assert (again.num_workers, again.units()) == (7, None)
    assert [path.name for path in (tmp_path / ROUNDS).iterdir()] == [again.folder.name]
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_other_runs_have_a_round_of_their_own(tmp_path: Path) -> None:
    found = opened(tmp_path)
    other = open_round(RUNS[:1], tmp_path, planned=RUNS, num_workers=2, lease_s=9.0)
    assert other.folder != found.folder
    assert (list(other.configs), other.wanted) == (NAMES, NAMES[:1])
    found.remove()
    assert other.folder.exists()
