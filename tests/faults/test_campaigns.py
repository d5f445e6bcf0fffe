"""A short campaign of every kind; `make soak` runs the long ones."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults import campaigns, kills
from faults.campaigns import CLUSTER, KILLS, LONG, NUMBERS, OPERATIONS, POWER, SHORT, Campaign
from faults.shim import can_build
from madepages import read_rows

ROOT = Path(__file__).parents[2]


def ran(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.faults", *arguments, "--work", str(work)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.skipif(not can_build(), reason="needs a C compiler")
def test_short_campaigns_find_every_promise_kept(tmp_path: Path) -> None:
    done = ran(tmp_path, "kills", "operations", "power", "--short")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    assert {name: own["cases"] for name, own in found.items()} == {
        name: len(seeds) for name, seeds in SHORT.items()
    }
    assert all(own["kept"] == own["cases"] for own in found.values())
    assert found[KILLS]["kills"] >= len(SHORT[KILLS])
    assert found[KILLS]["by_stage"]["1"] >= 1
    assert found[OPERATIONS]["met"] == len(SHORT[OPERATIONS])
    assert found[POWER]["states"] > len(SHORT[POWER]) / 2


def row(seed: int) -> dict[str, Any]:
    return {"seed": seed, "problems": ["lost"] if seed == 2 else []}


def test_a_campaign_goes_on_from_its_journal(tmp_path: Path) -> None:
    journal, tried = tmp_path / "journal", list[int]()

    def trying(seed: int) -> dict[str, Any]:
        tried.append(seed)
        return row(seed)

    own = Campaign(POWER, trying)
    assert [r["seed"] for r in own.rows(range(3), journal, until=float("inf"))] == [0, 1, 2]
    with journal.open("a") as file:
        file.write('{"seed": 3, "prob')  # killed in the middle of a line
    assert [r["seed"] for r in own.rows(range(5), journal, until=float("inf"))] == [3, 4]
    assert tried == [0, 1, 2, 3, 4]
    assert [r["seed"] for r in read_rows(journal)] == [0, 1, 2, 3, 4]
    assert list(own.rows(range(9), journal, until=0.0)) == []


def test_the_summary_names_the_seeds_that_failed() -> None:
    rows = [
        {**row(s), "program": "lora", "killed": ["train save"], "real": False, "lost": s}
        for s in (1, 2)
    ]
    found = campaigns.summary(KILLS, rows)
    assert (found["cases"], found["kept"], found["failed"]) == (2, 1, [2])
    assert (found["by_place"]["save"], found["most_steps_lost"]) == (2, 2)


@pytest.mark.parametrize(
    ("place", "kind", "stage", "epoch"),
    [
        ("train stage=router epoch=0 step=3", "training", 1, 0),
        ("train search stage=joint epoch=1 step=11 save", "save", 3, 1),
        ("evaluate stage=lora epoch=2 step=5", "evaluation", 0, 2),
        ("recover search", "recovering", 0, 0),
        ("begin", "beginning", 0, 0),
    ],
)
def test_a_place_is_counted_as_what_it_is(place: str, kind: str, stage: int, epoch: int) -> None:
    assert (kills.kind_of(place), kills.stage_of(place), kills.epoch_of(place)) == (
        kind,
        stage,
        epoch,
    )


def test_every_campaign_has_a_number_of_cases() -> None:
    assert {name: number for name, number in NUMBERS.items() if number < 20} == {
        LONG: 4,
        CLUSTER: 2,
    }
