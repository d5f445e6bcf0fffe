"""Published figures that were compared with the rows, and those that do not follow."""

from collections.abc import Sequence

from schemabank.common.tables import PlainTable
from schemabank.report.claims.judgements import Judged


def title(claims: Sequence[Judged]) -> str:
    """Return how many claims were checked and how many do not follow."""
    return f"{len(lines(claims))} of {len(claims)} claims do not follow"


def lines(claims: Sequence[Judged]) -> list[str]:
    """Return one line a claim that does not follow, with where it stands."""
    return [f"{claim.sentence} ({claim.where})" for claim in claims if not claim.follows]


def table(claims: Sequence[Judged]) -> PlainTable:
    """Return every claim that was checked."""
    rows = [
        [
            claim.statistic,
            claim.arm,
            ", ".join(claim.settings),
            claim.seed,
            claim.value,
            "follows" if claim.follows else "does not follow",
            claim.where,
        ]
        for claim in claims
    ]
    head = ["statistic", "arm", "epochs", "seed", "printed", "verdict", "where"]
    return "all claims that were checked", head, rows
