"""Which charts a report has: what each shows, in words, as a drawing and as a table.

Everything here is made from the contents of ``report.json``. A chart of very much data draws an
even selection and says so; means and intervals are always of all of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemabank.figures import Cell, Spec, heat_map
from schemabank.report.sections import plots
from schemabank.report.sections.cells import (
    POOLED,
    interval,
    number,
    percent,
    points,
    setting,
    short,
)
from schemabank.report.sections.facttables import rates as rates_table
from schemabank.report.sections.stage_names import SIDES, with_places
from schemabank.tables import PlainTable

Report = Mapping[str, Any]
Row = Mapping[str, Any]
ALL = "all runs"  # where no setting varies
MOST_DOTS = 400  # of single seeds
MOST_ARMS = 12
MOST_SETTINGS = 24
MOST_PANELS = 6
MOST_POINTS = 1_500  # of all curves
MOST_CELLS = 2_500  # of all heat maps
MOST_REFERENCES = 8
BESIDE = 1.02  # times the learning rate, for each next arm


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: of its files, without a suffix.
        title: without names of arms, which are anybody's text.
        caption: how it is read, and which data are left out.
        spec: Vega-Lite.
        table: the same data.
        arms: that can be made to stand out.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    table: PlainTable
    arms: Sequence[str] = field(default=())


def figures(report: Report) -> dict[str, Spec]:
    """Return the charts that there is data for, by the name of their files."""
    return {chart.name: chart.spec for chart in charts(report)}


def charts(report: Report) -> list[Chart]:
    """Return the charts that there is data for, in the order of the page."""
    found = [_rates(report), _means(report), _differences(report), _others(report), _groups(report)]
    return [chart for chart in (*found, _curves(report), *_routing(report)) if chart is not None]


def _rates(report: Report) -> Chart | None:
    rows = [row for row in report.get("rates") or [] if row["mean"] is not None]
    rows = [row for row in rows if row["learning_rate"] > 0]
    if not rows:
        return None
    arms, panels = _shown(report, rows), _kept((setting(row) for row in rows), MOST_PANELS)
    lowest: dict[tuple[str, str], float] = {}
    for row in rows:
        place, rate = (row["arm"], setting(row)), row["learning_rate"]
        lowest[place] = min(rate, lowest.get(place, rate))
    drawn = [
        {
            "arm": row["arm"],
            "panel": setting(row),
            "rate": row["learning_rate"],
            "place": row["learning_rate"] * BESIDE ** (arms.index(row["arm"]) - len(arms) / 2),
            **_spread(row["mean"], row["interval"]),
            "chosen": row["chosen"],
            "edge": _edge(row, lowest[row["arm"], setting(row)]),
        }
        for row in rows
        if row["arm"] in arms and setting(row) in panels
    ]
    splits = ", ".join(dict.fromkeys(row["split"] for row in rows))
    table = rates_table(report)
    assert table is not None
    return Chart(
        name="rates",
        title="Scores by learning rate",
        caption=f"Split: {splits}. Bars are 95 % intervals over seeds; a ring is the learning rate "
        "that the arm was given, 'edge of grid' one that may lie too low or too high to be the "
        f"best.{_left_out(rows, len(drawn), 'points')}{_failed(report)}",
        spec=plots.rate_plot(drawn, arms, score=_score(report), alt="Mean score by learning rate"),
        table=table,
        arms=arms,
    )


def _failed(report: Report) -> str:
    num = sum(row["failed"] for row in report["rates"])
    return f" Without {num:,} {'run' if num == 1 else 'runs'} that failed." if num else ""


def _edge(row: Row, lowest: float) -> str:
    if not row["at_edge"]:
        return ""
    return "low" if row["learning_rate"] == lowest else "high"


def _means(report: Report) -> Chart | None:
    rows = [at for at in report["arms"] if at["summary"]["mean"] is not None]
    named = [at for at in rows if at["epochs"] is not None]
    # Where nothing varies, the mean over all settings is the same point once more.
    rows = named if len({at["epochs"] for at in named}) == 1 else rows
    if not rows:
        return None
    arms = _shown(report, rows)
    settings = [*_kept((setting(at) or ALL for at in named), MOST_SETTINGS), POOLED]
    drawn = [
        {
            "arm": at["arm"],
            "setting": setting(at) or ALL,
            "seeds": at["summary"]["num_seeds"],
            **_spread(at["summary"]["mean"], at["summary"]["interval"]),
        }
        for at in rows
        if at["arm"] in arms and (setting(at) or ALL) in settings
    ]
    drawn.sort(key=lambda row: settings.index(row["setting"]))
    lines = {(f"{r['arm']} {r['epochs']}".strip(), 100 * r["score"]) for r in report["references"]}
    references = [{"name": name, "mean": mean} for name, mean in sorted(lines)]
    title = report.get("setting", "epochs")
    return Chart(
        name="means",
        title="Scores of the arms",
        caption="Means with 95 % intervals over seeds; lines across are references without seeds."
        f"{_left_out(rows, len(drawn), 'means')}"
        f"{_left_out(references, MOST_REFERENCES, 'references')}",
        spec=plots.setting_plot(
            drawn,
            references[:MOST_REFERENCES],
            arms,
            titles={"setting": title, "score": _score(report)},
            alt="Mean score of each arm by setting",
        ),
        table=_means_table(rows, report["references"]),
        arms=arms,
    )


def _means_table(rows: Sequence[Row], references: Sequence[Row]) -> PlainTable:
    cells = [
        [
            at["arm"],
            setting(at),
            str(at["summary"]["num_seeds"]),
            percent(at["summary"]["mean"]),
            interval(at["summary"]["interval"], 100),
        ]
        for at in rows
    ]
    cells += [
        [r["arm"], r["epochs"], "reference", percent(r["score"]), interval(r["interval"], 100)]
        for r in references
    ]
    return "scores of the arms", ["arm", "setting", "seeds", "mean", "95 % interval, %"], cells


def _differences(report: Report) -> Chart | None:
    contrasts = [*report["contrasts"], report["pooled"]]
    if len(report["contrasts"]) == 1:
        contrasts = report["contrasts"]
    rows, dots = [], []
    for contrast in contrasts[-MOST_SETTINGS:]:
        own = contrast[contrast["test"]]["difference"]
        label = setting(contrast) or ALL
        rows.append(_line(label, own["mean"], own["interval"], contrast["verdict"]))
        dots += [
            {"label": label, "seed": seed, "difference": 100 * difference}
            for seed, difference in contrast["differences"].items()
        ]
    drawn = _evenly(dots, MOST_DOTS)
    adjusted = " The intervals are not adjusted for several settings; the verdicts are."
    by_items = any(contrast["test"] == "crossed" for contrast in contrasts)
    which = "over seeds and items where the arms share two seeds"
    which = which if by_items else "paired by seed where the arms share two"
    return _forest(
        report,
        "differences",
        "Differences, treatment less control",
        f"Diamonds are mean differences with 95 % intervals, {which}; rings are single seeds."
        f"{_left_out(dots, len(drawn), 'seeds')}"
        f"{adjusted if len(contrasts) > 1 else ''}"
        f"{_left_out(contrasts, len(rows), 'settings')}",
        (rows, drawn),
    )


def _others(report: Report) -> Chart | None:
    rows = [
        _line(row["arm"], row["difference"], row["interval"], row)
        for row in report.get("others") or []
    ]
    caption = "Mean differences with 95 % intervals; the verdicts are adjusted for several arms."
    title = "Differences, treatment less every other arm"
    return _forest(report, "others", title, caption, (rows, []))


def _groups(report: Report) -> Chart | None:
    rows = [
        _line(row["group"], row["difference"], row["interval"], row)
        for row in report.get("groups") or []
    ]
    caption = (
        "Mean differences of the primary contrast with 95 % intervals; the verdicts are adjusted "
        "for several parts."
    )
    title = "Differences by part of the split"
    return _forest(report, "groups", title, caption, (rows, []))


def _forest(
    report: Report,
    name: str,
    title: str,
    caption: str,
    data: tuple[Sequence[Row], Sequence[Row]],
) -> Chart | None:
    known, dots = [row for row in data[0] if row["mean"] is not None], data[1]
    rows = known[:MOST_SETTINGS]
    if not rows:
        return None
    caption += _left_out(known, len(rows), "lines")
    axis = f"difference in {_score(report)}, points of percent"
    cells = [
        ["mean", row["label"], points(row["mean"] / 100), _ends(row), row["words"]] for row in rows
    ]
    cells += [
        [f"seed {dot['seed']}", dot["label"], points(dot["difference"] / 100), "", ""]
        for dot in dots
    ]
    head = ["figure", "of", "difference", "95 % interval", "verdict"]
    spec = plots.forest_plot(rows, dots, title=axis, alt=title)
    return Chart(name, title, caption, spec, (title.lower(), head, cells))


def _ends(row: Row) -> str:
    return "" if row["low"] is None else interval([row["low"], row["high"]])


def _line(label: str, mean: float | None, ends: Sequence[float] | None, verdict: Row) -> Row:
    return {"label": label, **_spread(mean, ends), "words": verdict["outcome"]}


def _curves(report: Report) -> Chart | None:
    curves = [curve for curve in report.get("curves") or [] if curve["points"]]
    if not curves:
        return None
    arms, panels = _shown(report, curves), _kept((setting(c) for c in curves), MOST_PANELS)
    kept = [c for c in curves if c["arm"] in arms and setting(c) in panels]
    rows = [row for curve in kept for row in _curve(curve, MOST_POINTS // len(kept))]
    drawn = with_places(rows, plots.panel_size(rows)[0])
    starts = [row for row in drawn if row["kind"] == "stage"]
    named = sum(row["side"] in SIDES for row in starts)
    cells = [
        [
            curve["arm"],
            setting(curve),
            number(point["step"], 0),
            number(point["mean"], 4),
            f"{point['low']:.4f} to {point['high']:.4f}",
        ]
        for curve in kept
        for point in _evenly(curve["points"], 10)
    ]
    seeds = " or ".join(map(str, sorted({curve["num_seeds"] for curve in kept})))
    return Chart(
        name="curves",
        title="Training loss",
        caption="Means over seeds, smoothed over equal windows of steps; a band reaches from the "
        f"lowest to the highest seed ({seeds} seeds). Thin lines "
        f"are the starts of stages. The table has ten steps of each curve."
        f"{_left_out(curves, len(kept), 'curves')}{_left_out(starts, named, 'names of stages')}",
        spec=plots.curve_plot(drawn, arms, alt="Training loss by step"),
        table=("training loss", ["arm", "setting", "step", "mean", "seeds"], cells),
        arms=arms,
    )


def _curve(curve: Row, most: int) -> Iterator[Row]:
    place = {"arm": curve["arm"], "panel": setting(curve)}
    for point in _evenly(curve["points"], most):
        yield {"kind": "point", **place, **point}
    for stage in curve["stages"] if len(curve["stages"]) > 1 else ():
        yield {"kind": "stage", **place, "step": stage["first_step"], "name": stage["name"]}


def _routing(report: Report) -> Iterator[Chart]:
    """Heat maps that fit, whole: half of one would look like missing data."""
    left = MOST_CELLS
    for index, found in enumerate(report.get("routing") or [], 1):
        if found["cells"] and len(found["cells"]) <= left:
            left -= len(found["cells"])
            yield _heat_map(f"routing-{index}", f"Routing {index}", found)


def _heat_map(name: str, title: str, found: Row) -> Chart:
    cells = [Cell(str(c["x"]), str(c["y"]), c["value"], str(c["panel"])) for c in found["cells"]]
    titles = {key: str(found[key]) for key in ("x_title", "y_title", "value_title")}
    head = ["panel", titles["y_title"], titles["x_title"], titles["value_title"]]
    return Chart(
        name=name,
        title=title,
        caption=f"{found['title']}; run {found['run']}. The stronger the colour, the larger the "
        "value.",
        spec=heat_map(cells, title=str(found["title"]), **titles),
        table=(title.lower(), head, [[c.panel, c.y, c.x, short(c.value)] for c in cells]),
    )


def _spread(mean: float | None, ends: Sequence[float] | None) -> dict[str, float | None]:
    """A mean and its interval in percent."""
    low, high = ends or (None, None)
    return {
        name: None if value is None else 100 * value
        for name, value in (("mean", mean), ("low", low), ("high", high))
    }


def _score(report: Report) -> str:
    return str(report.get("metric") or "score")


def _shown(report: Report, rows: Sequence[Row]) -> list[str]:
    """Arms of rows, treatment and control first, so that an arm looks the same in every chart."""
    has = {row["arm"] for row in rows}
    everywhere = [at["arm"] for at in report["arms"]] + [row["arm"] for row in rows]
    names = dict.fromkeys([report["treatment"], report["control"], *everywhere])
    return [name for name in names if name in has][:MOST_ARMS]


def _kept(names: Iterator[str], most: int) -> list[str]:
    return list(dict.fromkeys(names))[:most]


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, the first and the last among them, at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[index * (len(items) - 1) // (most - 1)] for index in range(most)]


def _left_out(items: Sequence[Any], num: int, what: str) -> str:
    return f" {num:,} of {len(items):,} {what} are drawn." if num < len(items) else ""
