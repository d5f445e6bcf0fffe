"""The pages of findings say what their records say, and a record that changes changes them."""

import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FINDINGS = ROOT / "docs" / "findings"
sys.path.insert(0, str(FINDINGS))
import build  # noqa: E402 -- a program beside its templates, as docs/build_settings.py is
from records import Suite, unpacked  # noqa: E402


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Suite]:
    place = tmp_path_factory.mktemp("records")
    return {suite.name: suite for suite in unpacked(build.RECORDS, place)}


def test_every_page_is_what_its_records_say(suites: dict[str, Suite]) -> None:
    for path, text in build.build(suites).items():
        assert "".join(build.difference(path, text)) == ""


def test_a_record_that_changes_changes_the_pages(suites: dict[str, Suite], tmp_path: Path) -> None:
    """One run's loss is enough."""
    name = "round_1"
    folder = shutil.copytree(suites[name].folder, tmp_path / name)
    arm, (found, *_) = next(iter(suites[name].search.items()))
    rows = suites[name].manifest["tuning"]["runs"]
    changed = next(
        row["run_id"]
        for row in rows
        if row["arm"] == arm and row["learning_rate"] == found.learning_rate
    )
    for row in rows:
        if row["arm"] == arm:
            path = folder / row["run_id"] / "result.json"
            result = json.loads(path.read_text())
            result["groups"]["all"]["gold_nll"] += 0.1
            path.write_text(json.dumps(result))
    assert changed
    pages = build.build({**suites, name: Suite(folder)})
    assert any("".join(build.difference(path, text)) for path, text in pages.items())


def test_records_hold_scores_and_no_weights(suites: dict[str, Suite]) -> None:
    """All of them are small; a suite's own configuration lies in configs/evidence."""
    files = sorted(build.RECORDS.glob("*.tar.xz"))
    assert [file.name.removesuffix(".tar.xz") for file in files] == sorted(suites)
    assert sum(file.stat().st_size for file in files) < 40_000_000
    for file in files:
        with tarfile.open(file) as archive:
            names = {Path(name).name for name in archive.getnames()}
        assert names <= {
            "suite.json",
            "config.yaml",
            "result.json",
            "cost.json",
            "scores.safetensors",
            "failure.json",
        }
    for name in suites:
        assert (ROOT / "configs" / "evidence" / f"{name}.yaml").is_file()
