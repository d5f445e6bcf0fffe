import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from programs import printed_by, started
from schemabank.cli import app
from schemabank.common.errors import FailedRunsError, InputError
from schemabank.common.failure import Failure
from schemabank.common.files import read_json
from schemabank.config.file import config_hash, load_run, run_id
from schemabank.config.settings import RunConfig
from schemabank.engine.run import TrainingData
from schemabank.report.reading.runs import read_runs
from schemabank.runs import experiment
from schemabank.runs.folder import ADAPTER, PREDICTIONS, RESULT, TRAINED
from schemabank.runs.itemscores import save_item_scores
from schemabank.runs.members import Outcome
from schemabank.runs.prepare import task_training_data
from schemabank.suites import execution
from schemabank.suites.execution import run_suite
from schemabank.suites.file import Suite
from schemabank.suites.plan import plan_suite
from schemabank.suites.suite import load_suite
from schemabank.suites.tables import result_tables
from tinyruns import SETTINGS, Finished, Notes, snapshot, write_gsm8k
from tinysuites import PAPER, ran, tiny, write

TUNE = {"factors": [1, 2], "seeds": [1001], "extend": 1}
WIDER = {**TUNE, "factors": [0.5, 1, 2]}
# All that a run may end as: averaged, reduced, folded, with a bank, at another scale.
ENDS = {
    "averaged": {
        "arm": "lora",
        "average": {"kind": "exponential"},
        "train": {"num_train_epochs": 2},
    },
    "shrink": {},
    "experts": {"experts": {"routing": "learned"}},
    "schemabank": {},
}
COMMON = {
    "task": {"gsm8k": {"validation_ratio": 0.2}},
    "train": {"num_train_epochs": 3},
    "rescale": {"factors": [0.5, 1, 2]},
    "engine": {"slots": 2},
}
FULL = Failure("disk", "No space left on device")


@dataclass(frozen=True)
class Ran:
    """A suite of 8 runs after them; tests must not change its folder."""

    path: Path
    out: Path
    suite: Suite
    outcomes: list[Outcome]


@pytest.fixture(scope="module")
def whole(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """With 3 slots for 8 runs of two lengths and arms: slots are taken over by other runs."""
    folder = tmp_path_factory.mktemp("whole")
    changes = {
        "contrast": {"treatment": "lora", "control": "lora"},
        "defaults": {"engine": {"slots": 3}},
    }
    path = tiny(finished, folder / "s.yaml", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        suite, outcomes, _ = ran(path, folder / "runs")
    return Ran(path, folder / "runs", suite, outcomes)


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_runs_is_listed_and_is_reused(whole: Ran, tmp_path: Path) -> None:
    suite, outcomes = whole.suite, whole.outcomes
    assert len(outcomes) == 8
    assert [o.failure for o in outcomes] == [None] * 8
    listed = json.loads((whole.out / "suite.json").read_text())
    assert listed["runs"] == suite.rows()
    assert listed["contrast"] == {"treatment": "lora", "control": "lora"}
    assert listed["tuning"] is None
    assert [o.folder.name for o in outcomes] == [row["run_id"] for row in listed["runs"]]
    shutil.copytree(whole.out, tmp_path / "runs")
    before = snapshot(tmp_path / "runs")
    before.pop("suite.json")
    _, again, _ = ran(whole.path, tmp_path / "runs")
    after = snapshot(tmp_path / "runs")
    after.pop("suite.json")
    assert after == before
    assert all(o.reused for o in again)
    ((title, head, rows),) = result_tables(suite, outcomes)
    assert title == "correct, all"
    assert list(head[:4]) == ["arm", "train.num_train_epochs", "seeds", "mean"]
    assert [row[:3] for row in rows] == [
        [arm, epochs, "2"] for arm in ("lora", "schemabank") for epochs in ("1", "2")
    ]


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("lost", [(0,), (1, 4, 6), (3, 2)])
def test_an_interrupted_suite_ends_with_the_very_bytes(
    lost: tuple[int, ...], whole: Ran, tmp_path: Path
) -> None:
    """Neighbours and slots change on resuming."""
    records = ("predictions.jsonl", "result.json", "metrics.jsonl", "adapter/")
    shutil.copytree(whole.out, tmp_path / "runs")
    for index in lost:
        shutil.rmtree(tmp_path / "runs" / whole.outcomes[index].folder.name)
    _, outcomes, _ = ran(whole.path, tmp_path / "runs")
    assert [o.reused for o in outcomes] == [index not in lost for index in range(8)]
    again = snapshot(tmp_path / "runs")
    for name, (_, digest) in snapshot(whole.out).items():
        if any(record in name for record in records):
            assert again[name][1] == digest, name


LONG = pytest.mark.soak  # `tests/faults` kills searches, too, and oftener


@pytest.mark.parametrize(
    ("settings", "kills"),
    [
        pytest.param({"seeds": [1, 2]}, 1, id="plain-1"),
        pytest.param({"seeds": [1, 2]}, 20, id="plain-20", marks=LONG),
        pytest.param({"seeds": [1], "tune": TUNE}, 20, id="tuned-20", marks=LONG),
    ],
)
def test_a_suite_that_is_killed_at_any_moment_ends_with_the_very_bytes(
    settings: dict[str, object], kills: int, finished: Finished, tmp_path: Path
) -> None:
    # Fewer slots than runs, so that some are taken over.
    path = tiny(
        finished, tmp_path / "s.yaml", grid={}, defaults={"engine": {"slots": 2}}, **settings
    )
    environment = {**os.environ, "SCHEMABANK_DATA": str(finished.data), "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> ForkServerProcess:
        command = ["suite", str(path), "--out", str(out)]
        with Path(os.devnull).open("wb") as quiet:
            return started(command, environment, stdout=quiet.fileno(), stderr=quiet.fileno())

    def code(process: ForkServerProcess, timeout_s: float | None = None) -> int | None:
        process.join(timeout_s)
        return process.exitcode

    printed_by(["--version"])  # from here on programs start at once
    began = time.monotonic()
    assert code(start(tmp_path / "whole")) == 0
    whole_s = time.monotonic() - began
    rng, num_killed = random.Random(0), 0
    while num_killed < kills:
        process = start(tmp_path / "runs")
        ended = code(process, rng.uniform(0, whole_s))
        if ended is None:
            process.kill()
            process.join()
            num_killed += 1
        else:
            assert ended == 0
            shutil.rmtree(tmp_path / "runs")  # it was through before: once more from the start
    assert code(start(tmp_path / "runs")) == 0
    for place in sorted((tmp_path / "whole").rglob("*")):
        if place.is_file() and place.name != "cost.json":
            again = tmp_path / "runs" / place.relative_to(tmp_path / "whole")
            assert again.read_bytes() == place.read_bytes(), place


def files(folder: Path) -> dict[str, bytes]:
    """Every file that is the same whenever a suite is run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "cost.json" and ".unfinished-" not in str(path)
    }


def partials(out: Path, name: str) -> list[Path]:
    """The folders of runs under way that have a file or folder."""
    return [path.parent for path in out.glob(f".*.partial/{name}")]


def name_of(folder: Path) -> str:
    """The name that a folder under way will have."""
    return folder.name[1:].removesuffix(".partial")


def test_a_killed_suite_trains_no_run_again_whose_training_was_over(
    finished: Finished, tmp_path: Path
) -> None:
    merged = {key: {**SETTINGS[key], **COMMON[key]} for key in ("task", "train")}
    path = tiny(
        finished, tmp_path / "s.yaml", arms=ENDS, seeds=[1], grid={}, defaults=COMMON | merged
    )
    environment = {**os.environ, "SCHEMABANK_DATA": str(finished.data), "OMP_NUM_THREADS": "1"}
    said = tmp_path / "stderr"

    def call(out: Path, *, until: Callable[[], object] = lambda: False) -> str:
        """Run the suite, kill it when something is there, and return what it said."""
        with said.open("wb") as err, Path(os.devnull).open("wb") as quiet:
            command = ["suite", str(path), "--out", str(out)]
            process = started(command, environment, stdout=quiet.fileno(), stderr=err.fileno())
        while process.is_alive() and not until():
            time.sleep(0.002)
        if process.is_alive():
            process.kill()
            process.join()
        else:
            assert process.exitcode == 0, said.read_text()
        return said.read_text()

    call(tmp_path / "whole")
    out = tmp_path / "runs"
    call(out, until=lambda: partials(out, TRAINED))
    ended = {folder: (folder / "metrics.jsonl").stat() for folder in partials(out, TRAINED)}
    assert 1 <= len(ended) < len(partials(out, "metrics.jsonl")), "the others were in training"
    assert not partials(out, ADAPTER)

    again = call(out, until=lambda: partials(out, PREDICTIONS))
    for folder in ended:
        assert f"trained already: {out / name_of(folder)} " in again
    assert again.count("trained already: ") == len(ended)
    assert len(partials(out, TRAINED)) == len(ENDS)
    assert not partials(out, RESULT)

    last = call(out)
    assert last.count("trained already: ") == len(ENDS)
    assert "tokens/s" in again
    assert "tokens/s" not in last, "nothing was trained"
    assert files(out) == files(tmp_path / "whole")
    for folder, written in ended.items():
        assert (out / name_of(folder) / "metrics.jsonl").stat().st_mtime_ns == written.st_mtime_ns
    assert not list(out.glob(".*"))


@pytest.mark.usefixtures("gsm8k")
def test_models_tasks_and_evaluations_may_differ(finished: Finished, tmp_path: Path) -> None:
    arms = {
        "base": {},
        "2-shot": {"arm": "base", "eval": {"few_shot": 2}},
        "lora": {},
        "final": {"arm": "lora", "task": {"target": "final"}},
        "short": {"arm": "lora", "eval": {"max_new_tokens": 2}},
        "wide batches": {"arm": "lora", "train": {"batch_size": 8}},
    }
    path = tiny(finished, tmp_path / "s.yaml", arms=arms, seeds=[1], grid={})
    suite, outcomes, notes = ran(path, tmp_path / "runs")
    results = {run.arm: o.result for run, o in zip(suite.runs, outcomes, strict=True)}
    assert [o.failure for o in outcomes] == [None] * 6
    assert results["short"]["groups"]["all"]["mean_new_tokens"] <= 2  # type: ignore[index]
    assert results["2-shot"]["few_shot"] == 2  # type: ignore[index]
    targets = {
        arm: result["groups"]["all"]["gold_nll"]  # type: ignore[index]
        for arm, result in results.items()
    }
    assert len(set(targets.values())) == 5, "short has lora's likelihoods"
    assert targets["short"] == targets["lora"]
    assert sum(line.startswith("base model") for line in notes) == 1


@pytest.mark.usefixtures("gsm8k")
def test_what_cannot_be_had_is_found_before_anything_is_trained(
    finished: Finished, tmp_path: Path
) -> None:
    arms = {"lora": {}, "later": {"arm": "lora", "task": {"max_length": 20}}}
    path = tiny(finished, tmp_path / "s.yaml", arms=arms)
    with pytest.raises(InputError, match=r"task\.max_length is 20, which cuts"):
        ran(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"layers_to_transform": [9]}}, r"names block 9, but the model has 3 blocks"),
        ({"lora": {"target_modules": ["query"]}}, r"names 'query', which matches no linear"),
        ({"arm": "schemabank", "bank": {"last_n": 4}}, r"last_n is 4, but the model has 3 blocks"),
        ({"arm": "schemabank", "tags": {"tagger": "field", "field": "x"}}, r"has no field 'x'"),
    ],
)
def test_every_arm_is_checked_before_any_is_trained(
    settings: dict[str, object], message: str, finished: Finished, tmp_path: Path
) -> None:
    arms = {"wrong": {"arm": "lora", **settings}, "lora": {}, "schemabank": {}}
    with pytest.raises(InputError, match=message):
        ran(tiny(finished, tmp_path / "s.yaml", arms=arms), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_may_grow_but_not_forget(finished: Finished, tmp_path: Path) -> None:
    out, some = tmp_path / "runs", {"grid": {}, "arms": {"lora": {}}}
    ran(tiny(finished, tmp_path / "s.yaml", **some, seeds=[1]), out)
    _, outcomes, _ = ran(tiny(finished, tmp_path / "s.yaml", **some, seeds=[1, 2]), out)
    assert [o.reused for o in outcomes] == [True, False]
    before = snapshot(out)
    with pytest.raises(InputError, match=r"holds a suite with the run .*which this one has not"):
        ran(tiny(finished, tmp_path / "s.yaml", **some, seeds=[2]), out)
    assert snapshot(out) == before


@pytest.mark.usefixtures("gsm8k")
def test_what_is_compared_is_declared_before_the_runs(finished: Finished, tmp_path: Path) -> None:
    out, declared = tmp_path / "runs", {"treatment": "schemabank", "control": "lora"}
    some = {"seeds": [1], "grid": {}}
    ran(tiny(finished, tmp_path / "s.yaml", **some), out)
    ran(tiny(finished, tmp_path / "s.yaml", **some, contrast=declared), out)
    for other in ({"treatment": "lora", "control": "schemabank"}, None):
        with pytest.raises(InputError, match=r"contrast is .*declared \{'treatment': 'schemab"):
            ran(tiny(finished, tmp_path / "s.yaml", **some, contrast=other), out)


@pytest.mark.usefixtures("gsm8k")
def test_a_contrast_on_a_part_that_the_task_lacks_is_refused_before_anything_is_trained(
    finished: Finished, tmp_path: Path
) -> None:
    arms = {"treatment": "schemabank", "control": "lora"}
    some = {"seeds": [1], "grid": {}, "contrast": {**arms, "group": "held_out"}}
    path = tiny(finished, tmp_path / "s.yaml", **some)
    message = r"contrast\.group is 'held_out', but .* 'gsm8k' are of 'all': name one of these"
    with pytest.raises(InputError, match=message):
        ran(path, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    refusal = plan_suite(load_suite(path), tmp_path / "runs", Notes()).refusal
    with pytest.raises(InputError, match=message):
        raise refusal or AssertionError


@pytest.mark.usefixtures("gsm8k")
def test_a_plan_says_what_is_to_come_and_writes_nothing(finished: Finished, tmp_path: Path) -> None:
    suite = load_suite(tiny(finished, tmp_path / "s.yaml"))
    plan = plan_suite(suite, tmp_path / "runs", Notes())
    assert plan.refusal is None
    (title, _, arms), (_, head, cohorts) = plan.tables()
    assert title.startswith("8 runs in ")
    assert arms == [["lora", "4", "2", "0"], ["schemabank", "4", "2", "0"]]
    assert len(cohorts) == 1
    assert dict(zip(head, cohorts[0], strict=True))["steps"] == "72"
    assert not (tmp_path / "runs").exists()


def test_the_command_lists_forty_runs_as_json() -> None:
    ran = CliRunner().invoke(app, ["suite", str(PAPER / "suite.yaml"), "--dry-run", "--json"])
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)
    assert len({row["run_id"] for row in rows}) == len(rows) == 40
    assert rows[0].keys() == {"run_id", "arm", "seed", "settings"}


# Suites that choose their learning rates.


def tuned(finished: Finished, path: Path, **changes: Any) -> Path:  # noqa: ANN401 -- YAML
    train = {"num_train_epochs": 1, "learning_rate": 1e-2}
    defaults = {"train": train, **changes.pop("defaults", {})}
    return tiny(finished, path, **{"grid": {}, "tune": TUNE, "defaults": defaults, **changes})


@pytest.mark.usefixtures("gsm8k")
def test_a_plan_of_a_tuned_suite_tokenises_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def counted(*arguments: Any) -> TrainingData:  # noqa: ANN401 -- as the function takes
        made.append(arguments)
        return task_training_data(*arguments)

    monkeypatch.setattr(experiment, "task_training_data", counted)
    notes = Notes()
    suite = load_suite(tuned(finished, tmp_path / "s.yaml"))
    tables = plan_suite(suite, tmp_path / "runs", notes).tables()
    assert [title.partition(",")[0] for title, _, _ in tables[1:]] == [
        "cohorts of the tuning runs",
        "cohorts of the final runs",
    ]
    assert len(made) == 1
    assert sum(line.startswith("base model: ") for line in notes.lines) == 1


def manifest(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "suite.json").read_text())
    return found


def command(path: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["suite", str(path), "--out", str(out), *options])


@pytest.fixture(scope="module")
def searched(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A suite after the search of its learning rates and three final runs."""
    folder = tmp_path_factory.mktemp("searched")
    arms: dict[str, object] = {"base": {}, "lora": {}, "schemabank": {}}
    path = tuned(finished, folder / "s.yaml", arms=arms, seeds=[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        suite, outcomes, _ = ran(path, folder / "runs")
    return Ran(path, folder / "runs", suite, outcomes)


@pytest.mark.usefixtures("gsm8k")
def test_a_tuned_suite_runs_at_the_rates_it_chose(searched: Ran, tmp_path: Path) -> None:
    path, suite, outcomes = searched.path, searched.suite, searched.outcomes
    shutil.copytree(searched.out, tmp_path / "runs")
    listed = manifest(tmp_path / "runs")
    assert listed["runs"] == suite.rows()
    tuning = listed["tuning"]
    assert (tuning["split"], tuning["seeds"]) == ("validation", [1001])
    assert len(tuning["runs"]) == 2 * len(tuning["factors"])
    for row in tuning["runs"]:
        config = load_run(tmp_path / "runs" / row["run_id"] / "config.yaml")
        assert (config.arm, config.seed, config.eval.split) == (
            row["arm"],
            row["seed"],
            "validation",
        )
        assert config.train.learning_rate == row["learning_rate"] == 1e-2 * row["factor"]
        assert {s.learning_rate for s in config.curriculum} == {row["learning_rate"]}
    chosen = {row["arm"]: row["learning_rate"] for row in tuning["chosen"]}
    assert chosen.keys() == {"lora", "schemabank"}
    for run, outcome in zip(suite.runs, outcomes, strict=True):
        assert run.config.eval.split == "test"
        if run.arm != "base":
            assert load_run(outcome.folder / "config.yaml").train.learning_rate == chosen[run.arm]
    (_, head, rows), *_ = run_suite(load_suite(path), tmp_path / "runs", Notes()).tables()
    marked = [dict(zip(head, row, strict=True)) for row in rows if row[-1].startswith("chosen")]
    assert {row["arm"]: float(row["learning rate"]) for row in marked} == chosen


@pytest.mark.usefixtures("gsm8k")
def test_runs_of_a_search_choose_their_scale_as_final_runs_do(
    finished: Finished, tmp_path: Path
) -> None:
    arms: dict[str, object] = {"lora": {}, "scaled": {"arm": "lora", "rescale": {"factors": [3]}}}
    task = {"name": "gsm8k", "max_length": 96, "gsm8k": {"validation_ratio": 0.3}}
    path = tuned(finished, tmp_path / "s.yaml", arms=arms, seeds=[1], defaults={"task": task})
    _, outcomes, _ = ran(path, tmp_path / "runs")
    trials = manifest(tmp_path / "runs")["tuning"]["runs"]
    found = [(row["arm"], tmp_path / "runs" / row["run_id"]) for row in trials]
    found += zip(("lora", "scaled"), (outcome.folder for outcome in outcomes), strict=True)
    assert len(found) >= 6
    for arm, folder in found:
        tried = read_json(folder / "result.json")["training"].get("rescale", {}).get("tried", [])
        assert [row["factor"] for row in tried] == ([1, 3] if arm == "scaled" else [])


@pytest.mark.usefixtures("gsm8k")
def test_the_command_lists_what_is_known_of_a_tuned_suite(searched: Ran, tmp_path: Path) -> None:
    path, out = searched.path, tmp_path / "runs"
    before = json.loads(command(path, out, "--dry-run", "--json").stdout)
    assert [row["phase"] for row in before] == ["tune"] * 4
    assert {row["factor"] for row in before} == {1, 2}
    assert len({row["run_id"] for row in before}) == 4
    plain = command(path, out, "--dry-run")
    assert "4 tuning runs in" in plain.stdout
    assert "3 final runs follow, at the learning rates that the tuning runs choose" in plain.stderr
    assert not out.exists()
    shutil.copytree(searched.out, out)
    ended = json.loads(command(path, out, "--json").stdout)
    after = json.loads(command(path, out, "--dry-run", "--json").stdout)
    assert [{k: v for k, v in r.items() if k not in {"failure", "result"}} for r in ended] == after
    assert [row["run_id"] for row in after if row["phase"] == "final"] == [
        row["run_id"] for row in manifest(out)["runs"]
    ]
    assert all(row["result"]["split"] == "test" for row in ended if row["phase"] == "final")
    assert "3 final runs in" in command(path, out, "--dry-run").stdout


@pytest.mark.usefixtures("gsm8k")
def test_a_dry_run_tells_of_teachers_and_their_time(finished: Finished, tmp_path: Path) -> None:
    arms: dict[str, object] = {"base": {}, "lora": {}, "taught": {"arm": "lora"}}
    arms["taught"] = {"arm": "lora", "distill": {"teachers": 3, "top_k": 4}}
    path = tuned(finished, tmp_path / "s.yaml", arms=arms)
    tables = plan_suite(load_suite(path), tmp_path / "runs", Notes()).tables()
    found = {title: [row[1] for row in rows] for title, _, rows in tables if "cohorts" in title}
    assert list(found.values()) == [["6"], ["2", "2"], ["6"], ["1", "2", "2"]]
    assert [title.startswith("teachers, before the others: ") for title in found] == [
        *(True, False, True, False)
    ]
    asking = "asking teachers, about"
    heads = [head for title, head, _ in tables if "cohorts" in title]
    assert [asking in head for head in heads] == [False, True, False, True]
    for _, head, rows in tables:
        if asking in head:
            cells = [row[list(head).index(asking)] for row in rows]
            assert all(re.fullmatch(r"\d+ s", cell) for cell in cells)


@pytest.mark.usefixtures("gsm8k")
def test_a_search_alone_ends_with_the_choices_and_the_suite_goes_on_from_there(
    finished: Finished, tmp_path: Path
) -> None:
    path, out = tuned(finished, tmp_path / "s.yaml", seeds=[1]), tmp_path / "runs"
    rows = json.loads(command(path, out, "--tune-only", "--json").stdout)
    chosen = [row for row in rows if row["phase"] == "chosen"]
    rows = [row for row in rows if row["phase"] == "tune"]
    assert [row["arm"] for row in chosen] == ["lora", "schemabank"]
    assert len(rows) == 2 * len({row["factor"] for row in rows})
    assert all(row["result"]["split"] == "validation" for row in rows)
    assert manifest(out)["runs"] == []
    left = out / rows[0]["run_id"] / TRAINED  # by a process that was killed as it ended
    left.mkdir()
    shown = command(path, out, "--tune-only")
    assert shown.exit_code == 0
    assert not left.exists()
    assert "learning rates on validation" in shown.stdout
    assert "over seeds" not in shown.stdout.replace("means over seeds", "")
    assert shown.stdout.endswith("next: the same without --tune-only\n")
    assert shown.stderr.count("reused") == 0, "nothing was asked for again"
    with pytest.raises(InputError, match=r"holds a search .* run the suite without --tune-only"):
        read_runs(out)
    before = {row["run_id"] for row in rows}
    ended = json.loads(command(path, out, "--json").stdout)
    assert {row["run_id"] for row in ended if row["phase"] == "tune"} == before
    assert sum(row["phase"] == "final" for row in ended) == 2
    assert [{**row, "phase": "chosen"} for row in manifest(out)["tuning"]["chosen"]] == chosen


def test_a_search_alone_is_refused_where_there_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", seeds=[1])
    with pytest.raises(InputError, match="--dry-run and --tune-only were both given"):
        CliRunner().invoke(
            app, ["suite", str(path), "--tune-only", "--dry-run"], catch_exceptions=False
        )
    with pytest.raises(InputError, match="the suite has none: add tune to it"):
        run_suite(load_suite(path), tmp_path / "runs", Notes(), tune_only=True)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("gsm8k")
def test_a_tuned_suite_may_grow_but_its_search_stands(finished: Finished, tmp_path: Path) -> None:
    path, out = tmp_path / "s.yaml", tmp_path / "runs"
    some: dict[str, Any] = {"arms": {"lora": {}}, "seeds": [1]}
    ran(tiny(finished, path, grid={}, **some), tmp_path / "plain")
    with pytest.raises(InputError, match=r"final runs in .* were settled with None: allowed is"):
        ran(tuned(finished, path, **some), tmp_path / "plain")
    ran(tuned(finished, path, **some), out)
    _, outcomes, _ = ran(tuned(finished, path, **{**some, "seeds": [1, 2]}), out)
    assert [o.reused for o in outcomes] == [True, False]
    before = snapshot(out)
    for tune in ({**TUNE, "seeds": [5]}, WIDER, {**TUNE, "limit": 1}, None):
        with pytest.raises(InputError, match=r"tune is .*were settled with \{.*restore it or"):
            ran(tuned(finished, path, **{**some, "tune": tune}), out)
    with pytest.raises(InputError, match=r"holds a suite with the run .*which this one has not"):
        ran(tuned(finished, path, **{**some, "defaults": {"train": {"batch_size": 8}}}), out)
    with pytest.raises(InputError, match=r"holds a suite with the run .*which this one has not"):
        ran(tuned(finished, path, **{**some, "seeds": [2]}), out)
    assert {k: v[1] for k, v in snapshot(out).items()} == {k: v[1] for k, v in before.items()}
    shuffled = {**TUNE, "factors": [2, 1]}
    _, outcomes, _ = ran(tuned(finished, path, **{**some, "seeds": [1, 2], "tune": shuffled}), out)
    assert all(o.reused for o in outcomes)


@pytest.mark.usefixtures("gsm8k")
def test_a_search_that_has_settled_nothing_may_change(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "s.yaml", tmp_path / "runs"
    some: dict[str, Any] = {"arms": {"lora": {}}, "seeds": [1]}
    with monkeypatch.context() as patch:
        patch.setattr("schemabank.suites.execution.run_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ran(tuned(finished, path, **some), out)
    assert (manifest(out)["runs"], len(manifest(out)["tuning"]["runs"])) == ([], 2)
    ran(tuned(finished, path, **some, tune={**WIDER, "extend": 0}), out)
    assert len(manifest(out)["tuning"]["runs"]) == 3


def interrupted(*_args: object, **_options: object) -> list[Outcome]:
    raise KeyboardInterrupt


def after_the_first_round(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupt a search when its second round would begin."""
    run, rounds = execution.run_all, iter([True])

    def once(*args: Any, **options: Any) -> list[Outcome]:  # noqa: ANN401 -- as run_all
        return run(*args, **options) if next(rounds, False) else interrupted()

    with monkeypatch.context() as patch:
        patch.setattr(execution, "run_all", once)
        with pytest.raises(KeyboardInterrupt):
            ran(path, out)


def test_trials_of_an_older_version_whose_items_lack_clusters_are_refused_before_any_other(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The items of newer trials would be others, and how near rates are needs clusters."""
    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4}
    task = {"name": "conditional", "max_length": 512, "conditional": sizes}
    settings = {"task": task, "eval": {"split": "test", "max_new_tokens": 2}}
    path, out = tmp_path / "s.yaml", tmp_path / "runs"
    tuned(finished, path, arms={"lora": {}}, seeds=[1], defaults=settings)
    after_the_first_round(path, out, monkeypatch)
    first, _ = sorted(out.glob(f"*/{PREDICTIONS}"))
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    first.write_text("".join(json.dumps({**row, "cluster": ""}) + "\n" for row in rows))
    first.with_name("scores.safetensors").unlink()
    monkeypatch.setattr(execution, "run_all", pytest.fail)
    with pytest.raises(InputError, match=r"items of conditional with one word .* another --out"):
        ran(path, out)


@pytest.mark.usefixtures("gsm8k")
def test_trials_of_other_data_are_refused_before_any_other_is_trained(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "s.yaml", tmp_path / "runs"
    after_the_first_round(tuned(finished, path, arms={"lora": {}}, seeds=[1]), out, monkeypatch)
    monkeypatch.setenv("SCHEMABANK_DATA", str(write_gsm8k(tmp_path / "data", num_train=20)))
    monkeypatch.setattr(execution, "run_all", pytest.fail)
    with pytest.raises(InputError, match="the task's data is not the one"):
        ran(path, out)


@pytest.mark.usefixtures("gsm8k")
def test_a_trial_that_diverged_is_noted_and_not_run_again(
    finished: Finished, tmp_path: Path
) -> None:
    tune = {**TUNE, "factors": [1, 1e30], "extend": 0}
    path = tuned(finished, tmp_path / "s.yaml", seeds=[1], tune=tune)
    _, _, notes = ran(path, tmp_path / "runs")
    tuning = manifest(tmp_path / "runs")["tuning"]
    assert {row["factor"] for row in tuning["chosen"]} == {1}
    lost = {row["run_id"] for row in tuning["runs"] if row["factor"] == 1e30}
    assert {row["run_id"] for row in tuning["failed"]} == lost
    assert sum("its factor was not chosen" in note for note in notes) == len(lost) == 2
    before = snapshot(tmp_path / "runs")
    ran(path, tmp_path / "runs")
    after = snapshot(tmp_path / "runs")
    assert {k: v[1] for k, v in after.items()} == {k: v[1] for k, v in before.items()}


@pytest.mark.usefixtures("gsm8k")
def test_a_search_stops_where_the_machine_failed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "schemabank.suites.execution.run_all",
        lambda runs, out, *_args, **_options: [
            Outcome(out / run_id(run), None, failure=FULL) for run in runs
        ],
    )
    with pytest.raises(
        FailedRunsError, match=r"4 of 4 tuning runs failed, .*\(disk: No space left"
    ):
        ran(tuned(finished, tmp_path / "s.yaml"), tmp_path / "runs")
    assert manifest(tmp_path / "runs")["tuning"]["chosen"] == []


@pytest.mark.usefixtures("gsm8k")
def test_what_the_final_runs_cannot_have_is_found_before_the_search(
    finished: Finished, tmp_path: Path
) -> None:
    changes = {
        "defaults": {
            "eval": {"split": "test", "num_samples": 2, "temperature": 1, "max_new_tokens": 4000}
        }
    }
    with pytest.raises(InputError, match=r"max_new_tokens"):
        ran(tuned(finished, tmp_path / "s.yaml", **changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("gsm8k")
def test_where_nothing_trains_nothing_is_tuned(finished: Finished, tmp_path: Path) -> None:
    path = tuned(finished, tmp_path / "s.yaml", arms={"base": {}})
    assert command(path, tmp_path / "runs", "--dry-run").exit_code == 0
    _, (outcome,), _ = ran(path, tmp_path / "runs")
    assert outcome.failure is None
    assert manifest(tmp_path / "runs")["tuning"]["chosen"] == []


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_that_grows_so_that_an_earlier_choice_would_change_is_refused(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second arm's best lies beyond the grid, and there the first does better as well."""
    out = tmp_path / "runs"

    def fake(runs: Sequence[RunConfig], out: Path, *_args: object, **_options: object) -> object:
        for run in runs:
            rate, wide = run.train.learning_rate, run.lora.r == 8
            loss = 1 - rate if wide or rate > 0.03 else 1 + abs(rate - 0.01)
            group = {"num_items": 9, "correct": 0.5, "gold_nll": loss, "ended_ratio": 1.0}
            (out / run_id(run)).mkdir(parents=True, exist_ok=True)
            known: dict[str, Any] = dict(finished.lora.result or {})
            own = {"seed": run.seed, "config_hash": config_hash(run)}
            result = {**known, **own, "groups": {"all": {**known["groups"]["all"], **group}}}
            (out / run_id(run) / "result.json").write_text(json.dumps(result))
            answers = [
                {"id": f"{n}", "group": "all", "cluster": None, "scores": {"correct": n % 2}}
                for n in range(9)
            ]
            save_item_scores(out / run_id(run), answers, "correct")
        return [
            Outcome(out / run_id(run), read_json(out / run_id(run) / "result.json")) for run in runs
        ]

    monkeypatch.setattr("schemabank.suites.execution.run_all", fake)
    arms: dict[str, object] = {"lora": {}}
    ran(tuned(finished, tmp_path / "s.yaml", arms=arms, tune=WIDER), out)
    assert manifest(out)["tuning"]["chosen"][0]["factor"] == 1
    settled = (out / "suite.json").read_text()
    wide = {"arm": "lora", "lora": {"r": 8}}
    with pytest.raises(InputError, match=r"has the final run .*search chooses otherwise where"):
        ran(tuned(finished, tmp_path / "s.yaml", arms={**arms, "wide": wide}, tune=WIDER), out)
    assert (out / "suite.json").read_text() == settled


@pytest.mark.usefixtures("gsm8k")
def test_places_whose_choices_meet_share_a_run(finished: Finished, tmp_path: Path) -> None:
    grid = {"train.learning_rate": [1e-2, 2e-2]}
    tune = {"factors": [0.5, 1, 2], "seeds": [7], "extend": 0}
    some: dict[str, Any] = {"arms": {"lora": {}}, "seeds": [1]}
    path = tuned(finished, tmp_path / "s.yaml", **some, grid=grid, tune=tune)
    ran(path, tmp_path / "runs")
    rows = manifest(tmp_path / "runs")["tuning"]["runs"]
    assert len(rows) == 6
    assert len({row["run_id"] for row in rows}) == 4


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_that_was_written_before_there_were_searches_goes_on(
    finished: Finished, tmp_path: Path
) -> None:
    path, out = tiny(finished, tmp_path / "s.yaml", grid={}, seeds=[1]), tmp_path / "runs"
    ran(path, out)
    whole = manifest(out)
    (out / "suite.json").write_text(json.dumps({k: whole[k] for k in ("contrast", "runs")}))
    _, outcomes, _ = ran(path, out)
    assert all(o.reused for o in outcomes)
    assert manifest(out) == whole


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_whose_model_is_not_there_leaves_nothing_that_refuses_the_corrected_one(
    finished: Finished, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"seeds": [1], "grid": {}, "arms": {"lora": {}}}
    lost = {"defaults": {"model": {"name": str(tmp_path / "lost")}}}
    path, out = tmp_path / "s.yaml", tmp_path / "above" / "runs"
    with pytest.raises(InputError, match=r"lost' was not found"):
        ran(tiny(finished, path, **changes, **lost), out)
    assert not out.parent.exists()
    _, (outcome,), _ = ran(tiny(finished, path, **changes), out)
    assert outcome.failure is None
    with pytest.raises(InputError, match="allowed is the same suite or a larger one"):
        ran(tiny(finished, path, **changes, **lost), out)
    assert (out / "suite.json").exists()
