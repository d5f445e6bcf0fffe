"""The arms' scores over seeds, and those of references without seeds."""

from collections.abc import Iterator, Sequence

from schemabank.common.tables import PlainTable
from schemabank.report import altair
from schemabank.report.comparing.comparison import ArmAt, Comparison, at_settings
from schemabank.report.comparing.references import Reference
from schemabank.report.figures import LONGEST_LABEL, Datum, Spec
from schemabank.report.sections import look
from schemabank.report.sections.cells import POOLED, finite, interval, number, percent, place
from schemabank.report.sections.chart import (
    ALL,
    MOST_SETTINGS,
    Chart,
    Labels,
    first,
    left_out,
    mean_and_ends,
)

MOST_REFERENCES = 8


def table(comparison: Comparison) -> PlainTable:
    """Return the arms over seeds, and the references over items."""
    several = len(comparison.contrasts) > 1
    arms = [at for at in comparison.arms if several or at.setting is not None]
    head = ["arm", "epochs", "seeds", "mean", "sd", "cv", "95 % interval, %"]
    return (
        "arms, over seeds; references, over items",
        head,
        _table_rows(arms, comparison.references),
    )


def chart(comparison: Comparison, labels: Labels) -> Chart | None:
    """Return the arms' means by setting."""
    rows = [at for at in comparison.arms if finite(at.summary.mean)]
    named = [at for at in rows if at.setting is not None]
    # Where nothing varies, the mean over all settings is the same point once more.
    rows = named if len({at.setting for at in named}) == 1 else rows
    if not rows:
        return None
    arms = labels.drawn(at.arm for at in rows)
    settings = [*first((place(at.setting) or ALL for at in named), MOST_SETTINGS), POOLED]
    drawn = [
        row for row in map(_chart_row, rows) if row["arm"] in arms and row["setting"] in settings
    ]
    drawn.sort(key=lambda row: settings.index(row["setting"]))
    across = list(_across(comparison.references))
    return Chart(
        name="means",
        title="Scores of the arms",
        caption="Means with 95 % intervals over seeds; lines across are references without seeds."
        f"{left_out(rows, len(drawn), 'means')}"
        f"{left_out(across, MOST_REFERENCES, 'references')}",
        spec=_plot(
            drawn,
            across[:MOST_REFERENCES],
            arms,
            titles={"setting": labels.setting_name, "score": labels.score},
            alt="Mean score of each arm by setting",
        ),
        table=_chart_table(rows, comparison.references),
        arms=arms,
    )


def _chart_row(at: ArmAt) -> Datum:
    return {
        "arm": at.arm,
        "setting": place(at.setting) or ALL,
        "seeds": at.summary.num_seeds,
        **mean_and_ends(at.summary.mean, at.summary.interval),
    }


def _across(references: Sequence[Reference]) -> Iterator[Datum]:
    for name, mean in sorted({(f"{r.arm} {r.setting}".strip(), 100 * r.score) for r in references}):
        yield {"name": name, "mean": mean}


def _table_rows(arms: Sequence[ArmAt], references: Sequence[Reference]) -> list[list[str]]:
    rows = [
        [
            at.arm,
            place(at.setting),
            str(at.summary.num_seeds),
            percent(at.summary.mean),
            percent(at.summary.sd),
            number(at.summary.cv),
            interval(at.summary.interval, 100),
        ]
        for at in arms
    ]
    rows += [
        [r.arm, r.setting, "reference", percent(r.score), "", "", interval(r.interval, 100)]
        for r in references
    ]
    return rows


def _chart_table(arms: Sequence[ArmAt], references: Sequence[Reference]) -> PlainTable:
    """The table of the scores, without deviations."""
    cells = [[*row[:4], row[-1]] for row in _table_rows(arms, references)]
    return "scores of the arms", ["arm", "setting", "seeds", "mean", "95 % interval, %"], cells


def _plot(
    rows: Sequence[Datum],
    references: Sequence[Datum],
    arms: Sequence[str],
    *,
    titles: Datum,
    alt: str,
) -> Spec:
    """Means by setting with their intervals; references lie across, named at the right.

    Args:
        rows: ``arm, setting, mean, low, high, seeds``; scores in percent.
        references: ``name, mean``.
        arms: in their order.
        titles: of ``setting`` and ``score``.
        alt: what the chart shows, in words.
    """
    base = look.over(rows).encode(color=look.colour(arms, look.POINTS))
    base = _along(base, rows, arms, titles["setting"])
    title = f"{titles['score']}, %"
    y = altair.Y("mean:Q", title=title)
    tips = look.tooltip(
        arm="arm", setting="setting", seeds="seeds", mean="mean, %", low="low, %", high="high, %"
    )
    low = altair.Y("low:Q", title=title)
    layers = [
        *_references(references, rows, title),
        base.mark_rule(strokeWidth=2).encode(y=low, y2="high:Q"),
        base.mark_point(filled=True, size=90).encode(y=y, shape=look.shape(arms), tooltip=tips),
    ]
    chart = altair.layer(*layers).properties(width=look.WIDTH, height=look.HEIGHT)
    return look.finished(chart, alt, arms)


def _along(
    base: "altair.Chart", rows: Sequence[Datum], arms: Sequence[str], setting_name: str
) -> "altair.Chart":
    """Settings along the axis, their arms side by side; at a single setting the arms themselves."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    if len(settings) == 1:
        room = look.WIDTH // len(arms) - 8
        axis = altair.Axis(labelAngle=0, labelLimit=room, labelOverlap=False)
        title = at_settings(setting_name, settings) or None
        return base.encode(x=altair.X("arm:N", sort=list(arms), title=title, axis=axis))
    axis = altair.Axis(labelAngle=0, labelOverlap=True)
    return base.encode(
        x=altair.X("setting:N", sort=settings, title=setting_name or None, axis=axis),
        xOffset=altair.XOffset("arm:N", sort=list(arms), scale=altair.Scale(paddingOuter=0.8)),
    )


def _references(
    references: Sequence[Datum], rows: Sequence[Datum], title: str
) -> "list[altair.Chart]":
    """Lines across, and their names at the right, far enough apart to be read."""
    if not references:
        return []
    lines = look.over(references).encode(
        y=altair.Y("mean:Q", title=title), tooltip=look.tooltip(name="reference", mean="score, %")
    )
    names = look.over(_apart(references, rows)).mark_text(
        align="left", limit=LONGEST_LABEL, color="currentColor"
    )
    return [
        lines.mark_rule(color="currentColor", strokeDash=[5, 4], opacity=0.7),
        names.encode(
            y=altair.Y("at:Q", title=title), x=altair.value(look.WIDTH + 6), text="name:N"
        ),
    ]


def _apart(references: Sequence[Datum], rows: Sequence[Datum]) -> list[Datum]:
    """References with a place for the name, each at least a line above the last."""
    ends = [row[name] for row in rows for name in ("low", "mean", "high")]
    ends += [reference["mean"] for reference in references]
    ends = [end for end in ends if end is not None]
    line = (max(ends) - min(min(ends), 0)) * look.LINE_HEIGHT / look.HEIGHT
    found: list[Datum] = []
    for reference in sorted(references, key=lambda reference: reference["mean"]):
        lowest = found[-1]["at"] + line if found else reference["mean"]
        found.append({**reference, "at": max(reference["mean"], lowest)})
    return found
