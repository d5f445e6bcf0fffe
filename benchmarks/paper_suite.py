"""Measure the document's whole suite: its 40 runs trained on all of GSM8K, and evaluated.

    python benchmarks/paper_suite.py --out FILE.json
    python benchmarks/paper_suite.py --answers-only --out FILE.json

It does what ``schemabank train`` does, from the model to 40 checked adapters on disk. The model has
Qwen2-0.5B's shape and random weights, so the accuracies mean nothing, and no completion ends early.
The document's loss is on the whole text; with ``--answers-only`` it is on the bare numbers alone.
It adds a row to the file. It needs GSM8K (``SCHEMABANK_DATA`` or the hub).
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from bench import QWEN2, Row, origin, peak_gib, random_qwen2, read_rows

from schemabank.common.files import read_json
from schemabank.config.settings import RunConfig
from schemabank.models.basemodel import BaseModel, load_base_model, resolve_dtype
from schemabank.models.embedded import EMBEDDED
from schemabank.runs import experiment, loading
from schemabank.runs.folder import COST
from schemabank.runs.progress import LineReporter
from schemabank.suites.suite import load_suite

SUITE = Path(__file__).parent.parent / "configs" / "paper" / "suite.yaml"
NUM_RUNS = 40


def main() -> None:
    """Train and evaluate; print and write the row."""
    arguments = _arguments()
    device = loading.resolve_device("auto")
    base = _random_base(device)
    loading.load_base = lambda _run, _device: base
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = experiment.run_all(
            _runs(answers_only=arguments.answers_only),
            Path(folder),
            LineReporter(every_s=30),
            device=device,
        )
        total_s = time.perf_counter() - began
        failures = [o.failure for o in outcomes if o.failure is not None]
        assert len(outcomes) == NUM_RUNS
        assert not failures, failures
        cost = read_json(outcomes[0].folder / COST)
    row: Row = {
        **origin(base.model, QWEN2),
        "target": "final",
        "case": "paper suite, loss on answers only" if arguments.answers_only else "paper suite",
        "slots": cost["slots"],
        "total_s": total_s,
        "training_s": cost["training_s"],
        "evaluation_s": cost["evaluation_s"],
        "peak_memory_gib": peak_gib(device),
    }
    print(row)  # noqa: T201 -- this is a script
    out = Path(arguments.out)
    rows = read_rows(arguments.out) if out.exists() else []
    out.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")


def _runs(*, answers_only: bool) -> list[RunConfig]:
    """The document's runs, on a model that needs no hub."""
    changes = [f"model.name={next(iter(EMBEDDED))}"]
    if answers_only:
        changes.append("task.completion_only_loss=true")
    return [run.config for run in load_suite(SUITE, changes).runs]


def _random_base(device: torch.device) -> BaseModel:
    dtype = resolve_dtype("auto", device)
    base = load_base_model(next(iter(EMBEDDED)), dtype=dtype, device=device)
    return replace(base, model=random_qwen2(dtype, device))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answers-only", action="store_true", help="no loss on the questions")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
