"""The pages of findings say what their records say, and a record that changes changes them."""

import json
import lzma
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.stats import t

from schemabank.runs.folder import SUITE
from schemabank.runs.itemscores import SCORES
from schemabank.runs.stored import read_cost
from schemabank.suites.beforehand import outcome_reader
from schemabank.suites.file import Suite
from schemabank.suites.manifest import check_manifest
from schemabank.suites.ratesearch import all_rows, search, tuned
from schemabank.suites.suite import load_suite
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parents[1]
build: Any = load_tool(ROOT / "docs" / "findings" / "build.py")
pack_runs: Any = load_tool(BENCHMARKS / "pack_runs.py")
Suites = dict[str, Any]


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Suites:
    place = tmp_path_factory.mktemp("records")
    return {suite.name: suite for suite in build.unpacked(build.RECORDS, place)}


def test_every_page_is_what_its_records_say(suites: Suites) -> None:
    for path, text in build.build(suites).items():
        assert "".join(build.difference(path, text)) == ""


def test_a_record_that_changes_changes_the_pages(suites: Suites, tmp_path: Path) -> None:
    """The loss of one run is enough."""
    name = "round_1"
    folder = shutil.copytree(suites[name].folder, tmp_path / name)
    path = next(folder.glob("lora-*/result.json"))
    result = json.loads(path.read_text())
    result["groups"]["all"]["gold_nll"] += 0.1
    path.write_text(json.dumps(result))
    pages = build.build({**suites, name: build.Suite(folder)})
    assert any("".join(build.difference(path, text)) for path, text in pages.items())


def listed(suite: Suite, out: Path) -> list[dict[str, object]]:
    """The runs of a suite, at the learning rates that its records choose."""
    if suite.tune is None:
        return suite.rows()
    found = search(suite, outcome_reader(out, note=lambda _: None))
    return all_rows(suite if found.choices is None else tuned(suite, found), found)


def test_every_record_is_of_the_configuration_that_bears_its_name(suites: Suites) -> None:
    """With today's hashes; what is missing has diverged."""
    for name, suite in suites.items():
        declared = load_suite(ROOT / "configs" / "evidence" / f"{name}.yaml")
        check_manifest(suite.folder, declared)
        rows = listed(declared, suite.folder)
        has_final = bool(suite.manifest["runs"])
        searched = {row["run_id"] for row in rows if row.get("phase") == "tune"}
        wanted = {row["run_id"] for row in rows if has_final or row["run_id"] in searched}
        diverged = {row["run_id"] for row in (suite.manifest["tuning"] or {}).get("failed", ())}
        assert suite.results.keys() == wanted - diverged


def test_figures_are_those_of_the_part_that_a_suite_declares(tmp_path: Path) -> None:
    """A search's validation split has no parts, and a suite without a contrast has the first."""
    parts = {"groups": {"seen": {"correct": 0.5}, "held_out": {"correct": 0.1}}}
    whole = {"groups": {"all": {"correct": 0.3}}}
    for declared, correct in (({"group": "held_out"}, 0.1), ({"group": None}, 0.5), (None, 0.5)):
        arms = {"treatment": "a", "control": "b"}
        contrast = None if declared is None else {**arms, **declared}
        manifest = {"contrast": contrast, "runs": [], "tuning": None}
        (tmp_path / SUITE).write_text(json.dumps(manifest))
        suite = build.Suite(tmp_path)
        assert suite.figures(parts)["correct"] == correct
        assert suite.figures(whole)["correct"] == 0.3


def test_every_declared_contrast_would_find_two_points(suites: Suites) -> None:
    """With a power of 80 %."""
    found = {
        name: build.JUDGED["primary"](suite).detectable
        for name, suite in suites.items()
        if suite.manifest["runs"]
    }
    assert len(found) >= 8
    assert all(value <= 0.02 for value in found.values()), found


def test_what_holds_together_and_what_the_token_makes_by_another_way(suites: Suites) -> None:
    """By the formulas themselves, from the means and errors that a report gives."""
    judged = build.JUDGED
    methods = suites["methods_smollm2"]
    own = judged["against"](methods, "rslora", "lora")
    half = (own.interval[1] - own.interval[0]) / 2
    found = {each.arm: each for each in judged["judged"](methods, "lora")}["rslora"]
    df = found.contrast.own.difference.df
    wider = half * t.ppf(1 - 0.05 / 16, df) / t.ppf(0.975, df)
    assert judged["highest"](methods, "lora") == pytest.approx(own.difference + wider)
    suite, other = suites["reproduce_smollm2"], suites["reproduce_smollm2_end_token"]
    both = judged["interaction"](suite, other)
    apart = judged["primary"](suite).difference - judged["primary"](other).difference
    assert both.mean == pytest.approx(apart)
    assert both.num_seeds == 8


def test_arms_of_two_suites_are_compared_over_the_seeds_that_both_have(suites: Suites) -> None:
    """Their means are those of the results."""
    explain, judge = suites["explain_smollm2"], suites["judge_smollm2"]
    found = build.JUDGED["across"](explain, "one stage", judge, "lora")

    means = []
    for suite, arm in ((explain, "one stage"), (judge, "lora")):
        rows = [row for row in suite.manifest["runs"] if row["arm"] == arm and row["seed"] <= 6]
        scores = [suite.results[row["run_id"]]["groups"]["all"]["correct"] for row in rows]
        assert len(scores) == 6
        means.append(fmean(scores))
    assert found.num_seeds == 6
    assert found.mean == pytest.approx(means[0] - means[1])
    itself = build.JUDGED["across"](judge, "lora", judge, "lora")
    assert itself.mean == 0


def test_arms_of_two_suites_are_compared_on_the_same_items_alone(
    suites: Suites, tmp_path: Path
) -> None:
    judge, name = suites["judge_smollm2"], "judge_smollm2"
    other = build.Suite(shutil.copytree(judge.folder, tmp_path / name))
    for path in other.folder.glob(f"*/{SCORES}"):
        with safe_open(path, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no dict
            about = {**json.loads(file.metadata()["about"]), "digest": "of other items"}
        save_file(arrays, path, metadata={"about": json.dumps(about)})
    for compare in (
        lambda: build.JUDGED["across"](judge, "lora", other, "lora"),
        lambda: build.JUDGED["interaction"](judge, other),
    ):
        with pytest.raises(AssertionError):
            compare()


def test_the_parts_of_the_confirmation_are_those_of_its_costs(suites: Suites) -> None:
    """The second part ran in fewer slots, which tells them apart."""
    suite = suites["confirm_smollm2"]
    slots = {
        path.parent.name: read_cost(path)["slots"] for path in suite.folder.glob("*/cost.json")
    }
    parts = Counter((slots[row["run_id"]], row["arm"]) for row in suite.manifest["runs"])
    few, many = sorted({at for at, _ in parts})
    assert parts == {
        (many, "lora"): 12,
        (many, "swap, later"): 7,
        (few, "swap, later"): 5,
        (few, "lora, 2 epochs"): 12,
    }
    page = " ".join((ROOT / "docs" / "findings.md").read_text().split())
    assert "when all 36 runs had trained and 19 had a result" in page
    assert "The other 17 trained again later" in page
    assert "and seven of `swap`'s twelve of the first" in page


def test_every_configuration_of_evidence_has_a_record_or_is_said_not_to_have_run(
    suites: Suites,
) -> None:
    page = (ROOT / "docs" / "findings.md").read_text()
    declared = page.partition("### Declared and not run")[2].partition("\n### ")[0]
    for path in (ROOT / "configs" / "evidence").glob("*.yaml"):
        assert (f"`{path.name}`" in declared) == (path.stem not in suites)


def test_what_was_unpacked_is_packed_to_the_same_bytes(suites: Suites) -> None:
    """Compressed bytes may depend on a library's version."""
    for name, suite in suites.items():
        kept = lzma.decompress((build.RECORDS / f"{name}.tar.xz").read_bytes())
        assert pack_runs.packed(suite.folder) == kept


def test_a_device_is_added_where_a_cost_names_none(tmp_path: Path) -> None:
    (tmp_path / "suite" / "run").mkdir(parents=True)
    (tmp_path / "suite" / "suite.json").write_text("{}")
    cost = tmp_path / "suite" / "run" / "cost.json"
    for own, expected in (({}, "a GPU"), ({"device": "cpu"}, "cpu")):
        cost.write_text(json.dumps(own))
        content = pack_runs.packed(tmp_path / "suite", device="a GPU")
        assert json.dumps({"device": expected}, indent=2).encode() in content


def test_records_hold_scores_and_no_weights(suites: Suites) -> None:
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
