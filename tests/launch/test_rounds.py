import errno
import os
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.common.files import read_json
from schemabank.config.file import run_id
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.launch import rounds
from schemabank.launch.rounds import ROUNDS, UNITS, Round, Unit, failed_rows, open_round, read_round
from schemabank.runs.folder import RESULT
from schemabank.runs.members import Outcome

RUNS = [RunConfig(arm="lora", seed=1), RunConfig(arm="schemabank", seed=2)]
NAMES = [run_id(run) for run in RUNS]
FULL = Failure("disk", "No space left on device")


def opened(out: Path, *, num_workers: int = 2) -> Round:
    return open_round(RUNS, out, planned=RUNS, num_workers=num_workers, lease_s=9.0)


def decided(found: Round) -> None:
    found.decide([Unit(name, [name], NAMES, 1) for name in reversed(NAMES)])


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
    assert found.units() == [Unit(name, [name], NAMES, 1) for name in reversed(NAMES)]
    assert read_json(found.folder / UNITS)["cohorts"] == [NAMES], "once, of however many units"
    found.decide([])
    assert len(found.units() or ()) == 2, "what was decided first stays"


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


def test_other_settings_than_those_of_the_ids_have_a_round_of_their_own(tmp_path: Path) -> None:
    found = opened(tmp_path)
    engine = EngineSettings(device="cpu", slots=7)
    runs = [run.model_copy(update={"engine": engine}) for run in RUNS]
    assert list(map(run_id, runs)) == NAMES
    other = open_round(runs, tmp_path, planned=runs, num_workers=2, lease_s=9.0)
    assert other.folder != found.folder
    assert [run.engine for run in other.configs.values()] == [engine] * 2


def test_a_round_of_another_version_is_refused_by_its_workers_and_not_met_by_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "__version__", "0.0.1")
    before = opened(tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"begun by SchemaBank 0\.0\.1, and this is .*: install"):
        read_round(before.folder)
    assert opened(tmp_path).folder != before.folder


def test_a_round_that_is_removed_is_gone_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path)
    decided(found)
    monkeypatch.setattr(rounds, "rmtree", lambda *_, **__: None)  # it was killed over it
    found.remove()
    assert not found.folder.exists()
    failure = next(iter(found.outcomes(RUNS).values())).failure
    assert failure is not None
    assert "was removed, by another call or by hand, before it was done" in failure.message
    monkeypatch.undo()
    assert opened(tmp_path) == found, "what is left of it is in nobody's way"
    found.remove()
    rounds.remove_finished(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_round_that_vanishes_while_it_is_opened_is_followed_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(tmp_path)

    def removed(folder: Path) -> Round:
        monkeypatch.undo()
        found.remove()
        return read_round(folder)

    monkeypatch.setattr(rounds, "read_round", removed)
    assert opened(tmp_path).folder.name == found.folder.name.replace("-1", "-2")


def test_rounds_of_a_suite_before_it_changed_go_when_their_runs_are_finished(
    tmp_path: Path,
) -> None:
    before = open_round(RUNS[:1], tmp_path, planned=RUNS[:1], num_workers=2, lease_s=9.0)
    now = opened(tmp_path)
    rounds.remove_finished(tmp_path)
    assert before.folder.exists()
    (tmp_path / NAMES[0]).mkdir()
    (tmp_path / NAMES[0] / RESULT).write_text("{}")
    rounds.remove_finished(tmp_path)
    assert (before.folder.exists(), now.folder.exists()) == (False, True)


def test_other_runs_have_a_round_of_their_own(tmp_path: Path) -> None:
    found = opened(tmp_path)
    other = open_round(RUNS[:1], tmp_path, planned=RUNS, num_workers=2, lease_s=9.0)
    assert other.folder != found.folder
    assert (list(other.configs), other.wanted) == (NAMES, NAMES[:1])
    found.remove()
    assert other.folder.exists()


def test_a_file_system_without_hard_links_is_refused_before_workers_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As buckets that are mounted: units could not be decided upon, which workers found out."""

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(target), None, str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    said = (
        rf"^'{tmp_path}' lies in a file system without hard links \(Operation not permitted\), .*"
    )
    with pytest.raises(InputError, match=f"{said}choose another --out, or leave --launch"):
        opened(tmp_path)
    assert list(tmp_path.iterdir()) == []
