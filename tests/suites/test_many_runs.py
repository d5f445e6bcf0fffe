"""What a process keeps of every run that has ended: a suite may have hundreds of them."""

import gc
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from schemabank.runs.folder import RunClaim
from schemabank.runs.watching import RunWatch
from tinyruns import Finished
from tinysuites import ran, tiny

STORED = "schemabank.runs.trained.StoredWeights"
RUNS = 20
SLOTS = 4
FEW = 2 * SLOTS  # that may differ: of runs in the slots, and of those whose end is being written
ARMS = ("swap", "schemabank")  # the first also has where its branches start
# Ours, and what ours hold beside their values.
WATCHED = ("schemabank.", "collections.", "_io.", "torch.Tensor", "numpy.ndarray")
CONTAINERS = ("builtins.dict", "builtins.list", "builtins.tuple")
MOST_CONTAINERS = 12  # of a run's result; which of them are counted differs between Pythons


class Living:
    """Counts the objects that live when so many runs have ended, by their types."""

    def __init__(self) -> None:
        self.counts = dict[int, Counter[str]]()

    def look(self, num_ended: int) -> None:
        if num_ended not in self.counts:
            gc.collect()
            living = gc.get_objects()
            self.counts[num_ended] = Counter(
                f"{type(each).__module__}.{type(each).__qualname__}"
                for each in (*living, *arrays(living))
            )

    def kept(self, first: int, last: int) -> dict[str, float]:
        """How many objects of each watched type a run leaves that ended between two looks."""
        grown = self.counts[last] - self.counts[first]
        assert sum(grown[kind] for kind in CONTAINERS) <= MOST_CONTAINERS * (last - first)
        return {
            kind: number / (last - first)
            for kind, number in grown.items()
            if number > FEW and kind.startswith(WATCHED)
        }


def arrays(living: list[object]) -> list[object]:
    """The arrays that objects hold, themselves or in tuples: Python's collector tracks neither."""
    found, held = dict[int, object](), gc.get_referents(*living)
    while held:
        untracked = {id(each): each for each in held if not gc.is_tracked(each)}
        found |= {key: each for key, each in untracked.items() if type(each) is np.ndarray}
        tuples = [each for each in untracked.values() if type(each) is tuple]
        held = gc.get_referents(*tuples) if tuples else []
    return [*found.values()]


def suite(finished: Finished, path: Path, slots: int, *arms: str) -> Path:
    changes = {
        "engine": {"slots": slots, "checkpoint_steps": 2},
        "eval": {"split": "test", "max_new_tokens": 2, "batch_size": 2},
        "train": {"num_train_epochs": 1, "learning_rate": 1e-2},
        "swap": {"num_branches": 2},
    }
    seeds, named = [*range(1, RUNS // len(arms) + 1)], {arm: {} for arm in arms}
    return tiny(finished, path, arms=named, seeds=seeds, grid={}, defaults=changes)


@pytest.mark.parametrize("slots", [1, SLOTS])
@pytest.mark.usefixtures("gsm8k")
def test_a_finished_run_keeps_its_result_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    living, complete, ended = Living(), RunClaim.complete, count(1)

    def completed(claim: RunClaim) -> None:
        complete(claim)
        if (number := next(ended)) in (SLOTS, RUNS):
            living.look(number)

    monkeypatch.setattr(RunClaim, "complete", completed)
    ran(suite(finished, tmp_path / "s.yaml", slots, *ARMS), tmp_path / "runs")
    assert living.kept(SLOTS, RUNS) == {"schemabank.runs.members.Outcome": 1}


@pytest.mark.usefixtures("gsm8k")
def test_a_run_that_waits_for_its_evaluation_keeps_where_its_weights_are_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = looking_after_steps(monkeypatch)
    ran(suite(finished, tmp_path / "s.yaml", SLOTS, *ARMS), tmp_path / "runs")
    kept = living.kept(0, RUNS - SLOTS)
    kept.pop("torch.Tensor", None)  # of the runs in the slots: each arm has its own number
    assert kept == {STORED: 1}


@pytest.mark.usefixtures("gsm8k")
def test_it_keeps_no_tensor(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a suite of one arm, whose runs in the slots hold as many at every look."""
    living = looking_after_steps(monkeypatch)
    ran(suite(finished, tmp_path / "s.yaml", SLOTS, "swap"), tmp_path / "runs")
    assert living.kept(SLOTS, RUNS - SLOTS) == {STORED: 1}


def looking_after_steps(monkeypatch: pytest.MonkeyPatch) -> Living:
    """What lives after a step, by how many runs have ended."""
    living, look = Living(), RunWatch.look

    def looked(watch: RunWatch) -> None:
        look(watch)
        own = watch._cohort
        living.look(sum(slot.run.name in own.finished for slot in own.slots))

    monkeypatch.setattr(RunWatch, "look", looked)
    return living
