"""How the training of compared arms differs, as sentences for every table that compares them.

A difference in score is due to the method only if the learning rates of both arms were chosen in
the same way and both arms trained equally much. If not, ``train`` and ``suite`` say so under their
tables, and the report among its warnings, in the same words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.config.train import scaled_rate

MOST_NAMED = 5  # settings in a sentence
ON_TEST = "test"
TEACHER_STEPS = "num_teacher_steps"  # in ``training`` of a ``result.json``


class TrainingSize(Protocol):
    """What the runs of an arm trained, as means over its runs."""

    @property
    def num_steps(self) -> float:
        """Steps."""

    @property
    def num_lora_updates(self) -> float:
        """Steps that train LoRA."""

    @property
    def num_teacher_steps(self) -> float:
        """Steps of other runs from which a run learned."""

    @property
    def num_trained_parameters(self) -> float:
        """Weights that some step trains, those of banks too."""


@dataclass(frozen=True)
class Inequality:
    """One way in which arms were not treated the same.

    Attributes:
        rule: its stable name.
        numbers: the figures that show it.
        sentence: the same in words.
    """

    rule: str
    numbers: Mapping[str, object]
    sentence: str


@dataclass(frozen=True)
class Trained:
    """One run's training; see :class:`TrainingSize`.

    Attributes:
        arm: what the comparison calls its arm.
        setting: how it differs from other runs of its arm, apart from the seed; may be empty.
        split: that it was scored on.
        learning_rate: the highest at which it trains LoRA.
    """

    arm: str
    setting: str
    split: str
    learning_rate: float
    num_steps: float
    num_lora_updates: float
    num_trained_parameters: float
    num_teacher_steps: float = 0


def trained(
    config: RunConfig, result: Mapping[str, Any] | None, *, arm: str = "", setting: str = ""
) -> Trained | None:
    """Return what a run trained; ``None`` for a base model, and for a run without a result."""
    training = None if result is None else result["training"]
    if result is None or training is None:
        return None
    counts = ("num_steps", "num_lora_updates", "num_trained_parameters")
    return Trained(
        arm=arm or config.arm,
        setting=setting,
        split=result["split"],
        learning_rate=highest_rate(config.model_dump(mode="json")),
        num_teacher_steps=training.get(TEACHER_STEPS, 0),
        **{name: training[name] for name in counts},
    )


def unequal_arms(
    runs: Sequence[RunConfig], results: Sequence[Mapping[str, Any] | None]
) -> list[str]:
    """Say how the training of a configuration's arms differs, each against the first arm.

    Args:
        runs: the configuration's.
        results: one a run, ``None`` for a run that failed.
    """
    pairs = zip(runs, results, strict=True)
    known = [own for run, result in pairs if (own := trained(run, result)) is not None]
    return inequalities(known, first_last(known), tuned=False)


def first_last(runs: Sequence[Trained]) -> list[str]:
    """Return the arms in the order of their runs, but with the first, as control, at the end."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    return [*arms[1:], *arms[:1]]


def inequalities(runs: Sequence[Trained], arms: Sequence[str], *, tuned: bool) -> list[str]:
    """Say how the training of compared arms differs.

    Args:
        runs: all runs that train something.
        arms: those compared, the control last. Arms that train nothing are left out; with fewer
            than two arms left there is nothing to say.
        tuned: whether learning rates were chosen for each arm by a search.
    """
    own = {arm: found for arm in arms if (found := [run for run in runs if run.arm == arm])}
    if len(own) < 2:
        return []
    rates = {arm: sorted({run.learning_rate for run in found}) for arm, found in own.items()}
    said = [] if tuned else list(untried_rates(rates, split=runs[0].split))
    *treatments, control = own
    by_setting = {run.setting: run for run in own[control]}
    for arm in treatments:
        shared = (run for run in own[arm] if run.setting in by_setting)
        pairs = {run.setting: (run, by_setting[run.setting]) for run in shared}
        said += unequal_training((arm, control), pairs)
    return [found.sentence for found in said]


def untried_rates(rates: Mapping[str, Sequence[float]], *, split: str) -> Iterator[Inequality]:
    """Without a search, rates vary among the runs that are compared, or were never tried.

    Args:
        rates: those of each arm that trains.
        split: that the runs were scored on.
    """
    shown = " and ".join(
        f"{', '.join(f'{rate:g}' for rate in own)} for {arm}" for arm, own in rates.items()
    )
    several = all(len(own) > 1 for own in rates.values())
    if several and split == ON_TEST:
        yield Inequality(
            "learning-rates-on-test",
            {"learning_rates": rates},
            f"Learning rates vary ({shown}) among runs that are scored on {ON_TEST}: to choose one "
            "by these scores is to choose on the test data.",
        )
    elif not several:
        yield Inequality(
            "learning-rates-not-tuned",
            {"learning_rates": rates},
            f"Learning rates were not tried for each arm ({shown}): an arm may lose because its "
            "rate suits it less.",
        )


def unequal_training(
    arms: tuple[str, str], pairs: Mapping[str, tuple[TrainingSize, TrainingSize]]
) -> Iterator[Inequality]:
    """Treatment and control differ in what they trained, or how often.

    Args:
        arms: their names.
        pairs: what each trained, by the setting at which they are compared.
    """
    measures: list[tuple[str, str, Callable[[TrainingSize], float]]] = [
        ("unequal-steps", "training steps", lambda t: t.num_steps),
        ("unequal-teachers", "training steps of teachers", lambda t: t.num_teacher_steps),
        ("unequal-updates", "updates of LoRA", lambda t: t.num_lora_updates),
        ("unequal-parameters", "trained parameters", lambda t: t.num_trained_parameters),
    ]
    for rule, words, of in measures:
        counts = {name: (of(own), of(other)) for name, (own, other) in pairs.items()}
        unequal = {name: pair for name, pair in counts.items() if pair[0] != pair[1]}
        if unequal:
            shown = "; ".join(
                f"{own:,.0f} and {other:,.0f}{f' at {name}' if name else ''}"
                for name, (own, other) in list(unequal.items())[:MOST_NAMED]
            )
            yield Inequality(
                rule,
                {"by_epochs": unequal},
                f"{arms[0]} and {arms[1]} have different numbers of {words}: {shown}.",
            )


def highest_rate(settings: Mapping[str, Any]) -> float:
    """Return the highest rate at which a run's written settings train LoRA; of A, under LoRA+."""
    plain: float = settings["train"]["learning_rate"]
    stages = settings["curriculum"] if "curriculum" in METHODS[settings["arm"]].sections else ()
    rates = [
        stage["learning_rate"] or scaled_rate(plain, stage.get("learning_rate_ratio"))
        for stage in stages
        if "lora" in stage["train"]
    ]
    return max(rates, default=plain)
