"""``schemabank power``: from a pilot's runs to the seeds and items that a comparison takes."""

import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from schemabank import stats
from schemabank.common import archives
from schemabank.common.errors import InputError
from schemabank.report.command import Question
from schemabank.report.command import report as examine
from schemabank.report.planning import (
    STATED,
    ComparisonPlan,
    Wanted,
    conclusions,
    heading,
    plan_comparison,
    plan_json,
    plan_stated,
    table,
)
from schemabank.report.planning import plan as make_plan
from schemabank.runs.folder import CONFIG, PREDICTIONS, RESULT, SUITE
from schemabank.runs.itemscores import SCORES
from synthetic import ITEMS, SEEDS, change, examined, in_parts, keep_rows, rescore, rows
from tools import BENCHMARKS, load_tool

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "results" / "published" / "gsm8k.csv"
PACK = load_tool(BENCHMARKS / "pack_runs.py")
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def schemabank(program: Callable[[str], Program]) -> Program:
    return program("power")


def plan(
    runs: Path, seeds: str = "4,8", items: str | None = None, **asked: str | None
) -> ComparisonPlan:
    return plan_comparison(runs, Question(**asked), Wanted(seeds, items))  # type: ignore[arg-type]


def with_limit(runs: Path, limit: int) -> None:
    for path in runs.glob(f"*/{CONFIG}"):
        path.write_text(path.read_text().replace("  limit: null", f"  limit: {limit}"))


class TestPlanComparison:
    def test_for_the_pilot_itself_it_is_what_the_report_says(self, runs: Path) -> None:
        """Of all pairs of arms whose components are above 0; of others it is no smaller."""
        equal = 0
        for control in ("arm 1", "arm 2", "arm 3", "arm 4", "arm 5"):
            report, _ = examined(runs, control=control)
            found = plan(runs, seeds=str(SEEDS), control=control)
            (own,) = found.planned
            verdict, crossed = report["primary"]["verdict"], report["items"]["crossed"]
            assert own.standard_error >= crossed["standard_error"] * (1 - 1e-9)
            assert (found.treatment, found.control) == ("arm 0", control)
            assert found.contrast == report["primary"]["contrast"]
            if found.components.seed > 0:
                assert own.standard_error == pytest.approx(crossed["standard_error"])
                assert own.df == pytest.approx(crossed["df"])
                assert own.detectable == pytest.approx(verdict["detectable"])
                equal += 1
        assert equal > 1

    def test_one_setting_and_one_part_of_the_split(self, runs: Path) -> None:
        in_parts(runs, "easy", "hard")
        report, _ = examined(runs, primary="2", group="hard")
        found = plan(runs, seeds="4", primary="2", group="hard")
        assert (found.group, found.contrast) == ("hard", "train.num_train_epochs 2")
        assert found.components.num_items == report["items"]["num_items"] == ITEMS // 2
        pooled = plan(runs, seeds="4", group="hard")
        assert pooled.components.cell < found.components.cell, "a mean over settings varies less"

    def test_every_number_of_seeds_with_every_number_of_items(self, runs: Path) -> None:
        found = plan(runs, seeds="8, 4,8", items="500,100")
        pairs = [(own.num_seeds, own.num_items) for own in found.planned]
        assert pairs == [(4, 100), (4, 500), (8, 100), (8, 500)]
        assert sum(found.error_shares.values()) == pytest.approx(1)

    def test_items_are_the_pilots_and_the_whole_splits(self, runs: Path) -> None:
        assert {own.num_items for own in plan(runs).planned} == {ITEMS}
        with_limit(runs, ITEMS)
        assert {own.num_items for own in plan(runs).planned} == {ITEMS, 200}, "task.test_size"
        for path in runs.glob(f"*/{CONFIG}"):
            path.write_text(path.read_text().replace("name: gsm_symbolic", "name: gsm8k"))
        assert {own.num_items for own in plan(runs).planned} == {ITEMS, 1319}

    def test_an_untouched_model_may_be_the_control(self, runs: Path) -> None:
        first = rows(runs, "arm 1", 1)[0]
        change(runs / first["run_id"] / RESULT, arm="base", training=None)
        keep_rows(
            runs, lambda arm, epochs, seed: arm != "arm 1" or (epochs, seed) == (1, first["seed"])
        )
        assert plan(runs).components.num_seeds == SEEDS

    def test_two_seeds_are_enough_for_a_pilot(self, runs: Path) -> None:
        keep_rows(runs, lambda _, __, seed: seed < 2)
        found = plan(runs)
        assert found.components.num_seeds == 2
        assert "With 2 seeds the pilot" in conclusions(found)[1]


class TestRefusals:
    @pytest.mark.parametrize("seeds", [0, 1])
    def test_too_few_seeds_in_common(self, seeds: int, runs: Path) -> None:
        listed = json.loads((runs / SUITE).read_text())["runs"]
        for row in listed:
            row["seed"] += 100 * (row["arm"] == "arm 1" and row["seed"] >= seeds)
        change(runs / SUITE, runs=listed)
        said = rf"'arm 0' and 'arm 1' share {seeds} seeds?, allowed are 2 or more: run both arms"
        with pytest.raises(InputError, match=said):
            plan(runs)

    def test_runs_without_scores_of_items(self, runs: Path) -> None:
        for path in (*runs.glob(f"*/{SCORES}"), *runs.glob(f"*/{PREDICTIONS}")):
            path.unlink()
        with pytest.raises(InputError, match=r"so the scores of its items are not known: restore"):
            plan(runs)

    @pytest.mark.parametrize("path", [TABLE, Path("nowhere")])
    def test_a_table_of_results(self, path: Path) -> None:
        with pytest.raises(InputError, match=r"is no folder: allowed is a folder of runs"):
            plan(path)

    def test_arms_and_parts_that_are_not_there(self, runs: Path) -> None:
        with pytest.raises(InputError, match=r"arm 'new' has no runs, allowed are arm 0, arm 1"):
            plan(runs, treatment="new")
        with pytest.raises(InputError, match=r"--group 'new': the runs share 'all'"):
            plan(runs, group="new")

    @pytest.mark.parametrize("text", ["", "4,", "four", "3,8", "-8", "8.0", "٨", "9" * 5000])
    def test_numbers_of_seeds(self, text: str, runs: Path) -> None:
        with pytest.raises(InputError, match=r"--seeds .* allowed are whole numbers from 4 to"):
            plan(runs, seeds=text)

    @pytest.mark.parametrize("text", ["", "1", "all"])
    def test_numbers_of_items(self, text: str, runs: Path) -> None:
        with pytest.raises(InputError, match=r"--items .* allowed are whole numbers from 2 to"):
            plan(runs, items=text)

    def test_arms_that_never_differ(self, runs: Path) -> None:
        for arm in ("arm 0", "arm 1"):
            for row in rows(runs, arm):
                rescore(runs / row["run_id"], 30)
        with pytest.raises(InputError, match="a pilot whose differences vary"):
            plan(runs)


class TestStated:
    SPREADS = "seeds=5.39, items=8.15,answers=46.05"

    def stated(self, spreads: str = SPREADS, **wanted: object) -> ComparisonPlan:
        asked = Wanted(**{"items": "200,1319", **wanted})  # type: ignore[arg-type]
        return plan_stated(spreads, Question(), asked)

    def test_a_pilots_own_spreads_give_its_plan(self, runs: Path) -> None:
        pilot = plan(runs, items="60,1319", control="arm 3")
        own = pilot.components
        spreads = zip(STATED, (own.seed, own.item, own.cell), strict=True)
        text = ",".join(f"{name}={100 * variance**0.5:.9f}" for name, variance in spreads)
        found = self.stated(text, items="60,1319", seeds="4,8")
        for a, b in zip(found.planned, pilot.planned, strict=True):
            assert a.detectable == pytest.approx(b.detectable)

    def test_the_documented_example(self) -> None:
        """The pilot of docs/report.md, whose spreads are rounded there."""
        shown = [own.detectable for own in self.stated(seeds="4,24").planned]
        expected = [0.1346, 0.1178, 0.0409, 0.0336]
        assert shown == pytest.approx(expected, abs=2e-4)

    def test_more_power_takes_a_larger_difference(self) -> None:
        usual, more = self.stated().planned, self.stated(power=0.9).planned
        assert all(
            (a.detectable or 0) < (b.detectable or 0) for a, b in zip(usual, more, strict=True)
        )

    @pytest.mark.parametrize(
        ("spreads", "words"),
        [
            ("", "'' is not allowed"),
            ("seeds=1,items=2", "does not state all of seeds, items, answers"),
            ("seeds=1,items=2,answers=3,seeds=1", "'seeds=1' is not allowed"),
            ("seeds=-1,items=2,answers=3", "'seeds=-1' is not allowed"),
            ("seeds=1,items=nan,answers=3", "'items=nan' is not allowed"),
            ("seeds=1,items=2,answers=101", "'answers=101' is not allowed"),
            ("seeds=1,items=2,cells=3", "'cells=3' is not allowed"),
            ("seeds=0,items=0,answers=0", "or all are 0"),
        ],
    )
    def test_what_states_no_spreads(self, spreads: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            self.stated(spreads)

    def test_what_else_is_asked(self, runs: Path) -> None:
        with pytest.raises(InputError, match="needs the numbers of items"):
            plan_stated(self.SPREADS, Question(), Wanted())
        with pytest.raises(InputError, match="leave out --treatment"):
            plan_stated(self.SPREADS, Question(treatment="x"), Wanted(items="5"))
        with pytest.raises(InputError, match="and both were given"):
            make_plan(runs, self.SPREADS, Question(), Wanted())
        with pytest.raises(InputError, match="and neither was given"):
            make_plan(None, None, Question(), Wanted())
        for power in (0.05, 1.0, float("nan")):
            with pytest.raises(InputError, match=r"--power .* allowed are probabilities from"):
                self.stated(power=power)
        for difference in (0.0, -1.0, 101.0):
            with pytest.raises(InputError, match=r"--difference .* above 0 and up to 100"):
                self.stated(difference=difference)


class TestDifference:
    def test_the_fewest_seeds_find_it_and_one_less_does_not(self) -> None:
        found = plan_stated(
            TestStated.SPREADS, Question(), Wanted(items="200,1319", difference=5, seeds="4")
        )
        assert [own.num_items for own in found.needed] == [200, 1319]
        for own in found.needed:
            assert own.num_seeds is not None
            enough, fewer = (
                stats.planned(found.components, num, own.num_items).detectable
                for num in (own.num_seeds, own.num_seeds - 1)
            )
            assert enough is not None
            assert fewer is not None
            assert enough <= 0.05 < fewer
        assert conclusions(found)[0] == (
            f"5 points, found with 80 % power, takes {found.needed[0].num_seeds} seeds with 200 "
            "items."
        )

    def test_seeds_cannot_make_up_for_items(self) -> None:
        wanted = Wanted(items="200", difference=1)
        found = plan_stated("seeds=1,items=30,answers=0", Question(), wanted)
        assert found.needed[0].num_seeds is None
        assert conclusions(found) == [
            "1 points, found with 80 % power, takes more items with 200 items: no number of seeds "
            "is enough."
        ]

    def test_a_large_difference_still_takes_a_verdicts_seeds(self) -> None:
        wanted = Wanted(items="200", difference=90)
        assert plan_stated(TestStated.SPREADS, Question(), wanted).needed[0].num_seeds == 4


class TestPacked:
    def test_a_packed_record_gives_the_plan_and_the_report_of_its_runs(
        self, runs: Path, tmp_path: Path
    ) -> None:
        record = tmp_path / "pilot.tar.xz"
        record.write_bytes(lzma.compress(PACK.packed(runs)))
        assert make_plan(record, None, Question(), Wanted("4,8")) == plan(runs)
        own, packed = (examine(path, Question()).comparison for path in (runs, record))
        assert own == packed

    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [
            ("../outside", tarfile.REGTYPE, "cannot read .*outside"),
            ("runs/link", tarfile.SYMTYPE, "'runs/link', which is no file"),
            ("runs/pipe", tarfile.FIFOTYPE, "'runs/pipe', which is no file"),
            ("file", tarfile.REGTYPE, "holds 1 files or folders at its top, allowed is the one"),
        ],
    )
    def test_what_is_no_record(self, tmp_path: Path, name: str, kind: bytes, words: str) -> None:
        record = tmp_path / "bad.tar.xz"
        with tarfile.open(record, "w:xz") as archive:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        with pytest.raises(InputError, match=words):
            make_plan(record, None, Question(), Wanted())
        assert not (tmp_path.parent / "outside").exists()

    def test_torn_and_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        record = tmp_path / "bad.tar.xz"
        record.write_bytes(b"no xz")
        with pytest.raises(InputError, match=r"cannot read .*bad\.tar\.xz"):
            make_plan(record, None, Question(), Wanted())
        with tarfile.open(record, "w:xz") as archive:
            entry = tarfile.TarInfo("runs/large")
            entry.size = 2000
            archive.addfile(entry, io.BytesIO(bytes(2000)))
        monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 1999)
        with pytest.raises(InputError, match="unpacks to more than 1,000,000 files or 1,999 b"):
            make_plan(record, None, Question(), Wanted())


class TestCommand:
    def test_stated_spreads_are_a_table_as_well(self, schemabank: Program) -> None:
        code, out, err = schemabank(
            "--spreads",
            TestStated.SPREADS,
            "--items",
            "1319",
            "--difference",
            "5",
            "--power",
            "0.9",
        )
        assert (code, err) == (0, "")
        assert out.startswith(
            "stated standard deviations of the difference in points: seeds 5.39, items 8.15, "
            "single answers 46.05\nsmallest true difference that is found with 90 % power, in "
        )
        assert "5 points, found with 90 % power, takes " in out
        code, out, _ = schemabank("--spreads", TestStated.SPREADS, "--items", "9", "--json")
        found = json.loads(out)
        assert code == 0
        assert (found["treatment"], found["error_shares"]) == (None, None)

    def test_says_what_the_pilot_is_and_what_it_takes(
        self, schemabank: Program, runs: Path
    ) -> None:
        code, out, err = schemabank(runs, "--items", "60,1319")
        assert (code, err) == (0, "")
        lines = [line.strip() for line in out.splitlines()]
        assert lines[0].startswith(
            "pilot: arm 0 against arm 1 (mean over train.num_train_epochs; correct, split test, "
            "part all): 4 seeds, 60 items; standard deviations of the difference in points: seeds "
        )
        (head,) = [at for at, line in enumerate(lines) if line.startswith("seeds ")]
        assert lines[head].split("  ") == ["seeds", "60 items", "1,319 items"]
        cells = [line.split() for line in lines[head + 2 : head + 7]]
        assert [row[0] for row in cells] == ["4", "8", "12", "16", "24"]
        found = plan(runs, "4,8,12,16,24", "60,1319")
        shown = [f"{100 * (own.detectable or 0):.2f}" for own in found.planned]
        assert [cell for row in cells for cell in row[1:]] == shown
        assert lines[-2:] == conclusions(found)
        assert lines[-2].startswith("At the pilot's 4 seeds and 60 items, ")

    def test_json_is_the_plan_in_full_precision(self, schemabank: Program, runs: Path) -> None:
        code, out, _ = schemabank(
            runs, "--json", "--treatment", "arm 2", "--control", "arm 3", "--seeds", "16"
        )
        assert code == 0
        found = plan(runs, "16", treatment="arm 2", control="arm 3")
        assert json.loads(out) == plan_json(found) | {
            "seed_error_factors": list(found.seed_error_factors)
        }

    def test_bad_input_is_one_sentence(self, schemabank: Program) -> None:
        code, out, err = schemabank(TABLE)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("share", "advice"),
    [
        ("seeds", "seeds add 90 % of the squared standard error: more seeds help most."),
        ("items", "items add 90 % of the squared standard error: more items help most."),
        ("single answers", "single answers add 90 % of the squared standard error: more seeds and"),
    ],
)
def test_what_dominates_is_what_to_have_more_of(share: str, advice: str, runs: Path) -> None:
    found = plan(runs)
    shares = dict.fromkeys(found.error_shares, 0.05) | {share: 0.9}
    told = ComparisonPlan(**{**vars(found), "error_shares": shares})
    assert advice in conclusions(told)[0]


def test_names_of_arms_steer_no_terminal_and_clusters_are_counted(runs: Path) -> None:
    listed = json.loads((runs / SUITE).read_text())
    for row in listed["runs"]:
        row["arm"] = row["arm"].replace("arm 0", "arm\x1b[2J [red]0")
    change(runs / SUITE, runs=listed["runs"], contrast=None)
    for path in runs.glob(f"*/{PREDICTIONS}"):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(found):
            row["cluster"] = f"document {number // 5}"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        path.with_name(SCORES).unlink()
    made = plan(runs, treatment="arm\x1b[2J [red]0", control="arm 1", items="120")
    assert {own.num_clusters for own in made.planned} == {24}
    first = heading(made)[0]
    assert "\x1b" not in first
    assert f"{SEEDS} seeds, {ITEMS} items in {ITEMS // 5} clusters; " in first
    assert table(made)[1] == ["seeds", "120 items"]
