"""Simulate how often the intervals of `schemabank.stats` cover what they should.

    python benchmarks/coverage.py [--rounds 10000] [--out results/coverage.json]

Each line draws data with a known truth many times, and counts. Rates are shares of rounds. The
nominal rate is 95 % for intervals, 5 % for tests and 80 % for power.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import scipy.stats

from schemabank import stats
from schemabank.stats.bootstrap import BOOTSTRAP_METHODS

SEED = 20_240_601
NUM_ITEMS, NUM_ARMS = 300, 5
Rng = np.random.Generator


@dataclass(frozen=True)
class Line:
    """One simulated rate.

    Attributes:
        kind: ``coverage``, ``error`` (share of rounds that reject a true null) or ``power``.
        method: function, and its method if there are several.
        setting: what is drawn.
        rate: share of the rounds.
        rounds: how many.
        standard_error: of the rate.
    """

    kind: str
    method: str
    setting: str
    rate: float
    rounds: int
    standard_error: float


def line(kind: str, method: str, setting: str, hits: int, rounds: int) -> Line:
    """Return the rate of hits with its binomial standard error."""
    rate = hits / rounds
    return Line(kind, method, setting, rate, rounds, (rate * (1 - rate) / rounds) ** 0.5)


def covered(intervals: Iterable[stats.Interval | None], truth: float = 0.0) -> int:
    """Count the intervals that hold the truth."""
    return sum(ends is not None and ends[0] <= truth <= ends[1] for ends in intervals)


def means(rng: Rng, rounds: int) -> Iterator[Line]:
    """Student's and Welch's intervals."""
    for num in (4, 8):
        zeros = np.zeros(num)
        draws = rng.normal(size=(rounds, num))
        hits = covered(stats.summarise_arm(x).interval for x in draws)
        yield line("coverage", "summarise_arm", f"{num} seeds, normal", hits, rounds)
        draws = rng.normal(size=(rounds, num))
        hits = covered(stats.paired_difference(x, zeros).interval for x in draws)
        yield line("coverage", "paired_difference", f"{num} seeds, normal", hits, rounds)
        draws = rng.exponential(size=(rounds, num)) - 1
        hits = covered(stats.paired_difference(x, zeros).interval for x in draws)
        yield line("coverage", "paired_difference", f"{num} seeds, exponential", hits, rounds)
    for first, second, scale in ((4, 4, 1), (8, 8, 3), (4, 8, 3), (8, 4, 3)):
        ones, others = scale * rng.normal(size=(rounds, first)), rng.normal(size=(rounds, second))
        pairs = zip(ones, others, strict=True)
        hits = covered(stats.welch_difference(a, b).interval for a, b in pairs)
        name = f"{first} and {second} seeds, sd {scale}:1"
        yield line("coverage", "welch_difference", name, hits, rounds)


def bootstraps(rng: Rng, rounds: int) -> Iterator[Line]:
    """Bootstrap intervals of few values, and Student's of the same."""
    for num, shape in ((4, "normal"), (6, "normal"), (8, "normal"), (8, "exponential")):
        draws = rng.normal(size=(rounds, num))
        if shape == "exponential":
            draws = rng.exponential(size=(rounds, num)) - 1
        setting = f"{num} values, {shape}"
        for method in BOOTSTRAP_METHODS:
            hits = covered(
                stats.bootstrap_interval(x, method=method, num_resamples=2000, seed=seed)
                for seed, x in enumerate(draws)
            )
            yield line("coverage", f"bootstrap_interval, {method}", setting, hits, rounds)
        hits = covered(stats.summarise_arm(x).interval for x in draws)
        yield line("coverage", "summarise_arm", setting, hits, rounds)


def shares(rng: Rng, rounds: int) -> Iterator[Line]:
    """Wilson's interval, averaged over all true accuracies."""
    for num in (20, NUM_ITEMS):
        hits = 0
        for truth in rng.random(rounds):
            low, high = stats.wilson_interval(int(rng.binomial(num, truth)), num)
            hits += low <= truth <= high
        yield line("coverage", "wilson_interval", f"{num} items, all accuracies", hits, rounds)


def clusters(rng: Rng, rounds: int) -> Iterator[Line]:
    """Intervals over items in clusters."""
    found = []
    for _ in range(rounds):
        members = np.repeat(np.arange(20), rng.integers(1, 11, 20))
        values = rng.normal(size=20)[members] + rng.normal(size=len(members))
        found.append(stats.clustered_interval(values.tolist(), members.tolist()))
    name = "20 documents of 1 to 10 items"
    yield line("coverage", "clustered_interval", name, covered(found), rounds)
    found = []
    for seed in range(rounds):
        sizes = rng.integers(1, 11, 30)
        sums = sizes * (3 + rng.normal(size=30))
        ends = stats.resampled_ratio_interval(
            sums.tolist(), sizes.tolist(), num_resamples=1000, seed=seed
        )
        found.append(ends)
    name = "30 books of 1 to 10 windows"
    yield line("coverage", "resampled_ratio_interval", name, covered(found, 3), rounds)


@dataclass(frozen=True)
class Crossed:
    """What varies when two arms answer the same items, in units of accuracy.

    Attributes:
        name: what varies most.
        seed_sd: of the difference between seeds.
        item_sd: of the difference between items.
        accuracy: of both arms, on average.
        cluster_sd: of the difference between clusters of 25 items.
    """

    name: str
    seed_sd: float
    item_sd: float
    accuracy: float
    cluster_sd: float = 0.0

    def draw(self, rng: Rng, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw both arms' answers, (seed, item), right or wrong; the true difference is 0."""
        shift = self.seed_sd * rng.normal(size=(num_seeds, 1))
        shift = shift + self.item_sd * rng.normal(size=NUM_ITEMS)
        shift = shift + self.cluster_sd * np.repeat(rng.normal(size=NUM_ITEMS // 25), 25)
        drawn = rng.random((2, num_seeds, NUM_ITEMS))
        return drawn[0] < self.accuracy + shift / 2, drawn[1] < self.accuracy - shift / 2


CROSSED = (
    Crossed("single answers", 0.0, 0.0, 0.3),
    Crossed("single answers, both arms near 0", 0.0, 0.0, 0.03),
    Crossed("items", 0.0, 0.25, 0.3),
    Crossed("seeds", 0.1, 0.05, 0.3),
    Crossed("a bit of each", 0.02, 0.1, 0.3),
)
CLUSTERED = Crossed("clusters of 25 items", 0.02, 0.0, 0.3, cluster_sd=0.15)
CLUSTERS = [number // 25 for number in range(NUM_ITEMS)]


def crossed(rng: Rng, rounds: int) -> Iterator[Line]:
    """Intervals over seeds and items, and over seeds alone on the same data."""
    for num, case in product((4, 8), (*CROSSED, CLUSTERED)):
        groups = CLUSTERS if case is CLUSTERED else None
        name = f"{num} seeds x {NUM_ITEMS} items, most varied: {case.name}"
        draws = (case.draw(rng, num) for _ in range(rounds))
        hits = covered(stats.crossed_difference(a, b, clusters=groups).interval for a, b in draws)
        yield line("coverage", "crossed_difference", name, hits, rounds)
        draws = (case.draw(rng, num) for _ in range(rounds))
        hits = covered(
            stats.paired_difference(a.mean(axis=1), b.mean(axis=1)).interval for a, b in draws
        )
        yield line("coverage", "paired_difference", name, hits, rounds)


def pigeonholes(rng: Rng, rounds: int) -> Iterator[Line]:
    """Bootstrap intervals over seeds and items."""
    for num, case in product((4, 8), (*CROSSED, CLUSTERED)):
        groups = CLUSTERS if case is CLUSTERED else None
        draws = (case.draw(rng, num) for _ in range(rounds))
        hits = covered(
            stats.pigeonhole_interval(a, b, clusters=groups, num_resamples=1000, seed=seed)
            for seed, (a, b) in enumerate(draws)
        )
        name = f"{num} seeds x {NUM_ITEMS} items, most varied: {case.name}"
        yield line("coverage", "pigeonhole_interval", name, hits, rounds)


def effects(rng: Rng, rounds: int) -> Iterator[Line]:
    """Intervals of effect sizes, probabilities and spreads."""
    for num, effect in ((4, 0), (4, 3), (8, 0), (8, 1)):
        wins = scipy.stats.norm.cdf(effect / 2**0.5)
        truths = {
            stats.hedges_g: effect,
            stats.paired_d_z: effect / 2**0.5,
            stats.paired_outperformance: wins,
            stats.unpaired_outperformance: wins,
            stats.sd_ratio: 1,
        }
        for measure, truth in truths.items():
            draws = rng.normal(size=(rounds, 2, num))
            hits = covered((measure(effect + a, b).interval for a, b in draws), truth)
            setting = f"{num} seeds, effect {effect}"
            yield line("coverage", measure.__name__, setting, hits, rounds)
    draws = rng.integers(0, 3, (rounds, 2, 8))
    hits = covered((stats.paired_outperformance(a, b).interval for a, b in draws), 0.5)
    yield line("coverage", "paired_outperformance", "8 seeds, one pair in 3 tied", hits, rounds)


def ratios(rng: Rng, rounds: int) -> Iterator[Line]:
    """Fieller's intervals of a ratio of 2, unbounded ones included."""
    for (num, below), paired in product(((4, 3), (8, 3), (8, 0.3)), (True, False)):
        hits = 0
        for a, b in rng.normal(size=(rounds, 2, num)):
            found = stats.ratio_of_means(2 * (below + a), below + b, paired=paired)
            if found.interval is not None:
                hits += covered([found.interval], 2)
            else:
                hits += 1 - covered([found.excluded], 2)
        how = "paired" if paired else "unpaired"
        name = f"{num} seeds, denominator {below} sd from 0, {how}"
        yield line("coverage", "ratio_of_means", name, hits, rounds)


def errors(rng: Rng, rounds: int) -> Iterator[Line]:
    """Permutation tests without a difference, and power at the detectable difference."""
    for num in (4, 6, 8):
        draws = rng.normal(size=(rounds, num))
        hits = sum(stats.sign_flip_test(x, np.zeros(num)).p <= 0.05 for x in draws)
        yield line("error", "sign_flip_test", f"{num} seeds", hits, rounds)
    for num in (4, 6):
        draws = rng.normal(size=(rounds, 2, num))
        hits = sum(stats.label_test(a, b).p <= 0.05 for a, b in draws)
        yield line("error", "label_test", f"{num} seeds an arm", hits, rounds)
    for num in (4, 8):
        shift = stats.detectable_difference(sd=1, num_seeds=num)
        draws = shift + rng.normal(size=(rounds, num))
        hits = sum(stats.paired_difference(x, np.zeros(num)).p <= 0.05 for x in draws)
        yield line("power", "detectable_difference, paired", f"{num} seeds", hits, rounds)
        shift = stats.detectable_difference(sd=1, num_seeds=num, paired=False)
        draws = rng.normal(size=(rounds, 2, num))
        hits = sum(scipy.stats.ttest_ind(a + shift, b).pvalue <= 0.05 for a, b in draws)
        yield line("power", "detectable_difference, unpaired", f"{num} seeds", hits, rounds)


def families(rng: Rng, rounds: int) -> Iterator[Line]:
    """Share of families with a verdict other than "no difference detected"; none differs."""
    for method, draw in (("paired", _arms_over_seeds), ("crossed", _arms_over_both)):
        with_holm = without = 0
        for _ in range(rounds):
            contrasts = draw(rng)
            p_values = stats.holm([1.0 if c.p is None else c.p for c in contrasts])
            pairs = zip(contrasts, p_values, strict=True)
            verdicts = [stats.verdict(contrast, p=p) for contrast, p in pairs]
            with_holm += any(found.outcome != "no difference detected" for found in verdicts)
            without += any(c.p is not None and c.p <= 0.05 for c in contrasts)
        name = f"{NUM_ARMS} arms, 8 seeds, {method}_difference"
        yield line("error", "verdict with holm", name, with_holm, rounds)
        yield line("error", "p at most 0.05, without holm", name, without, rounds)


def _arms_over_seeds(rng: Rng) -> list[stats.Difference]:
    control, *arms = rng.normal(size=(1 + NUM_ARMS, 8))
    return [stats.paired_difference(arm, control) for arm in arms]


def _arms_over_both(rng: Rng) -> list[stats.Difference]:
    return [stats.crossed_difference(*CROSSED[-1].draw(rng, 8)) for _ in range(NUM_ARMS)]


# The share of the rounds that each gets: resampling and inverting take longer.
SIMULATIONS: dict[Callable[[Rng, int], Iterator[Line]], float] = {
    means: 1.0,
    bootstraps: 0.3,
    shares: 1.0,
    clusters: 0.2,
    crossed: 0.5,
    pigeonholes: 0.2,
    effects: 0.5,
    ratios: 0.5,
    errors: 0.5,
    families: 1.0,
}


def table(lines: list[Line]) -> str:
    """Return the rates as a Markdown table."""
    rows = [
        f"| {x.kind} | {x.method} | {x.setting} | {x.rate:.1%} ± {x.standard_error:.1%} |"
        for x in lines
    ]
    return "\n".join(["| kind | method | setting | rate |", "|---|---|---|---|", *rows])


def main() -> None:
    """Simulate everything, print the table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("results/coverage.json"))
    chosen = parser.parse_args()
    rngs = np.random.default_rng(SEED).spawn(len(SIMULATIONS))
    lines: list[Line] = []
    for (simulate, share), rng in zip(SIMULATIONS.items(), rngs, strict=True):
        lines += simulate(rng, round(share * chosen.rounds))
    record = {
        "seed": SEED,
        "rounds": chosen.rounds,
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
        "lines": [asdict(found) for found in lines],
    }
    chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(lines))  # noqa: T201 -- the result of a script


if __name__ == "__main__":
    main()
