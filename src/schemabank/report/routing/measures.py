"""What a router does, in numbers: arrays in, numbers out.

Everywhere ``layer`` counts the layers that have a bank and ``schema`` a bank's schemas. A token's
``top_k`` choices weigh ``1 / top_k`` each. Logarithms are natural; information and entropy are in
nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

RARE_SHARE = 0.1  # a schema with less than this share of an equal use is called dead
NUM_SHUFFLES = 1000


@dataclass(frozen=True)
class Layer:
    """How one bank's router spreads its choices.

    Attributes:
        usage: ``(schema,)``, each schema's share of all choices.
        probability: ``(schema,)``, the mean of the router's softmax.
        entropy: of a single token's softmax, on average.
        effective_schemas: the exponential of the entropy of ``usage``: 1 where one schema takes
            all, their number where all are used alike.
        load_balance: Switch Transformers' eq. 4 (arXiv 2101.03961), 1 where all are used alike.
        dead: schemas used less than a tenth as much as if all were used alike.
    """

    usage: Floats
    probability: Floats
    entropy: float
    effective_schemas: float
    load_balance: float
    dead: Ints


@dataclass(frozen=True)
class Information:
    """What choices tell about a field of the data.

    Attributes:
        value: mutual information of schema and field in nats.
        field_entropy: what could be told at most.
        shuffled_mean: the mean of ``value`` after the field's values were shuffled among the
            examples: the estimate's bias for this number of examples and values.
        shuffled_95: what 95 % of the shuffles stay below.
        p_value: share of shuffles, and of the data itself, that reach ``value``.
    """

    value: float
    field_entropy: float
    shuffled_mean: float
    shuffled_95: float
    p_value: float


@dataclass(frozen=True)
class Reuse:
    """Whether examples that mean the same choose the same schemas.

    Attributes:
        same: mean overlap of the choices of two examples of one meaning.
        other: the same for two of different meanings.
        num_pairs: of one meaning.
        p_value: share of shuffles of the meanings whose difference reaches ``same - other``.
    """

    same: float
    other: float
    num_pairs: int
    p_value: float


def layer_measures(shares: Floats, probability: Floats, token_entropy: float) -> Layer:
    """Measure one layer.

    Args:
        shares: ``(token, schema)``, ``1 / top_k`` where the schema is chosen, else 0.
        probability: ``(schema,)``, the mean of the router's softmax.
        token_entropy: of a single token's softmax, on average.
    """
    usage = shares.mean(0, dtype=float)
    num_schemas = len(usage)
    return Layer(
        usage=usage,
        probability=probability,
        entropy=token_entropy,
        effective_schemas=float(np.exp(entropy(usage))),
        load_balance=float(num_schemas * (usage * probability).sum()),
        dead=np.flatnonzero(usage < RARE_SHARE / num_schemas),
    )


def entropy(distribution: Floats) -> float:
    """Entropy in nats."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


def tag_agreement(shares: Floats, example_of: Ints, tagged: Floats) -> tuple[float, float]:
    """Return the share of choices that fall on their example's tags, and what chance would give.

    Args:
        shares: ``(token, schema)``.
        example_of: ``(token,)``, whose token it is.
        tagged: ``(example, schema)``, 1 for an example's tags.

    Returns:
        The share, and its expectation after the tags were shuffled among the examples.
    """
    observed = float((shares * tagged[example_of]).sum(1).mean())
    return observed, float(shares.mean(0, dtype=float) @ tagged.mean(0))


def profiles(shares: Floats, example_of: Ints, num_examples: int) -> Floats:
    """Mean choices of each example's tokens, ``(example, schema)``; every example has some."""
    sums = np.zeros((num_examples, shares.shape[1]))
    np.add.at(sums, example_of, shares)
    return sums / np.bincount(example_of, minlength=num_examples)[:, None]


@dataclass(frozen=True)
class Drawn:
    """How examples were drawn, which says what may be shuffled against what.

    Attributes:
        clusters: what each example was drawn with, such as its document.
        strata: kinds of example that are kept apart, such as their group.
    """

    clusters: Sequence[str]
    strata: Sequence[str]

    def dealer(self, codes: Ints) -> Callable[[np.random.Generator], Ints]:
        """Return what deals an example's value anew, as it may be where nothing is related.

        Within a stratum, values are dealt to whole clusters where a cluster has but one, and to the
        examples of each cluster otherwise. A value that names its cluster is dealt to examples: to
        deal it to whole clusters would only rename them.
        """
        (_, cluster), (_, stratum) = _coded(self.clusters), _coded(self.strata)
        first = np.unique(cluster, return_index=True)[1]
        if self._are_named_by(codes):
            deal = _within(stratum)
        elif self._are_whole(codes):
            among = _within(stratum[first])
            return lambda rng: codes[first][among(rng)][cluster]
        else:
            deal = _within(stratum * (cluster.max() + 1) + cluster)
        return lambda rng: codes[deal(rng)]

    def deals_whole(self, codes: Ints) -> bool:
        """Whether clusters of several examples are dealt a value each."""
        several = len(set(self.clusters)) < len(self.clusters)
        return several and self._are_whole(codes) and not self._are_named_by(codes)

    def _are_whole(self, codes: Ints) -> bool:
        """Whether each cluster has but one value, and lies in one stratum."""
        first, cluster = np.unique(self.clusters, return_index=True, return_inverse=True)[1:]
        both = np.stack([codes, _coded(self.strata)[1]])
        return bool((both == both[:, first[cluster]]).all())

    def _are_named_by(self, codes: Ints) -> bool:
        """Whether each cluster of several examples has a value of its own."""
        _, cluster = _coded(self.clusters)
        num_clusters = len(np.unique(cluster))
        pairs = np.unique(np.stack([codes, cluster]), axis=1).shape[1]
        return num_clusters < len(cluster) and len(np.unique(codes)) == num_clusters == pairs


def information(
    profile: Floats,
    values: Sequence[str],
    drawn: Drawn,
    *,
    seed: int = 0,
    num_shuffles: int = NUM_SHUFFLES,
) -> Information:
    """Mutual information between a field and a schema chosen by an example.

    The joint distribution is that of an example drawn at random, its field's value, and a choice
    drawn from its tokens. The plug-in estimate is biased upwards, the more so the more values there
    are; values are therefore shuffled to show what no relation would give.

    Args:
        profile: ``(example, schema)``, from :func:`profiles`.
        values: the field of each example.
        drawn: what may be shuffled.
        seed: of the shuffles.
        num_shuffles: how many; the smallest p-value is ``1 / (1 + num_shuffles)``.
    """
    names, codes = _coded(values)
    rng, deal = np.random.default_rng(seed), drawn.dealer(codes)
    found = _mutual_information(profile, codes, len(names))
    shuffled = np.array(
        [_mutual_information(profile, deal(rng), len(names)) for _ in range(num_shuffles)]
    )
    return Information(
        value=found,
        field_entropy=entropy(np.bincount(codes) / len(codes)),
        shuffled_mean=float(shuffled.mean()),
        shuffled_95=float(np.quantile(shuffled, 0.95)),
        p_value=_p_value(found, shuffled),
    )


def by_value(profile: Floats, values: Sequence[str]) -> tuple[list[str], Floats]:
    """Return the field's values and the choices of their examples, ``(value, schema)``."""
    names, codes = _coded(values)
    return names, profiles(profile, codes, len(names))


def reuse(
    profile: Floats,
    meanings: Sequence[str],
    wordings: Sequence[str] | None,
    drawn: Drawn,
    *,
    seed: int = 0,
    num_shuffles: int = NUM_SHUFFLES,
) -> Reuse | None:
    """Compare the choices of examples that mean the same with those of others.

    The overlap of two examples is the sum over schemas of the smaller of their shares: 1 where they
    choose alike, 0 where they have no schema in common.

    Args:
        profile: ``(example, schema)``.
        meanings: what each example means.
        wordings: how it is said: only pairs that are said differently count, and meanings are
            shuffled among examples that are said alike, or among whole clusters where each means
            one thing; ``None``: all do.
        drawn: what may be shuffled.
        seed: of the shuffles.
        num_shuffles: how many.

    Returns:
        ``None`` where there are no pairs of one meaning, or none of two.
    """
    first, second = np.triu_indices(len(profile), k=1)
    _, codes = _coded(meanings)
    if wordings is not None:
        strata = [f"{kind}/{way}" for kind, way in zip(drawn.strata, wordings, strict=True)]
        drawn = drawn if drawn.deals_whole(codes) else replace(drawn, strata=strata)
        _, said = _coded(wordings)
        differ = said[first] != said[second]
        first, second = first[differ], second[differ]
    is_same = codes[first] == codes[second]
    if is_same.all() or not is_same.any():
        return None
    overlap = np.stack([np.minimum(row, profile).sum(1) for row in profile])[first, second]
    rng, deal = np.random.default_rng(seed), drawn.dealer(codes)

    def difference(meaning: Ints) -> float:
        alike = meaning[first] == meaning[second]
        return float(overlap[alike].mean() - overlap[~alike].mean()) if alike.any() else 0.0

    shuffled = np.array([difference(deal(rng)) for _ in range(num_shuffles)])
    return Reuse(
        same=float(overlap[is_same].mean()),
        other=float(overlap[~is_same].mean()),
        num_pairs=int(is_same.sum()),
        p_value=_p_value(difference(codes), shuffled),
    )


def changed(before: Floats, after: Floats) -> float:
    """Share of choices that are others than before; both ``(token, schema)``."""
    return float(1 - np.minimum(before, after).sum(1).mean(dtype=float))


def typical(shares: Floats, kinds: Ints, *, count: int) -> list[list[tuple[int, float]]]:
    """Return for each schema the kinds of token that it takes more often than others do.

    They are ranked by what they add to the Kullback-Leibler divergence of the schema's tokens from
    all tokens, ``p(kind | schema) log(p(kind | schema) / p(kind))``: common and distinctive ones.

    Args:
        shares: ``(token, schema)``.
        kinds: ``(token,)``, such as its number in the vocabulary.
        count: how many at most.

    Returns:
        By schema, kinds with the ratio ``p(kind | schema) / p(kind)``, which is above 1.
    """
    names, codes = np.unique(kinds, return_inverse=True)
    sums = np.zeros((len(names), shares.shape[1]))
    np.add.at(sums, codes, shares)
    overall = np.bincount(codes) / len(codes)
    found = []
    for column in sums.T:
        given = column / max(column.sum(), np.finfo(float).tiny)
        ratio = given / overall
        added = np.where(given > 0, given * np.log(np.maximum(ratio, np.finfo(float).tiny)), 0)
        best = np.argsort(-added, kind="stable")[:count]
        found.append([(int(names[i]), float(ratio[i])) for i in best if added[i] > 0])
    return found


def _coded(values: Sequence[str]) -> tuple[list[str], Ints]:
    """Return the distinct values in order, and the place of each value among them."""
    names, codes = np.unique(np.asarray(values), return_inverse=True)
    return names.tolist(), codes


def _within(strata: Ints) -> Callable[[np.random.Generator], Ints]:
    """Return what draws a permutation that moves nothing from one stratum to another."""
    by_stratum = np.argsort(strata, kind="stable")

    def draw(rng: np.random.Generator) -> Ints:
        shuffled = np.lexsort((rng.random(len(strata)), strata))
        order = np.empty(len(strata), dtype=np.int64)
        order[by_stratum] = shuffled
        return order

    return draw


def _mutual_information(profile: Floats, codes: Ints, num_values: int) -> float:
    joint = np.eye(num_values)[:, codes] @ profile / len(profile)
    return max(0.0, entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel()))


def _p_value(found: float, shuffled: Floats) -> float:
    """Share of shuffles that reach what was found, itself among them; rounding is no difference."""
    reached = int((shuffled >= found - 1e-12).sum())
    return (1 + reached) / (1 + len(shuffled))
