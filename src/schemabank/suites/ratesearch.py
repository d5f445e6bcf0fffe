"""How a suite chooses every arm's learning rate: one grid, one budget and one rule for all arms.

All learning rates of a run are multiplied by each factor in turn, and the factor that does best on
the validation split is taken. If an arm's best factor lies at an end of the grid, the grid grows
for all arms.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from schemabank.common.errors import InputError
from schemabank.config.settings import RunConfig
from schemabank.config.train import scaled_rate
from schemabank.runs.members import Outcome
from schemabank.suites.file import SEARCH_SPLIT, Suite, SuiteRun, TuneSettings
from schemabank.suites.raterule import Candidate, best_score, candidate, choose

FACTOR_DIGITS = 6  # of a factor that the search adds to the user's own


@dataclass(frozen=True)
class Trial:
    """A tuning run.

    Attributes:
        run: its place; its seed and settings are those of the search.
        factor: what its learning rates were multiplied by.
    """

    run: SuiteRun
    factor: float

    @property
    def title(self) -> str:
        """Its place in words."""
        return f"{self.run.title}, learning rates x {self.factor:g}"

    def row(self) -> dict[str, object]:
        """What ``suite.json`` says of it."""
        rate = peak_rate(self.run.config)
        return {**self.run.row(), "factor": self.factor, "learning_rate": rate}


@dataclass(frozen=True)
class ChosenRate:
    """What the rule chose for an arm at a point of the grid.

    Attributes:
        run: any of the arm's runs there, at the factor 1.
        factor: the chosen one.
        best_score: the one that the best mean score alone would have chosen.
        factors: all that were tried, ascending.
        candidates: by factor, what it was chosen from; without those at which a trial failed.
    """

    run: SuiteRun
    factor: float
    best_score: float
    factors: tuple[float, ...]
    candidates: Mapping[float, Candidate]

    @property
    def at_edge(self) -> bool:
        """Whether the chosen factor is the least or the greatest that was tried."""
        return self.factor in (self.factors[0], self.factors[-1])

    def row(self) -> dict[str, object]:
        """What ``suite.json`` says of it."""
        return {
            "arm": self.run.arm,
            "settings": dict(self.run.point),
            "factor": self.factor,
            "learning_rate": peak_rate(scaled(self.run.config, self.factor)),
            "at_edge": self.at_edge,
            "best_score_factor": self.best_score,
        }


@dataclass(frozen=True)
class RateSearch:
    """How far the choice of a suite's learning rates has come.

    Attributes:
        factors: those of all trials, ascending.
        trials: all that are needed so far, round by round.
        outcomes: of the first trials; the others have not ended.
        extensions: how often the factors were extended.
        choices: one an arm and point; ``None`` while trials are missing.
    """

    factors: tuple[float, ...] = ()
    trials: tuple[Trial, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    extensions: int = 0
    choices: tuple[ChosenRate, ...] | None = None

    @property
    def missing(self) -> tuple[Trial, ...]:
        """The trials of the last round, while they have no outcomes."""
        return self.trials[len(self.outcomes) :]


def search(suite: Suite, run: Callable[[RateSearch], Sequence[Outcome] | None]) -> RateSearch:
    """Choose the learning rates of a suite.

    Args:
        suite: a suite that is tuned.
        run: returns the outcomes of the trials that have none yet, or ``None`` if it does not
            know them, which ends the search early.

    Returns:
        The search with its choices; if it ended early, without.

    Raises:
        InputError: an arm whose trials failed at every factor.
    """
    assert suite.tune is not None
    factors = tuple(sorted(suite.tune.factors))
    found = RateSearch(factors, tuple(trials(suite, factors)))
    while (outcomes := run(found)) is not None:
        found = replace(found, outcomes=(*found.outcomes, *outcomes))
        choices = _choose_all(suite, found)
        new = beyond(found.factors, [choice.factor for choice in choices])
        if not new or found.extensions == suite.tune.extend:
            return replace(found, choices=choices)
        found = replace(
            found,
            factors=tuple(sorted({*found.factors, *new})),
            trials=(*found.trials, *trials(suite, new)),
            extensions=found.extensions + 1,
        )
    return found


def notes(found: RateSearch) -> list[str]:
    """Return what is doubtful about a search's choices, a sentence each."""
    failed = [
        f"tuning run {outcome.folder.name} failed ({outcome.failure}): its factor was not chosen"
        for outcome in found.outcomes
        if outcome.failure is not None
    ]
    at_edge = [
        f"{_arm_in_words(choice.run)}: the chosen factor "
        f"{choice.factor:g} lies at the edge of the grid, so a better one may lie beyond it "
        "(tune.extend goes further)"
        for choice in found.choices or ()
        if choice.at_edge
    ]
    return [*failed, *at_edge]


def tuned(suite: Suite, found: RateSearch) -> Suite:
    """Return a suite's final runs, at the chosen learning rates."""
    assert found.choices is not None
    factors = {_key_of(choice.run): choice.factor for choice in found.choices}
    runs = tuple(
        replace(run, config=scaled(run.config, factors.get(_key_of(run), 1.0)))
        for run in suite.runs
    )
    return replace(suite, runs=runs)


def all_rows(suite: Suite, found: RateSearch | None) -> list[dict[str, object]]:
    """Return id and place of the tuning runs and, once they are known, of the final ones.

    Args:
        suite: with its final runs, if the search has made its choices.
        found: the search; ``None`` for a suite that is not tuned.
    """
    if found is None:
        return suite.rows()
    rows = tuning_rows(found)
    if found.choices is None:
        return rows
    return [*rows, *({**row, "phase": "final"} for row in suite.rows())]


def tuning_rows(found: RateSearch) -> list[dict[str, object]]:
    """Return id and place of every tuning run."""
    return [{**trial.row(), "phase": "tune"} for trial in found.trials]


def trials(suite: Suite, factors: Sequence[float]) -> list[Trial]:
    """Return a suite's tuning runs at some factors."""
    assert suite.tune is not None
    return [
        Trial(_on_validation(place, seed, factor, suite.tune), factor)
        for place in _searched_places(suite)
        for factor in factors
        for seed in suite.tune.seeds
    ]


def scaled(config: RunConfig, factor: float) -> RunConfig:
    """Multiply all learning rates of a run."""
    # Stages whose rate is a share of the run's follow it by themselves.
    stages = tuple(
        stage
        if stage.learning_rate is None
        else stage.model_copy(update={"learning_rate": scaled_rate(stage.learning_rate, factor)})
        for stage in config.curriculum
    )
    rate = scaled_rate(config.train.learning_rate, factor)
    train = config.train.model_copy(update={"learning_rate": rate})
    return config.model_copy(update={"curriculum": stages, "train": train})


def peak_rate(config: RunConfig) -> float:
    """Return the highest learning rate of the stages that train LoRA, or of all if none does.

    It is that of A where B's is a multiple of it (LoRA+).
    """
    stages = [stage for stage in config.stages() if "lora" in stage.train]
    return max(stage.learning_rate for stage in stages or config.stages())


def beyond(factors: Sequence[float], chosen: Sequence[float]) -> list[float]:
    """Return the next factor beyond each end of the grid at which a chosen factor lies."""
    low, high = factors[0], factors[-1]
    found = []
    if low in chosen:
        found.append(low * low / factors[1])
    if high in chosen:
        found.append(high * high / factors[-2])
    return [float(f"{factor:.{FACTOR_DIGITS}g}") for factor in found]


def _searched_places(suite: Suite) -> list[SuiteRun]:
    """The first run of every arm that trains, at every point of the grid."""
    found: dict[tuple[str, str], SuiteRun] = {}
    for run in suite.runs:
        if run.config.trains:
            found.setdefault(_key_of(run), run)
    return list(found.values())


def _key_of(run: SuiteRun) -> tuple[str, str]:
    return run.arm, json.dumps(dict(run.point), sort_keys=True, default=str)


def _on_validation(place: SuiteRun, seed: int, factor: float, tune: TuneSettings) -> SuiteRun:
    asked: dict[str, object] = {"split": SEARCH_SPLIT}
    if tune.limit is not None:
        asked["limit"] = tune.limit
    config = scaled(place.config, factor)
    evaluation = config.eval.model_copy(update=asked)
    config = config.model_copy(update={"seed": seed, "eval": evaluation})
    return replace(place, seed=seed, config=config)


def _choose_all(suite: Suite, found: RateSearch) -> tuple[ChosenRate, ...]:
    """Apply the rule to every arm at every point.

    Raises:
        InputError: there is one whose trials failed at every factor.
    """
    outcomes: dict[tuple[tuple[str, str], float], list[Outcome]] = {}
    for trial, outcome in zip(found.trials, found.outcomes, strict=True):
        outcomes.setdefault((_key_of(trial.run), trial.factor), []).append(outcome)
    return tuple(
        _choose_rate(place, {factor: outcomes[_key_of(place), factor] for factor in found.factors})
        for place in _searched_places(suite)
    )


def _choose_rate(place: SuiteRun, outcomes: Mapping[float, Sequence[Outcome]]) -> ChosenRate:
    """Apply the rule to an arm at a point; a factor with a failed trial cannot be chosen."""
    candidates = {}
    for factor, of_factor in outcomes.items():
        results = [outcome.result for outcome in of_factor if outcome.result is not None]
        if len(results) == len(of_factor):
            rate = peak_rate(scaled(place.config, factor))
            found = candidate(rate, results, [outcome.folder for outcome in of_factor])
            if math.isfinite(found.gold_nll):
                candidates[factor] = found
    factors = tuple(outcomes)
    if not candidates:
        raise InputError(
            f"{_arm_in_words(place)} diverged at all of the factors "
            f"{', '.join(f'{f:g}' for f in factors)}: allowed is a search in which some factor "
            "trains, put smaller ones into tune.factors"
        )
    tried = list(candidates.values())
    chosen, highest = (
        next(factor for factor, own in candidates.items() if own is found)
        for found in (choose(tried), best_score(tried))
    )
    return ChosenRate(place, chosen, highest, factors, candidates)


def _arm_in_words(run: SuiteRun) -> str:
    """An arm and its values of the grid."""
    return ", ".join([f"arm {run.arm!r}", *(f"{name} {v}" for name, v in run.point.items())])
