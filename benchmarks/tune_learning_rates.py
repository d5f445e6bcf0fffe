"""Score each arm on validation at a grid of learning rates, all runs in one cohort.

    python benchmarks/tune_learning_rates.py CONFIG --rates 5e-4 1e-3 2e-3 --seeds 1 2 --out FILE

A rate is the peak learning rate of the arm lora. In the arm schemabank, the stages that train LoRA
are scaled so that the highest of them peaks at the rate. Both arms have the same grid and seeds.
"""

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path

import torch
import transformers

from schemabank.common.failure import Failure
from schemabank.config.file import load_experiment, run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.run import TrainingData
from schemabank.engine.stack import AdapterStack
from schemabank.runs.evaluate import Procedure, evaluate
from schemabank.runs.inputs import DATA, data_digest
from schemabank.runs.loading import load_base, resolve_device, resolved
from schemabank.runs.prepare import engine_run, evaluation_items, task_training_data
from schemabank.runs.progress import LineReporter
from schemabank.runs.stacks import build_stack
from schemabank.tasks.catalog import load_task, metric_of
from schemabank.tasks.scoring.scores import METRICS, summaries


def main() -> None:
    """Run the grid and write one JSON row a run and group of items."""
    arguments = _arguments()
    experiment = load_experiment(Path(arguments.config), ["arm=lora", "seed=0", *arguments.set])
    device = resolve_device(experiment.engine.device)
    run = experiment.runs()[0]
    grid = product(arguments.arms, arguments.rates, arguments.seeds)
    runs = resolved([at_rate(run, *point) for point in grid], device)
    slots = arguments.slots or (len(runs) if device.type == "cuda" else 1)
    rows: list[dict[str, object]] = []
    for start in range(0, len(runs), slots):
        rows += score(runs[start : start + slots], device)
    Path(arguments.out).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        sys.stdout.write(
            f"{row['arm']:10s} {row['learning_rate']:.0e} seed {row['seed']} {row['group']:8s} "
            f"correct {row['correct']:.3f} gold NLL {row['gold_nll']:.4f}\n"
        )


def at_rate(run: RunConfig, arm: str, rate: float, seed: int) -> RunConfig:
    """Return a run of an arm at a learning rate, scored on validation."""
    resolved = tuple(stage.resolved(run.train) for stage in run.curriculum)
    highest = max(s.learning_rate for s in resolved if "lora" in s.train)
    stages = tuple(
        s.model_copy(update={"learning_rate": s.learning_rate * rate / highest})
        if "lora" in s.train
        else s
        for s in resolved
    )
    update = {
        "arm": arm,
        "seed": seed,
        "curriculum": stages,
        "train": run.train.model_copy(update={"learning_rate": rate}),
        "eval": run.eval.model_copy(update={"split": "validation"}),
    }
    return run.model_copy(update=update)


def score(runs: list[RunConfig], device: torch.device) -> list[dict[str, object]]:
    """Train runs in one cohort; return their validation scores and the digests of their inputs."""
    first, reporter = runs[0], LineReporter()
    task, base = load_task(first.task), load_base(first, device)
    data = task_training_data(task.train, first, base.tokenizer)
    stack = build_stack(runs, base, slots=len(runs))
    cohort, cost = _train(runs, stack, data, reporter)
    items = evaluation_items(task, first.task, first.eval, base.tokenizer)
    reporter.start("evaluate", len(items))
    records = evaluate(
        stack,
        base,
        items,
        Procedure.of(first.task, first.eval, routing="off"),
        advance=lambda n: reporter.advance(n, ""),
    )
    reporter.finish()
    stack.remove()
    inputs = {**base.digests, DATA: data_digest(task)}
    common = {**_origin(first, device), **cost, "inputs": inputs}
    metric = METRICS[metric_of(first.task)]
    return [
        _row(run, slot.failure, group) | summary | common
        for run, slot, found in zip(runs, cohort.slots, records, strict=True)
        for group, summary in summaries(found, metric).items()
    ]


def _train(
    runs: list[RunConfig], stack: AdapterStack, data: TrainingData, reporter: LineReporter
) -> tuple[Cohort, dict[str, object]]:
    """Train runs; return their cohort, with its size and time for the rows."""
    planned = [
        engine_run(run, data.examples, stack, data.tokenizer, name=run_id(run)) for run in runs
    ]
    cohort = Cohort(stack, planned, data)
    num_steps = cohort.num_steps  # of those that are left; later there are none
    reporter.start(f"train {len(runs)} runs", num_steps)
    began = time.monotonic()
    for steps in cohort.steps():
        reporter.advance(1, f"loss {sum(s.loss for s in steps) / len(steps):.3f}")
    reporter.finish()
    training_s = round(time.monotonic() - began, 1)
    return cohort, {
        "num_steps": num_steps,
        "runs_in_cohort": len(runs),
        "training_s": training_s,
    }


def _row(run: RunConfig, failure: Failure | None, group: str) -> dict[str, object]:
    return {
        "run": run_id(run),
        "arm": run.arm,
        "learning_rate": run.train.learning_rate,
        "seed": run.seed,
        "group": group,
        "failure": failure and failure.row(),
    }


def _origin(run: RunConfig, device: torch.device) -> dict[str, object]:
    """Where rows come from."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": run.model.name,
        "dtype": run.model.dtype,
        "task": run.task.name,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--arms", nargs="+", default=["lora", "schemabank"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--slots", type=int, help="runs at once; all on a GPU, one on a CPU")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
