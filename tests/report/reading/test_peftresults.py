"""Results of PEFT's method comparison."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from evaluations import write_peft
from schemabank.common.errors import InputError
from schemabank.report.command import Question
from schemabank.report.command import report as examine
from schemabank.report.reading.peftresults import read_peft_results
from schemabank.report.reading.places import ResultFile

Json = dict[str, Any]


def files(folder: Path, *names: str) -> list[ResultFile]:
    return [ResultFile(folder / f"{name}.json", None, None) for name in names]


def test_an_experiment_is_an_arm(tmp_path: Path) -> None:
    write_peft(tmp_path / "a.json", "lora/rank32", 0.25, seed=0)
    write_peft(tmp_path / "b.json", "lora/rank32", 0.5, seed=1)
    table = read_peft_results("results", files(tmp_path, "a", "b"))
    assert table.arms == ["lora/rank32"]
    assert table.scores("lora/rank32", "") == {"0": Fraction(1, 4), "1": Fraction(1, 2)}


def test_a_folder_of_results_is_reported(tmp_path: Path) -> None:
    for seed, own in enumerate((0.48, 0.47, 0.49, 0.5, 0.46)):
        write_peft(tmp_path / f"lora--{seed}.json", "lora", own, seed=seed)
        write_peft(
            tmp_path / "results" / f"new--{seed}.json", "new", own + 0.05 + 0.001 * seed, seed=seed
        )
    found = examine(tmp_path, Question(margin=1))
    assert found.comparison.primary.test == "paired"
    assert found.comparison.primary.verdict.outcome == "better"
    assert found.comparison.primary.margin is not None
    with pytest.raises(InputError, match="--metric 'x': not allowed with results of PEFT's"):
        examine(tmp_path, Question(metric="x"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["train_info"].update(status="failed"), "has the status 'failed'"),
        (lambda t: t.update(train_info=1), "has the status None"),
        (lambda t: t["train_info"].update(metrics=[]), "has 0 values of 'test accuracy'"),
        (lambda t: t["train_info"].update(metrics=None), "has 0 values of 'test accuracy'"),
        (lambda t: t["train_info"]["metrics"][-1].update({"test accuracy": 48}), "the score 48"),
        (lambda t: t["run_info"].update(experiment_name=""), "has the experiment_name ''"),
        (lambda t: t["run_info"].update(train_config={}), "the seed None"),
        (lambda t: t["run_info"].update(train_config=None), "the seed None"),
    ],
)
def test_wrong_results(tmp_path: Path, change: Callable[[Json], object], words: str) -> None:
    path = write_peft(tmp_path / "a.json", "lora", 0.5)
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(InputError, match=words) as error:
        read_peft_results("results", files(tmp_path, "a"))
    assert "a.json" in str(error.value)


def test_a_run_is_there_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_peft(tmp_path / f"{name}.json", "lora", 0.5)
    with pytest.raises(InputError, match="are both of 'lora', seed 0: allowed is one run a seed"):
        read_peft_results("results", files(tmp_path, "a", "b"))
