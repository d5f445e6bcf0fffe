"""Choose each arm's learning rate from validation records, by one rule for all arms.

    python benchmarks/choose_learning_rates.py results/learning_rates/quickstart.jsonl

The rule: of the rates whose mean accuracy is within one standard error of the best mean accuracy,
the one with the lowest mean loss of the gold target. All runs answer the same items, so the
standard error is that of one run's items, not divided by the number of seeds.
"""

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rate:
    """Means over the seeds of one arm at one learning rate."""

    learning_rate: float
    correct: float
    gold_nll: float
    ended: float
    num_items: int
    num_seeds: int


def rates(path: Path) -> dict[str, list[Rate]]:
    """Return every arm's rates in a record of ``tune_learning_rates.py``."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = sorted({(row["arm"], row["learning_rate"]) for row in rows})
    found: dict[str, list[Rate]] = {}
    for arm, learning_rate in keys:
        runs = [r for r in rows if (r["arm"], r["learning_rate"]) == (arm, learning_rate)]
        found.setdefault(arm, []).append(
            Rate(
                learning_rate=learning_rate,
                correct=_mean(r["correct"] for r in runs),
                gold_nll=_mean(r["gold_nll"] for r in runs),
                ended=_mean(r["ended_ratio"] for r in runs),
                num_items=runs[0]["num_items"],
                num_seeds=len(runs),
            )
        )
    return found


def chosen(tried: list[Rate]) -> Rate:
    """Return the rate that the rule chooses."""
    best = max(tried, key=lambda r: r.correct)
    error = math.sqrt(best.correct * (1 - best.correct) / best.num_items)
    near = [r for r in tried if r.correct >= best.correct - error]
    return min(near, key=lambda r: r.gold_nll)


def table(path: Path) -> str:
    """Return a Markdown table of a record, the chosen rates in bold."""
    lines = [
        f"### {path.stem}",
        "",
        "| arm | learning rate | seeds | items | correct | gold NLL | ended |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, tried in rates(path).items():
        pick = chosen(tried)
        edge = pick in (tried[0], tried[-1])
        for r in tried:
            name = f"{r.learning_rate:g}"
            if r == pick:
                name = f"**{name}**" + (" (edge of the grid)" if edge else "")
            lines.append(
                f"| {arm} | {name} | {r.num_seeds} | {r.num_items} | {r.correct:.3f} "
                f"| {r.gold_nll:.4f} | {r.ended:.0%} |"
            )
    return "\n".join(lines) + "\n"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(Path(argument)) for argument in sys.argv[1:]))
