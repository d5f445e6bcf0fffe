"""All that was tried, and what was declared and has not run, in two tables."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from charts import RENAMED
from judged import against
from records import Suite, Tried
from tables import LORA, chosen, lowest, tried_cells
from words import interval_of, points, table

from schemabank.suites.raterule import Candidate

EVIDENCE = Path(__file__).parents[2] / "configs" / "evidence"
ROUND = "round_"
# Whose arm a round is compared with, where it is not its own `lora`.
CONTROL_OF = {
    "round_2_wide": ("round_2", LORA),
    "round_2_optimizers": ("round_2", LORA),
    "round_4_muon": ("round_4", LORA),
    "round_6": ("round_6", "lora, equal compute"),
}
# Which arm of a round went on to the test split, by the suite that judged it there.
WENT_ON = {
    "methods_smollm2": {
        "round_1": ("lora, averaged", "coto", "experts, learned, consistent"),
        "round_2_wide": ("shrink",),
        "round_2_optimizers": ("molf",),
        "round_4": ("rslora", "lora+ 16"),
        "round_4_muon": ("muon",),
    },
    "confirm_smollm2": {"confirm_smollm2": ("swap, later",)},
}
CONFIRMATION = {"confirm_smollm2": "confirmation"}  # whose search is shown after the rounds
# What is LoRA with other settings of its own; all other arms are other ways of training.
OWN_SETTINGS = {
    "lora, no dropout",
    "lora, cosine",
    "lora, 6 epochs",
    "lora, equal compute",
    "lora, equal compute, dropout 0.2",
    "lora, dropout 0.4",
}
MORE_WEIGHTS = {"rank 64"}  # ends with four times the weights, and is no candidate


def rounds(suites: Mapping[str, Suite]) -> list[Suite]:
    """Return the rounds of candidates that have a record."""
    return [suite for name, suite in suites.items() if name.startswith(ROUND)]


def num_candidates(suites: Mapping[str, Suite]) -> int:
    """Return how many other ways of training were tried, equal ones of several rounds once."""
    return len(_arms(suites) - {LORA} - OWN_SETTINGS - MORE_WEIGHTS)


def num_own_settings(suites: Mapping[str, Suite]) -> int:
    """Return how many other settings of LoRA itself were tried."""
    found = _arms(suites) & OWN_SETTINGS
    assert found == OWN_SETTINGS
    return len(found)


def all_tried(suites: Mapping[str, Suite]) -> str:
    """Return one table of every arm of every round, at its chosen rate."""
    return table(
        _row(suites, suite, tried)
        for suite in (*rounds(suites), *(suites[name] for name in CONFIRMATION))
        for tried in suite.tried(_control(suites, suite))
    )


def not_run(suites: Mapping[str, Suite]) -> str:
    """Return the table of the suites that are declared in configs/evidence and have no record."""
    return table(
        {"configuration": f"`{path.name}`", "asks": _question(path)}
        for path in sorted(EVIDENCE.glob("*.yaml"))
        if path.stem not in suites
    )


def _control(suites: Mapping[str, Suite], suite: Suite) -> Candidate:
    name, arm = CONTROL_OF.get(suite.name, (suite.name, LORA))
    return chosen(suites[name], arm)


def _arms(suites: Mapping[str, Suite]) -> set[str]:
    return {RENAMED.get(arm, arm) for suite in rounds(suites) for arm in suite.search}


def _row(suites: Mapping[str, Suite], suite: Suite, tried: Tried) -> dict[str, str]:
    runs = [run for run in suite.manifest["tuning"]["runs"] if run["arm"] == tried.arm]
    rates = Counter(run["learning_rate"] for run in runs)
    (seeds,) = {*rates.values()}
    return {
        "round": CONFIRMATION.get(suite.name, suite.name.removeprefix(ROUND).replace("_", " ")),
        "arm": tried.arm,
        "rates × seeds": f"{len(rates)} × {seeds}",
        **tried_cells(tried, lowest(suite, tried.arm)),
        "test split, less LoRA": _on_test(suites, suite, tried.arm),
    }


def _on_test(suites: Mapping[str, Suite], suite: Suite, arm: str) -> str:
    for name, of_rounds in WENT_ON.items():
        if arm in of_rounds.get(suite.name, ()):
            found = against(suites[name], arm, LORA)
            return f"{points(found.difference)} ({interval_of(found.interval)})"
    return ""


def _question(path: Path) -> str:
    """The first sentence of what a configuration says of itself."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]
    said = " ".join(line.removeprefix("#").strip() for line in head)
    return re.split(r"(?<=[.?])\s", said)[0]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (all_tried, not_run, num_candidates, num_own_settings)
}
