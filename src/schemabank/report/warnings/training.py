"""What a sceptical reviewer would raise about runs, beyond what their scores alone show.

Like :mod:`schemabank.report.warnings.scores`, a finding says what the runs show and no more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from schemabank.config.base import OF_LORA
from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.report.comparing.comparison import Comparison
from schemabank.report.reading.runs import Left, RunSet
from schemabank.report.reading.settings import Config, settings_of, words
from schemabank.report.sections.completions import Behaviour
from schemabank.report.sections.cost import Cost
from schemabank.report.sections.rates import Tried
from schemabank.report.warnings.figures import find_figure_warnings
from schemabank.report.warnings.finding import MOST_NAMED, Finding, first_named, times
from schemabank.runs.fairness import Inequality, highest_rate, unequal_training, untried_rates

MOST_AT_LIMIT = 0.02  # of completions, before it is worth a word
CONDITIONS = ("model", "dtype", "max_new_tokens", "num_samples", "temperature", "versions")
# What training may differ in between arms without a word: these make the arms what they are.
OF_METHODS = {section for entry in METHODS.values() for section in entry.sections} - {*OF_LORA}
DEFAULTS = settings_of(RunConfig(arm="lora").model_dump(mode="json"))
OWN = {"arm", "seed", "preset", "engine", *OF_METHODS}


@dataclass(frozen=True)
class Facts:
    """What a report knows beside scores.

    Attributes:
        settings: that the primary contrast is over.
        rates: learning rates that were tried.
        ended: how completions ended.
        cost: of every arm.
    """

    settings: Sequence[str]
    rates: Sequence[Tried]
    ended: Sequence[Behaviour]
    cost: Sequence[Cost]


def find_run_warnings(
    runs: RunSet,
    group: str,
    comparison: Comparison,
    facts: Facts,
) -> list[Finding]:
    """Return all findings.

    Args:
        runs: that are compared.
        group: of items.
        comparison: of their scores.
        facts: what else is known of them.
    """
    return [
        *_missing(runs),
        *_skipped(runs),
        *_declared(runs, comparison),
        *_subset(runs),
        *_trimmed(runs),
        *_tuning(runs, comparison, facts.rates),
        *_updates(comparison, facts.cost),
        *_other_settings(runs, comparison),
        *_other_conditions(runs, comparison),
        *_at_limit(facts.ended),
        *find_figure_warnings(runs, group, comparison, facts.settings),
    ]


def _missing(runs: RunSet) -> Iterator[Finding]:
    if runs.failed:
        yield Finding(
            "failed-runs",
            {"runs": runs.failed},
            f"{times(len(runs.failed), 'run')} failed and {_are(runs.failed)} not in the "
            f"figures: {_reasons(runs.failed)}. A mean over the runs that went well flatters "
            "an arm that fails.",
        )
    if runs.excluded:
        yield Finding(
            "excluded-runs",
            {"runs": runs.excluded},
            f"{times(len(runs.excluded), 'run')} of this folder {_are(runs.excluded)} not "
            f"compared: {_reasons(runs.excluded)}.",
        )
    if runs.unfinished:
        yield Finding(
            "unfinished-runs",
            {"runs": runs.unfinished},
            f"{times(len(runs.unfinished), 'run')} of the suite {_are(runs.unfinished)} not "
            "finished: a comparison that is looked at before it is complete is stopped by its "
            "scores.",
        )


def _are(runs: Sequence[object]) -> str:
    return "is" if len(runs) == 1 else "are"


def _reasons(runs: Sequence[Left]) -> str:
    return first_named([f"{left.run} ({left.reason})" for left in runs])


def _skipped(runs: RunSet) -> Iterator[Finding]:
    """Steps of runs that are compared, but whose loss or gradient was not finite."""
    skips = {
        run.run_id: (training["num_skipped_steps"], training["num_steps"])
        for run in runs.runs
        if run.trained and (training := run.result["training"])["num_skipped_steps"]
    }
    if skips:
        named = first_named([f"{num} of {steps} in {run}" for run, (num, steps) in skips.items()])
        yield Finding(
            "skipped-steps",
            {"runs": skips},
            f"Steps were skipped, since their loss or gradient was not finite: {named}. "
            "Something in the data or the settings breaks the arithmetic, and these runs made "
            "fewer updates.",
        )


def _declared(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    asked = comparison.treatment, comparison.control
    if runs.contrast is None:
        yield Finding(
            "contrast-not-declared",
            {"contrast": asked},
            f"No contrast was declared before the runs: {asked[0]} against {asked[1]} may have "
            "been chosen by its scores.",
        )
    elif runs.contrast != asked:
        yield Finding(
            "other-contrast",
            {"declared": runs.contrast, "contrast": asked},
            f"The suite declared {runs.contrast[0]} against {runs.contrast[1]}, but "
            f"{asked[0]} against {asked[1]} is reported.",
        )


def _subset(runs: RunSet) -> Iterator[Finding]:
    # Runs of an arm at a setting differ in their seeds alone.
    configs = [own[0].config for own in runs.by_place(untrained=True).values()]
    limits = {settings_of(config).get("eval.limit") for config in configs} - {None}
    if limits:
        shown = sorted(map(str, limits))
        yield Finding(
            "subset-of-split",
            {"limits": shown},
            f"eval.limit is {', '.join(shown)}: scores are of the first items of every group of "
            f"{runs.split}, not of all, and noisier than they need be.",
        )


def _trimmed(runs: RunSet) -> Iterator[Finding]:
    arms = [run.arm for run in runs.runs if run.result.get("prompt_form", "whole") != "whole"]
    if arms:
        yield Finding(
            "trimmed-prompts",
            {"arms": arms},
            f"Prompts of {', '.join(arms)} lack the white space at their end, which other arms' "
            "have: untouched models are shown in the form that serves them better.",
        )


def _tuning(runs: RunSet, comparison: Comparison, rates: Sequence[Tried]) -> Iterator[Finding]:
    """Learning rates: not tuned, chosen on test, unequally often tried, or best at an edge."""
    if not rates:
        yield from _untuned(runs, comparison)
        return
    counts: dict[str, int] = {}
    for tried in rates:
        counts[tried.arm] = counts.get(tried.arm, 0) + len(tried.scores)
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{arm} {num}" for arm, num in counts.items())
        yield Finding(
            "unequal-tuning",
            {"runs_by_arm": counts},
            f"Tuning runs that ended differ between the arms: {said}.",
        )
    for tried in rates:
        if tried.at_edge:
            yield Finding(
                "rate-at-edge",
                {"arm": tried.arm, "epochs": tried.setting, "learning_rate": tried.learning_rate},
                f"{tried.arm}{_at_setting(tried.setting)} is best at {tried.learning_rate:g}, the "
                "edge of the rates tried: a rate beyond it might be better.",
            )


def _untuned(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    """Without a search, rates vary among the runs that are compared, or were never tried."""
    rates: dict[str, set[float]] = {}
    for (arm, _), own in runs.by_place().items():
        rates.setdefault(arm, set()).add(highest_rate(own[0].config))
    arms = [arm for arm in (comparison.treatment, comparison.control) if arm in rates]
    yield from _findings(untried_rates({arm: sorted(rates[arm]) for arm in arms}, split=runs.split))


def _updates(comparison: Comparison, cost: Sequence[Cost]) -> Iterator[Finding]:
    """Treatment and control differ in what they trained, or how often."""
    arms = comparison.treatment, comparison.control
    by_place = {(c.arm, c.setting): c for c in cost}
    pairs = {
        c.setting: (by_place[arms[0], c.setting], control)
        for c in comparison.contrasts
        if c.setting is not None and (control := by_place.get((arms[1], c.setting))) is not None
    }
    yield from _findings(unequal_training(arms, pairs))


def _findings(found: Iterable[Inequality]) -> Iterator[Finding]:
    return (Finding(own.rule, own.numbers, own.sentence) for own in found)


def _other_settings(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    """Settings beyond those that a method has for itself in which the arms differ."""
    found: dict[str, tuple[str, str]] = {}
    at = runs.by_place()
    for c in comparison.contrasts:
        first = at.get((comparison.treatment, c.setting or ""))
        second = at.get((comparison.control, c.setting or ""))
        if first and second:
            one, other = _acting(first[0].config), _acting(second[0].config)
            for name in dict.fromkeys((*one, *other)):
                if name.partition(".")[0] in OWN or name == "train.learning_rate":
                    continue
                if one.get(name) != other.get(name):
                    found[name] = words(one.get(name)), words(other.get(name))
    if found:
        shown = "; ".join(
            f"{name} {a} and {b}" for name, (a, b) in list(found.items())[:MOST_NAMED]
        )
        yield Finding(
            "other-settings",
            {"settings": found},
            f"{comparison.treatment} and {comparison.control} differ in more than their methods: "
            f"{shown}.",
        )


def _acting(config: Config) -> dict[str, object]:
    """An arm's settings by name; what its method does not use is as if it were not set.

    So an average that a suite has by default is one that the arm ``swap`` lacks, though all arms'
    configurations have it.
    """
    unused = set(OF_LORA) - set(METHODS[config["arm"]].sections)
    return {
        name: value if name.partition(".")[0] not in unused else DEFAULTS[name]
        for name, value in settings_of(config).items()
    }


def _other_conditions(runs: RunSet, comparison: Comparison) -> Iterator[Finding]:
    """What results say of how they came about, in which treatment and control differ."""
    arms = comparison.treatment, comparison.control
    found: dict[str, list[list[str]]] = {}
    for name in CONDITIONS:
        values = [
            sorted({words(run.result.get(name)) for run in runs.runs if run.arm == arm})
            for arm in arms
        ]
        if values[0] != values[1]:
            found[name] = values
    if found:
        shown = "; ".join(
            f"{name} {' or '.join(own)} and {' or '.join(other)}"
            for name, (own, other) in found.items()
        )
        yield Finding(
            "other-conditions",
            {"conditions": found},
            f"{arms[0]} and {arms[1]} were not computed alike: {shown}.",
        )


def _at_limit(ended: Sequence[Behaviour]) -> Iterator[Finding]:
    far = [own for own in ended if own.at_limit_ratio > MOST_AT_LIMIT]
    if far:
        shown = first_named(
            [f"{own.at_limit_ratio:.0%} of {own.arm}'s{_at_setting(own.setting)}" for own in far]
        )
        yield Finding(
            "completions-at-limit",
            {"arms": far},
            f"Completions run to the token limit without an end: {shown}. What is cut "
            "off may hold the answer, and an arm that never learned to stop is judged by that.",
        )


def _at_setting(setting: str) -> str:
    return f" at {setting}" if setting else ""
