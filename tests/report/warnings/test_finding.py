"""The gravest findings come first, those on the contrast before those on other arms."""

import re
from pathlib import Path

from schemabank.report.warnings.finding import WEIGHTS, Finding, by_weight

SOURCE = Path(__file__).parents[3] / "src"
PAGE = Path(__file__).parents[3] / "docs" / "report.md"


def finding(name: str, arm: str | None = None) -> Finding:
    return Finding(name, {} if arm is None else {"arm": arm}, "So it is.")


def test_findings_stand_by_weight_and_then_by_contrast() -> None:
    found = [
        finding("subset-of-split"),
        finding("few-seeds"),
        finding("below-reference", "other"),
        finding("rate-at-edge", "lora"),
        finding("identical-rows", "other"),
        finding("failed-runs"),
        finding("adapter-not-as-trained"),
    ]
    assert [own.id for own in by_weight(found, ("new", "lora"))] == [
        "adapter-not-as-trained",
        "failed-runs",
        "identical-rows",
        "rate-at-edge",
        "few-seeds",
        "below-reference",
        "subset-of-split",
    ]


def test_equal_findings_keep_their_order() -> None:
    found = [finding("rate-at-edge", arm) for arm in ("lora", "new", "lora")]
    assert by_weight(found, ("new", "lora")) == found


def test_every_warning_in_the_code_has_a_weight() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    named = re.findall(r'(?:Finding|Inequality)\(\s*"([\w-]+)"', text)
    assert len(named) > 20
    assert set(named) <= {name for names in WEIGHTS for name in names}


def test_every_warning_of_the_page_has_one_weight() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Warnings")[2].partition("## Claims")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)]
    weighed = [name for names in WEIGHTS for name in names]
    assert len(weighed) > 20
    assert sorted(named) == sorted(weighed)
