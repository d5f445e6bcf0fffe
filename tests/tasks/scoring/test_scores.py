"""Metrics by name, and summaries of records by hand."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from properties import examples
from schemabank.common.errors import InputError
from schemabank.runs.resultshape import shape_of_group
from schemabank.stats import clustered_interval, wilson_interval
from schemabank.tasks.scoring.metrics import bleu
from schemabank.tasks.scoring.scores import METRICS, ItemRecord, best_constant, summaries, summarise

NUMERIC, F1 = METRICS["numeric"], METRICS["f1"]
prop = examples(60)


def record(number: int = 1, *, correct: float = 1, **changes: object) -> ItemRecord:
    base = ItemRecord(
        id=str(number),
        sample=0,
        group="all",
        cluster="",
        prompt="How many?\nThe answer is: ",
        completion="#### 5",
        golds=("5",),
        extracted="5",
        readings={"strict": "5", "flexible": "5"},
        scores={"correct": correct, "strict": 0.0, "flexible": correct},
        new_tokens=10 * number,
        stop_reason="end_token",
        gold_tokens=4,
        gold_nll=0.5 * number,
        gold_nll_with_end=0.25 * number,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metric", "completion", "golds", "extracted", "scores"),
    [
        ("numeric", "#### 1,200 or 7", ["1200"], "1200", (1, 1, 0)),
        ("numeric", "so 7", ["8", "7"], "7", (1, 0, 1)),
        ("numeric", "none", ["8"], None, (0, 0, 0)),
        ("exact_match", " The Cat.\n", ["dog", "cat"], "The Cat.", (1,)),
        ("exact_match", "  ", ["cat"], None, (0,)),
        ("choice", "The answer is (B).", ["b"], "B", (1,)),
        ("choice", "I cannot say", ["B"], None, (0,)),
        ("choice", "B\n\nQuestion: and?\nThe answer is: C", ["B"], "B", (1,)),
        ("choice", "B\n\nWhat now?\nThe answer is: C", ["B"], "B", (1,)),
        ("choice", "A dog.\nThe answer is: C", ["C"], "C", (1,)),
        ("f1", "cat\nQuestion: what?\nThe answer is: dog", ["cat"], "cat", (1, 1)),
        ("f1", "a black cat", ["black dog", "white cat here"], "a black cat", (0.5, 0)),
        ("rouge_l", "black cat", ["black cat"], "black cat", (1, 1)),
        ("reading", "black cat", ["black dog", "the black cat"], "black cat", (1, 0.8, 1)),
        ("none", "anything", ["x"], "anything", ()),
    ],
)
def test_metrics_score_against_every_gold(
    metric: str,
    completion: str,
    golds: list[str],
    extracted: str | None,
    scores: tuple[float, ...],
) -> None:
    scored = METRICS[metric].score(completion, golds)
    assert scored.extracted == extracted
    values = [value for name, value in scored.scores.items() if name != "meteor"]
    assert tuple(values) == pytest.approx(scores)
    assert METRICS[metric].primary in {None, *scored.scores}
    if scores:
        assert next(iter(scored.scores)) == METRICS[metric].primary


@pytest.mark.parametrize(
    ("metric", "gold"),
    [
        ("numeric", "many"),
        ("exact_match", " The. "),
        ("f1", ""),
        ("choice", "BC"),
        ("choice", "Z"),
        ("rouge_l", "привет"),
    ],
)
def test_a_gold_that_nothing_can_match_is_refused(metric: str, gold: str) -> None:
    with pytest.raises(InputError, match=f"gold {gold!r}"):
        METRICS[metric].canonical(gold)


def test_summaries_are_per_group() -> None:
    """Four items of one group and one of another, counted by hand."""
    found = summaries(
        [
            record(1, group="seen"),
            record(2, group="held_out"),
            record(3, group="seen", correct=0, extracted="4"),
            record(4, group="seen", correct=0, golds=("7",), extracted=None, stop_reason="length"),
            record(5, group="seen", golds=("6",), stop_reason="stop_text"),
        ],
        NUMERIC,
    )
    assert list(found) == ["seen", "held_out"]
    seen = found["seen"]
    # Wilson's interval for 2 of 4: centre 1/2, half-width z sqrt(1/16 + z²/64) / (1 + z²/4).
    assert seen.pop("correct_interval_95") == pytest.approx([0.15004, 0.84996], abs=1e-5)
    assert seen == {
        "num_items": 4,
        "correct": 0.5,
        "strict": 0.0,
        "flexible": 0.5,
        "ended_ratio": 0.5,
        "length_limit_ratio": 0.25,
        "unparsable_ratio": 0.25,
        "mean_new_tokens": 32.5,
        "correct_among_ended": 0.5,
        "gold_nll": 1.625,
        "gold_nll_with_end": 0.8125,
        "best_constant_answer": "5",
        "best_constant_correct": 0.5,
    }
    assert found["held_out"]["correct"] == 1.0
    assert found["held_out"]["num_items"] == 1


def test_items_of_one_document_count_as_one_draw() -> None:
    records = [
        record(i, cluster=f"book {i % 3}", scores={"f1": i / 10, "exact_match": 0.0})
        for i in range(1, 10)
    ]
    summary = summarise(records, F1)
    expected = clustered_interval([r.scores["f1"] for r in records], [r.cluster for r in records])
    assert summary["f1_interval_95"] == list(expected or ())
    alone = summarise([replace(r, cluster="") for r in records], F1)
    assert alone["f1_interval_95"] != summary["f1_interval_95"]
    one = summarise([replace(r, cluster="book") for r in records], F1)
    assert one["f1_interval_95"] is None


def test_the_same_score_everywhere_is_no_certainty() -> None:
    binary = summarise([record(i, cluster=f"book {i % 3}") for i in range(1, 7)], NUMERIC)
    assert binary["correct_interval_95"] == pytest.approx(list(wilson_interval(3, 3)))
    graded = [record(i, scores={"f1": 0.0, "exact_match": 0.0}) for i in range(1, 7)]
    assert summarise(graded, F1)["f1_interval_95"] is None


def test_an_interval_stays_between_nothing_and_all() -> None:
    values = [1, 1, 1, 1, 0, 0]
    records = [record(i, cluster=f"{i // 2}", correct=v) for i, v in enumerate(values)]
    low, high = summarise(records, NUMERIC)["correct_interval_95"]
    assert 0 <= low < high == 1


@pytest.mark.parametrize("num_right", [1, 99])
def test_a_share_of_items_in_clusters_is_no_surer_than_one_of_items_alone(num_right: int) -> None:
    """Student's interval by cluster would be narrower where almost all answers are alike."""
    values = [float(i < num_right) for i in range(100)]
    records = [record(i, cluster=f"{i % 12}", correct=v) for i, v in enumerate(values)]
    student = clustered_interval(values, [i % 12 for i in range(100)])
    alone = wilson_interval(num_right, 100)
    assert student is not None
    assert student[1] < alone[1] or student[0] > alone[0]
    low, high = summarise(records, NUMERIC)["correct_interval_95"]
    assert low == max(0, min(student[0], alone[0]))
    assert high == min(1, max(student[1], alone[1]))


def test_scores_of_the_whole_corpus_stand_beside_the_means() -> None:
    scores = {"f1": 1.0}
    records = [
        record(1, completion="the old man and the sea", golds=("the old man and the sea",)),
        record(2, completion="a whale", golds=("a whale", "the whale")),
    ]
    summary = summarise([replace(r, scores=scores) for r in records], METRICS["reading"])
    found = bleu([r.completion for r in records], [r.golds for r in records])
    assert {name: summary[name] for name in found} == found
    assert summary["bleu_1"] == pytest.approx(1)


def test_samples_of_an_item_are_no_items() -> None:
    """Three items of four samples, of which 4, 1 and 0 are right."""
    records = [
        record(item, sample=sample, correct=float(sample < right))
        for item, right in ((1, 4), (2, 1), (3, 0))
        for sample in range(4)
    ]
    summary = summarise(records, NUMERIC, pass_at=(1, 2, 4))
    assert (summary["num_items"], summary["num_samples"]) == (3, 4)
    assert summary["correct"] == summary["pass@1"] == pytest.approx(5 / 12)
    assert summary["pass@2"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert summary["pass@4"] == pytest.approx(2 / 3)
    many = [replace(r, id=f"{r.id}/{copy}") for r in records for copy in range(9)]
    interval = clustered_interval([1, 0.25, 0] * 9, range(27))
    assert summarise(many, NUMERIC)["correct_interval_95"] == pytest.approx(list(interval or ()))
    with pytest.raises(InputError, match="pass@k needs answers that are right or wrong"):
        summarise([record(scores={"f1": 0.5})], F1, pass_at=(1,))


def test_without_a_metric_the_likelihoods_remain() -> None:
    summary = summarise([record(scores={}, readings={})], METRICS["none"])
    assert summary["gold_nll"] == 0.5
    assert not [name for name in summary if "interval" in name or "constant" in name]


def test_perplexity_weighs_tokens_and_resamples_books() -> None:
    records = [
        record(i, cluster=f"book {i % 4}", gold_tokens=10 * i, gold_nll_with_end=2 + 0.1 * (i % 4))
        for i in range(1, 9)
    ]
    summary = summarise(records, METRICS["perplexity"])
    total = sum(r.gold_tokens for r in records)
    nll = sum(r.gold_tokens * r.gold_nll_with_end for r in records) / total
    assert summary["num_tokens"] == total
    assert summary["num_clusters"] == 4
    assert summary["gold_nll_with_end"] == pytest.approx(nll)
    assert summary["perplexity"] == pytest.approx(math.exp(nll))
    low, high = summary["perplexity_interval_95"]
    assert math.exp(2) <= low < summary["perplexity"] < high <= math.exp(2.3)
    assert "ended_ratio" not in summary


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    records = [record(i, cluster=f"book {i}", gold_nll_with_end=800 + i) for i in range(1, 5)]
    summary = summarise(records, METRICS["perplexity"])
    assert summary["perplexity"] == math.inf
    assert summary["perplexity_interval_95"] == [math.inf, math.inf]
    shape_of_group("perplexity", ("perplexity",), is_trained=True).model_validate(summary)


def test_the_undefined_perplexity_of_an_evaluation_is_read_again_but_no_trained_runs_is() -> None:
    records = [record(i, gold_nll_with_end=math.nan) for i in range(2)]
    summary = summarise(records, METRICS["perplexity"])
    assert math.isnan(summary["perplexity"])
    shape_of_group("perplexity", ("perplexity",), is_trained=False).model_validate(summary)
    for bad, is_trained in ((summary, True), ({**summary, "perplexity": -1.0}, False)):
        with pytest.raises(ValidationError, match="perplexity"):
            shape_of_group("perplexity", ("perplexity",), is_trained=is_trained).model_validate(bad)


@prop
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_accuracy_splits_into_ended_and_cut_items(items: list[tuple[bool, bool]]) -> None:
    summary = summarise(
        [
            record(correct=float(right), stop_reason="end_token" if ended else "length")
            for right, ended in items
        ],
        NUMERIC,
    )
    assert summary["ended_ratio"] + summary["length_limit_ratio"] == pytest.approx(1)
    right_and_cut = sum(right for right, ended in items if not ended)
    ended_share = summary.get("correct_among_ended", 0.0) * summary["ended_ratio"]
    assert summary["correct"] == pytest.approx(ended_share + right_and_cut / len(items))
    assert ("correct_among_ended" in summary) == (summary["ended_ratio"] > 0)


def test_no_records() -> None:
    with pytest.raises(InputError, match="at least 1"):
        summarise([], NUMERIC)


class TestBestConstant:
    @prop
    @given(st.lists(st.integers(-3, 12), min_size=1, max_size=30), st.data())
    def test_against_trying_every_answer(self, values: list[int], data: st.DataObject) -> None:
        spellings = st.sampled_from(["{}", "{}.0", "${}", "2 eggs\n#### {}"])
        golds = [data.draw(spellings).format(value) for value in values]
        shares = {value: values.count(value) / len(values) for value in set(values)}
        best = min(value for value in shares if shares[value] == max(shares.values()))
        assert best_constant([[gold] for gold in golds], NUMERIC) == (str(best), shares[best])

    def test_ties_go_to_the_smallest_by_value_not_by_spelling(self) -> None:
        assert best_constant([["10"], ["9"], ["-1"]], NUMERIC) == ("-1", pytest.approx(1 / 3))
        assert best_constant([["10"], ["9"]], NUMERIC) == ("9", 0.5)

    def test_no_golds(self) -> None:
        with pytest.raises(InputError, match="at least 1"):
            best_constant([], NUMERIC)

    def test_several_golds_and_spellings_of_one_item(self) -> None:
        golds = [["the cat", "Cat!"], ["a dog"], ["cat", "dog"]]
        assert best_constant(golds, METRICS["exact_match"]) == ("cat", pytest.approx(2 / 3))

    def test_a_graded_metric_takes_the_answer_that_scores_most(self) -> None:
        golds = [["black cat"], ["black dog"], ["white horse"], ["black"]]
        answer, score = best_constant(golds, F1)
        assert answer == "black"
        assert score == pytest.approx((2 / 3 + 2 / 3 + 0 + 1) / 4)
