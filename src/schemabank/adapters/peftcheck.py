"""The result of comparing a saved adapter, loaded by stock PEFT, with its run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FIELD = "peft_check"  # of result.json


@dataclass(frozen=True)
class PeftCheck:
    """A comparison of logits on a short text, both computed in float64.

    Attributes:
        difference: the largest, relative to the run's largest logit; ``None`` where there is none,
            since PEFT cannot load the adapter or its logits are not finite.
        allowed: what rounding explains, likewise relative: a hundred times float64's unit if the
            difference is within that, else a hundred times the rounding that was measured for
            this adapter; ``None`` where unknown.
        reason: why there is no difference, or ``None``.
    """

    difference: float | None
    allowed: float | None
    reason: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether there was anything to compare: PEFT loaded the adapter and computed with it."""
        return self.allowed is not None

    @property
    def agrees(self) -> bool:
        """Whether the adapter is what was trained."""
        if self.difference is None or self.allowed is None:
            return False
        return self.difference <= self.allowed

    @property
    def said(self) -> str:
        """The outcome, as the end of a sentence that begins with the adapter."""
        if self.difference is None or self.allowed is None:
            return f"could not be compared with its run in stock PEFT: {self.reason}"
        same = (
            "the same logits in stock PEFT as" if self.agrees else "other logits in stock PEFT than"
        )
        return (
            f"gives {same} in its run: the largest relative difference is {self.difference:.1e}, "
            f"and rounding explains {self.allowed:.1e}"
        )

    @property
    def cells(self) -> tuple[str, str, str]:
        """Difference, bound and reason, for a table."""
        shown = ["" if x is None else f"{x:.1e}" for x in (self.difference, self.allowed)]
        return shown[0], shown[1], self.reason or ""

    def row(self) -> dict[str, object]:
        """The check as ``result.json`` holds it; more digits would tell nobody anything."""
        kept = [None if x is None else float(f"{x:.6g}") for x in (self.difference, self.allowed)]
        return {"difference": kept[0], "allowed": kept[1], "reason": self.reason}


def read_check(result: Mapping[str, Any] | None) -> PeftCheck | None:
    """Return the check in a ``result.json``; ``None`` where nothing was trained, or earlier."""
    row = None if result is None else result.get(FIELD)
    return None if row is None else PeftCheck(row["difference"], row["allowed"], row["reason"])
