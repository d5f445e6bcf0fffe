"""What the orders of batch lengths cost: the document's suite, planned but not trained.

    SCHEMABANK_DATA=FOLDER python benchmarks/epoch_orders.py [--out results/epoch_orders.json]
    python benchmarks/epoch_orders.py --show

Runs share their steps only where the schedule of batch lengths is at the same place of its cycle.
So the more orders take turns, the longer a run of another length waits for a slot. This program
counts the steps of a cohort of the suite's 40 runs, and the positions that these steps compute: the
rows of all slots, used or not, at the width of the step's batches. Lengths are those of GSM8K in
the tokens of the embedded model, without tag prefixes. The cost is the planner's own estimate of
the time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from schemabank.config.settings import RunConfig
from schemabank.engine.batches import Encoded, Schedule, plan_schedule
from schemabank.engine.planner import best_slots, expected_cost, journey
from schemabank.engine.seating import Journey, stretches
from schemabank.models.embedded import EMBEDDED
from schemabank.runs.loading import load_base
from schemabank.runs.prepare import task_training_data
from schemabank.suites.suite import load_suite
from schemabank.tasks.catalog import load_task

ROOT = Path(__file__).parents[1]
SUITE = ROOT / "configs" / "paper" / "suite.yaml"
ORDERS, SLOTS = (1, 2, 4), (19, 22)


@dataclass(frozen=True)
class Line:
    """A plan, and what it computes.

    Attributes:
        orders: of batch lengths.
        slots: of the cohort.
        is_planned: whether the planner takes so many slots by itself.
        stage_1: steps whose trunk is the base model's.
        others: all other steps.
        positions: that these steps compute.
        tokens: that are no padding, of all runs.
        cost: expected, as the planner has it.
    """

    orders: int
    slots: int
    is_planned: bool
    stage_1: int
    others: int
    positions: int
    tokens: int
    cost: float


def line(
    runs: Sequence[RunConfig], encoded: Sequence[Encoded], schedule: Schedule, slots: int
) -> Line:
    """Plan a cohort in so many slots."""
    epoch, cycle = schedule.steps_per_epoch, schedule.cycle
    journeys = [journey(run, epoch=epoch) for run in runs]
    widths = [schedule.bucket(step).width for step in range(cycle)]
    before = np.concatenate([[0], np.cumsum(widths * 2)])  # of two cycles: a stretch may wrap
    counts, width = {True: 0, False: 0}, 0
    for each in stretches(journeys, num_slots=slots, cycle=cycle):
        counts[each.is_cached] += each.num_steps
        cycles, rest = divmod(each.num_steps, cycle)
        start = each.tick % cycle
        width += cycles * sum(widths) + int(before[start + rest] - before[start])
    epochs = sum(run.train.num_train_epochs for run in runs)
    return Line(
        orders=len(schedule.orders),
        slots=slots,
        is_planned=slots == best_slots(journeys, cycle=cycle, at_most=len(runs)),
        stage_1=counts[True],
        others=counts[False],
        positions=width * slots * schedule.batch_size,
        tokens=epochs * sum(len(example.tokens) for example in encoded),
        cost=expected_cost(counts[True], counts[False], slots=slots),
    )


def planned() -> list[Line]:
    """Plan the suite with every number of orders."""
    runs = [r.config for r in load_suite(SUITE, [f"model.name={next(iter(EMBEDDED))}"]).runs]
    first = runs[0]
    tokenizer = load_base(first, torch.device("cpu")).tokenizer
    encoded = task_training_data(load_task(first.task).train, first, tokenizer).encoded
    lines: list[Line] = []
    for orders in ORDERS:
        schedule = plan_schedule(
            encoded,
            batch_size=first.train.batch_size,
            max_buckets=first.train.max_buckets,
            num_orders=orders,
        )
        epoch = schedule.steps_per_epoch
        journeys: list[Journey] = [journey(run, epoch=epoch) for run in runs]
        best = best_slots(journeys, cycle=schedule.cycle, at_most=len(runs))
        lines += [line(runs, encoded, schedule, slots) for slots in sorted({*SLOTS, best})]
    return lines


def table(lines: Sequence[Line]) -> str:
    """Return the plans as a Markdown table; costs are relative to the lowest of one order."""
    least = min(each.cost for each in lines if each.orders == 1)
    rows = [
        "| orders | slots | steps of stage 1 | other steps | millions of positions "
        "| without a token | expected time |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for each in lines:
        slots = f"{each.slots}, as planned" if each.is_planned else str(each.slots)
        rows.append(
            f"| {each.orders} | {slots} | {each.stage_1:,} | {each.others:,} "
            f"| {each.positions / 1e6:,.0f} | {1 - each.tokens / each.positions:.1%} "
            f"| {each.cost / least - 1:+.0%} |"
        )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Plan, write the record and print its table; or print the table alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "epoch_orders.json")
    parser.add_argument("--show", action="store_true", help="print the table of a record")
    asked = parser.parse_args()
    if not asked.show:
        rows = ",\n".join(json.dumps(asdict(each)) for each in planned())
        asked.out.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    found = json.loads(asked.out.read_text(encoding="utf-8"))
    sys.stdout.write(table([Line(**row) for row in found]))


if __name__ == "__main__":
    main()
