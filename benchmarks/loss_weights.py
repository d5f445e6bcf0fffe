"""Measure what examples and tokens weigh in training, by length, with sorted and shuffled batches.

    SCHEMABANK_DATA=FOLDER python benchmarks/loss_weights.py [--out results/loss_weights.json]
    python benchmarks/loss_weights.py --show

In a step that divides the summed loss of a batch of B examples by n, an example with l labels has
the weight B l / n, and each of its labels L / n, where L is the mean number of labels of a batch.
Both are 1 on average if n is L. The record gives means over an epoch, for the tenth of the examples
with the fewest labels and the tenth with the most, and the rank correlation of widths between
epochs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from schemabank.config.file import overridden
from schemabank.config.settings import RunConfig
from schemabank.engine.batches import EMPTY, Schedule
from schemabank.runs.loading import load_base
from schemabank.runs.prepare import task_training_data
from schemabank.tasks.catalog import load_task

SEED = 42
ROOT = Path(__file__).parents[1]
OWN, MEAN = "the batch's own labels", "the mean number of labels"
CASES = (
    ("of similar length", f"{OWN} (default)"),
    ("of similar length", f"{MEAN}, `train.loss_weighting: token`"),
    ("shuffled, as a plain loader makes them", OWN),
)
Record = dict[str, Any]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Means over the tenth of the examples with the fewest labels and the tenth with the most."""

    examples: tuple[float, float]
    tokens: tuple[float, float]


def weights(labels: Numbers, batches: Sequence[Sequence[int]], *, by_batch: bool) -> Weights:
    """Return what examples and their labels weigh.

    Args:
        labels: how many each example has.
        batches: an epoch's examples.
        by_batch: divide by a batch's own number of labels, else by the mean of all batches.
    """
    mean = labels.sum() / len(batches)
    size = len(labels) / len(batches)  # of a batch, on average
    example, token = np.zeros_like(labels), np.zeros_like(labels)
    for batch in batches:
        divisor = labels[list(batch)].sum() if by_batch else mean
        for index in batch:
            example[index] = size * labels[index] / divisor
            token[index] = mean / divisor
    ranked = np.argsort(labels, kind="stable")
    tenth = len(labels) // 10
    ends = ranked[:tenth], ranked[-tenth:]
    few, many = (float(example[end].mean()) for end in ends)
    own = [float(np.average(token[end], weights=labels[end])) for end in ends]
    return Weights((few, many), (own[0], own[1]))


def shuffled(num_examples: int, batch_size: int) -> list[list[int]]:
    """Return batches that ignore length, as a plain loader makes them."""
    order = np.random.default_rng(SEED).permutation(num_examples).tolist()
    return [order[i : i + batch_size] for i in range(0, num_examples, batch_size)]


def largest_correlation(schedule: Schedule) -> float:
    """Return the largest rank correlation of widths, step by step, between two epochs."""
    epochs = range(len(schedule.orders))
    widths = [[schedule.buckets[b].width for b in schedule.order(epoch)] for epoch in epochs]
    pairs = [spearmanr(a, b).statistic for a, b in combinations(widths, 2)]
    return float(max(pairs, key=abs))


def measured(settings: Sequence[str]) -> Record:
    """Return the weights and the correlation of widths on a task's training examples."""
    run = overridden(RunConfig(arm="lora"), ["task.name=gsm8k", *settings])
    tokenizer = load_base(run, torch.device("cpu")).tokenizer
    data = task_training_data(load_task(run.task).train, run, tokenizer)
    labels = np.array([e.num_labels for e in data.encoded], dtype=np.float64)
    similar = [[i for i in row if i != EMPTY] for row in data.schedule.rows(SEED, 0)]
    mixed = shuffled(len(labels), run.train.batch_size)
    rows = []
    for batches, divided_by in CASES:
        own = weights(
            labels,
            mixed if batches.startswith("shuffled") else similar,
            by_batch=divided_by.startswith(OWN),
        )
        rows.append({"batches": batches, "divided_by": divided_by, **asdict(own)})
    return {
        "settings": ["task.name=gsm8k", *settings],
        "num_examples": len(labels),
        "mean_labels": float(labels.mean()),
        "num_orders": len(data.schedule.orders),
        "correlation": largest_correlation(data.schedule),
        "rows": rows,
    }


def table(record: Record) -> str:
    """Return the weights as a Markdown table: for the fewest labels and for the most."""
    lines = ["| batches | divided by | weight of an example | of a label |", "|---|---|---|---|"]
    for row in record["rows"]:
        cells = [f"{few:.2f} / {many:.2f}" for few, many in (row["examples"], row["tokens"])]
        lines.append(f"| {row['batches']} | {row['divided_by']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and print its table; or print the table alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "loss_weights.json")
    parser.add_argument("--show", action="store_true", help="print the table of a record")
    asked = parser.parse_args()
    if not asked.show:
        text = json.dumps(measured(asked.set), indent=1)
        asked.out.write_text(f"{text}\n", encoding="utf-8")
    record: Record = json.loads(asked.out.read_text(encoding="utf-8"))
    sys.stdout.write(
        f"{table(record)}\nrank correlation of widths between two of {record['num_orders']} "
        f"epochs: {record['correlation']:+.3f} at most\n"
    )


if __name__ == "__main__":
    main()
