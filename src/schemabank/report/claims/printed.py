"""A figure as a document prints it, and whether a value rounds to it."""

import re
from dataclasses import dataclass
from fractions import Fraction

from schemabank.common.errors import InputError
from schemabank.report.reading.table import LONGEST_NUMBER

NUMBER = r"\d[\d,]*(?:\.\d+)?"
PRINTED = re.compile(
    rf"(?P<about>[~≈])?\s*(?P<sign>[-−+±])?(?P<low>{NUMBER})(?:\s*[-–]\s*(?P<high>{NUMBER}))?"
    r"\s*(?P<unit>%|x|minutes|hours)?",
    re.ASCII,
)


@dataclass(frozen=True)
class Printed:
    """A printed figure, in the unit of the rows: ``2.8%`` is 0.028.

    Attributes:
        low: the figure, or the lower end of a range.
        high: the upper end.
        unit: % or x or minutes or hours or nothing.
        step: one in the last decimal.
        about: whether it is marked as approximate.
    """

    low: Fraction
    high: Fraction | None
    unit: str
    step: Fraction
    about: bool

    def fits(self, value: Fraction) -> bool:
        """Whether a value rounds to the figure."""
        return self.low in self.roundings(value)

    def roundings(self, value: Fraction) -> set[Fraction]:
        """Round to the printed decimals, halves away from 0 and to even."""
        steps = value / self.step
        up = int(abs(steps) + Fraction(1, 2)) * (1 if steps >= 0 else -1)
        return {round(steps) * self.step, up * self.step}

    def shown(self, value: Fraction | float) -> str:
        """Return a value in the printed unit, with six digits."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{float(value) * (100 if self.unit == '%' else 1):.6g}{unit}"


def read_printed(text: str, place: str) -> Printed:
    """Read a figure as it was printed, such as ``2.8%``, ``~5 minutes``, ``8-11%`` or ``3.1x``.

    Raises:
        InputError: it is none.
    """
    found = PRINTED.fullmatch(text)
    if found is None or len(text) > LONGEST_NUMBER:
        raise InputError(
            f"{place}: value {text!r} is no figure: write it as it was printed, as 2.8%, 8-11%, "
            "3.1x or ~5 minutes"
        )
    unit = found["unit"] or ""
    scale = Fraction(1, 100 if unit == "%" else 1)
    sign = -1 if found["sign"] in ("-", "−") else 1
    ends = [
        None if e is None else sign * as_fraction(e) * scale for e in found.group("low", "high")
    ]
    decimals = len(found["low"].partition(".")[2])
    low = ends[0]
    assert low is not None
    return Printed(low, ends[1], unit, scale / 10**decimals, found["about"] is not None)


def as_fraction(text: str) -> Fraction:
    """Return a number that was printed with commas between thousands."""
    return Fraction(text.replace(",", ""))
