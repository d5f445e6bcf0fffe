"""The records of suites in results/suites, as the pages of findings use them."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import Any

from schemabank.runs.distill import TEACHERS
from schemabank.runs.folder import COST, RESULT, SUITE
from schemabank.runs.stored import read_cost, read_result, read_suite
from schemabank.suites.raterule import Candidate, candidate, choose, paired_error

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
    def results(self) -> dict[str, Mapping[str, Any]]:
        """The results of all finished runs, those of the search among them, by the runs' names."""
        files = sorted(self.folder.glob(f"*/{RESULT}"))
        return {file.parent.name: read_result(file) for file in files}

    def figures(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a run scored on the part of the items that the suite is judged on.

        A search's runs may lack it, as on a validation split without parts: then on the first.
        """
        groups: Mapping[str, Mapping[str, Any]] = result["groups"]
        declared = (self.manifest["contrast"] or {}).get("group")
        return groups.get(declared) or next(iter(groups.values()))

    @property
    def constant(self) -> float:
        """The share of the items of any run that the best constant answer gets right."""
        result = next(iter(self.results.values()))
        return float(self.figures(result)["best_constant_correct"])

    @cached_property
    def teachers(self) -> list[Path]:
        """The folders of the runs from which others learned."""
        return sorted(file.parent for file in self.folder.glob(f"{TEACHERS}/*/{RESULT}"))

    @cached_property
    def costs(self) -> list[Mapping[str, Any]]:
        """The costs of all finished runs and of their teachers."""
        folders = [*(self.folder / name for name in self.results), *self.teachers]
        return [read_cost(folder / COST) for folder in folders]

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

    @cached_property
    def search(self) -> dict[str, list[Candidate]]:
        """Every arm of its search at all learning rates that were tried, the lowest first."""
        places: dict[tuple[str, float], list[str]] = {}
        for run in self.manifest["tuning"]["runs"]:
            if run["run_id"] in self.results:  # others diverged
                places.setdefault((run["arm"], run["learning_rate"]), []).append(run["run_id"])
        found: dict[str, list[Candidate]] = {}
        for (arm, rate), names in sorted(places.items()):
            results = [self.results[name] for name in names]
            folders = [self.folder / name for name in names]
            found.setdefault(arm, []).append(candidate(rate, results, folders))
        return found

    def tried(self, control: Candidate) -> list[Tried]:
        """Return the arms at their chosen rates, those with the lowest loss first.

        Args:
            control: what they are compared with, on the same items.
        """
        tried = []
        for arm, candidates in self.search.items():
            found = choose(candidates)
            at_edge = found.learning_rate in self._edges(arm)
            difference = score_of(found) - score_of(control)
            tried.append(Tried(arm, at_edge, found, difference, paired_error(found, control)))
        return sorted(tried, key=lambda one: one.found.gold_nll)

    def _edges(self, arm: str) -> tuple[float, float]:
        """The lowest and the highest rate that were tried for an arm, diverged runs included."""
        runs = self.manifest["tuning"]["runs"]
        rates = [run["learning_rate"] for run in runs if run["arm"] == arm]
        return min(rates), max(rates)


def score_of(found: Candidate) -> float:
    """Return the share of items that a candidate got right."""
    assert found.score is not None
    return found.score


def unpacked(packed: Path, place: Path) -> Iterator[Suite]:
    """Unpack all records of a folder, and yield each."""
    for file in sorted(packed.glob(f"*{SUFFIX}")):
        with tarfile.open(file) as archive:
            archive.extractall(place, filter="data")
        yield Suite(place / file.name.removesuffix(SUFFIX))
