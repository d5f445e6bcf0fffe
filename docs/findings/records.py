"""The records of suites in results/suites, as the pages of findings use them."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import Any

from schemabank.report.contents import Report
from schemabank.report.examine import Question, examine
from schemabank.runs.folder import COST, RESULT, SUITE
from schemabank.runs.stored import read_cost, read_result, read_suite
from schemabank.suites.raterule import Candidate, candidate, paired_error

SOFTWARE = ("torch", "transformers", "peft")
SUFFIX = ".tar.xz"


@dataclass(frozen=True)
class Tried:
    """An arm of a search at the learning rate that was chosen for it, against the control.

    Attributes:
        arm: its name.
        at_edge: whether no rate beyond the chosen one was tried.
        found: its learning rate, and means over its runs.
        difference: its score less the control's.
        error: of that difference, over items.
    """

    arm: str
    at_edge: bool
    found: Candidate
    difference: float
    error: float


class Suite:
    """A suite's record, unpacked.

    Args:
        folder: of its runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.manifest: Mapping[str, Any] = read_suite(folder / SUITE)

    @cached_property
    def report(self) -> Report:
        """What ``schemabank report`` finds in it."""
        return examine(self.folder, Question())

    @cached_property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """The results of all finished runs, those of the search among them, by the runs' names."""
        files = sorted(self.folder.glob(f"*/{RESULT}"))
        return {file.parent.name: read_result(file) for file in files}

    @cached_property
    def costs(self) -> list[Mapping[str, Any]]:
        """The costs of all finished runs."""
        return [read_cost(self.folder / name / COST) for name in self.results]

    @property
    def hours(self) -> float:
        """Wall clock of all cohorts, their training and evaluation."""
        seconds = ((c["training_s"] + c["evaluation_s"]) / c["runs_in_cohort"] for c in self.costs)
        return fsum(seconds) / 3600

    @property
    def devices(self) -> str:
        """The devices that it was computed on."""
        return ", ".join(dict.fromkeys(str(cost["device"]) for cost in self.costs))

    @property
    def versions(self) -> str:
        """The versions of the software that computed it."""
        found = {
            name: sorted({str(result["versions"][name]) for result in self.results.values()})
            for name in SOFTWARE
        }
        return ", ".join(f"{name} {' and '.join(own)}" for name, own in found.items())

    @property
    def detectable(self) -> float:
        """The difference that its primary contrast finds with a power of 80 %."""
        found = self.report.comparison.primary.verdict.detectable
        assert found is not None
        return found

    def tried(self, control: str) -> list[Tried]:
        """Return the arms of its search, those with the lowest loss of the gold target first."""
        chosen = self.manifest["tuning"]["chosen"]
        found = {row["arm"]: self._candidate(row) for row in chosen}
        own = found[control]
        tried = [
            Tried(
                arm=row["arm"],
                at_edge=row["at_edge"],
                found=found[row["arm"]],
                difference=_score(found[row["arm"]]) - _score(own),
                error=paired_error(found[row["arm"]], own),
            )
            for row in chosen
        ]
        return sorted(tried, key=lambda one: one.found.gold_nll)

    def _candidate(self, row: Mapping[str, Any]) -> Candidate:
        """The means over the runs at the rate that was chosen for an arm."""
        place = ("arm", "settings", "factor")
        names = [
            run["run_id"]
            for run in self.manifest["tuning"]["runs"]
            if all(run[name] == row[name] for name in place)
        ]
        results = [self.results[name] for name in names]
        return candidate(row["learning_rate"], results, [self.folder / name for name in names])


def _score(found: Candidate) -> float:
    assert found.score is not None
    return found.score


def unpacked(packed: Path, place: Path) -> Iterator[Suite]:
    """Unpack all records of a folder, and yield each."""
    for file in sorted(packed.glob(f"*{SUFFIX}")):
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
        yield Suite(place / file.name.removesuffix(SUFFIX))
