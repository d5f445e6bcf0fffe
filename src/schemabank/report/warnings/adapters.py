"""The gravest thing that a report may find: adapters that are not what was trained and scored."""

from collections.abc import Iterator

from schemabank.peftcheck import read_check
from schemabank.report.reading import RunSet
from schemabank.report.warnings.finding import MOST_NAMED, Finding


def adapters_in_doubt(runs: RunSet) -> Iterator[Finding]:
    """Runs whose saved adapter stock PEFT computes otherwise, as they recorded at their end."""
    checks = {run.run_id: read_check(run.result) for run in runs.runs}
    doubtful = {name: check for name, check in checks.items() if check and not check.agrees}
    if not doubtful:
        return
    named = "; ".join(f"{name} {check.said}" for name, check in [*doubtful.items()][:MOST_NAMED])
    left = len(doubtful) - MOST_NAMED
    more = f"; and {left} more" if left > 0 else ""
    num = f"{len(doubtful)} run{'s' * (len(doubtful) > 1)}"
    yield Finding(
        "adapter-not-as-trained",
        {"runs": {name: check.row() for name, check in doubtful.items()}},
        f"The saved adapters of {num} are not what was trained and scored here: {named}{more}. "
        "Who loads them will not see these scores.",
    )
