"""Scores against learning rates: what was tried for every arm, and what was chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from schemabank import stats
from schemabank.common.tables import PlainTable
from schemabank.report import altair
from schemabank.report.figures import Datum, Spec
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import RunSet, label
from schemabank.report.sections import look
from schemabank.report.sections.cells import interval, percent, place, short
from schemabank.report.sections.chart import (
    MOST_PANELS,
    Chart,
    Labels,
    first,
    left_out,
    mean_and_ends,
    table_of,
)
from schemabank.runs.folder import RESULT
from schemabank.runs.stored import read_result

BESIDE = 1.02  # times the learning rate, for each next arm


@dataclass(frozen=True)
class Tried:
    """An arm at one learning rate.

    Attributes:
        arm, setting: of the runs.
        learning_rate: peak of the stages that train LoRA.
        split: that they were scored on.
        scores: by seed; runs that failed are missing.
        mean: over seeds; ``None`` if all failed.
        interval: Student's over seeds.
        chosen: whether the arm's final runs have it.
        at_edge: whether it was chosen and no rate beyond it was tried.
        best_score: whether the best mean score alone would have chosen it.
        failed: runs that failed.
    """

    arm: str
    setting: str = field(metadata=EPOCHS)
    learning_rate: float
    split: str
    scores: dict[str, float]
    mean: float | None
    interval: stats.Interval | None
    chosen: bool
    at_edge: bool
    best_score: bool
    failed: int


def find(path: Path, runs: RunSet, group: str) -> list[Tried]:
    """Return what a suite's tuning tried; nothing for runs that were not tuned.

    Args:
        path: the suite's folder.
        runs: of the suite.
        group: of items; a run whose split lacks it has no score here.
    """
    if runs.tuning is None:
        return []
    choices = {(row["arm"], label(runs, row["settings"])): row for row in runs.tuning["chosen"]}
    places: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
    for row in runs.tuning["runs"]:
        key = row["arm"], label(runs, row["settings"]), row["factor"]
        places.setdefault(key, []).append(row)
    found = [
        _tried(
            key, own, dict(_scores_by_seed(path, runs, group, own)), runs, choices.get(key[:2], {})
        )
        for key, own in places.items()
    ]
    order = {key[:2]: n for n, key in enumerate(places)}
    return sorted(found, key=lambda tried: (order[tried.arm, tried.setting], tried.learning_rate))


def chart(found: Sequence[Tried], labels: Labels) -> Chart | None:
    """Return the scores of every arm against its learning rates."""
    known = [tried for tried in found if tried.mean is not None and tried.learning_rate > 0]
    own = table(found)
    if not known or own is None:
        return None
    arms = labels.drawn(tried.arm for tried in known)
    panels = first((place(tried.setting) for tried in known), MOST_PANELS)
    drawn = list(
        _chart_rows([t for t in known if t.arm in arms and place(t.setting) in panels], arms)
    )
    splits = ", ".join(dict.fromkeys(tried.split for tried in known))
    return Chart(
        name="rates",
        title="Scores by learning rate",
        caption=f"Split: {splits}. Bars are 95 % intervals over seeds; a ring is the learning rate "
        "that the arm was given, 'edge of grid' one that may lie too low or too high to be the "
        f"best.{left_out(known, len(drawn), 'points')}{_without_failed(found)}",
        spec=_plot(drawn, arms, score=labels.score, alt="Mean score by learning rate"),
        table=own,
        arms=arms,
    )


def table(found: Sequence[Tried]) -> PlainTable | None:
    """Return the scores at every learning rate that was tried."""
    rows = [
        {
            "arm": tried.arm,
            "setting": place(tried.setting),
            "learning rate": short(tried.learning_rate),
            "split": tried.split,
            "seeds": str(len(tried.scores)),
            "failed": str(tried.failed),
            "mean": percent(tried.mean),
            "95 % interval, %": interval(tried.interval, 100),
            "note": _marks(tried),
        }
        for tried in found
    ]
    return table_of("learning rates tried", rows)


def _marks(tried: Tried) -> str:
    marks = {"chosen": tried.chosen, "edge of grid": tried.at_edge, "best score": tried.best_score}
    return ", ".join(word for word, has in marks.items() if has)


def _chart_rows(found: Sequence[Tried], arms: Sequence[str]) -> Iterator[Datum]:
    for tried in found:
        rate = tried.learning_rate
        yield {
            "arm": tried.arm,
            "panel": place(tried.setting),
            "rate": rate,
            "place": rate * BESIDE ** (arms.index(tried.arm) - len(arms) / 2),
            **mean_and_ends(tried.mean, tried.interval),
            "chosen": tried.chosen,
            "edge": _edge(tried, found),
        }


def _edge(tried: Tried, found: Sequence[Tried]) -> str:
    """Whether the chosen rate is at the low or the high end of those that its arm was given."""
    if not tried.at_edge:
        return ""
    at = tried.arm, tried.setting
    lowest = min(own.learning_rate for own in found if (own.arm, own.setting) == at)
    return "low" if tried.learning_rate == lowest else "high"


def _without_failed(found: Sequence[Tried]) -> str:
    num = sum(tried.failed for tried in found)
    return f" Without {num:,} {'run' if num == 1 else 'runs'} that failed." if num else ""


def _plot(rows: Sequence[Datum], arms: Sequence[str], *, score: str, alt: str) -> Spec:
    """Scores against the learning rate, intervals, the chosen rate in a ring, edges in words.

    Args:
        rows: ``arm, panel, rate, place, mean, low, high, chosen, edge``; scores in percent,
            ``place`` the rate moved a little so that intervals do not hide each other, ``edge``
            *low*, *high* or empty.
        arms: in their order.
        score: what the scores are.
        alt: what the chart shows, in words.
    """
    rates = sorted({row["rate"] for row in rows})
    axis = altair.Axis(format="~e", grid=False, labelOverlap=True, values=rates)
    scale = altair.Scale(type="log", nice=False, domain=[rates[0] / 1.25, rates[-1] * 1.25])
    x = altair.X("place:Q", scale=scale, axis=axis, title="learning rate (log scale)")
    base = look.over(rows).encode(x=x, color=look.colour(arms, look.POINTS))
    title = f"{score}, %"
    y = altair.Y("mean:Q", title=title, scale=altair.Scale(zero=False))
    tips = look.tooltip(
        arm="arm", rate="learning rate", mean="mean, %", low="low, %", high="high, %"
    )
    low = altair.Y("low:Q", title=title)
    ring = base.transform_filter("datum.chosen").mark_point(size=280, strokeWidth=2)
    sides = sorted({row["edge"] for row in rows} - {""})
    layers = [
        base.mark_rule(strokeWidth=1.5).encode(y=low, y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=look.dash(arms, look.POINTS)),
        base.mark_point(filled=True, size=60).encode(y=y, shape=look.shape(arms), tooltip=tips),
        ring.encode(y=y, tooltip=tips),
        *(_edge_word(base, side).encode(y=y) for side in sides),
    ]
    return look.paneled(layers, rows, alt, arms)


def _edge_word(base: "altair.Chart", side: str) -> "altair.Chart":
    """A word beside a point at one end of the grid, on the side where there is room."""
    dx = 14 if side == "low" else -14
    found = base.transform_filter(f"datum.edge == '{side}'")
    align: Literal["left", "right"] = "left" if side == "low" else "right"
    named: altair.Chart = found.mark_text(text="edge of grid", align=align, dx=dx, dy=-12)
    return named.encode(color=look.TEXT)


def _tried(
    key: tuple[str, str, float],
    rows: Sequence[Mapping[str, Any]],
    scores: dict[str, float],
    runs: RunSet,
    choice: Mapping[str, Any],
) -> Tried:
    arm, setting, factor = key
    chosen = choice.get("factor") == factor
    failed = {left.run for left in runs.failed_trials}
    summary = stats.summarise_arm(list(scores.values())) if scores else None
    return Tried(
        arm=arm,
        setting=setting,
        learning_rate=rows[0]["learning_rate"],
        split=str(runs.tuning and runs.tuning["split"]),
        scores=scores,
        mean=None if summary is None else summary.mean,
        interval=None if summary is None else summary.interval,
        chosen=chosen,
        at_edge=chosen and bool(choice["at_edge"]),
        best_score=choice.get("best_score_factor") == factor,
        failed=sum(row["run_id"] in failed for row in rows),
    )


def _scores_by_seed(
    path: Path, runs: RunSet, group: str, rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    for row in rows:
        result = path / row["run_id"] / RESULT
        if result.exists():
            groups: Any = read_result(result)["groups"]
            if runs.score in groups.get(group, {}):
                yield str(row["seed"]), groups[group][runs.score]
