"""A folder of runs as a table for your own statistics: a row a run and group of items.

    python examples/read_runs.py RUNS > runs.csv

docs/runs.md says what a run's folder holds.
"""

import csv
import json
import sys
from pathlib import Path


def main(runs: str) -> None:
    columns = ("run", "arm", "seed", "num_steps", "group", "num_items", "score", "gold_nll")
    table = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    table.writeheader()
    for path in sorted(Path(runs).glob("*/result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        trained = result["training"] or {}  # null for the untouched model
        for group, found in result["groups"].items():
            table.writerow(
                {
                    "run": path.parent.name,
                    "arm": result["arm"],
                    "seed": result["seed"],
                    "num_steps": trained.get("num_steps", 0),
                    "group": group,
                    "num_items": found["num_items"],
                    "score": found[result["scores"][0]],
                    "gold_nll": found.get("gold_nll", ""),
                }
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
