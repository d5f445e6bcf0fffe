"""The primary contrast within every part of the split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemabank.common.tables import PlainTable
from schemabank.report.comparing.families import Adjusted, judged_together
from schemabank.report.comparing.material import Material, primary_contrast
from schemabank.report.plain import SPLICED
from schemabank.report.sections.cells import number, percent
from schemabank.report.sections.chart import Chart, Labels, table_of
from schemabank.report.sections.forest import Forest, cells, forest, line


@dataclass(frozen=True)
class GroupContrast:
    """The primary contrast within one part of the split, its p-value adjusted over all parts."""

    group: str
    num_items: int
    treatment_mean: float
    control_mean: float
    judged: Adjusted = field(metadata=SPLICED)


def find(material: Material) -> list[GroupContrast]:
    """Compare treatment and control part by part, where there are several."""
    groups = material.runs.groups
    if len(groups) < 2:
        return []
    found = [primary_contrast(material, group) for group in groups]
    judged = judged_together([contrast.own.difference for contrast in found])
    return [
        GroupContrast(
            group=group,
            num_items=material.runs.runs[0].result["groups"][group]["num_items"],
            treatment_mean=contrast.treatment.mean,
            control_mean=contrast.control.mean,
            judged=own,
        )
        for group, contrast, own in zip(groups, found, judged, strict=True)
    ]


def chart(found: Sequence[GroupContrast], labels: Labels) -> Chart | None:
    """Return the differences by part of the split."""
    shown = Forest(
        name="groups",
        title="Differences by part of the split",
        caption="Mean differences of the primary contrast with 95 % intervals; the verdicts are "
        "adjusted for several parts.",
        rows=[line(own.group, own.judged) for own in found],
    )
    return forest(shown, labels)


def table(found: Sequence[GroupContrast]) -> PlainTable | None:
    """Return the primary contrast by part of the split."""
    rows = [
        {
            "group": own.group,
            "items": number(own.num_items, 0),
            "treatment": percent(own.treatment_mean),
            "control": percent(own.control_mean),
            **cells("difference", own.judged),
        }
        for own in found
    ]
    return table_of("treatment against control by part of the split, in points of percent", rows)
