"""What an example and a token weigh in training, by length: batches of similar length or shuffled.

    SCHEMABANK_DATA=FOLDER python benchmarks/loss_weights.py [--set KEY=VALUE]

In a step that divides the summed loss of a batch of B examples by n, an example with l labels has
the weight B l / n, and each of its labels L / n, where L is the mean number of labels of a batch:
both are 1 on average where n is L. The lines give means over an epoch for the tenth of examples
with the fewest labels and that with the most, and the rank correlation of widths between epochs.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from schemabank.cohort.batches import EMPTY, Schedule
from schemabank.config import RunConfig
from schemabank.configfile import overridden
from schemabank.loading import load_base
from schemabank.prepare import task_training_data
from schemabank.tasks.catalog import load_task

SEED = 42
ROW = "{:16s}{:14s}{:14s}{:14s}"
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Means over the tenth of examples with the fewest labels and that with the most."""

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
    """Return batches that pay no heed to length, as a plain loader makes them."""
    order = np.random.default_rng(SEED).permutation(num_examples).tolist()
    return [order[i : i + batch_size] for i in range(0, num_examples, batch_size)]


def largest_correlation(schedule: Schedule) -> float:
    """Return the largest rank correlation of widths, step by step, between two epochs."""
    epochs = range(len(schedule.orders))
    widths = [[schedule.buckets[b].width for b in schedule.order(epoch)] for epoch in epochs]
    pairs = [spearmanr(a, b).statistic for a, b in combinations(widths, 2)]
    return float(max(pairs, key=abs))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    settings = ["task.name=gsm8k", *parser.parse_args().set]
    run = overridden(RunConfig(arm="lora"), settings)
    tokenizer = load_base(run, torch.device("cpu")).tokenizer
    data = task_training_data(load_task(run.task).train, run, tokenizer)
    labels = np.array([e.num_labels for e in data.encoded], dtype=np.float64)
    similar = [[i for i in row if i != EMPTY] for row in data.schedule.rows(SEED, 0)]
    mixed = shuffled(len(labels), run.train.batch_size)
    lines = [
        f"{len(labels)} examples of {labels.mean():.0f} labels on average",
        ROW.format("batches", "divided by", "an example", "a label"),
    ]
    for name, batches, by_batch in (
        ("similar length", similar, True),
        ("similar length", similar, False),
        ("shuffled", mixed, True),
        ("shuffled", mixed, False),
    ):
        own = weights(labels, batches, by_batch=by_batch)
        ends = [f"{few:.2f} / {many:.2f}" for few, many in (own.examples, own.tokens)]
        lines.append(ROW.format(name, "own labels" if by_batch else "mean labels", *ends))
    correlation = largest_correlation(data.schedule)
    lines.append(f"rank correlation of widths between epochs: {correlation:+.3f} at most")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
