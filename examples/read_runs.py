"""A folder of runs as a table for your own statistics: one row for each run and group of items.

    python examples/read_runs.py RUNS > runs.csv

In the folder of a suite, arms have the suite's names, and runs of its search for learning rates are
left out. docs/runs.md says what is in a run's folder.
"""

import csv
import json
import sys
from pathlib import Path

COLUMNS = ("run", "arm", "settings", "seed", "num_steps", "split", "group", "num_items", "score")


def main(runs: str) -> None:
    """Write the table to stdout."""
    folder = Path(runs)
    listed = listed_runs(folder)
    if not listed:
        sys.exit(f"{runs!r} holds no runs: name the folder that they lie in")
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    for name, arm, settings in listed:
        result = json.loads((folder / name / "result.json").read_text(encoding="utf-8"))
        trained = result["training"] or {}  # null for the untouched model
        score = result["scores"][0] if result["scores"] else result["metric"]
        for group, found in result["groups"].items():
            table.writerow(
                {
                    "run": name,
                    "arm": arm or result["arm"],
                    "settings": json.dumps(settings),
                    "seed": result["seed"],
                    "num_steps": trained.get("num_steps", 0),
                    "split": result["split"],
                    "group": group,
                    "num_items": found["num_items"],
                    "score": found[score],
                }
            )


def listed_runs(folder: Path) -> list[tuple[str, str, dict[str, object]]]:
    """Each finished run's folder, its arm in the suite, and its point of the suite's grid."""
    suite = folder / "suite.json"
    if suite.is_file():
        rows = json.loads(suite.read_text(encoding="utf-8"))["runs"]
        found = [(row["run_id"], row["arm"], row["settings"]) for row in rows]
    else:
        found = [(path.parent.name, "", {}) for path in sorted(folder.glob("*/result.json"))]
    return [own for own in found if (folder / own[0] / "result.json").is_file()]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
