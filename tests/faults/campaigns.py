"""Campaigns: many cases by their seeds, a journal that a campaign goes on from, and the record.

A journal has a line for each case that was run, so that a campaign that is interrupted goes on. The
record has what all journals together say; the figures on the page come from it.
"""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from faults import cluster, inputs, kills, long, numbers, operations, power, texts
from faults.world import REPORT, World
from madepages import read_rows, source_digest
from schemabank import __version__

Row = dict[str, Any]
KILLS, DEVICE, OPERATIONS, POWER = "kills", "kills on a GPU", "operations", "power"
INPUTS, TEXTS, NAN = "inputs", "texts", "numbers"
LONG, CLUSTER = "long", "cluster"
IN_WORLD = frozenset({KILLS, DEVICE, OPERATIONS, POWER, LONG, CLUSTER})  # with programs of its own
# How many cases each has; `make soak` runs as many, `make test` the second.
NUMBERS = {KILLS: 200, DEVICE: 20, OPERATIONS: 1200, POWER: 1000, LONG: 4, CLUSTER: 2}
NUMBERS |= {INPUTS: inputs.NUMBER, TEXTS: texts.NUMBER, NAN: numbers.NUMBER}
# Of `make test`: every fault, and programs that are small.
SHORT = {KILLS: (6, 26), OPERATIONS: (2, 5, 7, 8), POWER: tuple(range(0, 60, 4))}


@dataclass(frozen=True)
class Campaign:
    """Cases by their seeds.

    Attributes:
        name: one of :data:`NUMBERS`.
        tried: runs the case of a seed.
    """

    name: str
    tried: Callable[[int], Row]

    def rows(self, seeds: Sequence[int], journal: Path, *, until: float) -> Iterator[Row]:
        """Run the cases that a journal has not, until a time, and yield each as it ends."""
        done = {row["seed"] for row in read_rows(journal)}
        for seed in seeds:
            if seed in done:
                continue
            if time.monotonic() > until:
                return
            row = self.tried(seed)
            with journal.open("a", encoding="utf-8") as file:
                # Behind a line that was cut off by a kill, on one of its own.
                file.write(f"\n{json.dumps(row)}\n")
            yield row


def campaign(name: str, place: Path | World, work: Path) -> Campaign:
    """Return a campaign in a world, or one that needs none, in a folder.

    What takes long to make stays in ``work``.
    """
    if not isinstance(place, World):
        alone = {INPUTS: inputs.Inputs(place).tried, TEXTS: texts.tried, NAN: numbers.tried}
        return Campaign(name, alone[name])
    world = place
    logs: dict[str, power.Log] = {}
    known: dict[int, long.Known] = {}
    ways: Mapping[str, Callable[[int], Row]] = {
        KILLS: partial(kills.tried, world),
        DEVICE: partial(kills.tried, world, on_device=True),
        OPERATIONS: partial(operations.tried, world),
        POWER: lambda seed: power.tried(world, seed, logs),
        LONG: lambda seed: long.tried(world, seed, known),
        CLUSTER: lambda seed: cluster.tried(world, seed, work),
    }
    return Campaign(name, ways[name])


def summary(name: str, rows: Sequence[Row]) -> Row:
    """Return what the record holds of a campaign."""
    kept = [row for row in rows if not row["problems"]]
    own: dict[str, Callable[[Sequence[Row]], Row]] = {
        KILLS: _of_kills,
        DEVICE: _of_kills,
        OPERATIONS: _of_operations,
        POWER: _of_power,
        INPUTS: inputs.summary,
        TEXTS: texts.summary,
        NAN: numbers.summary,
        LONG: _of_long,
        CLUSTER: lambda rows: {"by_case": {str(row["seed"]): row for row in rows}},
    }
    return {
        "cases": len(rows),
        "kept": len(kept),
        "failed": sorted(row["seed"] for row in rows if row["problems"]),
        **own[name](rows),
    }


def machine(device: str) -> Row:
    """What a campaign ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    return {
        "device": name,
        "system": platform.system(),
        "versions": {"schemabank": __version__, "torch": torch.__version__},
        "date": datetime.now(UTC).date().isoformat(),
        "source": source_digest(),
    }


def _of_kills(rows: Sequence[Row]) -> Row:
    places = [place for row in rows for place in row["killed"]]
    kinds = Counter(_kind(row, n) for row in rows for n in range(len(row["killed"])))
    again = [row["answered_again"] for row in rows if "answered_again" in row]  # not in old ones
    return {
        "kills": len(places),
        "by_place": dict(sorted(kinds.items())),
        "in_search": sum("search" in place for place in places),
        "by_stage": {str(n): sum(kills.stage_of(p) == n for p in places) for n in (1, 2, 3)},
        "in_later_epochs": sum(kills.epoch_of(place) >= 1 for place in places),
        "of_started_programs": sum(bool(row["real"] and row["killed"]) for row in rows),
        "most_steps_lost": max((row["lost"] for row in rows), default=0),
        **({"most_answers_again": max(again)} if again else {}),
    }


def _kind(row: Row, number: int) -> str:
    """What the program was doing at its first, second … kill."""
    if row["program"] == REPORT:
        return "report"
    if row["real"] and number == 0:  # which does not tell where it is
        return "started"
    return kills.kind_of(row["killed"][number])


def _of_operations(rows: Sequence[Row]) -> Row:
    met = [row for row in rows if row["fired"]]
    kinds = Counter(f"{row['fault']} {'once' if row['once'] else 'for good'}" for row in met)
    ends = Counter("went on" if row["code"] == 0 else "said so" for row in met)
    return {
        "met": len(met),
        "by_fault": dict(sorted(kinds.items())),
        "by_operation": dict(sorted(Counter(row["met"] for row in met).items())),
        "by_program": dict(sorted(Counter(row["program"] for row in met).items())),
        "by_end": dict(sorted(ends.items())),
    }


def _of_power(rows: Sequence[Row]) -> Row:
    return {
        "states": len({(row["program"], row["state"]) for row in rows}),
        "in_saves": sum("save" in row["place"] for row in rows),
        "by_order": dict(sorted(Counter(row["order"] for row in rows).items())),
        "gone_on_to_the_end": sum(row["whole"] for row in rows),
    }


def _of_long(rows: Sequence[Row]) -> Row:
    return {
        "runs": sum(row["runs"] for row in rows),
        "runs_a_case": max((row["runs"] for row in rows), default=0),
        **{
            name: sum(row[name] for row in rows)
            for name in ("kills", "steps", "steps_again", "runs_again")
        },
        "most_kills": max((row["kills"] for row in rows), default=0),
        "most_steps_lost": max((row["most_steps_lost"] for row in rows), default=0),
        "needed": {str(n): row["needed"] for row in rows for n in (row["at_once"],)},
    }
