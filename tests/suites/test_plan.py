"""What running a suite refuses before it computes anything, its plan refuses in the same words."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from schemabank.cli import main
from schemabank.common.extras import EXTRAS
from schemabank.config.file import run_id
from schemabank.runs import experiment
from schemabank.runs.distill import TEACHERS, all_teachers
from schemabank.runs.folder import PREDICTIONS, RESULT, claimed
from schemabank.suites.plan import plan_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, snapshot, write_gsm8k
from tinysuites import ran, tiny

SOME: dict[str, Any] = {"arms": {"lora": {}}, "seeds": [1], "grid": {}}
TUNE = {"factors": [1, 2], "seeds": [1001], "extend": 0}
Program = Callable[..., tuple[int, str, str]]


@dataclass
class World:
    """A suite that is to be run, and where."""

    finished: Finished
    place: Path
    patch: pytest.MonkeyPatch
    exits: ExitStack
    options: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.place / "suite.yaml"

    @property
    def out(self) -> Path:
        return self.place / "runs"

    def tiny(self, **changes: Any) -> None:  # noqa: ANN401 -- YAML
        """Write the suite."""
        tiny(self.finished, self.file, **{**SOME, **changes})

    def run_folders(self) -> list[Path]:
        """Where its runs are to be."""
        return [self.out / run_id(run.config) for run in load_suite(self.file).runs]

    def hide(self, extra: str) -> None:
        for name in EXTRAS[extra]:
            self.patch.setitem(sys.modules, name, None)


@pytest.fixture
def world(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gsm8k: Path
) -> Iterator[World]:
    del gsm8k
    with ExitStack() as exits:
        yield World(finished, tmp_path, monkeypatch, exits)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["schemabank", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def another_suite(world: World) -> None:
    world.tiny(seeds=[2])
    ran(world.file, world.out)
    world.tiny()


def another_contrast(world: World) -> None:
    declared = {"treatment": "lora", "control": "base"}
    arms: dict[str, Any] = {"arms": {"lora": {}, "base": {}}}
    world.tiny(**arms, contrast=declared)
    ran(world.file, world.out)
    world.tiny(**arms)


def no_folder(world: World) -> None:
    world.tiny()
    world.out.write_text("a file")


def other_data(world: World) -> None:
    world.tiny()
    ran(world.file, world.out)
    more = write_gsm8k(world.place / "data", num_train=20)
    world.patch.setenv("SCHEMABANK_DATA", str(more))


def other_data_for_a_trial(world: World) -> None:
    world.tiny(tune=TUNE)
    ran(world.file, world.out)
    world.patch.setenv("SCHEMABANK_DATA", str(write_gsm8k(world.place / "data", num_train=20)))


def other_final_runs(world: World) -> None:
    """As where the search chooses otherwise since the suite has grown."""
    world.tiny(tune=TUNE)
    ran(world.file, world.out)
    manifest = json.loads((world.out / "suite.json").read_text())
    (final,) = manifest["runs"]
    shutil.move(world.out / final["run_id"], world.out / "lora-seed1-0123456789")
    final["run_id"] = "lora-seed1-0123456789"
    (world.out / "suite.json").write_text(json.dumps(manifest))


def no_clusters(world: World) -> None:
    sizes = {"train_size": 8, "validation_size": 4, "test_size": 4}
    world.tiny(defaults={"task": {"name": "conditional", "conditional": sizes}})
    (folder,) = world.run_folders()
    folder.mkdir(parents=True)
    (folder / RESULT).touch()
    (folder / PREDICTIONS).write_text('{"id": "a", "cluster": ""}\n')


def no_run(world: World) -> None:
    world.tiny()
    (folder,) = world.run_folders()
    folder.mkdir(parents=True)


def damaged(world: World) -> None:
    no_run(world)
    (world.run_folders()[0] / RESULT).write_text("{}")


def in_use(world: World) -> None:
    world.tiny()
    (folder,) = world.run_folders()
    world.exits.enter_context(claimed(folder))


def no_folder_for_a_run(world: World) -> None:
    world.tiny()
    (folder,) = world.run_folders()
    folder.parent.mkdir()
    (folder.parent / f".{folder.name}.partial").write_text("a file")


def damaged_teacher(world: World) -> None:
    taught = {"arm": "lora", "distill": {"teachers": 1, "top_k": 4}}
    world.tiny(arms={"taught": taught})
    (teacher,) = all_teachers([run.config for run in load_suite(world.file).runs])
    folder = world.out / TEACHERS / run_id(teacher)
    folder.mkdir(parents=True)
    (folder / RESULT).write_text("{}")


def no_extra(world: World) -> None:
    world.hide("scores")
    world.tiny(defaults={"task": {"name": "gsm8k", "metric": "rouge_l"}})


def no_extra_for_final_runs(world: World) -> None:
    world.tiny(tune=TUNE)
    ran(world.file, world.out)
    (world.out / "suite.json").unlink()
    no_extra(world)


def no_extra_for_an_arm_that_is_not_tuned(world: World) -> None:
    """It is missed before the search, which may take days."""
    world.hide("scores")
    world.tiny(arms={"lora": {}, "base": {"task": {"metric": "rouge_l"}}}, tune=TUNE)


def no_tracker(world: World) -> None:
    world.hide("tensorboard")
    world.tiny(defaults={"engine": {"trackers": ["tensorboard"]}})


def no_part(world: World) -> None:
    world.tiny(
        arms={"lora": {}, "base": {}},
        contrast={"treatment": "lora", "control": "base", "group": "seen"},
    )


def no_gpu(world: World) -> None:
    world.patch.setattr(torch.cuda, "device_count", lambda: 0)
    world.tiny()
    world.options = ["--launch", "gpus"]


def for_a_cpu(world: World) -> None:
    world.tiny(defaults={"engine": {"device": "cpu"}})
    world.options = ["--launch", "gpus"]


def no_ray(world: World) -> None:
    world.hide("ray")
    world.tiny()
    world.options = ["--launch", "ray"]


def no_folder_for_workers(world: World) -> None:
    no_folder(world)
    world.options = ["--workers", "2", "--set", "engine.device=cpu"]


def no_model(world: World) -> None:
    world.tiny(defaults={"model": {"name": str(world.place / "none")}})


def no_data(world: World) -> None:
    world.tiny()
    world.patch.setenv("SCHEMABANK_DATA", str(world.place))


def too_long(world: World) -> None:
    """A call that searches looks at the final runs first, whose prompts are others."""
    sampled = {"split": "test", "num_samples": 2, "temperature": 1, "max_new_tokens": 4000}
    world.tiny(tune=TUNE, defaults={"eval": sampled})


# What is refused, a part of the sentence, and whether that is known before a model is loaded.
REFUSED: dict[Callable[[World], None], tuple[str, bool]] = {
    another_suite: ("holds a suite with the run", True),
    another_contrast: ("contrast is None, but the suite in", True),
    no_folder: ("is not a folder", True),
    other_data: ("the task's data is not the one", True),
    other_data_for_a_trial: ("the task's data is not the one", True),
    other_final_runs: ("now has other settings", True),
    no_clusters: ("items of conditional with one word", True),
    no_run: ("exists but holds no result.json", True),
    damaged: ("result.json", True),
    in_use: ("is in use by another run", True),
    no_folder_for_a_run: ("is no folder, but that is where the run is written", True),
    damaged_teacher: ("result.json", True),
    no_extra: ("the metric 'rouge_l' of the task gsm8k needs", True),
    no_extra_for_final_runs: ("the metric 'rouge_l' of the task gsm8k needs", True),
    no_extra_for_an_arm_that_is_not_tuned: ("the metric 'rouge_l' of the task gsm8k needs", True),
    no_tracker: ("engine.trackers names 'tensorboard'", True),
    no_part: ("contrast.group is 'seen'", True),
    no_gpu: ("PyTorch sees no GPU", True),
    for_a_cpu: ("--launch is gpus, but engine.device is 'cpu'", True),
    no_ray: ("--launch ray needs the package", True),
    no_folder_for_workers: ("is not a folder", True),
    no_model: ("none", False),
    no_data: ("SCHEMABANK_DATA", False),
    too_long: ("max_new_tokens", False),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.__name__)
def test_what_running_a_suite_refuses_its_plan_refuses(
    case: Callable[[World], None], world: World, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    case(world)
    words, before_loading = REFUSED[case]
    monkeypatch.setattr(experiment, "attempt", pytest.fail)
    command = ["suite", world.file, "--out", world.out, *world.options]
    before = snapshot(world.place)
    ended = program(*command, "--dry-run")
    listed = program(*command, "--dry-run", "--json")
    assert snapshot(world.place) == before
    code, _, said = program(*command)
    (sentence,) = [line for line in said.splitlines() if line.startswith("schemabank: ")]
    assert code == 2
    assert words in sentence
    assert (ended[0], ended[2].splitlines()[-1]) == (2, sentence)
    assert "runs in" in ended[1], "what is known of its arms"
    assert ("cohorts, as if" in ended[1]) == (case is in_use), "that ends by itself"
    assert json.loads(listed[1]), "its runs"
    if before_loading:
        assert (listed[0], listed[2].splitlines()[-1]) == (2, sentence)
    else:
        assert listed[0] == 0


def test_what_finished_runs_lack_now_is_refused_neither_by_a_call_nor_by_its_plan(
    world: World,
) -> None:
    model = shutil.copytree(world.finished.model, world.place / "model")
    world.tiny(defaults={"model": {"name": str(model), "dtype": "float32"}})
    ran(world.file, world.out)
    model.rename(world.place / "elsewhere")
    notes = Notes()
    plan = plan_suite(load_suite(world.file), world.out, notes)
    assert plan.refusal is None
    assert [title.partition(" ")[0] for title, _, _ in plan.tables()] == ["1"], "no empty table"
    assert any(
        line.startswith("finished runs without an expected time: 1 (") for line in notes.lines
    )
    (outcome,) = ran(world.file, world.out)[1]
    assert outcome.reused


def test_a_plan_of_runs_that_another_call_is_writing_shows_all_that_it_shows_without_it(
    world: World, program: Program
) -> None:
    """The call is refused, but only until the other one has ended."""
    taught = {"arm": "lora", "distill": {"teachers": 1, "top_k": 4}}
    world.tiny(arms={"taught": taught})
    command = ["suite", world.file, "--out", world.out, "--dry-run"]
    (free, listed) = program(*command), program(*command, "--json")
    (teacher,) = all_teachers([run.config for run in load_suite(world.file).runs])
    for folder in [*world.run_folders(), world.out / TEACHERS / run_id(teacher)]:
        with claimed(folder):
            code, out, said = program(*command)
            assert (code, out) == (2, free[1])
            assert f"{str(folder)!r} is in use by another run" in said.splitlines()[-1]
            assert program(*command, "--json")[:2] == (2, listed[1])
    assert free[1].count("cohorts, as if") == 2


def test_a_plan_that_is_refused_shows_how_far_the_search_is(world: World, program: Program) -> None:
    """As in an archive that cannot be written."""
    world.tiny(tune=TUNE)
    command = ["suite", world.file, "--out", world.out]
    ran(world.file, world.out)
    (whole, rows) = (program(*command, "--dry-run", *more) for more in ([], ["--json"]))
    assert [row["phase"] for row in json.loads(rows[1])] == ["tune", "tune", "final"]
    changes: tuple[dict[str, Any], ...] = (
        {"seeds": [2]},
        {"seeds": [2], "tune": {**TUNE, "factors": [1, 3]}},
    )
    for change, phases in zip(changes, (["tune", "tune", "final"], ["tune", "tune"]), strict=True):
        world.tiny(**{"tune": TUNE, **change})
        code, out, _ = program(*command, "--dry-run")
        assert code == 2
        assert ("1 final runs in" in out) == ("final" in phases)
        code, out, _ = program(*command, "--dry-run", "--json")
        assert (code, [row["phase"] for row in json.loads(out)]) == (2, phases)
    (trial, _) = json.loads(rows[1])[:2]
    (world.out / trial["run_id"] / RESULT).write_text("{}")
    world.tiny(tune=TUNE)
    code, out, _ = program(*command, "--dry-run", "--json")
    assert (code, json.loads(out)) == (2, json.loads(rows[1])[:2])
    assert "2 tuning runs in" in program(*command, "--dry-run")[1]
    assert "learning rates on validation" in whole[1]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_plan_starts_no_tracker_and_the_call_says_what_one_raises(
    as_json: bool, world: World, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a key that the service does not take."""
    began = list[str]()

    def login(**_: object) -> bool:
        raise RuntimeError("API key verification failed")

    def setup() -> SimpleNamespace:
        began.append("wandb")
        return SimpleNamespace(settings=SimpleNamespace(mode="online"))

    library = SimpleNamespace(setup=setup, login=login)
    monkeypatch.setitem(sys.modules, "wandb", library)
    world.tiny(defaults={"engine": {"trackers": ["wandb"]}})
    command = ["suite", world.file, "--out", world.out]
    assert program(*command, "--dry-run", *["--json"] * as_json)[0] == 0
    assert began == []
    code, _, said = program(*command)
    assert (code, began) == (2, ["wandb"])
    assert "engine.trackers names 'wandb', which cannot be made ready" in said.splitlines()[-1]
    assert not world.out.exists()


def test_a_run_that_has_trained_needs_no_teachers(world: World) -> None:
    """As for a call that runs it: one that is damaged is then no reason to refuse."""
    damaged_teacher(world)
    (folder,) = world.run_folders()
    (folder.parent / f".{folder.name}.partial" / "trained").mkdir(parents=True)
    plan = plan_suite(load_suite(world.file), world.out, Notes(), with_cohorts=False)
    assert plan.refusal is None


def test_a_plan_for_workers_says_that_they_share_the_cohorts(
    world: World, program: Program
) -> None:
    world.tiny(defaults={"engine": {"device": "cpu"}})
    code, out, err = program("suite", world.file, "--out", world.out, "--dry-run", "--workers", "2")
    assert (code, "cohorts, as if" in out) == (0, True)
    assert "the cohorts are those of one process; workers share them out" in err
    assert not world.out.exists()


def test_a_plan_for_a_cluster_starts_none(world: World, program: Program) -> None:
    """Ray would start one on this machine if it had no address."""
    world.patch.setitem(sys.modules, "ray", SimpleNamespace())  # to call it for anything would fail
    world.tiny(defaults={"engine": {"device": "cpu"}})
    command = ["suite", world.file, "--out", world.out, "--dry-run", "--launch", "ray"]
    assert "cohorts, as if" in program(*command)[1]
    assert program(*command, "--json")[0] == 0


def test_workers_may_share_a_run_that_another_call_writes(world: World, program: Program) -> None:
    in_use(world)
    command = ["suite", world.file, "--out", world.out, "--set", "engine.device=cpu"]
    assert program(*command, "--dry-run", "--json")[0] == 2
    assert program(*command, "--dry-run", "--json", "--workers", "2")[0] == 0
