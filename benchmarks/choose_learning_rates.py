"""Choose each arm's learning rate from validation records, by one rule for all arms.

    python benchmarks/choose_learning_rates.py results/learning_rates/quickstart.jsonl

The rule is that of ``schemabank.suites.raterule.choose``. It considers the rates whose mean
accuracy is within a quarter of a standard error of the best mean accuracy, and takes the one with
the lowest mean loss of the gold target. These records have means alone, so the error is the one
that unrelated answers would have.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from schemabank.suites.raterule import Candidate, best_score, choose


def rates(path: Path) -> dict[str, list[Candidate]]:
    """Return every arm's rates in a record of ``tune_learning_rates.py``."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = sorted({(row["arm"], row["learning_rate"]) for row in rows})
    found: dict[str, list[Candidate]] = {}
    for arm, learning_rate in keys:
        runs = [r for r in rows if (r["arm"], r["learning_rate"]) == (arm, learning_rate)]
        found.setdefault(arm, []).append(
            Candidate(
                learning_rate=learning_rate,
                score=_mean(r["correct"] for r in runs),
                gold_nll=_mean(r["gold_nll"] for r in runs),
                ended=_mean(r["ended_ratio"] for r in runs),
                num_items=runs[0]["num_items"],
                num_seeds=len(runs),
            )
        )
    return found


def table(path: Path) -> str:
    """Return a Markdown table of a record, the chosen rates in bold.

    What the best accuracy alone would have chosen is marked.
    """
    lines = [
        f"### {path.stem}",
        "",
        "| arm | learning rate | seeds | items | correct | gold NLL | ended |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, tried in rates(path).items():
        pick, highest = choose(tried), best_score(tried)
        edge = pick in (tried[0], tried[-1])
        for r in tried:
            name = f"{r.learning_rate:g}"
            if r == pick:
                name = f"**{name}**" + (" (edge of the grid)" if edge else "")
            lines.append(
                f"| {arm} | {name} | {r.num_seeds} | {r.num_items} | {r.score:.3f}"
                f"{' (best)' if r is highest else ''} | {r.gold_nll:.4f} | {r.ended:.0%} |"
            )
    return "\n".join(lines) + "\n"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


if __name__ == "__main__":
    sys.stdout.write("\n".join(table(Path(argument)) for argument in sys.argv[1:]))
