"""The question of ``--fail-if-worse``: may a program go on with the treatment?

Without a margin the answer is no where the treatment is significantly worse. Runs that answer
alike are not. With a margin it is no unless the treatment is shown to be not worse by more than
the margin.
"""

from typing import TYPE_CHECKING

from schemabank.common.errors import InputError

if TYPE_CHECKING:  # charts take long to import
    from schemabank.report.contents import Report
    from schemabank.stats import Difference

SHOWN = ("equivalent", "not worse")


def why_stop(report: "Report") -> str | None:
    """Return why the treatment must not be taken; ``None`` where it may be.

    Raises:
        InputError: there is neither a margin nor a test, so that nothing gives an answer.
    """
    own = report.comparison
    arms, primary = f"{own.treatment} against {own.control}", own.primary
    if primary.margin is not None:
        found = primary.margin.verdict
        return None if found.outcome in SHOWN else f"{arms}: {found.sentence}"
    if primary.verdict.outcome == "worse":
        return f"{arms}: {primary.verdict.sentence}"
    if primary.verdict.p is None and not _is_alike(own.primary_contrast.own.difference):
        raise InputError(
            f"--fail-if-worse: {arms} has no test ({primary.verdict.sentence}), so nothing tells "
            "whether it is worse: allowed are arms with a verdict, or a margin, which must be "
            "shown; add seeds, or give --margin"
        )
    return None


def _is_alike(found: "Difference") -> bool:
    """Whether there could have been a test, and there is none since the arms hardly differ."""
    return found.may_be_enough and (found.mean >= 0 or not found.is_enough)
