"""Where a report's figures come from, and which runs are not in them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from schemabank.common.tables import PlainTable
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import Left, ReportedRun, RunSet
from schemabank.report.sections.cells import place, short
from schemabank.report.sections.chart import given, table_of


@dataclass(frozen=True)
class ComparedRun:
    """One run of the report; its factor is that of ``rescale``, if it chose one."""

    run_id: str
    arm: str
    seed: int
    setting: str = field(metadata=EPOCHS)
    scale_factor: float | None = None


@dataclass(frozen=True)
class Provenance:
    """Where the figures come from, and what is not in them."""

    runs: list[ComparedRun]
    versions: dict[str, list[str]]
    models: list[str]
    tasks: list[str]
    dtypes: list[str]
    devices: list[str]
    failed: Sequence[Left]
    failed_trials: Sequence[Left]
    excluded: Sequence[Left]
    unfinished: Sequence[str]


def find(runs: RunSet) -> Provenance:
    """Return which runs, versions, models and tasks the figures come from."""

    def distinct(of: Callable[[ReportedRun], object]) -> list[str]:
        return list(dict.fromkeys(str(of(run)) for run in runs.runs))

    versions: dict[str, dict[str, None]] = {}
    for run in runs.runs:
        for name, version in run.result["versions"].items():
            if version is not None:
                versions.setdefault(name, {})[version] = None
    return Provenance(
        runs=[_compared(run) for run in runs.runs],
        versions={name: list(found) for name, found in versions.items()},
        models=distinct(lambda run: run.result["model"]),
        tasks=distinct(lambda run: run.result["task"]),
        dtypes=distinct(lambda run: run.result["dtype"]),
        devices=_devices(runs.runs),
        failed=runs.failed,
        failed_trials=runs.failed_trials,
        excluded=runs.excluded,
        unfinished=runs.unfinished,
    )


def _devices(runs: Sequence[ReportedRun]) -> list[str]:
    """The devices of the runs whose costs name one."""
    costs = [run.cost for run in runs if run.cost is not None]
    return list(dict.fromkeys(cost["device"] for cost in costs if cost.get("device")))


def named(found: Provenance) -> list[str]:
    """Return one line each on models, tasks and types of numbers."""
    titles = {
        "Models": found.models,
        "Tasks": found.tasks,
        "Numbers computed in": found.dtypes,
        "Computed on": found.devices,
    }
    return [f"{title}: {', '.join(names)}." for title, names in titles.items() if names]


def left_tables(found: Provenance) -> list[PlainTable]:
    """Return the runs that failed, were excluded or are not finished."""
    return given(
        _left_table("failed runs", found.failed),
        _left_table("failed tuning runs", found.failed_trials),
        _left_table("excluded runs", found.excluded),
        table_of(
            f"unfinished runs: {len(found.unfinished)}", [{"run": run} for run in found.unfinished]
        ),
    )


def compared_tables(found: Provenance) -> list[PlainTable]:
    """Return versions of software, and the runs that are compared."""
    versions = [{"name": name, "version": ", ".join(own)} for name, own in found.versions.items()]
    rescaled = any(run.scale_factor is not None for run in found.runs)
    runs = [
        {
            "run": r.run_id,
            "arm": r.arm,
            "seed": str(r.seed),
            "setting": place(r.setting),
            **({"adapter times": short(r.scale_factor)} if rescaled else {}),
        }
        for r in found.runs
    ]
    return given(table_of("versions", versions), table_of(f"compared runs: {len(runs)}", runs))


def _compared(run: ReportedRun) -> ComparedRun:
    rescale = (run.result["training"] or {}).get("rescale")
    factor = None if rescale is None else rescale["factor"]
    return ComparedRun(run.run_id, run.arm, run.seed, run.setting, factor)


def _left_table(title: str, found: Sequence[Left]) -> PlainTable | None:
    return table_of(f"{title}: {len(found)}", [asdict(left) for left in found])
