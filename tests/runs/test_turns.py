"""Runs that have ended leave their weights on disk until it is their turn to be evaluated."""

import errno
import gc
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from torch import Tensor

from damage import flip, tear
from schemabank.config.file import load_experiment, run_id
from schemabank.engine.cohort import Cohort
from schemabank.runs import experiment, finish
from schemabank.runs.folder import (
    ADAPTER,
    ANSWERS,
    COST,
    FAILURE,
    PREDICTIONS,
    TRAINED,
    partial_folder,
)
from schemabank.runs.kept import WEIGHTS
from schemabank.runs.loading import resolved
from schemabank.runs.members import Outcome
from schemabank.runs.trained import AGAIN, StoredWeights
from schemabank.runs.watching import RunWatch
from tinyruns import Finished, run, snapshot

pytestmark = pytest.mark.usefixtures("gsm8k")

# Five runs in two slots, which end as means of their weights, at scales that are chosen.
FIVE = (
    *("arm=lora", "seed=[1, 2, 3, 4, 5]", "engine.slots=2", "train.num_train_epochs=1"),
    *("average.kind=exponential", "rescale.factors=[0.5, 1, 2]"),
)
BANKS = ("arm=[schemabank, swap]", *FIVE[1:4], "swap.num_branches=2", "swap.branch_ratio=0.5")
SLOTS = 2


@pytest.fixture(scope="module")
def whole(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The five runs of a call that held all weights."""
    return held_in_memory(finished, tmp_path_factory.mktemp("whole") / "runs", *FIVE)


def held_in_memory(finished: Finished, out: Path, *settings: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        patch.setattr(StoredWeights, "holds", lambda *_: False)
        patch.setattr(StoredWeights, "read", None)
        outcomes, _ = run(finished.config, out, *settings)
    assert not any(outcome.failure for outcome in outcomes)
    return out


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file that is the same each time."""
    found = {name: digest for name, (_, digest) in snapshot(folder).items()}
    return {name: digest for name, digest in found.items() if Path(name).name != COST}


def live_bytes(size: int) -> int:
    """How many bytes all rows take that are as long as a run's weights, whoever has them."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is Tensor and each.shape == (size,)]
    rows = {each.data_ptr(): each for each in tensors if each.is_floating_point()}
    return sum(row.numel() * row.element_size() for row in rows.values())


@pytest.mark.parametrize("is_held", [False, True])
def test_no_more_weights_are_held_than_there_are_slots(
    is_held: bool, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_trained, runs_evaluated, sizes = list[float](), list[float](), list[int]()
    look, evaluate = RunWatch.look, finish.evaluate_forms

    def count(size: int) -> float:
        return live_bytes(size) / (4 * size)

    def looked(watch: RunWatch) -> None:
        look(watch)
        sizes.append(watch._cohort.stack.groups["lora"].size)
        runs_trained.append(count(sizes[0]))

    def evaluated(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        runs_evaluated.append(count(sizes[0]))
        return evaluate(*given, **named)

    monkeypatch.setattr(RunWatch, "look", looked)  # after every step
    monkeypatch.setattr(finish, "evaluate_forms", evaluated)
    if is_held:
        held_in_memory(finished, tmp_path / "runs", *FIVE[:4])
    else:
        run(finished.config, tmp_path / "runs", *FIVE[:4])
    others = runs_trained[0]  # of other tests: after the first step no run has ended
    assert max(runs_trained) - others == (4 if is_held else 0)
    ended = [count - others for count in runs_evaluated]
    assert ended == ([5, 5, 5] if is_held else [SLOTS, SLOTS, 1])


@pytest.mark.parametrize("settings", [FIVE, BANKS], ids=["means", "banks"])
def test_results_are_those_of_weights_that_were_held(
    settings: tuple[str, ...],
    finished: Finished,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = whole if settings == FIVE else held_in_memory(finished, tmp_path / "held", *settings)
    reads, read = list[Path](), StoredWeights.read

    def counted(stored: StoredWeights) -> dict[str, Tensor]:
        reads.append(stored.path)
        return read(stored)

    monkeypatch.setattr(StoredWeights, "read", counted)
    outcomes, _ = run(finished.config, tmp_path / "runs", *settings)
    assert contents(tmp_path / "runs") == contents(other)
    # When it is written, when its scale is chosen, and when it is evaluated.
    assert [reads.count(path) for path in set(reads)] == [3] * len(outcomes)


def before(patch: pytest.MonkeyPatch, owner: object, name: str, action: Callable[[], None]) -> None:
    """Do something once, before a function is called."""
    call, left = getattr(owner, name), [action]

    def called(*given: object, **named: object) -> object:
        while left:
            left.pop()()
        return call(*given, **named)

    patch.setattr(owner, name, called)


def vanish(path: Path) -> None:
    rmtree(path.parent)


def victim_of(finished: Finished, out: Path, number: int) -> tuple[str, Path]:
    """The id of one of the five runs, and the file with its weights."""
    runs = load_experiment(finished.config, FIVE).runs()
    name = run_id(resolved(runs, torch.device("cpu"))[number])
    return name, partial_folder(out / name) / TRAINED / WEIGHTS


def others(folder: Path, name: str) -> dict[str, str]:
    return {path: digest for path, digest in contents(folder).items() if name not in path}


def assert_lost(outcomes: list[Outcome], number: int, place: Path) -> None:
    failed = [outcome.failure is not None for outcome in outcomes]
    assert failed == [index == number for index in range(5)]
    failure = outcomes[number].failure
    assert failure is not None
    assert repr(str(place.relative_to(place.parents[2]))) in failure.message
    assert str(place.parents[2]) not in failure.message, "its file may be moved"
    assert failure.message.endswith(AGAIN)
    assert outcomes[number].kept == ""


@pytest.mark.parametrize("number", [0, 3])
@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, vanish])
def test_a_file_that_is_lost_before_the_evaluation_costs_its_run_alone(
    damage: Callable[[Path], object],
    number: int,
    finished: Finished,
    whole: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "runs"
    name, place = victim_of(finished, out, number)
    with pytest.MonkeyPatch.context() as patch:
        before(patch, experiment, "finish_runs", lambda: damage(place))
        outcomes, _ = run(finished.config, out, *FIVE)
    assert_lost(outcomes, number, place)
    assert others(out, name) == others(whole, name)
    folder = outcomes[number].folder
    assert {FAILURE, ADAPTER} <= {path.name for path in folder.iterdir()}
    assert not (folder / PREDICTIONS).exists()
    outcomes, notes = run(finished.config, out, *FIVE)
    assert not any(outcome.failure for outcome in outcomes)
    assert others(out, "unfinished") == contents(whole)
    assert any(note.startswith("trained again: ") for note in notes) == (damage is not vanish)


def test_a_file_that_is_lost_before_a_scale_is_chosen_costs_its_run_alone(
    finished: Finished, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    name, place = victim_of(finished, out, 1)
    with monkeypatch.context() as patch:
        before(patch, Cohort, "free", lambda: flip(place))
        outcomes, _ = run(finished.config, out, *FIVE)
    assert_lost(outcomes, 1, place)
    assert others(out, name) == others(whole, name)
    assert not (outcomes[1].folder / ADAPTER).exists(), "it would be another run's"
    run(finished.config, out, *FIVE)
    assert others(out, "unfinished") == contents(whole)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files of which a program that opens them to read meets an I/O error."""
    found, opened = set[Path](), Path.open

    def open_or_fail(path: Path, mode: str = "r", *given: Any, **named: Any) -> Any:  # noqa: ANN401
        if path in found and mode == "rb":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, mode, *given, **named)

    monkeypatch.setattr(Path, "open", open_or_fail)
    return found


KEEPING = ("engine.checkpoint_steps=1", "engine.checkpoint_minutes=null")


def test_a_disk_that_fails_once_costs_one_evaluation(
    finished: Finished, whole: Path, tmp_path: Path, broken: set[Path]
) -> None:
    """Also in a call that goes on, which reads the weights before and again."""
    out = tmp_path / "runs"
    name, place = victim_of(finished, out, 2)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            before(patch, experiment, "finish_runs", lambda: broken.add(place))
            outcomes, _ = run(finished.config, out, *FIVE, *KEEPING)
        broken.clear()
        assert_lost(outcomes, 2, place)
        assert outcomes[2].failure is not None
        assert outcomes[2].failure.kind == "disk"
        assert others(out, name).keys() == others(whole, name).keys()
        kept = {path.name for path in outcomes[2].folder.iterdir()}
        assert kept.isdisjoint({PREDICTIONS, ANSWERS}), "they would be those of another model"
    outcomes, notes = run(finished.config, out, *FIVE, *KEEPING)
    assert any(note.startswith("trained already: ") for note in notes)
    assert not any(outcome.failure for outcome in outcomes)
    end = {n: digest for n, digest in contents(out).items() if not n.endswith(".yaml")}
    assert end.items() <= contents(whole).items()


def test_weights_that_cannot_be_read_when_they_are_written_stay_in_memory(
    finished: Finished, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failed = StoredWeights.read, list[Path]()

    def once(stored: StoredWeights) -> dict[str, Tensor]:
        if not failed:
            failed.append(stored.path)
        if stored.path in failed:
            raise MemoryError
        return read(stored)

    monkeypatch.setattr(StoredWeights, "read", once)
    outcomes, _ = run(finished.config, tmp_path / "runs", *FIVE)
    assert not any(outcome.failure for outcome in outcomes)
    assert len(failed) == 1
    assert contents(tmp_path / "runs") == contents(whole)
