"""How often equal arms are called different: from how many seeds on is a verdict fair?

    python benchmarks/verdicts.py [--rounds 10000] [--out results/verdicts.json]
    python benchmarks/verdicts.py --show

Both arms of a case draw their runs alike, so every verdict is false. Cases vary in how runs differ
between seeds (by nothing, by 2 or 7 points, with long tails, with runs that fail now and then, with
runs of two kinds), in how much items favour one arm, and in how hard items are.

A number of seeds is enough if, with it and with every larger number, no case is called different in
more than 5 % of the rounds, and neither is any of the five parts of a split after Holm's
adjustment. Three standard errors of the simulation are allowed on top. The package's own verdicts
are compared with verdicts over seeds alone, and with other degrees of freedom over seeds and items.

*one arm* cases are separate: the other arm's runs are all alike, with the same mean. There a few
seeds do not show how the first arm varies, and no test of means holds its level.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy.special import stdtrit

from schemabank.stats import FEWEST_SEEDS

ROOT = Path(__file__).parents[1]
SEED, ALPHA, NUM_PARTS = 20_261_126, 0.05, 5
SEEDS, ITEMS = (2, 3, 4, 5, 6, 8, 12), (48, 100, 300, 1319)
AT_ONCE = 2_000_000  # answers that fit into memory
LEAST = 1e-18  # of a variance; below, nothing varies
Array = np.ndarray
Rng = np.random.Generator


def alike(rng: Rng, shape: tuple[int, int]) -> Array:
    """Runs that do not differ."""
    del rng
    return np.zeros(shape)


def normal(sd: float) -> Callable[[Rng, tuple[int, int]], Array]:
    """Runs that differ normally."""
    return lambda rng, shape: sd * rng.normal(size=shape)


def long_tails(rng: Rng, shape: tuple[int, int]) -> Array:
    """Runs that differ by Student's t with 3 degrees of freedom, of 2.6 points sd."""
    return 0.015 * rng.standard_t(3, shape)


def failing(rng: Rng, shape: tuple[int, int]) -> Array:
    """One run in five ends 10 points lower."""
    return 0.02 - 0.1 * (rng.random(shape) < 0.2) + 0.01 * rng.normal(size=shape)


def two_kinds(rng: Rng, shape: tuple[int, int]) -> Array:
    """Half of the runs end 10 points higher."""
    return 0.1 * (rng.random(shape) < 0.5) - 0.05


@dataclass(frozen=True)
class Case:
    """How the answers of two equal arms vary.

    Attributes:
        name: in words.
        runs: draws how far runs are from their arm's mean: (round, seed).
        item_sd: of how much an item favours one arm.
        accuracy: of both arms.
        hardness: whether items are hard or easy (a beta distribution of size 1) or all alike.
        cluster_sd: the same of clusters of 4 items, which the comparison knows of.
        other: draws the control's runs where they are not drawn alike.
    """

    name: str
    runs: Callable[[Rng, tuple[int, int]], Array]
    item_sd: float
    accuracy: float = 0.3
    hardness: bool = False
    cluster_sd: float = 0.0
    other: Callable[[Rng, tuple[int, int]], Array] | None = None

    def draw(self, rng: Rng, rounds: int, num_seeds: int, num_items: int) -> Array:
        """Draw differences of answers, means of clusters: (round, seed, cluster)."""
        shape = rounds, num_seeds
        first, second = self.runs(rng, shape), (self.other or self.runs)(rng, shape)
        favour = self.item_sd * rng.standard_normal((rounds, 1, num_items), np.float32)
        if self.cluster_sd:
            own = rng.standard_normal((rounds, 1, num_items // 4), np.float32)
            favour = favour[..., : num_items // 4 * 4] + self.cluster_sd * own.repeat(4, axis=2)
        base: Array | float = self.accuracy
        if self.hardness:
            places = (self.accuracy, 1 - self.accuracy, (rounds, 1, favour.shape[2]))
            base = rng.beta(*places).astype(np.float32)
        answers = [
            rng.random((rounds, num_seeds, favour.shape[2]), np.float32)
            < base + arm[..., None].astype(np.float32) + side * favour / 2
            for arm, side in ((first, 1), (second, -1))
        ]
        apart = answers[0].astype(np.float32) - answers[1]
        if not self.cluster_sd:
            return apart
        return apart.reshape(rounds, num_seeds, -1, 4).mean(axis=3)


CASES = (
    Case("single answers", alike, 0.0),
    Case("single answers, both arms near 0", alike, 0.0, accuracy=0.03),
    Case("single answers, hard and easy items", alike, 0.0, accuracy=0.6, hardness=True),
    Case("items", alike, 0.25),
    Case("seeds by 2 points, items by 10", normal(0.02), 0.1),
    Case("seeds by 2 points, items by 10, hard and easy items", normal(0.02), 0.1, hardness=True),
    Case("seeds by 2 points, items by 25", normal(0.02), 0.25),
    Case("seeds by 2 points, clusters by 15", normal(0.02), 0.0, cluster_sd=0.15),
    Case("seeds by 7 points, items by 5", normal(0.07), 0.05),
    Case("seeds with long tails, items by 10", long_tails, 0.1),
    Case("one run in five fails, items by 10", failing, 0.1),
    Case("runs of two kinds, items by 10", two_kinds, 0.1),
)
# Where Cochran's quantile is most too small at a fifth of 5 %.
HARDEST = Case("seeds by 3.5 points, items by 25", normal(0.035), 0.25)
ONE_ARM = (
    Case("one run in five of one arm fails", failing, 0.1, other=alike),
    Case("one arm has runs of two kinds", two_kinds, 0.1, other=alike),
)


@dataclass(frozen=True)
class Moments:
    """The figures of a comparison that the methods use; each is an array over rounds.

    Attributes:
        mean: difference.
        by_seed: variance of the mean that is seen between seeds.
        by_item: that items add.
        df: degrees of freedom of both.
    """

    mean: Array
    by_seed: Array
    by_item: Array
    df: tuple[int, int]

    @classmethod
    def of(cls, apart: Array) -> "Moments":
        """Return them for differences (round, seed, cluster), as `crossed_difference` has them."""
        _, num_seeds, num_items = apart.shape
        size = num_seeds * num_items
        rows, columns = apart.mean(2, dtype=np.float64), apart.mean(1, dtype=np.float64)
        mean = rows.mean(1)
        of_seeds = num_items * np.square(rows - mean[:, None]).sum(1)
        of_items = num_seeds * np.square(columns - mean[:, None]).sum(1)
        every = np.square(apart).sum((1, 2), dtype=np.float64)
        rest = np.maximum(every - size * mean**2 - of_seeds - of_items, 0)
        df = num_seeds - 1, num_items - 1
        by_item = of_items / df[1] / size - rest / df[0] / df[1] / size
        return cls(mean, of_seeds / df[0] / size, np.maximum(by_item, 0), df)


def cochran(found: Moments, alpha: float) -> Array:
    """The package's verdict over seeds and items: Cochran's quantile."""
    first, second = (-stdtrit(df, alpha / 2) for df in found.df)
    total = found.by_seed + found.by_item
    weighted = first * found.by_seed + second * found.by_item
    return _beyond(found.mean, weighted / np.maximum(total, LEAST), total)


def satterthwaite(found: Moments, alpha: float) -> Array:
    """The same error with the degrees of freedom of Hillis, Berbaum and Metz 2008."""
    total = found.by_seed + found.by_item
    seeds = np.maximum(found.by_seed, LEAST)
    df = np.minimum(found.df[0] * (total / seeds) ** 2, 1e6)
    return _beyond(found.mean, -stdtrit(df, alpha / 2), total)


def fewer(found: Moments, alpha: float) -> Array:
    """The same error with the degrees of freedom of seeds, or of items where they are fewer."""
    quantile = -stdtrit(min(found.df), alpha / 2)
    return _beyond(found.mean, quantile, found.by_seed + found.by_item)


def seeds_alone(found: Moments, alpha: float) -> Array:
    """Student's paired test over seeds."""
    return _beyond(found.mean, -stdtrit(found.df[0], alpha / 2), found.by_seed)


def _beyond(mean: Array, quantile: Array | float, variance: Array) -> Array:
    """Whether a difference is beyond its quantile; never where nothing varies."""
    return (variance > LEAST) & (np.abs(mean) > quantile * np.sqrt(variance))


METHODS = {
    "crossed_difference": cochran,
    "Satterthwaite's degrees of freedom": satterthwaite,
    "degrees of freedom of the fewer": fewer,
    "paired_difference": seeds_alone,
}


@dataclass(frozen=True)
class Line:
    """How often equal arms are called different.

    Attributes:
        kind: *alike* or *one arm*, as the cases are; *parts* for any of 5 parts of a split.
        method: of the test.
        case: what varies.
        num_seeds: of each arm.
        num_items: of the split, or of a part.
        rate: share of the rounds.
        rounds: how many.
    """

    kind: str
    method: str
    case: str
    num_seeds: int
    num_items: int
    rate: float
    rounds: int


def moments(case: Case, rng: Rng, rounds: int, num_seeds: int, num_items: int) -> Iterator[Moments]:
    """Yield the moments of so many rounds, as many at once as fit into memory."""
    while rounds > 0:
        some = min(rounds, max(1, AT_ONCE // (num_seeds * num_items)))
        rounds -= some
        yield Moments.of(case.draw(rng, some, num_seeds, num_items))


def single(kind: str, case: Case, rng: Rng, rounds: int, size: tuple[int, int]) -> list[Line]:
    """One comparison, by every method."""
    hits = dict.fromkeys(METHODS, 0)
    for found in moments(case, rng, rounds, *size):
        for name, test in METHODS.items():
            hits[name] += int(test(found, ALPHA).sum())
    return [Line(kind, n, case.name, *size, num / rounds, rounds) for n, num in hits.items()]


def parts(case: Case, rng: Rng, rounds: int, size: tuple[int, int]) -> list[Line]:
    """Any of the parts of a split; without true differences Holm's first step decides."""
    hits = {"crossed_difference, holm": 0, "crossed_difference": 0}
    levels = dict(zip(hits, (ALPHA / NUM_PARTS, ALPHA), strict=True))
    for found in zip(*(moments(case, rng, rounds, *size) for _ in range(NUM_PARTS)), strict=True):
        for name, alpha in levels.items():
            hits[name] += int(np.any([cochran(part, alpha) for part in found], axis=0).sum())
    return [Line("parts", n, case.name, *size, num / rounds, rounds) for n, num in hits.items()]


def simulated(rounds: int) -> Iterator[Line]:
    """Yield all lines."""
    rng = np.random.default_rng(SEED)
    for num_items in ITEMS:
        for num_seeds in SEEDS:
            for kind, cases in (("alike", CASES), ("one arm", ONE_ARM)):
                for case in cases:
                    yield from single(kind, case, rng, rounds, (num_seeds, num_items))
    yield from simulated_parts(rounds)


def simulated_parts(rounds: int) -> Iterator[Line]:
    """Yield the lines of parts of a split: several cases, and the hardest with more rounds."""
    rng = np.random.default_rng([SEED, 1])
    for num_seeds in SEEDS[:5]:
        yield from parts(HARDEST, rng, 2 * rounds, (num_seeds, ITEMS[-1]))
    for num_items in ITEMS[:3]:
        for num_seeds in SEEDS:
            for case in (CASES[4], CASES[6], CASES[11]):
                yield from parts(case, rng, rounds // 2, (num_seeds, num_items))


def enough(lines: Sequence[Line]) -> int:
    """Return the fewest seeds at which, and at all larger numbers, verdicts keep their level."""
    verdicts = {("alike", "crossed_difference"), ("parts", "crossed_difference, holm")}
    bad = {
        line.num_seeds
        for line in lines
        if (line.kind, line.method) in verdicts
        and line.rate > ALPHA + 3 * (ALPHA * (1 - ALPHA) / line.rounds) ** 0.5
    }
    return min((num for num in SEEDS if num > max(bad, default=0)), default=max(SEEDS) + 1)


def read(path: Path) -> list[Line]:
    """Return the lines of a record."""
    return [Line(**row) for row in json.loads(path.read_text(encoding="utf-8"))["lines"]]


def table(lines: Sequence[Line]) -> str:
    """Return the highest rate of any case and number of items; one column a number of seeds."""
    rows = ["| kind | method | " + " | ".join(f"{n} seeds" for n in SEEDS) + " |"]
    rows.append("|---|---|" + "---|" * len(SEEDS))
    for kind, method in dict.fromkeys((line.kind, line.method) for line in lines):
        most = [
            max(x.rate for x in lines if (x.kind, x.method, x.num_seeds) == (kind, method, num))
            for num in SEEDS
        ]
        rows.append(f"| {kind} | {method} | " + " | ".join(f"{x:.1%}" for x in most) + " |")
    return "\n".join(rows) + "\n"


def recorded(name: str, seed: int, simulated: Callable[[int], Iterable[Any]]) -> Path:
    """Simulate and write a record as the command line asks, and return the record's path.

    Args:
        name: of its file in ``results``.
        seed: of the simulation.
        simulated: gives its lines, which are dataclasses, for a number of rounds.
    """
    parser = argparse.ArgumentParser(description=f"Write {name} and print its table.")
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / name)
    parser.add_argument("--show", action="store_true", help="print the table of a record")
    asked = parser.parse_args()
    if not asked.show:
        versions = {"python": platform.python_version(), "numpy": np.__version__}
        head = {"seed": seed, "versions": {**versions, "scipy": scipy.__version__}}
        rows = ",\n".join(json.dumps(asdict(line)) for line in simulated(asked.rounds))
        text = json.dumps(head)[:-1] + f', "lines": [\n{rows}\n]}}\n'
        asked.out.write_text(text, encoding="utf-8")
    path: Path = asked.out
    return path


def main() -> None:
    """Simulate, write the record and print its table; or print the table alone."""
    lines = read(recorded("verdicts.json", SEED, simulated))
    print(table(lines))  # noqa: T201 -- the result of a script
    print(f"enough: {enough(lines)} seeds; the package asks for {FEWEST_SEEDS}")  # noqa: T201 -- likewise


if __name__ == "__main__":
    main()
