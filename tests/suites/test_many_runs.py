"""What a process keeps of every run that has ended: a suite may have hundreds of them."""

import gc
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from schemabank.runs.folder import RunClaim
from schemabank.runs.watching import RunWatch
from tinyruns import Finished
from tinysuites import ran, tiny

SEEDS = 10  # of two arms
SLOTS = 4
FEW = 2 * SLOTS  # that may differ: of runs in the slots, and of those whose end is being written
WATCHED = ("schemabank.", "collections.", "_io.")  # ours, and what ours hold beside their values
CONTAINERS = ("builtins.dict", "builtins.list", "builtins.tuple")
MOST_CONTAINERS = 12  # of a run's result; which of them are counted differs between Pythons


class Living:
    """Counts the objects that live when so many runs have ended, by their types."""

    def __init__(self) -> None:
        self.counts = dict[int, Counter[str]]()

    def look(self, num_ended: int) -> None:
        if num_ended not in self.counts:
            gc.collect()
            self.counts[num_ended] = Counter(
                f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects()
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


def suite(finished: Finished, path: Path, slots: int) -> Path:
    changes = {
        "engine": {"slots": slots, "checkpoint_steps": 2},
        "eval": {"split": "test", "max_new_tokens": 2, "batch_size": 2},
        "train": {"num_train_epochs": 1, "learning_rate": 1e-2},
    }
    return tiny(finished, path, seeds=[*range(1, SEEDS + 1)], grid={}, defaults=changes)


@pytest.mark.parametrize("slots", [1, SLOTS])
@pytest.mark.usefixtures("gsm8k")
def test_a_finished_run_keeps_its_result_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    living, complete, ended = Living(), RunClaim.complete, count(1)

    def completed(claim: RunClaim) -> None:
        complete(claim)
        if (number := next(ended)) in (SLOTS, 2 * SEEDS):
            living.look(number)

    monkeypatch.setattr(RunClaim, "complete", completed)
    ran(suite(finished, tmp_path / "s.yaml", slots), tmp_path / "runs")
    assert living.kept(SLOTS, 2 * SEEDS) == {"schemabank.runs.members.Outcome": 1}


@pytest.mark.usefixtures("gsm8k")
def test_a_run_that_waits_for_its_evaluation_keeps_where_its_weights_are_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, look = Living(), RunWatch.look

    def looked(watch: RunWatch) -> None:
        look(watch)
        living.look(len(watch._cohort.finished))

    monkeypatch.setattr(RunWatch, "look", looked)  # after every step
    ran(suite(finished, tmp_path / "s.yaml", SLOTS), tmp_path / "runs")
    assert living.kept(0, 2 * SEEDS - SLOTS) == {"schemabank.runs.trained.StoredWeights": 1}
