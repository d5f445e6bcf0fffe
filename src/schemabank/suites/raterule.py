"""The rule by which a suite chooses among learning rates, and the figures that it uses.

A few runs on a few hundred items leave the best score uncertain by some points. The loss of the
gold target varies less, so it can choose among rates whose scores are equally good. But it often
keeps falling where the score no longer rises. So it decides only among rates whose score is within
a quarter of a standard error of the best. The error is that of the paired difference, since all
candidates answer the same items. ``benchmarks/rate_rule.py`` simulates how much accuracy this and
other rules end with, recorded in ``results/rate_rule.json``: the best score alone does as well,
within 0.03 points of accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemabank.common.errors import InputError
from schemabank.runs.itemscores import ItemScores, load_item_scores
from schemabank.tasks.scoring.scores import METRICS

NEAR = 0.25  # standard errors below the best score
NO_SHARES = {None, "perplexity"}  # scores that are no shares of the items
ROUNDING = 1e-9


@dataclass(frozen=True)
class ItemMeans:
    """What a candidate's runs scored on each item.

    Attributes:
        scores: (item) means over the runs.
        clusters: (item) number of what each item was drawn with.
        digest: of the items; equal for equal items.
    """

    scores: npt.NDArray[np.float64]
    clusters: npt.NDArray[np.int32]
    digest: str


@dataclass(frozen=True)
class Candidate:
    """One arm at one learning rate: means over seeds, all of which answered the same items.

    Attributes:
        learning_rate: the highest that LoRA is trained at.
        score: share of the items that are right; ``None`` where nothing is scored.
        gold_nll: mean loss of the gold target in nats per token.
        ended: share of the completions that ended by themselves.
        num_items: items that each run answered.
        num_seeds: runs.
        answers: item by item; ``None`` where only means are known.
    """

    learning_rate: float
    score: float | None
    gold_nll: float
    ended: float | None
    num_items: int
    num_seeds: int
    answers: ItemMeans | None = field(default=None, compare=False, repr=False)


def choose(tried: Sequence[Candidate]) -> Candidate:
    """Choose among learning rates.

    The rule: of those whose mean score is within a quarter of a standard error of the best mean
    score, the one with the lowest mean loss of the gold target; of equals, the first. The error is
    that of the difference from the best over items. Where single items are not known, it is the
    error for answers that are independent, which is the largest that is likely. Where nothing is
    scored, the loss decides.
    """
    best = best_score(tried)
    if best.score is None:
        return best
    near = [
        c
        for c in tried
        if c.score is not None and best.score - c.score <= NEAR * paired_error(best, c) + ROUNDING
    ]
    return min(near, key=lambda c: c.gold_nll)


def best_score(tried: Sequence[Candidate]) -> Candidate:
    """Return what the best mean score alone would choose; of equal scores, the lowest loss.

    Where nothing is scored, it is the lowest loss of all.
    """
    scored = [(c, c.score) for c in tried if c.score is not None]
    if not scored:
        return min(tried, key=lambda c: c.gold_nll)
    most = max(score for _, score in scored)
    return min((c for c, score in scored if score >= most - ROUNDING), key=lambda c: c.gold_nll)


def paired_error(one: Candidate, other: Candidate) -> float:
    """Return the standard error over items of the difference of two scored candidates' scores.

    Sums over a cluster's items take the items' place (Miller, arXiv 2411.00640, sections 2.2 and
    4.2). With few clusters this is smaller than the error by which arms are judged, a jackknife's;
    the rule stays as it is, so that rates that were chosen once are chosen again.
    """
    if one.answers is None or other.answers is None:
        return sqrt(_variance_of_answers(one) + _variance_of_answers(other))
    _check_same_items(one.answers.digest, other.answers.digest)
    apart = one.answers.scores - other.answers.scores
    sums = np.bincount(one.answers.clusters, weights=apart - apart.mean())
    sums = sums[np.bincount(one.answers.clusters) > 0]
    num = len(sums)
    return 0.0 if num < 2 else sqrt(num / (num - 1) * float(np.square(sums).sum())) / len(apart)


def candidate(
    learning_rate: float, results: Sequence[Mapping[str, Any]], folders: Sequence[Path]
) -> Candidate:
    """Return the means over runs, each the mean over the items of all groups.

    Args:
        learning_rate: the highest that LoRA is trained at.
        results: contents of the runs' ``result.json``.
        folders: of the runs, in the same order.

    Raises:
        InputError: items' scores cannot be read, or the runs had other items.
    """
    primary = METRICS[results[0]["metric"]].primary
    score = None if primary in NO_SHARES else _mean_over_runs(results, primary)
    # The metric perplexity has only the loss that counts the end token.
    loss = _mean_over_runs(results, "gold_nll")
    if loss is None:
        loss = _mean_over_runs(results, "gold_nll_with_end")
    assert loss is not None
    return Candidate(
        learning_rate=learning_rate,
        score=score,
        gold_nll=loss,
        ended=_mean_over_runs(results, "ended_ratio"),
        num_items=sum(group["num_items"] for group in results[0]["groups"].values()),
        num_seeds=len(results),
        answers=None if score is None or primary is None else _means_by_item(folders, primary),
    )


def _means_by_item(folders: Sequence[Path], score: str) -> ItemMeans:
    found: list[ItemScores] = [load_item_scores(folder, score) for folder in folders]
    for own in found:
        _check_same_items(own.digest, found[0].digest)
    means = np.stack([own.scores for own in found]).astype(np.float64).mean(axis=0)
    return ItemMeans(np.asarray(means), found[0].cluster, found[0].digest)


def _check_same_items(one: str, other: str) -> None:
    if one != other:
        raise InputError(
            f"tuning runs were scored on other items (digests {one[:10]} and {other[:10]}), "
            "allowed are the same ones for all: move the suite's folder away, or choose another "
            "--out"
        )


def _variance_of_answers(found: Candidate) -> float:
    """The variance of a mean of right and wrong answers, which no graded score exceeds."""
    assert found.score is not None
    return found.score * (1 - found.score) / (found.num_items * found.num_seeds)


def _mean_over_runs(results: Sequence[Mapping[str, Any]], name: str | None) -> float | None:
    """The mean of a figure over the runs that have it, or ``None`` where no run has it."""
    means = [_mean_over_items(result, name) for result in results]
    known = [mean for mean in means if mean is not None]
    return fsum(known) / len(known) if known else None


def _mean_over_items(result: Mapping[str, Any], name: str | None) -> float | None:
    """The mean of a figure over all items of a run, or ``None`` where it has no such figure."""
    groups = result["groups"].values()
    if name is None or any(name not in group for group in groups):
        return None
    num_items: int = sum(group["num_items"] for group in groups)
    return fsum(group[name] * group["num_items"] for group in groups) / num_items
