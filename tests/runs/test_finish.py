"""What a run cost, as it is written when the run is finished."""

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from capturing import capturing
from schemabank.common import durations
from schemabank.engine import cohort
from schemabank.engine.execute import Executor
from schemabank.runs import forms
from schemabank.runs.folder import COST
from schemabank.runs.stored import read_cost
from tinyruns import Finished, run

MAKING_S = 7  # of every program
THREE = ("arm=lora", "seed=[1, 2, 3]", "engine.slots=2", "train.num_train_epochs=1")


@pytest.fixture
def made(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many programs the executors of each module have made; they capture as on a GPU."""
    monkeypatch.setenv("SCHEMABANK_DATA", str(finished.data))
    ticks = count(step=MAKING_S)
    monkeypatch.setattr(durations, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    found = Counter[str]()

    def captured(executor: Executor, function: Callable[[], Tensor], _: object) -> object:
        found[str(vars(executor)["by"])] += 1
        return function

    for module in (cohort, forms):

        def executor(_device: torch.device, *, by: str = module.__name__, **_: object) -> Executor:
            made = capturing(monkeypatch, captured, [])  # type: ignore[arg-type]
            vars(made)["by"] = by
            return made

        monkeypatch.setattr(module, "default_executor", executor)
    return found


def test_compiling_is_told_of_the_whole_cohort_as_the_times_are_that_it_is_a_part_of(
    finished: Finished, tmp_path: Path, made: Counter[str]
) -> None:
    """Three runs, two at once: what evaluates two of them makes as many programs as for the last.

    So a run names 3/2 or 3/1 times what the evaluation beside it took, as for its seconds.
    """
    outcomes, _ = run(finished.config, tmp_path, *THREE)
    in_training, in_both_turns = made[cohort.__name__], made[forms.__name__]
    assert in_training > 0 < in_both_turns
    assert in_both_turns % 2 == 0
    turn = in_both_turns // 2
    assert [read_cost(outcome.folder / COST)["compiling_s"] for outcome in outcomes] == [
        MAKING_S * (in_training + turn * share) for share in (1.5, 1.5, 3)
    ]


def test_an_evaluation_alone_has_compiled_for_itself(
    finished: Finished, tmp_path: Path, made: Counter[str]
) -> None:
    (outcome,), _ = run(finished.config, tmp_path, "arm=base")
    assert set(made) == {forms.__name__}
    cost = read_cost(outcome.folder / COST)
    assert cost["compiling_s"] == MAKING_S * made[forms.__name__]
