"""How numbers are written in a report's tables: shares as percent, differences as points of it."""

from collections.abc import Mapping, Sequence
from typing import Any

POOLED = "mean over all"


def setting(row: Mapping[str, Any]) -> str:
    """Return the setting that a row is about."""
    return POOLED if row["epochs"] is None else str(row["epochs"])


def percent(share: float | None) -> str:
    """Return a share as percent."""
    return "" if share is None else f"{100 * share:.2f}%"


def points(share: float | None) -> str:
    """Return a difference of shares in points of percent, with its sign."""
    return "" if share is None else f"{100 * share:+.2f}"


def number(value: float | None, decimals: int = 2) -> str:
    """Return a number with thousands set off."""
    return "" if value is None else f"{value:,.{decimals}f}"


def short(value: float | None) -> str:
    """Return a p-value or a learning rate to three digits."""
    return "" if value is None else f"{value:.3g}"


def interval(ends: Sequence[float] | None, scale: float = 1) -> str:
    """Return both ends of an interval."""
    return "" if ends is None else f"{scale * ends[0]:.2f} to {scale * ends[1]:.2f}"


def one_line(text: str) -> str:
    """Return text with every run of white space as one space."""
    return " ".join(text.split())
