"""How often equal arms are called different where items come in few or very unequal clusters.

    python benchmarks/clusters.py [--rounds 10000] [--out results/clusters.json]
    python benchmarks/clusters.py --show

Both arms answer the same items alike, so every verdict is false. Cases vary in what a cluster's
items have in common: nothing, differences of the arms that are normal, with long tails, larger or
smaller in large clusters, and others from seed to seed. The package's test is compared with the
usual error of clusters (Liang and Zeger 1986) and its G − 1 degrees of freedom.

*other shapes* are separate: clusters of two kinds, skewed ones, and a kind that one cluster in five
has. Where all clusters happen to be of one kind, nothing tells what the others are like, and no
test of means holds its level. A number of clusters is enough if with it, and with every larger
number, clusters of two kinds and of the same size are called different in at most 7 %.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import verdicts
from scipy.special import stdtrit

from schemabank.stats.clusters import FEWEST_CLUSTERS, degrees_of_freedom

SEED, ALPHA, LIMIT, ACCURACY = 20_261_128, 0.05, 0.07, 0.4
SEEDS, CLUSTERS = (1, 4, 8, 20), (3, 4, 5, 6, 8, 12, 30)
OURS, USUAL = "jackknife", "usual error"
LEAST = 1e-18  # of a variance; below, nothing varies
Array = np.ndarray
Rng = np.random.Generator
Draw = Callable[[Rng, tuple[int, ...]], Array]

SIZES: dict[str, Callable[[int], Array]] = {
    "all the same": lambda num: np.full(num, 12),
    "one has half of the items": lambda num: np.array([12 * (num - 1)] + [12] * (num - 1)),
    "one has three quarters": lambda num: np.array([12 * (num - 1)] + [4] * (num - 1)),
    "one has nine tenths": lambda num: np.array([36 * (num - 1)] + [4] * (num - 1)),
    "two have 100 each, others 4": lambda num: np.array([100] * 2 + [4] * (num - 2)),
    "each half of the one before": lambda num: np.maximum(128 // 2 ** np.arange(num), 1),
    "as 1, 1/2, 1/3, ...": lambda num: np.maximum(120 // np.arange(1, num + 1), 1),
}


def normal(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Clusters that differ normally."""
    return rng.normal(size=shape)


def long_tails(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Clusters that differ by Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, shape) / 3**0.5


def two_kinds(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Half of the clusters favour one arm, half the other."""
    return 2.0 * (rng.random(shape) < 0.5) - 1


def skewed(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Clusters that differ by an exponential distribution."""
    return rng.exponential(size=shape) - 1


def rare(rng: Rng, shape: tuple[int, ...]) -> Array:
    """One cluster in five favours one arm; the others favour the other a little."""
    return 2.5 * ((rng.random(shape) < 0.2) - 0.2)


@dataclass(frozen=True)
class Case:
    """How the difference of two equal arms varies, in units of accuracy.

    Attributes:
        name: in words.
        seed_sd: between seeds.
        cluster_sd: between clusters.
        both_sd: between clusters, anew for each seed.
        draw: of clusters.
        power: of a cluster's size over the mean size, that its difference grows with.
    """

    name: str
    seed_sd: float = 0.0
    cluster_sd: float = 0.0
    both_sd: float = 0.0
    draw: Draw = normal
    power: float = 0.0

    def sums(self, rng: Rng, rounds: int, num_seeds: int, sizes: Array) -> Array:
        """Draw differences of right answers, sums over clusters: (round, seed, cluster)."""
        shape = rounds, num_seeds, len(sizes)
        own = self.cluster_sd * self.draw(rng, (rounds, 1, len(sizes)))
        shift = own * (sizes / sizes.mean()) ** self.power + self.both_sd * rng.normal(size=shape)
        if num_seeds > 1:  # a test over items alone takes the runs as they are
            shift = shift + self.seed_sd * rng.normal(size=(rounds, num_seeds, 1))
        first, second = (np.clip(ACCURACY + side * shift / 2, 0, 1) for side in (1, -1))
        return rng.binomial(sizes, first).astype(float) - rng.binomial(sizes, second)


CASES = (
    Case("single answers"),
    Case("clusters by 15", cluster_sd=0.15),
    Case("clusters by 15, long tails", cluster_sd=0.15, draw=long_tails),
    Case("clusters by 15, large ones by more", cluster_sd=0.15, power=0.5),
    Case("clusters by 15, small ones by more", cluster_sd=0.15, power=-0.5),
    Case("seeds by 2, clusters by 15", seed_sd=0.02, cluster_sd=0.15),
    Case("seeds by 5, clusters by 5", seed_sd=0.05, cluster_sd=0.05),
    Case("clusters by 10, anew for each seed by 10", 0.02, 0.1, 0.1),
)
OTHER_SHAPES = (
    Case("two kinds", 0.02, 0.15, draw=two_kinds),
    Case("skewed", 0.02, 0.15, draw=skewed),
    Case("one in five", 0.02, 0.15, draw=rare),
)


@dataclass(frozen=True)
class Line:
    """How often equal arms are called different.

    Attributes:
        method: of the test.
        sizes: of the clusters.
        case: what varies.
        rounds: how many.
        rates: shares of the rounds, one a number of `CLUSTERS`; of all `SEEDS` the highest.
    """

    method: str
    sizes: str
    case: str
    rounds: int
    rates: Sequence[float]

    def rate(self, num_clusters: int) -> float:
        """Return the share for so many clusters."""
        return self.rates[CLUSTERS.index(num_clusters)]


@dataclass(frozen=True)
class Moments:
    """A comparison's figures, arrays over rounds, as `crossed_difference` has them.

    Attributes:
        mean: difference.
        by_seed: variance of the mean that is seen between seeds; 0 for one seed.
        by_cluster: between clusters.
        by_cell: of single answers, which the one between clusters contains.
        df: degrees of freedom of seeds and of clusters.
    """

    mean: Array
    by_seed: Array
    by_cluster: Array
    by_cell: Array
    df: tuple[float, float]

    @classmethod
    def of(cls, sums: Array, sizes: Array, *, jackknife: bool) -> "Moments":
        """Return them for sums over clusters (round, seed, cluster)."""
        _, num_seeds, num = sums.shape
        shares, means = sizes / sizes.sum(), sums / sizes
        rows = means @ shares
        mean = rows.mean(1)
        apart = means.mean(1) - mean[:, None]
        rest = means - rows[:, :, None] - apart[:, None, :]
        usual = num / (num - 1) * shares**2
        weights = (num - 1) / num * (shares / (1 - shares)) ** 2 if jackknife else usual
        pairs = max(num_seeds - 1, 1) * num_seeds
        return cls(
            mean,
            rows.var(1, ddof=1) / num_seeds if num_seeds > 1 else np.zeros(len(sums)),
            (weights * apart**2).sum(1),
            (weights * np.square(rest).sum(1)).sum(1) / pairs,
            (num_seeds - 1, degrees_of_freedom(sizes) if jackknife else num - 1),
        )


def different(found: Moments, *, floor: bool, alpha: float = ALPHA) -> Array:
    """Whether each round's arms are called different.

    Args:
        found: of all rounds.
        floor: whether the difference must be beyond that of clusters alone too.
        alpha: level of the test.
    """
    seeds, clusters = (-stdtrit(df, alpha / 2) if df else 0.0 for df in found.df)
    added = np.maximum(found.by_cluster - found.by_cell, 0)
    total = np.maximum(found.by_seed + added, LEAST)
    reach = (seeds * found.by_seed + clusters * added) / np.sqrt(total)
    varies = found.by_seed + added > LEAST
    if floor:
        reach = np.maximum(reach, clusters * np.sqrt(found.by_cluster))
    return varies & (np.abs(found.mean) > reach)


def judged(
    case: Case, rng: Rng, rounds: int, sizes: Array, num_seeds: int
) -> Iterator[tuple[str, float]]:
    """Yield how often a case's arms are called different by each method.

    Of other shapes the package's own is told alone.
    """
    sums = case.sums(rng, rounds, num_seeds, sizes)
    for method in (OURS, USUAL) if case in CASES else (OURS,):
        ours = method == OURS
        yield method, float(different(Moments.of(sums, sizes, jackknife=ours), floor=ours).mean())


def simulated(rounds: int) -> Iterator[Line]:
    """Yield all lines."""
    rng = np.random.default_rng(SEED)
    for name, sizes_of in SIZES.items():
        most: dict[tuple[str, str], list[float]] = {}
        for place, num_clusters in enumerate(CLUSTERS):
            for num_seeds in SEEDS:
                for case in (*CASES, *OTHER_SHAPES):
                    found = judged(case, rng, rounds, sizes_of(num_clusters), num_seeds)
                    for method, rate in found:
                        rates = most.setdefault((method, case.name), [0.0] * len(CLUSTERS))
                        rates[place] = max(rates[place], rate)
        for (method, case_name), rates in most.items():
            yield Line(method, name, case_name, rounds, rates)


def enough(lines: Sequence[Line]) -> int:
    """Return the fewest clusters that, with all larger numbers, show that they are of two kinds."""
    bad = {
        num
        for line in lines
        if (line.method, line.sizes, line.case) == (OURS, "all the same", "two kinds")
        for num in CLUSTERS
        if line.rate(num) > LIMIT + 3 * (LIMIT * (1 - LIMIT) / line.rounds) ** 0.5
    }
    return min((num for num in CLUSTERS if num > max(bad, default=0)), default=max(CLUSTERS) + 1)


def read(path: Path) -> list[Line]:
    """Return the lines of a record."""
    return [Line(**row) for row in json.loads(path.read_text(encoding="utf-8"))["lines"]]


def table(lines: Sequence[Line]) -> str:
    """Return the highest rate of any case and number of seeds; one column a number of clusters."""
    shown = [num for num in CLUSTERS if num >= FEWEST_CLUSTERS]
    rows = ["| clusters | error | " + " | ".join(f"{num}" for num in shown) + " |"]
    rows.append("|---|---|" + "---|" * len(shown))
    for name in SIZES:
        for method in (OURS, USUAL):
            own = (x for x in lines if (x.method, x.sizes) == (method, name) and is_alike(x))
            rows.append(_row(f"{name} | {method}", list(own), shown))
    for case in OTHER_SHAPES:
        own = (x for x in lines if (x.method, x.case) == (OURS, case.name))
        rows.append(_row(f"any sizes, {case.name} | {OURS}", list(own), shown))
    return "\n".join(rows) + "\n"


def is_alike(line: Line) -> bool:
    """Whether a line's case is none of the other shapes."""
    return line.case in {case.name for case in CASES}


def _row(name: str, lines: Sequence[Line], shown: Sequence[int]) -> str:
    most = [max(line.rate(num) for line in lines) for num in shown]
    return f"| {name} | " + " | ".join(f"{rate:.1%}" for rate in most) + " |"


def main() -> None:
    """Simulate, write the record and print its table; or print the table alone."""
    lines = read(verdicts.recorded("clusters.json", SEED, simulated))
    print(table(lines))  # noqa: T201 -- the result of a script
    print(f"enough: {enough(lines)} clusters; the package asks for {FEWEST_CLUSTERS}")  # noqa: T201 -- likewise


if __name__ == "__main__":
    main()
