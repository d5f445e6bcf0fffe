"""The gravest thing that a report may find: adapters that are not what was trained and scored."""

from collections.abc import Iterator, Mapping

from schemabank.adapters.peftcheck import PeftCheck, read_check
from schemabank.report.reading.runs import RunSet
from schemabank.report.warnings.finding import MOST_NAMED, Finding, times


def adapters_in_doubt(runs: RunSet) -> Iterator[Finding]:
    """Yield what is wrong with saved adapters: other logits in stock PEFT, or no comparison.

    The checks are those that the runs recorded at their end.
    """
    checks = {run.run_id: read_check(run.result) for run in runs.runs}
    doubtful = {name: check for name, check in checks.items() if check and not check.agrees}
    different = {name: check for name, check in doubtful.items() if check.is_made}
    if different:
        yield Finding(
            "adapter-not-as-trained",
            _numbers_of_checks(different),
            f"The saved adapters of {times(len(different), 'run')} are not what was trained and "
            f"scored here: {_runs_and_reasons(different)}. Who loads them will not see these "
            "scores.",
        )
    unknown = {name: check for name, check in doubtful.items() if not check.is_made}
    if unknown:
        yield Finding(
            "adapter-not-compared",
            _numbers_of_checks(unknown),
            f"Nothing is known of the saved adapters of {times(len(unknown), 'run')}: "
            f"{_runs_and_reasons(unknown)}. Compare their logits with the run's before you pass "
            "them on.",
        )


def _numbers_of_checks(checks: Mapping[str, PeftCheck]) -> dict[str, object]:
    return {"runs": {name: check.row() for name, check in checks.items()}}


def _runs_and_reasons(checks: Mapping[str, PeftCheck]) -> str:
    named = "; ".join(f"{name} {check.said}" for name, check in [*checks.items()][:MOST_NAMED])
    left = len(checks) - MOST_NAMED
    return named + (f"; and {left} more" if left > 0 else "")
