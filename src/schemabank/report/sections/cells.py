"""How numbers are written in a report's tables: shares as percent, differences as points of it.

What is unknown, or not finite, is an empty cell.
"""

from math import isfinite
from typing import TypeGuard

from schemabank.stats import Interval

POOLED = "mean over all"


def place(setting: str | None) -> str:
    """Return a setting as tables name it; ``None`` is the mean over all."""
    return POOLED if setting is None else setting


def finite(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to write."""
    return value is not None and isfinite(value)


def percent(share: float | None) -> str:
    """Return a share as percent."""
    return f"{100 * share:.2f}%" if finite(share) else ""


def points(share: float | None) -> str:
    """Return a difference of shares in points of percent, with its sign."""
    return f"{100 * share:+.2f}" if finite(share) else ""


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with thousands set off."""
    return f"{value:,.{decimals}f}" if finite(value) else ""


def short(value: float | None) -> str:
    """Return a p-value or a learning rate to three digits."""
    return f"{value:.3g}" if finite(value) else ""


def interval(ends: Interval | None, scale: float = 1) -> str:
    """Return both ends of an interval."""
    if ends is None or not all(map(finite, ends)):
        return ""
    return f"{scale * ends[0]:.2f} to {scale * ends[1]:.2f}"
