"""How accurate are the learning rates that rules choose? Simulated, and on records of real runs.

    python benchmarks/rate_rule.py [--rounds 1500] [--out results/rate_rule.json]
    python benchmarks/rate_rule.py --show

A world is an arm at five learning rates, each twice the one before. It gives the mean accuracy of
the arm's runs and the loss of the gold target. *drawn* worlds have a peak of accuracy somewhere on
the grid, and a loss whose minimum is 0.75 ± 0.7 steps higher; in the records of
``results/learning_rates`` it is 0 or 1 steps higher. *recorded* worlds are those records' own
curves. Seeds differ by 2 points, or by an eighth of the accuracy if that is less. Items are harder
or easier for all rates alike. A rule is judged by the mean accuracy of runs at the rate that it
chooses.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from choose_learning_rates import rates as recorded_rates

from schemabank.stats import crossed_difference
from schemabank.suites.raterule import Candidate, ItemMeans, best_score, choose, paired_error

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "results" / "learning_rates").glob("*.jsonl"))
SEED, NUM_RATES, NUM_SEEDS = 20_261_126, 5, 2
ACCURACIES, NUM_ITEMS = (0.03, 0.1, 0.3, 0.6), (100, 300, 750)
SEED_SD, LOSS_SD, DIFFICULTY_SD = 0.02, 0.004, 1.5
SIMPLEST, OWN = "best score alone", "the rule of tune"
Rng = np.random.Generator
Scores = np.ndarray  # (seed, item)


@dataclass(frozen=True)
class Tried:
    """A world's candidates, with the scores of single runs and the accuracy that is true.

    Attributes:
        candidates: in the order of their rates.
        scores: (seed, item) of each.
        true: accuracy of each.
    """

    candidates: Sequence[Candidate]
    scores: Sequence[Scores]
    true: Sequence[float]


@dataclass(frozen=True)
class Line:
    """One rule in one setting: the mean true accuracy at the rates that it chooses.

    Attributes:
        rule: in words.
        worlds: which.
        num_items: that each run answers.
        accuracy: mean over the worlds.
        standard_error: of the accuracy; most of it is the variation of the worlds.
        ahead: mean difference from the best score alone, which chose in the same worlds.
        ahead_error: standard error of that.
        rounds: how many worlds.
    """

    rule: str
    worlds: str
    num_items: int
    accuracy: float
    standard_error: float
    ahead: float
    ahead_error: float
    rounds: int


def near(tried: Tried, error: Callable[[int, int], float]) -> int:
    """Return the candidate of the lowest loss that is no further than an error from the best."""
    scores = [c.score or 0.0 for c in tried.candidates]
    best = list(tried.candidates).index(best_score(tried.candidates))
    close = [n for n, own in enumerate(scores) if scores[best] - own <= error(best, n) + 1e-9]
    return min(close, key=lambda n: tried.candidates[n].gold_nll)


def nothing(tried: Tried, one: int, other: int) -> float:
    """No error at all: the best score decides."""
    del tried, one, other
    return 0.0


def anything(tried: Tried, one: int, other: int) -> float:
    """An error without bounds: the loss decides."""
    del tried, one, other
    return np.inf


def binomial(tried: Tried, best: int, other: int) -> float:
    """One standard error of a single run's items: what the rule was before."""
    del other
    found = tried.candidates[best]
    score = found.score or 0.0
    return float((score * (1 - score) / found.num_items) ** 0.5)


def over_both(tried: Tried, one: int, other: int) -> float:
    """The paired standard error over seeds and items."""
    found = crossed_difference(tried.scores[one], tried.scores[other])
    return found.standard_error or 0.0


def over_items(tried: Tried, one: int, other: int) -> float:
    """The paired standard error over items."""
    return paired_error(tried.candidates[one], tried.candidates[other])


def unpaired(tried: Tried, one: int, other: int) -> float:
    """The standard error if the answers of both were unrelated."""
    both = (tried.candidates[n].score or 0.0 for n in (one, other))
    num = tried.candidates[one].num_items * NUM_SEEDS
    return float(sum(score * (1 - score) / num for score in both) ** 0.5)


def chosen(tried: Tried) -> int:
    """Return what the package's own rule chooses."""
    return list(tried.candidates).index(choose(tried.candidates))


def within(share: float, error: Callable[[Tried, int, int], float]) -> Callable[[Tried], int]:
    """Return the rule that lets the loss decide within a share of an error."""
    return lambda tried: near(tried, lambda a, b: share * error(tried, a, b))


RULES: dict[str, Callable[[Tried], int]] = {
    "lowest loss alone": within(1, anything),
    SIMPLEST: within(1, nothing),
    "before: one binomial error of a run": within(1, binomial),
    "one paired error over seeds and items": within(1, over_both),
    "half a paired error over seeds and items": within(0.5, over_both),
    "one paired error over items": within(1, over_items),
    "half a paired error over items": within(0.5, over_items),
    "a quarter of a paired error over items": within(0.25, over_items),
    "half an unpaired error": within(0.5, unpaired),
    OWN: chosen,
}


def drawn_world(rng: Rng, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and loss at each rate of an arm whose best accuracy is given."""
    step = np.arange(NUM_RATES)
    peak, width = rng.uniform(0.5, 3.5), rng.uniform(1.2, 2.5)
    away = step - peak - rng.normal(0.75, 0.7)
    found = accuracy * np.exp(-0.5 * ((step - peak) / width) ** 2)
    return found, 0.3 + rng.uniform(0.01, 0.06) * away**2


def recorded_worlds() -> list[tuple[np.ndarray, np.ndarray]]:
    """Accuracy and loss at each rate, as they were in the records."""
    return [
        (np.array([c.score for c in tried]), np.array([c.gold_nll for c in tried]))
        for path in RECORDS
        for tried in recorded_rates(path).values()
    ]


def answered(rng: Rng, world: tuple[np.ndarray, np.ndarray], num_items: int) -> Tried:
    """Draw what two runs at each rate answer, and the losses that are seen."""
    accuracy, loss = world
    spread = min(SEED_SD, accuracy.max() / 8)
    shares = accuracy[:, None] + spread * rng.normal(size=(NUM_RATES, NUM_SEEDS))
    shares = np.clip(shares, 1e-3, 0.98)[:, :, None]
    # Logistic in an item's ease; the scale makes the mean over items about the share.
    scale = (1 + np.pi / 8 * DIFFICULTY_SD**2) ** 0.5
    ease = DIFFICULTY_SD * rng.normal(size=num_items)
    right = 1 / (1 + np.exp(-(scale * np.log(shares / (1 - shares)) + ease)))
    scores = (rng.random(right.shape) < right).astype(np.float64)
    losses = loss + LOSS_SD / NUM_SEEDS**0.5 * rng.normal(size=NUM_RATES)
    alone = np.arange(num_items, dtype=np.int32)
    candidates = [
        Candidate(
            learning_rate=float(2.0**step),
            score=float(own.mean()),
            gold_nll=float(losses[step]),
            ended=None,
            num_items=num_items,
            num_seeds=NUM_SEEDS,
            answers=ItemMeans(own.mean(axis=0), alone, ""),
        )
        for step, own in enumerate(scores)
    ]
    return Tried(candidates, list(scores), accuracy.tolist())


def compared(
    rng: Rng, name: str, worlds: Sequence[tuple[np.ndarray, np.ndarray]], num_items: int
) -> list[Line]:
    """Let every rule choose in the same worlds."""
    found: dict[str, list[float]] = {rule: [] for rule in ("best possible", *RULES)}
    for world in worlds:
        tried = answered(rng, world, num_items)
        found["best possible"].append(max(tried.true))
        for rule, choice in RULES.items():
            found[rule].append(tried.true[choice(tried)])
    lines = []
    for rule, own in found.items():
        accuracy, error = mean_and_error(own)
        ahead, ahead_error = mean_and_error(np.subtract(own, found[SIMPLEST]))
        line = (rule, name, num_items, accuracy, error, ahead, ahead_error, len(own))
        lines.append(Line(*line))
    return lines


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return a mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)


def simulated(rounds: int) -> list[Line]:
    """Return all lines."""
    settings = [(accuracy, num) for accuracy in (*ACCURACIES, None) for num in NUM_ITEMS]
    rngs = np.random.default_rng(SEED).spawn(len(settings))
    lines: list[Line] = []
    for (accuracy, num_items), rng in zip(settings, rngs, strict=True):
        if accuracy is None:
            own = recorded_worlds()
            worlds, name = own * max(1, rounds // len(own)), "recorded"
        else:
            worlds = [drawn_world(rng, accuracy) for _ in range(rounds)]
            name = f"drawn, best {accuracy:.0%}"
        lines += compared(rng, name, worlds, num_items)
    return lines


def on_records() -> list[dict[str, object]]:
    """What the rules choose in the records, which have means alone."""
    rows: list[dict[str, object]] = []
    for path in RECORDS:
        for arm, tried in recorded_rates(path).items():
            whole = Tried(tried, [], [])
            picks = {
                SIMPLEST: tried.index(best_score(tried)),
                "before": RULES["before: one binomial error of a run"](whole),
                "now": tried.index(choose(tried)),
            }
            shown = {
                rule: {"learning_rate": tried[n].learning_rate, "score": tried[n].score}
                for rule, n in picks.items()
            }
            rows.append({"record": path.stem, "arm": arm, **shown})
    return rows


def table(lines: Sequence[dict[str, object]]) -> str:
    """Return the accuracies as a Markdown table, a row a rule and a column a kind of world."""
    worlds = list(dict.fromkeys(str(x["worlds"]) for x in lines))
    rows = ["| rule | " + " | ".join(worlds) + " |", "|---|" + "---|" * len(worlds)]
    for rule in dict.fromkeys(str(x["rule"]) for x in lines):
        cells = []
        for name in worlds:
            own = [x["accuracy"] for x in lines if (x["rule"], x["worlds"]) == (rule, name)]
            cells.append(f"{np.mean(np.array(own, dtype=float)):.2%}")
        rows.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, *ahead_rows(lines, worlds)]) + "\n"


def ahead_rows(lines: Sequence[dict[str, object]], worlds: Sequence[str]) -> list[str]:
    """The package's rule less the best score alone, in points, with its standard error."""
    cells = []
    for name in worlds:
        own = [x for x in lines if (x["rule"], x["worlds"]) == (OWN, name)]
        ahead = np.mean([float(str(x["ahead"])) for x in own])
        error = np.sqrt(sum(float(str(x["ahead_error"])) ** 2 for x in own)) / len(own)
        cells.append(f"{100 * ahead:+.3f} ± {100 * error:.3f}")
    return ["| the last less the best score alone, in points | " + " | ".join(cells) + " |"]


def records_table(rows: Sequence[dict[str, dict[str, float]]]) -> str:
    """Return what the rules choose in the records as a Markdown table."""
    rules = {SIMPLEST: SIMPLEST, "before": "the rule before"}
    rules |= {"now": "the rule now"}
    lines = [f"| record | arm | {' | '.join(rules.values())} |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{row[r]['learning_rate']:g} ({row[r]['score']:.3f})" for r in rules]
        lines.append(f"| {row['record']} | {row['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, print the table, write the record; or print the table of the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "rate_rule.json")
    parser.add_argument("--show", action="store_true", help="print the table of a record")
    asked = parser.parse_args()
    if not asked.show:
        record = {
            "seed": SEED,
            "rounds": asked.rounds,
            "versions": {"python": platform.python_version(), "numpy": np.__version__},
            "lines": [asdict(line) for line in simulated(asked.rounds)],
            "records": on_records(),
        }
        asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    found = json.loads(asked.out.read_text(encoding="utf-8"))
    print(table(found["lines"]), end="")  # noqa: T201 -- the result of a script


if __name__ == "__main__":
    main()
