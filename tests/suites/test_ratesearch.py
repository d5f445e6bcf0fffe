from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.config.settings import RunConfig
from schemabank.config.train import THREE_STAGES
from schemabank.runs.itemscores import save_item_scores
from schemabank.runs.members import Outcome
from schemabank.suites.file import Suite, SuiteRun, TuneSettings
from schemabank.suites.ratesearch import (
    RateSearch,
    Trial,
    beyond,
    notes,
    peak_rate,
    scaled,
    search,
    trials,
    tuned,
)

DIVERGED = Failure("diverged", "no finite gradient in 20 steps in a row, up to step 30")


def test_a_factor_multiplies_all_learning_rates_and_nothing_else() -> None:
    config = RunConfig(arm="schemabank")
    found = scaled(config, 0.3)
    assert found.train.learning_rate == 0.0003
    assert [stage.learning_rate for stage in found.stages()] == [3e-4, 3e-4, 1.5e-4]
    config = config.model_copy(update={"curriculum": THREE_STAGES})
    found = scaled(config, 0.3)
    assert [stage.learning_rate for stage in found.stages()] == [3e-4, 3e-5, 1.5e-5]
    assert scaled(config, 1.0) == config
    back = {
        "train": config.train,
        "curriculum": tuple(
            stage.model_copy(update={"learning_rate": before.learning_rate})
            for stage, before in zip(found.curriculum, config.curriculum, strict=True)
        ),
    }
    assert found.model_copy(update=back) == config


def test_the_peak_rate_is_that_of_the_stages_that_train_lora() -> None:
    assert peak_rate(RunConfig(arm="lora")) == 1e-3
    assert peak_rate(RunConfig(arm="schemabank")) == 1e-3
    paper = RunConfig(arm="schemabank", curriculum=THREE_STAGES)
    assert peak_rate(paper) == 1e-4, "the router's 1e-3 is none of LoRA's"


@pytest.mark.parametrize(
    ("factors", "chosen", "expected"),
    [
        ([0.25, 0.5, 1, 2, 4], [1.0, 2.0], []),
        ([0.25, 0.5, 1, 2, 4], [1.0, 4.0], [8.0]),
        ([0.25, 0.5, 1, 2, 4], [0.25, 0.25], [0.125]),
        ([0.1, 0.3, 1], [0.1, 1.0], [0.0333333, 3.33333]),
    ],
)
def test_a_grid_goes_on_by_the_ratio_of_its_last_two_factors(
    factors: list[float], chosen: list[float], expected: list[float]
) -> None:
    assert beyond(factors, chosen) == expected


# The search, with scores that are made up.


def suite_of(*arms: str, points: Sequence[dict[str, object]] = ({},), **tune: Any) -> Suite:  # noqa: ANN401 -- a suite's settings
    runs = [
        SuiteRun(arm, seed, point, RunConfig(arm="base" if arm == "base" else "lora", seed=seed))
        for arm in arms
        for point in points
        for seed in (1, 2)
    ]
    return Suite(None, tuple(runs), TuneSettings(**tune))


NUM_ITEMS = 100


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the made-up runs' item scores lie."""
    answered.place = tmp_path_factory.mktemp("runs")  # type: ignore[attr-defined]
    yield
    answered.cache_clear()


@cache
def answered(*right: tuple[str, int, int], start: int = 0) -> Path:
    """A run's folder with item scores: of each group its name, items and how many are right.

    These follow each other from item ``start`` on.
    """
    folder = Path(answered.place) / f"run-{len(list(answered.place.iterdir()))}"  # type: ignore[attr-defined]
    folder.mkdir()
    rows = [
        {
            "id": f"{group}-{n}",
            "group": group,
            "cluster": None,
            "scores": {"correct": start <= n < start + found},
        }
        for group, num_items, found in right
        for n in range(num_items)
    ]
    save_item_scores(folder, rows, "correct")
    return folder


def outcome(score: float, gold_nll: float = 1.0, *, start: int = 0) -> Outcome:
    folder = answered(("all", NUM_ITEMS, round(score * NUM_ITEMS)), start=start)
    group = {"num_items": NUM_ITEMS, "correct": score, "gold_nll": gold_nll, "ended_ratio": 1.0}
    return Outcome(folder, {"metric": "numeric", "groups": {"all": group}})


def failed(reason: Failure = DIVERGED) -> Outcome:
    return Outcome(Path("run"), None, failure=reason)


def searched(
    suite: Suite, of: Callable[[Trial], Outcome]
) -> tuple[RateSearch, list[set[tuple[str, float]]]]:
    """The search, and what each round tried."""
    rounds = []

    def run(found: RateSearch) -> list[Outcome]:
        rounds.append({(trial.run.arm, trial.factor) for trial in found.missing})
        return [of(trial) for trial in found.missing]

    return search(suite, run), rounds


def peaked(**best: float) -> Callable[[Trial], Outcome]:
    """Losses that grow with the distance from an arm's best factor."""
    return lambda trial: outcome(0.5, gold_nll=abs(trial.factor - best[trial.run.arm]))


def chosen(found: RateSearch) -> dict[str, tuple[float, bool]]:
    assert found.choices is not None
    return {choice.run.arm: (choice.factor, choice.at_edge) for choice in found.choices}


def test_each_arm_has_its_own_best_on_the_same_grid() -> None:
    suite = suite_of("a", "b", "base")
    found, rounds = searched(suite, peaked(a=0.5, b=2))
    assert rounds == [{(arm, f) for arm in "ab" for f in (0.25, 0.5, 1, 2, 4)}]
    assert chosen(found) == {"a": (0.5, False), "b": (2, False)}
    assert len(found.trials) == 2 * 5 * 2, "two arms, five factors, two seeds"
    assert notes(found) == []


def test_one_arms_edge_extends_the_grid_of_all() -> None:
    found, rounds = searched(suite_of("a", "b"), peaked(a=1, b=9))
    assert rounds[1:] == [{("a", 8), ("b", 8)}, {("a", 16), ("b", 16)}]
    assert chosen(found) == {"a": (1, False), "b": (8, False)}
    assert found.factors == (0.25, 0.5, 1, 2, 4, 8, 16)
    counts = {arm: sum(t.run.arm == arm for t in found.trials) for arm in "ab"}
    assert counts == {"a": 14, "b": 14}


def test_both_ends_may_be_extended_at_once_and_what_stays_at_one_is_flagged() -> None:
    found, rounds = searched(suite_of("a", "b", extend=1), peaked(a=0, b=99))
    assert rounds[1:] == [{("a", 8), ("b", 8), ("a", 0.125), ("b", 0.125)}]
    assert chosen(found) == {"a": (0.125, True), "b": (8, True)}
    assert [note.partition(":")[0] for note in notes(found)] == ["arm 'a'", "arm 'b'"]


def test_without_extension_an_edge_is_flagged() -> None:
    found, rounds = searched(suite_of("a", extend=0), peaked(a=4))
    assert len(rounds) == 1
    assert chosen(found) == {"a": (4, True)}


def test_a_factor_at_which_any_seed_diverged_is_not_chosen_and_is_no_edge() -> None:
    def of(trial: Trial) -> Outcome:
        if trial.factor == 4 and trial.run.seed == 1002:
            return failed()
        return outcome(trial.factor / 10)

    found, rounds = searched(suite_of("a"), of)
    assert len(rounds) == 1
    assert chosen(found) == {"a": (2, False)}
    assert notes(found) == [f"tuning run run failed ({DIVERGED}): its factor was not chosen"]


def test_a_loss_that_is_no_number_is_not_chosen() -> None:
    found, _ = searched(
        suite_of("a"), lambda t: outcome(0.5, float("nan") if t.factor == 1 else t.factor + 1)
    )
    assert chosen(found)["a"][0] != 1


def test_an_arm_that_diverges_everywhere_is_named() -> None:
    suite = suite_of("a", "b", points=({"lora.r": 4},))
    with pytest.raises(InputError) as error:
        searched(suite, lambda t: failed() if t.run.arm == "b" else outcome(0.1))
    assert str(error.value) == (
        "arm 'b', lora.r 4 diverged at all of the factors 0.25, 0.5, 1, 2, 4: allowed is a search "
        "in which some factor trains, put smaller ones into tune.factors"
    )


def test_what_the_best_score_alone_would_have_chosen_is_kept() -> None:
    """The two best answer other items and differ by one right answer, so the loss decides."""
    right = {0.5: (40, 0), 1: (50, 0), 2: (49, 50), 4: (30, 50)}

    def of(trial: Trial) -> Outcome:
        found, start = right[trial.factor]
        return outcome(found / 100, gold_nll=1 / trial.factor, start=start)

    found, _ = searched(suite_of("a", factors=tuple(right), extend=0), of)
    assert found.choices is not None
    (choice,) = found.choices
    assert (choice.factor, choice.best_score) == (2, 1)
    assert choice.row()["best_score_factor"] == 1


def test_tuning_runs_with_other_items_are_refused() -> None:
    def of(trial: Trial) -> Outcome:
        found = outcome(0.5)
        other = answered(("all", NUM_ITEMS + trial.run.seed % 2, 50))
        return Outcome(other, found.result)

    with pytest.raises(InputError, match="tuning runs were scored on other items"):
        searched(suite_of("a"), of)


def test_tuning_runs_without_item_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictions\.jsonl does not exist"):
        searched(suite_of("a"), lambda _: Outcome(tmp_path, outcome(0.5).result))


def test_every_point_of_a_grid_has_its_own_choice() -> None:
    suite = suite_of("a", points=({"lora.r": 4}, {"lora.r": 8}))
    found, _ = searched(
        suite,
        lambda t: outcome(0.9 if t.factor == t.run.point["lora.r"] / 4 else 0.1),  # type: ignore[operator]
    )
    assert found.choices is not None
    assert [(c.run.point["lora.r"], c.factor) for c in found.choices] == [(4, 1), (8, 2)]
    rates = [run.config.train.learning_rate for run in tuned(suite, found).runs]
    assert rates == [1e-3, 1e-3, 2e-3, 2e-3]
    assert [run.seed for run in tuned(suite, found).runs] == [1, 2, 1, 2]


def test_trials_are_scored_on_validation_with_seeds_of_their_own() -> None:
    (trial, *_) = trials(suite_of("a", limit=7, seeds=(11,)), [0.5])
    assert trial.run.config.eval == RunConfig(arm="lora").eval.model_copy(
        update={"split": "validation", "limit": 7}
    )
    assert trial.run.seed == trial.run.config.seed == 11
    assert trial.row()["learning_rate"] == trial.run.config.train.learning_rate == 5e-4
    assert trials(suite_of("base"), [1]) == []


def test_a_search_whose_trials_are_not_there_stops_where_it_is() -> None:
    calls = []

    def run(found: RateSearch) -> list[Outcome] | None:
        calls.append(found)
        return [outcome(trial.factor / 9) for trial in found.missing] if len(calls) == 1 else None

    found = search(suite_of("a"), run)
    assert found.choices is None
    assert [trial.factor for trial in found.missing] == [8, 8]


def test_scores_are_means_over_the_items_of_all_groups_and_over_seeds() -> None:
    def of(trial: Trial) -> Outcome:
        share = 0.2 if trial.run.seed == 1001 else 0.4
        groups = {
            "seen": {"num_items": 30, "correct": share, "gold_nll": 1.0, "ended_ratio": 1.0},
            "held": {"num_items": 10, "correct": 0.0, "gold_nll": 3.0, "ended_ratio": 0.5},
        }
        folder = answered(("seen", 30, round(30 * share)), ("held", 10, 0))
        return Outcome(folder, {"metric": "numeric", "groups": groups})

    found, _ = searched(suite_of("a", factors=(1, 2), extend=0), of)
    assert found.choices is not None
    first = found.choices[0].candidates[1]
    assert first.score == pytest.approx(0.225)
    assert first.gold_nll == pytest.approx(1.5)
    assert first.ended == pytest.approx(0.875)
    assert (first.num_items, first.num_seeds) == (40, 2)


def test_perplexity_is_chosen_by_the_loss_that_it_is_made_of() -> None:
    def of(trial: Trial) -> Outcome:
        loss = abs(trial.factor - 2)
        group = {"num_items": 9, "perplexity": 2.7**loss, "gold_nll_with_end": loss}
        return Outcome(Path("run"), {"metric": "perplexity", "groups": {"512": group}})

    found, _ = searched(suite_of("a"), of)
    assert chosen(found) == {"a": (2, False)}
