"""How often arms that differ by a margin are called equivalent, or not worse: never above 5 %?

    python benchmarks/margins.py [--rounds 10000] [--out results/margins.json]
    python benchmarks/margins.py --show

The arms of a case of ``benchmarks/verdicts.py`` are equal, and vary as they do there. Here the
treatment is moved: down by the margin itself, where *not worse* is false, and up or down by it,
where *equivalent* is false. That is the hardest place, since a larger true difference is seen more
easily. *shown* is how often equal arms are called equivalent, which is right.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import verdicts
from scipy.special import stdtrit

SEED, ALPHA = 20_261_127, 0.05
USUAL = "seeds by 2 points, items by 10"
SEEDS, ITEMS, MARGIN = (4, 5, 6, 8, 12), (300, 1319), 0.03


@dataclass(frozen=True)
class Line:
    """How often a word was said.

    Attributes:
        word: *equivalent* or *not worse*, which are false here, or *shown*, which is right.
        case: what varies.
        num_seeds: of each arm.
        num_items: that every run answers.
        rate: share of the rounds.
        rounds: how many.
    """

    word: str
    case: str
    num_seeds: int
    num_items: int
    rate: float
    rounds: int


def said(found: verdicts.Moments, shift: float, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each round is called not worse, and equivalent, as `margin_verdict` has it."""
    first, second = (-stdtrit(df, ALPHA) for df in found.df)
    total = np.maximum(found.by_seed + found.by_item, verdicts.LEAST)
    reach = (first * found.by_seed + second * found.by_item) / np.sqrt(total)
    varies = found.by_seed + found.by_item > verdicts.LEAST
    mean = found.mean + shift
    not_worse = varies & (mean - reach >= -margin)
    return not_worse, not_worse & (mean + reach <= margin)


def judged(
    case: verdicts.Case, rng: np.random.Generator, rounds: int, size: tuple[int, int]
) -> list[Line]:
    """Return the rates of a case with so many seeds and items."""
    not_worse = below = above = equal = 0.0
    for found in verdicts.moments(case, rng, rounds, *size):
        words = said(found, -MARGIN, MARGIN)
        not_worse, below = not_worse + words[0].sum(), below + words[1].sum()
        above += said(found, MARGIN, MARGIN)[1].sum()
        equal += said(found, 0, MARGIN)[1].sum()
    hits = {"not worse": not_worse, "equivalent": max(below, above), "shown": equal}
    return [Line(word, case.name, *size, float(n) / rounds, rounds) for word, n in hits.items()]


def simulated(rounds: int) -> Iterator[Line]:
    """Yield all lines."""
    rng = np.random.default_rng(SEED)
    for num_items in ITEMS:
        for num_seeds in SEEDS:
            for case in verdicts.CASES:
                yield from judged(case, rng, rounds, (num_seeds, num_items))


def read(path: Path) -> list[Line]:
    """Return the lines of a record."""
    return [Line(**row) for row in json.loads(path.read_text(encoding="utf-8"))["lines"]]


def table(lines: Sequence[Line]) -> str:
    """Return the highest false rates of any case, and the right ones of a usual case."""
    rows = [
        f"| word, margin {100 * MARGIN:.0f} points | "
        + " | ".join(f"{n} seeds" for n in SEEDS)
        + " |",
        "|---|" + "---|" * len(SEEDS),
    ]
    for word in ("not worse", "equivalent"):
        cells = [max(_rates(lines, word, num)) for num in SEEDS]
        rows.append(f"| false *{word}* | " + " | ".join(f"{x:.1%}" for x in cells) + " |")
    usual = [x for x in lines if x.case == USUAL and x.num_items == ITEMS[-1]]
    cells = [max(_rates(usual, "shown", num)) for num in SEEDS]
    shown = f"| equal arms called *equivalent* ({USUAL}; {ITEMS[-1]:,} items) | "
    rows.append(shown + " | ".join(f"{x:.0%}" for x in cells) + " |")
    return "\n".join(rows) + "\n"


def _rates(lines: Sequence[Line], word: str, num_seeds: int) -> list[float]:
    return [x.rate for x in lines if (x.word, x.num_seeds) == (word, num_seeds)]


def main() -> None:
    """Simulate, write the record and print its table; or print the table alone."""
    path = verdicts.recorded("margins.json", SEED, simulated)
    print(table(read(path)))  # noqa: T201 -- the result of a script


if __name__ == "__main__":
    main()
