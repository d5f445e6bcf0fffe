"""The treatment against every other trained arm."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from schemabank import stats
from schemabank.common.tables import PlainTable
from schemabank.report.comparing.families import Adjusted, judged_together
from schemabank.report.comparing.material import Material
from schemabank.report.plain import SPLICED
from schemabank.report.sections.cells import percent
from schemabank.report.sections.chart import Chart, Labels, table_of
from schemabank.report.sections.forest import Forest, cells, forest, line


@dataclass(frozen=True)
class OtherArm:
    """The treatment against another arm, at the primary setting or all that they share."""

    arm: str
    seeds: int
    mean: float
    judged: Adjusted = field(metadata=SPLICED)


def find(material: Material) -> list[OtherArm]:
    """Compare the treatment with every other arm, p-values adjusted over these."""
    arms = [arm for arm in material.table.arms if arm not in material.arms]
    found = {arm: _difference(material, arm) for arm in arms if _comparable(material, arm)}
    judged = judged_together([difference for _, difference in found.values()])
    return [
        OtherArm(arm, len(scores), fmean(scores), own)
        for (arm, (scores, _)), own in zip(found.items(), judged, strict=True)
    ]


def chart(found: Sequence[OtherArm], labels: Labels) -> Chart | None:
    """Return the differences to every other arm."""
    shown = Forest(
        name="others",
        title="Differences, treatment less every other arm",
        caption="Mean differences with 95 % intervals; the verdicts are adjusted for several arms.",
        rows=[line(own.arm, own.judged) for own in found],
    )
    return forest(shown, labels)


def table(found: Sequence[OtherArm]) -> PlainTable | None:
    """Return the treatment against every other arm."""
    rows = [
        {
            "arm": own.arm,
            "seeds": str(own.seeds),
            "its mean": percent(own.mean),
            **cells("treatment - arm", own.judged),
        }
        for own in found
    ]
    return table_of("treatment against every other arm, in points of percent", rows)


def _compared_settings(material: Material, arm: str) -> list[str]:
    """The settings whose mean is compared: the primary one, or all that both arms have."""
    if material.primary is not None:
        return [material.primary]
    return material.table.settings(material.arms[0], arm)


def _comparable(material: Material, arm: str) -> bool:
    """Whether some seed of both arms has all the settings that they share."""
    shared = material.table.settings(material.arms[0], arm)
    wanted = _compared_settings(material, arm)
    return bool(shared) and set(wanted) <= set(shared) and bool(material.table.means(arm, wanted))


def _difference(material: Material, arm: str) -> tuple[list[float], stats.Difference]:
    """The other arm's scores by seed, and how much the treatment's are above them."""
    arms, settings = (material.arms[0], arm), _compared_settings(material, arm)
    first, second = (material.table.means(name, settings) for name in arms)
    scores = list(map(float, second.values()))
    if len(first.keys() & second.keys()) > 1:
        crossed = material.by_item.difference(material.group, *arms, settings)
        assert crossed is not None
        return scores, crossed
    return scores, stats.welch_difference(list(map(float, first.values())), scores)
