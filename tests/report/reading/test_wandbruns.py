"""Runs of Weights & Biases: exported tables, and summaries."""

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.report.command import Question
from schemabank.report.command import report as examine
from schemabank.report.reading.places import ResultFile
from schemabank.report.reading.wandbruns import (
    is_exported_table,
    read_exported_table,
    read_summaries,
)

ALWAYS = ("Name", "State", "Notes", "User", "Tags", "Created", "Runtime", "Sweep")
SCORE = "eval/accuracy"
SCORES = {"lora": (0.48, 0.47, 0.49, 0.5), "new": (0.54, 0.53, 0.56, 0.58)}


def row(name: str, score: object, **changes: object) -> dict[str, object]:
    known = {**dict.fromkeys(ALWAYS, ""), "Name": name, "State": "finished", "Notes": "-"}
    return {**known, SCORE: score, "train/loss": 0.7, **changes}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write a table as the button for a CSV does: all cells in quotes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
        table.writeheader()
        table.writerows(rows)
    return path


def runs(**changes: object) -> list[dict[str, object]]:
    return [
        row(f"{arm}-seed{seed}", score, **changes)
        for arm, own in SCORES.items()
        for seed, score in enumerate(own)
    ]


def test_an_exported_table_is_compared_over_seeds_and_says_that_it_has_no_items(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "wandb.csv", runs())
    assert is_exported_table(path)
    found = examine(path, Question(metric=SCORE))
    assert (found.comparison.treatment, found.comparison.control) == ("new", "lora")
    assert found.comparison.primary.test == "paired"
    assert found.comparison.primary.verdict.outcome == "better"
    (warning,) = (w for w in found.warnings if w.id == "no-items")
    assert warning.sentence.startswith("Weights & Biases keeps no scores of single items")


@pytest.mark.parametrize(
    ("name", "changes", "arm", "seed"),
    [
        ("lora-seed3", {}, "lora", "3"),
        ("brisk-sun-7", {"seed": "3"}, "brisk-sun-7", "3"),
        ("brisk-sun-7", {"seed": "3", "Group": "lora"}, "lora", "3"),
        ("brisk-sun-7", {"train.seed": "3", "Group": "x", "arm": "lora"}, "lora", "3"),
        ("brisk-sun-7", {"seed.value": "3", "config/arm": "lora"}, "lora", "3"),
    ],
)
def test_arm_and_seed_come_from_columns_or_else_from_the_name(
    name: str, changes: dict[str, Any], arm: str, seed: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "wandb.csv", [row(name, "0.4800", **changes)])
    (found,) = read_exported_table(path, SCORE).rows
    assert (found.arm, found.seed) == (arm, seed)
    assert (found.exact, found.decimals, found.line) == (Fraction("0.48"), 4, 2)


@pytest.mark.parametrize(
    ("rows", "metric", "message"),
    [
        (runs(), None, rf"name the score by --metric, .*more is better \({SCORE}\)"),
        (runs(), "eval/acuracy", rf"is not in wandb.csv.*{SCORE}"),
        (runs(), "train/loss", "a number of which less is better"),
        (runs(State="crashed"), SCORE, "'lora-seed0', has the state 'crashed', allowed is 'fin"),
        ([row("lora-seed1", "")], SCORE, "the run 'lora-seed1', has no 'eval/accuracy'"),
        ([row("lora-seed1", "48.1")], SCORE, "above 1: .* divide percent by 100"),
        ([row("lora", "0.4")], SCORE, "no run with a seed, which a comparison takes: give a col"),
        (
            [row("lora-seed1", "0.4"), row("lora-seed1", "0.5")],
            SCORE,
            r"several runs of arm 'lora', one of them \(row 3\) with seed 1: allowed is one run a",
        ),
        (
            [row("lora-seed1", "0.4"), row("lora", "0.5")],
            SCORE,
            r"one of them \(row 3\) with no seed",
        ),
        (
            [row("a", "0.4", **{"seed": 1, "data/seed": 2})],
            SCORE,
            "has the columns seed, data/seed, of which each may be the seed",
        ),
    ],
)
def test_what_cannot_be_compared_honestly_is_refused(
    rows: list[dict[str, object]], metric: str | None, message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "wandb.csv", rows)
    with pytest.raises(InputError, match=message):
        read_exported_table(path, metric)


@pytest.mark.parametrize("changes", [{"cluster_by": "x"}, {"group": "x"}, {"claims": Path("x")}])
def test_what_only_other_results_can_be_asked_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "wandb.csv", runs())
    with pytest.raises(InputError, match=r"not allowed with wandb.csv, a table of Weights & Bia"):
        examine(path, Question(metric=SCORE, **changes))


def write_summary(folder: Path, accuracy: object) -> Path:
    """Write what a run leaves in its folder of files."""
    path = folder / "wandb" / "run-20260304_102030-ab12cd34" / "files" / "wandb-summary.json"
    path.parent.mkdir(parents=True)
    own = {"_runtime": 12.5, "_timestamp": 1.7e9, "_step": 40, "_wandb": {"runtime": 12}}
    path.write_text(json.dumps({**own, "eval": {"accuracy": accuracy}, "train/loss": 0.7}))
    return path


def test_summaries_are_compared_by_the_folders_that_they_lie_in(tmp_path: Path) -> None:
    for arm, own in SCORES.items():
        for seed, score in enumerate(own):
            write_summary(tmp_path / f"{arm}-seed{seed}", score)
    found = examine(tmp_path, Question(metric="eval.accuracy", margin=1))
    assert found.comparison.primary.verdict.outcome == "better"
    assert "no-items" in {warning.id for warning in found.warnings}
    with pytest.raises(InputError, match=r"allowed are shares .* \(eval.accuracy\)"):
        examine(tmp_path, Question())
    with pytest.raises(InputError, match="--cluster-by 'x': not allowed with results of Weights"):
        examine(tmp_path, Question(metric="eval.accuracy", cluster_by="x"))


def test_a_summary_without_an_arm_is_refused(tmp_path: Path) -> None:
    path = write_summary(tmp_path, 0.5)
    file = ResultFile(path, None, None)
    with pytest.raises(InputError, match=r"is of no arm: name it by --arm NAME:SEED=PATH"):
        read_summaries("x", [file], "eval.accuracy")
