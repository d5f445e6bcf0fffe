import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from runs import SETTINGS, Finished, Notes, snapshot
from schemabank.cli import app
from schemabank.configfile import load_experiment, run_id
from schemabank.errors import InputError
from schemabank.runner import Outcome
from schemabank.suite import Suite, load_suite, plan_suite, result_tables, run_suite

PAPER = Path(__file__).parent.parent / "configs" / "paper"
GRID = {"train.num_train_epochs": [1, 2]}


def write(path: Path, **suite: object) -> Path:
    path.write_text(yaml.safe_dump({"arms": {"lora": {}, "schemabank": {}}, **suite}))
    return path


def tiny(finished: Finished, path: Path, **changes: Any) -> Path:  # noqa: ANN401 -- YAML
    defaults = {key: value for key, value in SETTINGS.items() if key != "arm"}
    model = {"name": str(finished.model), "dtype": "float32"}
    settings = {**defaults, "model": model, **changes.pop("defaults", {})}
    return write(path, defaults=settings, **{"seeds": [1, 2], "grid": GRID, **changes})


def ran(path: Path, out: Path) -> tuple[Suite, list[Outcome], list[str]]:
    suite, notes = load_suite(path), Notes()
    return suite, run_suite(suite, out, notes), notes.lines


def test_the_papers_suite_is_its_forty_configurations() -> None:
    suite = load_suite(PAPER / "suite.yaml", ["engine.device=cpu", "model.dtype=float32"])
    apart = {
        (run.arm, run.seed, run.train.num_train_epochs): run
        for path in PAPER.glob("*epochs.yaml")
        for run in load_experiment(path, ["engine.device=cpu", "model.dtype=float32"]).runs()
    }
    found = {(r.arm, r.seed, r.config.train.num_train_epochs): r.config for r in suite.runs}
    assert len(found) == len(suite.runs) == 40
    assert found.keys() == apart.keys()
    for key, config in found.items():
        resolved = {"prompt": config.task.prompt, "metric": config.task.metric}
        task = apart[key].task.model_copy(update=resolved)
        assert config == apart[key].model_copy(update={"task": task})


def test_the_pages_suite_is_what_it_says(tmp_path: Path) -> None:
    page = (PAPER.parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    text = page.partition("<!-- suite -->\n```yaml\n")[2].partition("```")[0]
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    arms = [run.arm for run in load_suite(path).runs]
    assert {arm: arms.count(arm) for arm in arms} == {
        "zero-shot": 1,
        "eight-shot": 1,
        "lora": 16,
        "lora, all layers": 16,
        "schemabank": 8,
    }


def test_arms_stand_on_defaults_and_the_grid_on_arms(tmp_path: Path) -> None:
    path = write(
        tmp_path / "suite.yaml",
        defaults={"train": {"batch_size": 8, "learning_rate": 1e-4}},
        arms={
            "plain": {"arm": "lora"},
            "wide": {"arm": "lora", "train": {"batch_size": 16}, "lora": {"r": 32}},
        },
        seeds=[3, 4],
        grid={"train.learning_rate": [1e-3, 2e-3], "curriculum.joint.learning_rate": [5e-4]},
    )
    suite = load_suite(path, ["train.weight_decay=0.5"])
    assert len(suite.runs) == 8
    for run in suite.runs:
        assert run.config.train.batch_size == (16 if run.arm == "wide" else 8)
        assert run.config.lora.r == (32 if run.arm == "wide" else 16)
        assert run.config.train.learning_rate == run.point["train.learning_rate"]
        assert run.config.curriculum[-1].learning_rate == 5e-4
        assert run.config.seed == run.seed
        assert run.config.train.weight_decay == 0.5
    assert [row["run_id"] for row in suite.rows()] == [run_id(r.config) for r in suite.runs]


def test_what_is_excluded_is_left_out(tmp_path: Path) -> None:
    exclude = [{"arm": "lora", "train.num_train_epochs": 2}, {"seed": 5, "arm": "schemabank"}]
    path = write(tmp_path / "s.yaml", seeds=[4, 5], grid=GRID, exclude=exclude)
    found = {(r.arm, r.seed, r.config.train.num_train_epochs) for r in load_suite(path).runs}
    assert found == {("lora", 4, 1), ("lora", 5, 1), ("schemabank", 4, 1), ("schemabank", 4, 2)}


def test_a_base_model_is_scored_once_for_each_number_of_shots(tmp_path: Path) -> None:
    arms = {"zero-shot": {"arm": "base"}, "8-shot": {"arm": "base", "eval": {"few_shot": 8}}}
    path = write(tmp_path / "s.yaml", arms={**arms, "lora": {}}, seeds=[1, 2], grid=GRID)
    runs = load_suite(path).runs
    assert [r.arm for r in runs].count("zero-shot") == 1
    assert [r.arm for r in runs].count("8-shot") == 1
    assert [r.arm for r in runs].count("lora") == 4


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ({"arms": {"lora": {"lora": {"rank": 4}}}}, r"s\.yaml:4: unknown key 'lora\.rank'"),
        ({"arms": {"mine": {}}}, r"s\.yaml:2: arm is 'mine', but input should be 'base', 'lora'"),
        ({"arms": {}}, r"arms is \{\}, but .* at least 1 item"),
        ({"defaults": {"preset": "best"}}, r"s\.yaml:\d+: preset is 'best', allowed are sound, p"),
        ({"grid": {"train.lr": [1]}}, r"s\.yaml:\d+: unknown key 'train\.lr'"),
        ({"grid": {"train.batch_size": [0]}}, r"s\.yaml:\d+: train\.batch_size is 0, but"),
        ({"grid": {"train.batch_size": []}}, r"grid\.train\.batch_size is \[\], but"),
        ({"grid": {"seed": [1]}}, r"grid names 'seed', allowed are other settings: use seeds"),
        ({"grid": {"curriculum.last.ratio": [1]}}, r"has no stage 'last', allowed are router, "),
        ({"exclude": [{"seed": 7}]}, r"\{'seed': 7\} matches no run"),
        ({"exclude": [{"seed": 42}]}, r"s\.yaml:\d+: exclude leaves 0 of 2 runs"),
        ({"contrast": {"treatment": "x", "control": "lora"}}, r"contrast\.treatment is 'x', all"),
        ({"arms": {"a": {"arm": "lora"}, "b": {"arm": "lora"}}}, r"have the same settings"),
        ({"seeds": [1, 1]}, r"have the same settings"),
        ({"runs": 3}, r"s\.yaml:\d+: unknown key 'runs'"),
    ],
)
def test_slips_are_named_with_their_line(
    suite: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load_suite(write(tmp_path / "s.yaml", **suite))


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_runs_is_listed_and_is_reused(finished: Finished, tmp_path: Path) -> None:
    path = tiny(finished, tmp_path / "s.yaml", contrast={"treatment": "lora", "control": "lora"})
    suite, outcomes, _ = ran(path, tmp_path / "runs")
    assert len(outcomes) == 8
    assert [o.failure for o in outcomes] == [None] * 8
    listed = json.loads((tmp_path / "runs" / "suite.json").read_text())
    assert listed["runs"] == suite.rows()
    assert listed["contrast"] == {"treatment": "lora", "control": "lora"}
    assert [o.folder.name for o in outcomes] == [row["run_id"] for row in listed["runs"]]
    before = snapshot(tmp_path / "runs")
    before.pop("suite.json")
    _, again, _ = ran(path, tmp_path / "runs")
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
    lost: tuple[int, ...], finished: Finished, tmp_path: Path
) -> None:
    """With 3 slots for 8 runs of two lengths and arms: neighbours and slots change on resuming."""
    path = tiny(finished, tmp_path / "s.yaml", defaults={"engine": {"slots": 3}})
    _, outcomes, _ = ran(path, tmp_path / "runs")
    records = ("predictions.jsonl", "result.json", "metrics.jsonl", "adapter/")
    shutil.copytree(tmp_path / "runs", tmp_path / "whole")
    for index in lost:
        shutil.rmtree(outcomes[index].folder)
    ran(path, tmp_path / "runs")
    for name, (_, digest) in snapshot(tmp_path / "whole").items():
        if any(record in name for record in records):
            assert snapshot(tmp_path / "runs")[name][1] == digest, name


def test_a_suite_that_is_killed_at_any_moment_ends_with_the_very_bytes(
    finished: Finished, tmp_path: Path
) -> None:
    """``SUITE_KILLS=20`` kills it more often."""
    path = tiny(finished, tmp_path / "s.yaml", defaults={"engine": {"slots": 3}})
    program = [sys.executable, "-c", "from schemabank.cli import main; main()", "suite", str(path)]
    environment = {**os.environ, "SCHEMABANK_DATA": str(finished.data), "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> "subprocess.Popen[bytes]":
        quiet = subprocess.DEVNULL
        command = [*program, "--out", str(out)]
        return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)

    began = time.monotonic()
    assert start(tmp_path / "whole").wait() == 0
    whole_s = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while kills < int(os.environ.get("SUITE_KILLS", "3")):
        process = start(tmp_path / "runs")
        try:
            assert process.wait(rng.uniform(0, whole_s)) == 0
            shutil.rmtree(tmp_path / "runs")  # it was through before: once more from the start
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert start(tmp_path / "runs").wait() == 0
    for place in sorted((tmp_path / "whole").rglob("*")):
        if place.is_file() and place.name not in {"cost.json", "suite.json"}:
            again = tmp_path / "runs" / place.relative_to(tmp_path / "whole")
            assert again.read_bytes() == place.read_bytes(), place


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
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"suite.json"}


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_may_grow_but_not_forget(finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    ran(tiny(finished, tmp_path / "s.yaml", seeds=[1]), out)
    _, outcomes, _ = ran(tiny(finished, tmp_path / "s.yaml", seeds=[1, 2]), out)
    assert [o.reused for o in outcomes].count(True) == 4
    before = snapshot(out)
    with pytest.raises(InputError, match=r"holds a suite with the run .*which this one has not"):
        ran(tiny(finished, tmp_path / "s.yaml", seeds=[2]), out)
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
def test_a_plan_says_what_is_to_come_and_writes_nothing(finished: Finished, tmp_path: Path) -> None:
    suite = load_suite(tiny(finished, tmp_path / "s.yaml"))
    (title, _, arms), (_, head, cohorts) = plan_suite(suite, tmp_path / "runs", Notes())
    assert title.startswith("8 runs in ")
    assert arms == [["lora", "4", "2", "0"], ["schemabank", "4", "2", "0"]]
    assert len(cohorts) == 1
    assert dict(zip(head, cohorts[0], strict=True))["steps"] == "72"
    assert not (tmp_path / "runs").exists()


def test_a_plan_of_what_is_not_there_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", defaults={"model": {"name": str(tmp_path / "none")}})
    notes = Notes()
    tables = plan_suite(load_suite(path), tmp_path / "runs", notes)
    assert len(tables) == 1
    assert notes.lines[-1].startswith("no cohorts and no expected time: ")


def test_the_command_lists_forty_runs_as_json() -> None:
    ran = CliRunner().invoke(app, ["suite", str(PAPER / "suite.yaml"), "--dry-run", "--json"])
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)
    assert len({row["run_id"] for row in rows}) == len(rows) == 40
    assert rows[0].keys() == {"run_id", "arm", "seed", "settings"}
