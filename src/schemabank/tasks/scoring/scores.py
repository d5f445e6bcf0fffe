"""How completions become figures: a metric by name, one record an item, and a summary of records.

A score alone confuses skill with format, so a summary also says how completions ended, how many
held an answer, and how likely the gold target was.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import exp, fsum, inf
from statistics import fmean
from typing import Literal

from schemabank.common.errors import InputError
from schemabank.tasks.scoring import metrics
from schemabank.tasks.scoring.answers import cut_next_question, gold_number, score_completion

StopReason = Literal["end_token", "stop_text", "length", "not_decoded"]
LETTER_ALONE = re.compile(r"\s*[(*]*[A-J][).*:]*[^\S\n]*(?:\n|\Z)")
WORD_SCORES: Mapping[str, Callable[[str, Sequence[str]], float | None]] = {
    "f1": metrics.token_f1,
    "rouge_l": metrics.rouge_l,
    "exact_match": metrics.exact_match,
    "meteor": metrics.meteor,
}
NUM_CONSTANTS = 50  # most frequent golds that are tried as a constant answer


@dataclass(frozen=True)
class Scored:
    """One completion's scores.

    Attributes:
        extracted: what was read as the answer, or ``None``.
        scores: fractions in [0, 1] by name.
        readings: what single rules read, where there are several.
    """

    extracted: str | None
    scores: Mapping[str, float]
    readings: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A way to score completions.

    A question that a completion goes on to ask itself, and what follows it, is never scored.

    Attributes:
        primary: the score that runs are compared by; ``None``: there is no score.
        score: from a completion and all gold answers.
        canonical: brings a gold answer into one spelling; raises ``InputError`` for one that no
            completion could match.
        binary: whether the primary score is 0 or 1.
        decodes: whether it needs completions.
        constant: whether one answer might be right for several items.
        graded: the primary score alone, where it is not 0 or 1.
        extra: what brings the packages that it needs; empty where none are needed.
        corpus: scores of all completions with their golds that are no means of items' scores.
    """

    primary: str | None
    score: Callable[[str, Sequence[str]], Scored]
    canonical: Callable[[str], str]
    binary: bool = False
    decodes: bool = True
    constant: bool = True
    graded: Callable[[str, Sequence[str]], float] | None = None
    corpus: Callable[[Sequence[str], Sequence[Sequence[str]]], Mapping[str, float]] | None = None
    extra: str = ""


@dataclass(frozen=True)
class ItemRecord:
    """One evaluated item: a row of ``predictions.jsonl``.

    Attributes:
        id: the example's id.
        sample: which of its completions, counted from 0.
        group: the part of the split it is reported under.
        cluster: what it was drawn with, or empty.
        prompt: text the model was given.
        completion: text it produced, without the end token and without what followed a stop text.
        golds: all answers that count as right.
        extracted: what was read as the answer, or ``None``.
        readings: what single rules read, where the metric has several.
        scores: fractions in [0, 1] by name.
        new_tokens: tokens produced.
        stop_reason: the model ended by itself, wrote a stop text, or ran to the token limit.
        gold_tokens: tokens of the gold target, its end token included.
        gold_nll: mean nats per token of the gold target without its end token.
        gold_nll_with_end: the same with its end token.
    """

    id: str
    sample: int
    group: str
    cluster: str
    prompt: str
    completion: str
    golds: tuple[str, ...]
    extracted: str | None
    readings: Mapping[str, str | None]
    scores: Mapping[str, float]
    new_tokens: int
    stop_reason: StopReason
    gold_tokens: int
    gold_nll: float
    gold_nll_with_end: float


def _score_numeric(completion: str, golds: Sequence[str]) -> Scored:
    found = [score_completion(completion, gold) for gold in golds]
    read = found[0].extraction
    return Scored(
        extracted=read.answer,
        scores={
            "correct": float(any(f.correct for f in found)),
            "strict": float(any(f.strict for f in found)),
            "flexible": float(any(f.flexible for f in found)),
        },
        readings={"strict": read.strict, "flexible": read.flexible},
    )


def _answer_text(completion: str) -> str:
    return cut_next_question(completion).strip()


def _score_words(*names: str) -> Callable[[str, Sequence[str]], Scored]:
    """Return what scores an answer in words by these scores; METEOR is left out without WordNet."""

    def score(completion: str, golds: Sequence[str]) -> Scored:
        answer = _answer_text(completion)
        scores = {name: WORD_SCORES[name](answer, golds) for name in names}
        return Scored(answer or None, {name: s for name, s in scores.items() if s is not None})

    return score


def _score_choice(completion: str, golds: Sequence[str]) -> Scored:
    alone = LETTER_ALONE.match(completion)  # whatever is written below it
    letter = metrics.choice_letter(alone[0] if alone else _answer_text(completion))
    return Scored(letter, {"correct": float(any(letter == _gold_letter(gold) for gold in golds))})


def _score_nothing(completion: str, _golds: Sequence[str]) -> Scored:
    return Scored(completion.strip() or None, {})


def _gold_letter(gold: str) -> str:
    letter = gold.strip().upper()
    if len(letter) != 1 or not "A" <= letter <= "J":
        raise InputError(
            f"gold {gold!r:.80} is not a choice: one letter from A to J is allowed, correct it or "
            "take another metric"
        )
    return letter


def _gold_words(gold: str) -> str:
    text = metrics.normalised(gold)
    if not text:
        raise InputError(
            f"gold {gold!r:.80} is empty once articles and punctuation are dropped: some other "
            "text is allowed, correct it or take another metric"
        )
    return text


def _gold_ascii_words(gold: str) -> str:
    if not re.search("[a-z0-9]", gold.lower()):
        raise InputError(
            f"gold {gold!r:.80} has no ASCII letter or digit, and ROUGE-L sees no others: take the "
            "metric f1"
        )
    return _gold_words(gold)


METRICS: dict[str, Metric] = {
    "numeric": Metric("correct", _score_numeric, gold_number, binary=True),
    "exact_match": Metric("exact_match", _score_words("exact_match"), _gold_words, binary=True),
    "choice": Metric("correct", _score_choice, _gold_letter, binary=True),
    "f1": Metric("f1", _score_words("f1", "exact_match"), _gold_words, graded=metrics.token_f1),
    "rouge_l": Metric(
        "rouge_l",
        _score_words("rouge_l", "f1"),
        _gold_ascii_words,
        graded=metrics.rouge_l,
        extra="scores",
    ),
    "reading": Metric(
        "f1",
        _score_words("f1", "rouge_l", "exact_match", "meteor"),
        _gold_words,
        graded=metrics.token_f1,
        corpus=metrics.bleu,
        extra="scores",
    ),
    "code": Metric("correct", _score_nothing, str, binary=True, constant=False),
    "perplexity": Metric("perplexity", _score_nothing, str, decodes=False),
    "none": Metric(None, _score_nothing, str),
}


def score_names(records: Sequence[ItemRecord], metric: Metric) -> list[str]:
    """Return the names of the scores in a summary, the primary first."""
    if not metric.decodes:
        return [str(metric.primary)]
    of_corpus = [] if metric.corpus is None else [*metric.corpus(["a"], [["a"]])]
    return [*records[0].scores, *of_corpus]


def check_pass_at(metric: Metric, pass_at: Sequence[int]) -> None:
    """Refuse pass@k for a metric whose scores are not right or wrong."""
    if pass_at and not metric.binary:
        binary = ", ".join(name for name, known in METRICS.items() if known.binary)
        raise InputError(
            f"eval.pass_at names {pass_at[0]}, but pass@k needs answers that are right or wrong: "
            f"allowed are the metrics {binary}, leave it out or take one of those"
        )


def summaries(
    records: Sequence[ItemRecord], metric: Metric, *, pass_at: Sequence[int] = ()
) -> dict[str, dict[str, object]]:
    """Summarise every group of items; see :func:`summarise`."""
    groups = list(dict.fromkeys(r.group for r in records))
    return {
        group: summarise([r for r in records if r.group == group], metric, pass_at=pass_at)
        for group in groups
    }


def summarise(
    records: Sequence[ItemRecord], metric: Metric, *, pass_at: Sequence[int] = ()
) -> dict[str, object]:
    """Average the records of one evaluation.

    Args:
        records: as many samples of every item.
        metric: what scored them.
        pass_at: numbers of samples for pass@k of a binary metric.

    Returns:
        The number of items and the mean of every score; how completions ended, and the primary
        score among those that ended by themselves, if any did; the mean negative log-likelihoods;
        the primary score's 95 % interval, and the best constant answer with its score.
    """
    if not records:
        raise InputError("0 records to summarise, at least 1 is needed: evaluate some items first")
    check_pass_at(metric, pass_at)
    if not metric.decodes:
        return _summarise_likelihoods(records)
    ended = [record for record in records if record.stop_reason == "end_token"]
    num_items = len({record.id for record in records})
    summary: dict[str, object] = {"num_items": num_items}
    if num_items < len(records):
        summary["num_samples"] = len(records) // num_items
    summary |= {name: fmean([r.scores[name] for r in records]) for name in records[0].scores}
    summary |= {f"pass@{k}": _mean_pass_at(records, metric, k) for k in pass_at}
    if metric.corpus is not None:
        texts, every = zip(*((_answer_text(r.completion), r.golds) for r in records), strict=True)
        summary |= metric.corpus(texts, every)
    summary |= {
        "ended_ratio": len(ended) / len(records),
        "length_limit_ratio": fmean([record.stop_reason == "length" for record in records]),
        "unparsable_ratio": fmean([record.extracted is None for record in records]),
        "mean_new_tokens": fmean([record.new_tokens for record in records]),
    }
    if metric.primary is not None and ended:
        among = fmean([record.scores[metric.primary] for record in ended])
        summary[f"{metric.primary}_among_ended"] = among
    summary["gold_nll"] = fmean([record.gold_nll for record in records])
    summary["gold_nll_with_end"] = fmean([record.gold_nll_with_end for record in records])
    if metric.primary is not None:
        summary[f"{metric.primary}_interval_95"] = _primary_interval(records, metric)
    if metric.primary is not None and metric.constant:
        golds = list({record.id: record.golds for record in records}.values())
        answer, score = best_constant(golds, metric)
        summary["best_constant_answer"] = answer
        summary[f"best_constant_{metric.primary}"] = score
    return summary


def _summarise_likelihoods(records: Sequence[ItemRecord]) -> dict[str, object]:
    """Perplexity over all target tokens, with an interval from resampling clusters."""
    from schemabank.stats import resampled_ratio_interval  # noqa: PLC0415 -- scipy takes long

    totals: dict[str, tuple[float, int]] = {}
    for r in records:
        nll, tokens = totals.get(r.cluster or r.id, (0.0, 0))
        nll += r.gold_nll_with_end * r.gold_tokens
        totals[r.cluster or r.id] = nll, tokens + r.gold_tokens
    sums, counts = zip(*totals.values(), strict=True)
    interval = resampled_ratio_interval(sums, counts)
    return {
        "num_items": len(records),
        "num_clusters": len(totals),
        "num_tokens": sum(counts),
        "gold_nll_with_end": fsum(sums) / sum(counts),
        "perplexity": _perplexity(fsum(sums) / sum(counts)),
        "perplexity_interval_95": None if interval is None else [*map(_perplexity, interval)],
    }


def _perplexity(nll: float) -> float:
    """Of a loss in nats per token; infinite where no float holds it, beyond 709 nats."""
    try:
        return exp(nll)
    except OverflowError:
        return inf


def best_constant(golds: Sequence[Sequence[str]], metric: Metric) -> tuple[str, float]:
    """Return the gold answer that scores most on all items, and its mean score.

    Tried are the ``NUM_CONSTANTS`` most frequent spellings; ties go to the smallest, by value where
    all are numbers.
    """
    if not golds or metric.primary is None:
        raise InputError("0 gold answers, at least 1 is needed: name a split that holds examples")
    spelt = [tuple(dict.fromkeys(metric.canonical(gold) for gold in item)) for item in golds]
    counts = Counter(gold for item in spelt for gold in item)
    order = Decimal if metric is METRICS["numeric"] else str
    ranked = sorted(counts, key=lambda gold: (-counts[gold], order(gold)))[:NUM_CONSTANTS]
    if metric.binary:  # what scores is what is spelt alike
        return ranked[0], counts[ranked[0]] / len(golds)
    assert metric.graded is not None
    means = {c: fmean([metric.graded(c, item) for item in golds]) for c in ranked}
    best = max(means.values())
    return next((gold, best) for gold in sorted(means) if means[gold] == best)


def _mean_pass_at(records: Sequence[ItemRecord], metric: Metric, k: int) -> float:
    """The mean over items of the chance that one of ``k`` samples is right."""
    assert metric.primary is not None
    right: dict[str, list[bool]] = {}
    for record in records:
        right.setdefault(record.id, []).append(record.scores[metric.primary] == 1)
    return fmean([metrics.pass_at_k(len(found), sum(found), k) for found in right.values()])


def _primary_interval(records: Sequence[ItemRecord], metric: Metric) -> list[float] | None:
    from schemabank.stats import clustered_interval, wilson_interval  # noqa: PLC0415 -- likewise

    assert metric.primary is not None
    values = [record.scores[metric.primary] for record in records]
    drawn_alone = not any(record.cluster or record.sample for record in records)
    if metric.binary and drawn_alone:
        return list(wilson_interval(round(fsum(values)), len(values)))
    clusters = [record.cluster or record.id for record in records]
    if metric.binary and len(set(values)) == 1:  # no spread, but no certainty either
        num = len(set(clusters))
        return list(wilson_interval(num * round(values[0]), num))
    interval = clustered_interval(values, clusters)
    if interval is None or interval[0] == interval[1]:
        return None
    low, high = max(interval[0], 0.0), min(interval[1], 1.0)
    if metric.binary and not any(record.sample for record in records):
        # Where almost all answers are right, or wrong, Student's may come out narrower than alone.
        alone = wilson_interval(round(fsum(values)), len(values))
        low, high = min(low, alone[0]), max(high, alone[1])
    return [low, high]
