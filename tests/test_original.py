"""The document's experiment on its model's architecture with random weights, by the program."""

import csv
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from scipy.stats import ttest_ind

from schemabank.cli import main
from schemabank.common.files import read_json
from schemabank.config.file import load_run, run_id
from schemabank.config.naming import flat
from schemabank.report.reading.table import read_scores
from schemabank.report.reading.tabulate import CONSTANT
from schemabank.runs import finish
from schemabank.runs.folder import PARTIAL
from schemabank.suites.suite import load_suite
from tinyruns import snapshot, write_gsm8k, write_model
from tools import BENCHMARKS, load_tool

original = load_tool(BENCHMARKS / "original.py")
CHANGED: dict[str, Any] = {"task.train_limit": 8, "eval.limit": 5, "eval.max_new_tokens": 8}
EPOCHS = (2, 4, 6, 8, 10)
PLACES = [(arm, str(epochs)) for arm in ("lora", "schemabank") for epochs in EPOCHS]
SEEDS = (42, 123, 456, 789)
TITLE = "GSM8K, right answers in percent"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def table(self) -> list[list[str]]:
        """The cells of every row, by the width of the columns of its head."""
        lines = self.out.partition(TITLE)[2].splitlines()
        at = next(i for i, line in enumerate(lines) if set(line.strip()) == {"─"})
        rows = lines[at + 1 : next(i for i in range(at, len(lines)) if not lines[i].strip())]
        return [re.split(r"\s{2,}", row.strip()) for row in rows]

    @property
    def sentence(self) -> str:
        """The error, which is the only one and comes last."""
        *others, last = self.err.splitlines()
        assert not any(line.startswith("schemabank: ") for line in others)
        assert "Traceback" not in self.err
        return last.removeprefix("schemabank: ")


@dataclass(frozen=True)
class Tiny:
    """A model, its data, the folder of the runs, and how the first call ended."""

    model: Path
    data: Path
    out: Path
    first: Ended

    @property
    def arguments(self) -> list[str]:
        changes = [f"{name}={value}" for name, value in CHANGED.items()]
        settings = [part for text in (*changes, "engine.slots=20") for part in ("--set", text)]
        return ["--model", str(self.model), *settings]


def call(*arguments: object) -> Ended:
    """Call the program as its command line does."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["original.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main(original.app)
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    root = tmp_path_factory.mktemp("original")
    model, data = write_model(root / "model", "qwen2"), write_gsm8k(root / "data")
    nothing = Tiny(model, data, root / "runs", Ended(0, "", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(data))
        first = call(*nothing.arguments, "--out", nothing.out)
        yield Tiny(model, data, nothing.out, first)


def results(out: Path, arm: str, epochs: str) -> dict[int, dict[str, Any]]:
    """What the runs of a place scored, by seed."""
    found = {}
    for row in read_json(out / "suite.json")["runs"]:  # type: ignore[attr-defined]
        if (row["arm"], str(row["settings"]["train.num_train_epochs"])) == (arm, epochs):
            result: Any = read_json(out / row["run_id"] / "result.json")
            found[row["seed"]] = result["groups"]["all"]
    return found


def test_all_runs_are_made_and_told_of_first(tiny: Tiny) -> None:
    assert tiny.first.code == 0, tiny.first.err
    said, _, later = tiny.first.err.partition("base model: ")
    first, time, changed = said.splitlines()
    assert later
    assert f"40 runs of {tiny.model}, 0 of them finished" in first
    assert f"lora and schemabank over 2, 4, 6, 8, 10 epochs; runs in '{tiny.out}'" in first
    assert time == original.expected_time()
    assert changed.startswith("these runs are not the document's: ")
    assert f"model.name {tiny.model} instead of Qwen/Qwen2-0.5B" in changed
    assert "eval.limit 5 instead of 500" in changed
    assert changed.count(" instead of ") == 1 + len(CHANGED)
    for place in PLACES:
        assert set(results(tiny.out, *place)) == set(SEEDS)


def test_the_runs_differ_from_the_suite_in_nothing_else(tiny: Tiny) -> None:
    suite = load_suite(original.SUITE, ["engine.device=cpu"])
    rows: Any = read_json(tiny.out / "suite.json")["runs"]
    assert len(rows) == len(suite.runs) == 40
    expected = {"model.name": str(tiny.model), **CHANGED, "engine.slots": 20}
    for row, theirs in zip(rows, suite.runs, strict=True):
        assert (row["arm"], row["seed"], row["settings"]) == (
            theirs.arm,
            theirs.seed,
            dict(theirs.point),
        )
        ours = flat(load_run(tiny.out / row["run_id"] / "config.yaml").model_dump(mode="json"))
        its = flat(theirs.config.model_dump(mode="json")) | {"engine.device": "auto"}
        assert {name: ours[name] for name in its if ours[name] != its[name]} == expected


def test_the_table_has_the_documents_figures_and_those_of_the_runs(tiny: Tiny) -> None:
    *rows, constant = tiny.first.table
    assert [(row[0], row[1]) for row in rows] == PLACES
    document = read_scores(original.PUBLISHED)
    for arm, epochs, mean_there, span_there, mean_here, _, by_last, seeds, *_ in rows:
        theirs = [100 * float(score) for score in document.scores(arm, epochs).values()]
        ours = results(tiny.out, arm, epochs).values()
        assert (mean_there, span_there) == (
            f"{mean(theirs):.2f}",
            f"{min(theirs):.1f}–{max(theirs):.1f}",
        )
        assert mean_here == f"{100 * mean(own['correct'] for own in ours):.2f}"
        assert by_last == f"{100 * mean(own['flexible'] for own in ours):.2f}"
        assert seeds == "4"
    (group, *_) = results(tiny.out, *PLACES[0]).values()
    name = f"{CONSTANT} ({group['best_constant_answer']})"
    assert constant == [name, "3.60", f"{100 * group['best_constant_correct']:.2f}"]


def test_the_documents_means_are_those_that_it_prints(tiny: Tiny) -> None:
    claims = original.PUBLISHED.with_name("gsm8k.claims.csv").read_text(encoding="utf-8")
    printed = {
        (row["arm"], row["epochs"]): float(row["value"].rstrip("%"))
        for row in csv.DictReader(claims.splitlines())
        if row["statistic"] == "mean" and row["where"].endswith("table") and row["epochs"]
    }
    shown = {(row[0], row[1]): float(row[2]) for row in tiny.first.table[:-1]}
    assert shown == {place: printed[place] for place in PLACES}


def test_differences_have_welchs_interval(tmp_path: Path) -> None:
    document = read_scores(original.PUBLISHED)
    lines = ["arm,epochs,seed,score,n_items"]
    for n, (arm, epochs) in enumerate(PLACES):
        lines += [f"{arm},{epochs},{seed},0.0{seed % 7}{n},500" for seed in SEEDS]
    (tmp_path / "ours.csv").write_text("\n".join([*lines, f"{CONSTANT} (6),,,0.036,500"]))
    ours = read_scores(tmp_path / "ours.csv")
    rows = original.comparison(document, ours, ours)[2]
    assert rows[-1][:5] == [f"{CONSTANT} (6)", "", "3.60", "", "3.60"]
    for row in rows[:-1]:
        both = [[100 * float(s) for s in t.scores(*row[:2]).values()] for t in (ours, document)]
        found = ttest_ind(*both, equal_var=False).confidence_interval()
        assert row[4:7] == [
            f"{mean(both[0]):.2f}",
            f"{min(both[0]):.1f}–{max(both[0]):.1f}",
            row[4],
        ]
        assert row[8] == f"{mean(both[0]) - mean(both[1]):+.2f}"
        assert row[9] == f"{found.low:+.2f} to {found.high:+.2f}"


def test_a_second_call_reuses_everything_and_makes_the_report_anew(tiny: Tiny) -> None:
    report = tiny.out / "report"
    assert (report / "report.html").is_file()
    assert f"report: {report / 'report.html'}" in tiny.first.out
    for row in tiny.first.table:
        assert row[0] in (report / "original.md").read_text(encoding="utf-8")
    before, made = runs_in(tiny.out), (report / "report.html").stat()
    again = call(*tiny.arguments, "--out", tiny.out)
    assert (again.code, again.out) == (0, tiny.first.out)
    assert again.err.count("reused: ") == 40
    assert f"40 runs of {tiny.model}, 40 of them finished" in again.err
    assert runs_in(tiny.out) == before
    assert (report / "report.html").stat().st_mtime_ns > made.st_mtime_ns
    assert [path.name for path in tiny.out.iterdir() if path.name.startswith(".")] == []


def runs_in(out: Path) -> dict[str, tuple[int, str]]:
    found = snapshot(out)
    return {name: was for name, was in found.items() if not name.startswith(("report", "suite"))}


def test_only_comparing_prints_the_same_table_and_writes_nothing(tiny: Tiny) -> None:
    before = snapshot(tiny.out)
    shown = call("--compare-only", "--out", tiny.out)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == tiny.first.out.partition("report: ")[0]
    assert snapshot(tiny.out) == before


def test_a_report_of_somebody_else_is_not_replaced(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "runs" / "report").mkdir(parents=True)
    (tmp_path / "runs" / "report" / "report.html").write_text("mine")
    before = snapshot(tmp_path)
    ended = call(*tiny.arguments, "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (2, "")
    assert "is no report of this program, so it is not replaced: move it away" in ended.sentence
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/lost"], r"Base model '/lost' was not found: .*; correct it\."),
        ([], r"'Qwen/Qwen2-0\.5B' was not found: .*HF_HUB_OFFLINE forbids asking the hub"),
        (["--set", "train.lerning_rate=1"], r"did you mean 'train\.learning_rate'"),
        (["--set", "task.name=gsm_symbolic"], r"the task is 'gsm_symbolic' with the metric 'num"),
        (["--compare-only"], r"holds no finished run: allowed is a folder of runs"),
        (["--compare-only", "--model", "x"], r"trains nothing, so 'model\.name=x' would change"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_what_cannot_be_had_ends_in_a_sentence_before_anything_is_written(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    ended = call(*arguments, "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (2, "")
    assert re.search(sentence, ended.sentence), ended.sentence
    assert not (tmp_path / "runs").exists()


def test_a_report_that_cannot_be_drawn_is_said_before_the_runs(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    ended = call(*tiny.arguments, "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (2, "")
    assert "the report at the end needs the package 'altair'" in ended.sentence
    assert "pip install 'schemabank[report]'" in ended.sentence
    assert not (tmp_path / "runs").exists()


def test_data_that_is_not_there_is_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path))
    ended = call(*tiny.arguments, "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (2, "")
    assert "gsm8k is not in SCHEMABANK_DATA" in ended.sentence.replace("GSM8K", "gsm8k")
    assert not (tmp_path / "runs").exists()


def test_runs_of_something_else_are_not_compared(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.out, tmp_path / "runs", ignore=shutil.ignore_patterns("suite.json"))
    for run in load_suite(original.SUITE, settings(tiny)).runs:
        if run.point["train.num_train_epochs"] != 2:
            shutil.rmtree(tmp_path / "runs" / run_id(run.config))
    ended = call("--compare-only", "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (2, "")
    assert "holds no run of the document's arms and lengths" in ended.sentence


def settings(tiny: Tiny) -> list[str]:
    return [f"model.name={tiny.model}", *(f"{name}={value}" for name, value in CHANGED.items())]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the disk be full for the results of some runs."""
    real = finish.write_json

    def spoil(where: str) -> None:
        def spoiled(path: Path, value: Any) -> None:  # noqa: ANN401 -- as the real one
            if where in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, value)

        monkeypatch.setattr(finish, "write_json", spoiled)

    return spoil


def test_a_run_that_fails_leaves_the_others_compared(
    tiny: Tiny, tmp_path: Path, full: Callable[[str], None]
) -> None:
    shutil.copytree(tiny.out, tmp_path / "runs")
    lost = next(run for run in load_suite(original.SUITE, settings(tiny)).runs if run.seed == 456)
    shutil.rmtree(tmp_path / "runs" / run_id(lost.config))
    full(run_id(lost.config))
    ended = call(*tiny.arguments, "--out", tmp_path / "runs")
    assert ended.code == 3
    partial = tmp_path / "runs" / PARTIAL.format(run_id(lost.config))
    assert f"failed: {partial}: disk: " in ended.err
    assert "kept: its training" in ended.err
    assert [row[7] for row in ended.table[:-1]] == ["3", *["4"] * 9]
    assert (tmp_path / "runs" / "report" / "original.md").is_file()


def test_where_all_runs_fail_there_is_no_table(
    tiny: Tiny, tmp_path: Path, full: Callable[[str], None]
) -> None:
    full("seed")
    ended = call(*tiny.arguments, "--out", tmp_path / "runs")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.count("failed: ") == 40
    assert not (tmp_path / "runs" / "report").exists()


def test_without_changes_the_runs_are_the_documents() -> None:
    runs = load_suite(original.SUITE).runs
    configs = {(run.arm, str(run.point["train.num_train_epochs"])): run.config for run in runs}
    assert original.changed_settings(configs) == {}
