"""Learning curves: the training loss of every arm over its steps, with a band over seeds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

from schemabank.common.errors import InputError
from schemabank.common.files import is_number, json_lines
from schemabank.common.tables import PlainTable
from schemabank.config.base import LARGEST
from schemabank.report import altair
from schemabank.report.figures import LONGEST_LABEL, Datum, Spec
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.report.sections import look
from schemabank.report.sections.cells import number, place
from schemabank.report.sections.chart import MOST_PANELS, Chart, Labels, evenly, first, left_out
from schemabank.report.sections.stage_names import BESIDE, SIDES, rows_of, with_places
from schemabank.runs.folder import METRICS

MOST_POINTS = 1_500  # of all curves in a chart
NUM_POINTS = 60
NEEDED: Mapping[str, Any] = {
    "loss": float | int | None,
    "stage": str,
    "step": int,
    "num_tokens": int,
}
NUMBERS = ("loss", "step", "num_tokens")
MOST_SEEDS = 16  # of an arm at a setting, the first in the order of the runs


@dataclass(frozen=True)
class LossPoint:
    """The mean loss in nats per token up to a step, and the smallest and largest over seeds."""

    step: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class StageStart:
    """Where a stage begins; steps count from 1."""

    name: str
    first_step: int


@dataclass(frozen=True)
class Curve:
    """One arm at one setting.

    Attributes:
        arm, setting: of its runs.
        num_seeds: that it is drawn from.
        num_runs: that there are.
        mean_tokens: that a run saw, padding left out; of the runs it is drawn from.
        points: means over equal windows of steps.
        stages: in their order.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    num_seeds: int
    num_runs: int
    mean_tokens: float
    points: list[LossPoint]
    stages: list[StageStart]


def find(runs: RunSet) -> list[Curve]:
    """Read the logs of the first seeds of every arm and setting; runs without one are left out.

    Raises:
        InputError: a log is malformed.
    """
    found = []
    for (arm, setting), own in runs.by_place().items():
        logs = [log for run in own[:MOST_SEEDS] if (log := _read_log(run))]
        if logs:
            found.append(_curve(arm, setting, logs, len(own)))
    return found


def chart(found: Sequence[Curve], labels: Labels) -> Chart | None:
    """Return the training loss of every arm over its steps."""
    known = [curve for curve in found if curve.points]
    if not known:
        return None
    arms = labels.drawn(curve.arm for curve in known)
    panels = first((place(curve.setting) for curve in known), MOST_PANELS)
    kept = [c for c in known if c.arm in arms and place(c.setting) in panels]
    rows = [row for curve in kept for row in _chart_rows(curve, MOST_POINTS // len(kept))]
    drawn = with_places(rows, look.panel_size(rows)[0])
    starts = [row for row in drawn if row["kind"] == "stage"]
    named = sum(row["side"] in SIDES for row in starts)
    seeds = " or ".join(map(str, sorted({curve.num_seeds for curve in kept})))
    return Chart(
        name="curves",
        title="Training loss",
        caption="Means over seeds, smoothed over equal windows of steps; a band reaches from the "
        f"lowest to the highest seed ({seeds} seeds). Thin lines "
        f"are the starts of stages. The table has ten steps of each curve."
        f"{left_out(known, len(kept), 'curves')}{left_out(starts, named, 'names of stages')}",
        spec=_plot(drawn, arms, alt="Training loss by step"),
        table=_table(kept),
        arms=arms,
    )


def _chart_rows(curve: Curve, most: int) -> Iterator[Datum]:
    at = {"arm": curve.arm, "panel": place(curve.setting)}
    for point in evenly(curve.points, most):
        yield {"kind": "point", **at, **asdict(point)}
    for stage in curve.stages if len(curve.stages) > 1 else ():
        yield {"kind": "stage", **at, "step": stage.first_step, "name": stage.name}


def _table(curves: Sequence[Curve]) -> PlainTable:
    cells = [
        [
            curve.arm,
            place(curve.setting),
            number(point.step, 0),
            number(point.mean, 4),
            f"{point.low:.4f} to {point.high:.4f}",
        ]
        for curve in curves
        for point in evenly(curve.points, 10)
    ]
    return "training loss", ["arm", "setting", "step", "mean", "seeds"], cells


def _plot(rows: Sequence[Datum], arms: Sequence[str], *, alt: str) -> Spec:
    """Training loss over steps, a band from the lowest to the highest seed, and where stages start.

    Args:
        rows: ``kind, arm, panel, step`` and, of kind *point*, ``mean, low, high``, of kind *stage*,
            ``name`` and its place, from `with_places`.
        arms: in their order.
        alt: what the chart shows, in words.
    """
    _, height = look.panel_size(rows)
    names = range(rows_of(rows))
    step = altair.X("step:Q", title="step", scale=altair.Scale(nice=False))
    base = look.over(rows).encode(x=step.axis(grid=False), color=look.colour(arms, look.LINES))
    points = base.transform_filter("datum.kind == 'point'")
    stages = base.transform_filter("datum.kind == 'stage'")
    title = "loss, nats per token"
    # The names of stages stand above the curves.
    scale = altair.Scale(zero=False, range=[height, look.LINE_HEIGHT * len(names)])
    y = altair.Y("mean:Q", title=title, scale=scale)
    low = altair.Y("low:Q", title=title, scale=scale)
    tips = look.tooltip(arm="arm", step="step", mean="mean", low="lowest", high="highest")
    layers = [
        points.mark_area(fillOpacity=0.2).encode(y=low, y2="high:Q"),
        stages.mark_rule(strokeWidth=1).encode(tooltip=look.tooltip(arm="arm", name="stage")),
        points.mark_line(strokeWidth=2).encode(y=y, strokeDash=look.dash(arms, look.LINES)),
        points.mark_circle(size=90, fillOpacity=0).encode(y=y, tooltip=tips),
        *(_stage_names(stages, row, side) for side in SIDES for row in names),
    ]
    return look.paneled(layers, rows, alt, arms)


def _stage_names(stages: "altair.Chart", row: int, side: str) -> "altair.Chart":
    """Names of stages in one row above the curves, on one side of the stages' starts."""
    found = stages.transform_filter(f"datum.side == '{side}' && datum.row == {row}")
    align: Literal["left", "right"] = "left" if side == "right" else "right"
    dx = BESIDE if side == "right" else -BESIDE
    named: altair.Chart = found.mark_text(
        align=align, baseline="top", dx=dx, limit=LONGEST_LABEL
    ).encode(y=altair.value(2 + look.LINE_HEIGHT * row), text="label:N", color=look.TEXT)
    return named


def _curve(arm: str, setting: str, logs: Sequence[Sequence[Any]], num_runs: int) -> Curve:
    windows = [_windows(log) for log in logs]
    points = []
    for index, last in enumerate(_ends(max(map(len, logs)))):
        means = [own[index] for own in windows if index < len(own)]
        known = [mean for mean in means if mean is not None]
        if known:
            points.append(LossPoint(last, fmean(known), min(known), max(known)))
    stages: dict[str, int] = {}
    for row in logs[0]:
        stages.setdefault(row["stage"], row["step"] + 1)
    tokens = [sum(row["num_tokens"] for row in log) for log in logs]
    return Curve(
        arm=arm,
        setting=setting,
        num_seeds=len(logs),
        num_runs=num_runs,
        mean_tokens=fmean(tokens),
        points=points,
        stages=[StageStart(name, first) for name, first in stages.items()],
    )


def _ends(num_steps: int) -> list[int]:
    """The last step, counted from 1, of every window."""
    num = min(NUM_POINTS, num_steps)
    return [round((n + 1) * num_steps / num) for n in range(num)]


def _windows(log: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The mean loss in every window of steps; ``None`` where no step has one."""
    means, first = [], 0
    for end in _ends(len(log)):
        losses = [row["loss"] for row in log[first:end] if row["loss"] is not None]
        means.append(fmean(losses) if losses else None)
        first = end
    return means


def _read_log(run: ReportedRun) -> list[Mapping[str, Any]]:
    path = run.folder / METRICS
    if not path.exists():
        return []
    rows: list[Mapping[str, Any]] = []
    for where, row in json_lines(path):
        wrong = [name for name, kind in NEEDED.items() if not isinstance(row.get(name), kind)]
        numbers = {name: row.get(name) for name in NUMBERS if row.get(name) is not None}
        wrong += [name for name, value in numbers.items() if not is_number(value, at_most=LARGEST)]
        if wrong:
            raise InputError(
                f"{where} is no log of a run ({wrong[0]} is {row.get(wrong[0])!r:.60}, which is "
                "damaged): restore it, or move it away"
            )
        rows.append(row)
    return rows
