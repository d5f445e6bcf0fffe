"""Charts of differences with their intervals around 0, one line each."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemabank.common.tables import PlainTable
from schemabank.report import altair
from schemabank.report.comparing.families import Adjusted
from schemabank.report.figures import COLOUR, Datum, Spec
from schemabank.report.sections import look
from schemabank.report.sections.cells import interval, points, short
from schemabank.report.sections.chart import MOST_SETTINGS, Chart, Labels, left_out, mean_and_ends
from schemabank.stats import Verdict


@dataclass(frozen=True)
class Forest:
    """What a forest shows.

    Attributes:
        name, title, caption: the chart's; the caption gets a note of what is not drawn.
        rows: from `line`.
        dots: of single seeds: ``label, seed, difference``, in points of percent.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[Datum]
    dots: Sequence[Datum] = ()


def line(label: str, found: Adjusted | Verdict) -> Datum:
    """Return one line of a forest."""
    return {
        "label": label,
        **mean_and_ends(found.difference, found.interval),
        "words": found.outcome,
    }


def cells(head: str, found: Adjusted) -> dict[str, str]:
    """Return the cells of a difference that is one of several; ``head`` is the difference's."""
    return {
        head: points(found.difference),
        "95 % interval": interval(found.interval, 100),
        "p": short(found.p),
        "Holm": short(found.p_holm),
        "verdict": found.outcome,
    }


def forest(found: Forest, labels: Labels) -> Chart | None:
    """Return the chart; none without a line."""
    known = [row for row in found.rows if row["mean"] is not None]
    rows = known[:MOST_SETTINGS]
    if not rows:
        return None
    axis = f"difference in {labels.score}, points of percent"
    return Chart(
        name=found.name,
        title=found.title,
        caption=found.caption + left_out(known, len(rows), "lines"),
        spec=plot(rows, found.dots, title=axis, alt=found.title),
        table=_table(found.title.lower(), rows, found.dots),
    )


def _table(title: str, rows: Sequence[Datum], dots: Sequence[Datum]) -> PlainTable:
    cells = []
    for row in rows:
        ends = "" if row["low"] is None else interval((row["low"], row["high"]))
        cells.append(["mean", row["label"], points(row["mean"] / 100), ends, row["words"]])
    cells += [
        [f"seed {dot['seed']}", dot["label"], points(dot["difference"] / 100), "", ""]
        for dot in dots
    ]
    return title, ["figure", "of", "difference", "95 % interval", "verdict"], cells


def plot(rows: Sequence[Datum], dots: Sequence[Datum], *, title: str, alt: str) -> Spec:
    """Differences with their intervals around 0, one line each; single seeds lie below.

    Args:
        rows: ``label, mean, low, high, words``, in points of percent.
        dots: ``label, seed, difference``.
        title: of the axis.
        alt: what the chart shows, in words.
    """
    labels = [row["label"] for row in rows]
    y = altair.Y("label:N", sort=labels, title=None).axis(
        labelLimit=220, labelPadding=10, ticks=False, domain=False
    )
    found, seeds = look.over(rows).encode(y=y), look.over(dots).encode(y=y)
    axis, scale = altair.Axis(tickCount=9), altair.Scale(padding=14)
    x = altair.X("mean:Q", title=title, axis=axis, scale=scale)
    low, single = (altair.X(field, title=title) for field in ("low:Q", "difference:Q"))
    tips = look.tooltip(
        label="", mean="difference", low="interval from", high="to", words="verdict"
    )
    ring = seeds.mark_point(size=28, yOffset=12, color="currentColor", opacity=0.6)
    layers = [
        look.over([{"zero": 0}])
        .mark_rule(color="currentColor", strokeDash=[3, 3])
        .encode(x=altair.X("zero:Q", title=title)),
        found.mark_rule(color=COLOUR, strokeWidth=2.5).encode(x=low, x2="high:Q"),
        found.mark_point(shape="diamond", filled=True, size=110, color=COLOUR, opacity=1).encode(
            x=x, tooltip=tips
        ),
    ]
    if dots:
        ring_tip = look.tooltip(label="", seed="seed", difference="difference")
        layers.append(ring.encode(x=single, tooltip=ring_tip))
    chart = altair.layer(*layers).properties(width=look.WIDTH, height=altair.Step(look.ROW_HEIGHT))
    return look.finished(chart, alt, ())
