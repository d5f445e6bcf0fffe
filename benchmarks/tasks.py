"""Take every task end to end with real weights: a few training steps and an evaluation.

    python benchmarks/tasks.py --out FILE.json
    python benchmarks/tasks.py --show --out FILE.json

Each task is one call of ``schemabank train`` in a process of its own. The rows have its scores, its
wall time and its largest resident size, including the loading of the base model. The adapters are
hardly trained: time and memory of the whole path are measured. With ``--tasks`` the rows of other
tasks stay. This needs ``SCHEMABANK_DATA`` or the hub, SmolLM2's package, and the sandbox for
``humaneval``.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench import Row, read_rows

STEPS = 4
COMMON = {
    "arm": "schemabank",
    "model": {"name": "smollm2-135m-instruct"},
    "train": {"max_steps": STEPS},
    "eval": {"split": "test", "limit": 24},
}
CASES: dict[str, dict[str, Any]] = {
    "conditional": {"task": {"name": "conditional"}, "eval": {"limit": 12, "max_new_tokens": 64}},
    "gsm_symbolic": {"task": {"name": "gsm_symbolic"}, "eval": {"limit": 12}},
    "gsm8k": {"task": {"name": "gsm8k"}},
    "humaneval": {
        "task": {"name": "humaneval", "humaneval": {"run_untrusted_code": True}},
        "eval": {"limit": 12},
    },
    "narrativeqa": {
        "task": {"name": "narrativeqa", "max_length": 2048},
        "eval": {"max_new_tokens": 32},
    },
    "perplexity": {"task": {"name": "perplexity"}, "eval": {"limit": 3}},  # books
    "records": {
        "task": {
            "name": "records",
            "prompt": "Question: {question}\nAnswer: ",
            "metric": "numeric",
            "records": {"path": str(Path(os.environ.get("SCHEMABANK_DATA", "")) / "gsm8k")},
        },
    },
}


def main() -> None:
    """Run the cases, print a table and write the rows."""
    arguments = _arguments()
    if not arguments.show:
        old = read_rows(arguments.out) if Path(arguments.out).exists() else []
        rows: list[Row] = [row for row in old if row["task"] not in arguments.tasks]
        for name in arguments.tasks:
            rows += _measured(name)
            Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(read_rows(arguments.out)))  # noqa: T201 -- this is a script


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| task | items | score | NLL of the target | wall time | memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        score = f"{row['score']:.2f}" if row["metric"] == "perplexity" else f"{row['score']:.1%}"
        loss = "" if row["gold_nll"] is None else f"{row['gold_nll']:.3f}"
        lines.append(
            f"| `{row['task']}` | {row['num_items']} {row['group']} | {row['metric']} {score} "
            f"| {loss} | {row['wall_s']:.0f} s | {row['peak_memory_gib']:.1f} GiB |"
        )
    return "\n".join(lines)


def _measured(name: str) -> Iterator[Row]:
    """Train and evaluate on one task; a row for every group of its items."""
    with tempfile.TemporaryDirectory() as folder:
        config, runs = Path(folder) / "task.yaml", Path(folder) / "runs"
        config.write_text(json.dumps(_merged(name)), encoding="utf-8")  # JSON is YAML
        wall_s, memory_gib = _timed(["train", str(config), "--out", str(runs)])
        result = json.loads(next(runs.glob("*/result.json")).read_text(encoding="utf-8"))
    for group, scores in result["groups"].items():
        (score, *_) = result["scores"]
        yield {
            "task": name,
            "model": result["model"],
            "dtype": result["dtype"],
            "threads": torch.get_num_threads(),
            "versions": result["versions"],
            "steps": result["training"]["num_steps"],
            "group": group,
            "num_items": scores["num_items"],
            "metric": score,
            "score": scores[score],
            "gold_nll": scores.get("gold_nll"),
            "wall_s": wall_s,
            "peak_memory_gib": memory_gib,
        }


def _merged(name: str) -> dict[str, Any]:
    own = CASES[name]
    return {**COMMON, **own, "eval": {**COMMON["eval"], **own.get("eval", {})}}


def _timed(arguments: list[str]) -> tuple[float, float]:
    """Run the program; return its wall time in seconds and its own largest resident size in GiB."""
    began = time.perf_counter()
    program = [sys.executable, "-c", "from schemabank.cli import main; main()", *arguments]
    process = os.posix_spawn(sys.executable, program, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        sys.exit(f"schemabank {' '.join(arguments)}: status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
