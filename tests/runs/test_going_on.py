"""Calls that are interrupted in the middle of a training, and the next ones, which go on."""

import gc
import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from damage import flip
from schemabank.common.files import read_json
from schemabank.common.writing import write_json
from schemabank.config.file import load_experiment
from schemabank.engine.programs import Programs
from schemabank.runs import checkpointing, experiment, grouping, kept
from schemabank.runs.checkpoints import Begun, checkpoints_in
from schemabank.runs.distill import TEACHERS
from schemabank.runs.experiment import run_experiment
from schemabank.runs.folder import ADAPTER, CHECKPOINTS, COST, FAILURE
from schemabank.runs.kept import STATE, WEIGHTS
from schemabank.runs.members import BEGUN_KEPT, Outcome
from schemabank.runs.watching import RunWatch
from tinyruns import Finished, Notes, run, snapshot, wait_for_checkpoints

pytestmark = pytest.mark.usefixtures("gsm8k", "every_step")

# Four runs of three methods and other lengths in two slots.
MANY = (
    *("arm=[lora, schemabank, swap]", "seed=[1, 2]", "engine.slots=2"),
    *("train.num_train_epochs=2", "swap.num_branches=2", "swap.branch_ratio=0.5"),
)
THREE = ("arm=lora", "seed=[1, 2, 3]", "train.num_train_epochs=1")
TAUGHT = ("arm=lora", "distill.teachers=1", "train.num_train_epochs=1")


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a checkpoint before every step, and wait until it is written."""
    save_every_step(monkeypatch)


def save_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_checkpoints(monkeypatch)
    monkeypatch.setattr("os.fsync", lambda _: None)  # what takes long on some disks
    monkeypatch.setattr(checkpointing, "how_often", lambda _: (None, 1))


def interrupted(
    finished: Finished, out: Path, settings: Sequence[str] = (), *, after: int
) -> list[str]:
    """Run until so many programs were launched; return what was said."""
    launch, launched, notes = Programs.launch, count(1), Notes()

    def until(*args: object) -> object:
        if next(launched) > after:
            raise KeyboardInterrupt
        return launch(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "launch", until)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(load_experiment(finished.config, settings), out, notes)
    return notes.lines


@pytest.fixture(scope="module")
def seven(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run lora after seven steps, for tests to copy."""
    out = tmp_path_factory.mktemp("seven") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        save_every_step(patch)
        interrupted(finished, out, ["arm=lora"], after=7)
    return out


@pytest.fixture(scope="module")
def taught(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher that nothing disturbed."""
    out = tmp_path_factory.mktemp("taught") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        run(finished.config, out, *TAUGHT)
    return out


@pytest.fixture(scope="module")
def three(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs in two slots that nothing disturbed."""
    out = tmp_path_factory.mktemp("three") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        patch.setattr(grouping, "num_slots", lambda *_: 2)
        run(finished.config, out, *THREE)
    return out


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file that is the same each time."""
    found = {name: digest for name, (_, digest) in snapshot(folder).items()}
    return {name: digest for name, digest in found.items() if Path(name).name != COST}


def resumed(notes: Sequence[str]) -> list[str]:
    return [note.partition(":")[0] for note in notes if note.startswith("resumed at step")]


def test_a_run_goes_on_at_every_stage_to_the_same_bytes(finished: Finished, tmp_path: Path) -> None:
    """Interrupted again and again: near the end of lora, between both, in all stages of banks."""
    said = []
    for after in (13, 5, 2, 5, 5):
        said += interrupted(finished, tmp_path / "runs", after=after)
    _, notes = run(finished.config, tmp_path / "runs")
    assert contents(tmp_path / "runs") == contents(finished.out)
    steps = resumed([*said, *notes])
    assert steps == [f"resumed at step {step} of 18" for step in (13, 2, 7, 12)]
    assert not any(path.name.startswith(".") for path in (tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("settings", "moments"), [(MANY, (3, 11, 17, 10)), (TAUGHT, (2, 3))], ids=["many", "taught"]
)
def test_a_cohort_with_refilled_slots_ends_with_the_same_bytes(
    settings: Sequence[str],
    moments: Sequence[int],
    finished: Finished,
    taught: Path,
    tmp_path: Path,
) -> None:
    whole = taught if settings == TAUGHT else tmp_path / "whole"
    if settings != TAUGHT:
        run(finished.config, whole, *settings)
    said = []
    for after in moments:
        said += interrupted(finished, tmp_path / "parts", settings, after=after)
    _, notes = run(finished.config, tmp_path / "parts", *settings)
    assert len(resumed([*said, *notes])) >= len(moments)
    assert contents(tmp_path / "parts") == contents(whole)


def test_what_runs_began_with_is_held_by_their_cohort_alone(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is three times as large as the weights that they end as."""
    interrupted(finished, tmp_path / "runs", MANY, after=11)
    look, held = RunWatch.look, list[int]()

    def looked(watch: RunWatch) -> None:
        look(watch)
        begun = [each for each in gc.get_objects() if isinstance(each, Begun)]
        held.append(sum(len(each.standing.rows) for each in begun))
        assert begun

    monkeypatch.setattr(RunWatch, "look", looked)
    run(finished.config, tmp_path / "runs", *MANY)
    assert max(held) == 0


def test_a_call_goes_on_in_as_many_slots_as_before(
    finished: Finished, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU the number follows from the free memory, and with another one bits would differ."""
    monkeypatch.setattr(grouping, "num_slots", lambda *_: 2)
    interrupted(finished, tmp_path, THREE, after=3)
    for slots in (1, 3):
        monkeypatch.setattr(grouping, "num_slots", lambda *_, now=slots: now)
        said = interrupted(finished, tmp_path, THREE, after=2)
        assert "2 runs at once, as before the call was interrupted" in said
    outcomes, _ = run(finished.config, tmp_path, *THREE)
    assert contents(tmp_path) == contents(three)
    assert [read_json(outcome.folder / COST)["slots"] for outcome in outcomes] == [2, 2, 2]


@pytest.fixture
def left(seven: Path, finished: Finished, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of runs, and that of the run lora, which was interrupted after seven steps."""
    out = Path(shutil.copytree(seven, tmp_path / "runs"))
    folder = out / f".{finished.lora.folder.name}.partial"
    assert [place.name for place in checkpoints_in(folder)] == ["step-7", "step-6"]
    return out, folder


def spoil_settings(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("slots: auto", "slots: 2"))


def spoil_versions(folder: Path) -> None:
    for place in checkpoints_in(folder):
        write_json(place / STATE, {**read_json(place / STATE), "version": 0})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            spoil_settings,
            "has other settings, allowed are the same: settings.engine.slots was 2, now it is "
            "'auto'",
        ),
        (spoil_versions, "has version 0 of checkpoints, allowed is 1: it is trained again"),
    ],
)
def test_a_run_begins_again_where_no_checkpoint_is_its_own(
    spoil: Callable[[Path], None], said: str, left: tuple[Path, Path], finished: Finished
) -> None:
    out, folder = left
    spoil(folder)
    (outcome,), notes = run(finished.config, out, "arm=lora")
    assert [said in note for note in notes if note.startswith("trained again: ")] == [True]
    assert resumed(notes) == []
    assert contents(outcome.folder) == contents(finished.lora.folder)
    assert (out / f"{outcome.folder.name}.unfinished-1" / CHECKPOINTS).is_dir()


def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(
    left: tuple[Path, Path], finished: Finished
) -> None:
    out, folder = left
    flip(checkpoints_in(folder)[0] / WEIGHTS)
    (outcome,), notes = run(finished.config, out, "arm=lora")
    (said,) = [note for note in notes if note.startswith("resumed at step 6 of 18: ")]
    assert "a newer checkpoint is not used" in said
    assert "step-7' is not what was written, allowed are whole files)" in said
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_other_moments_of_checkpoints_change_nothing(
    left: tuple[Path, Path], finished: Finished
) -> None:
    settings = ["arm=lora", "engine.checkpoint_minutes=null", "engine.checkpoint_steps=3"]
    (outcome,), notes = run(finished.config, left[0], *settings)
    assert resumed(notes) == ["resumed at step 7 of 18"]
    ours, theirs = contents(outcome.folder), contents(finished.lora.folder)
    own = {name for name in ours if Path(name).suffix == ".yaml"}  # settings as they were stated
    assert {n: d for n, d in ours.items() if n not in own} == {
        n: d for n, d in theirs.items() if n not in own
    }
    again, notes = run(finished.config, left[0], "arm=lora")
    assert again[0].reused


def test_what_came_after_a_checkpoint_goes(left: tuple[Path, Path], finished: Finished) -> None:
    out, folder = left
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7')
    (folder / "stages" / "3-joint").mkdir(parents=True)
    (folder / "adapter").symlink_to(out)
    (outcome,), _ = run(finished.config, out, "arm=lora")
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_a_half_written_first_one_is_none(left: tuple[Path, Path], finished: Finished) -> None:
    out, folder = left
    for number, place in enumerate(checkpoints_in(folder)):
        place.rename(folder / CHECKPOINTS / f".step-7.{number}.partial")
    (outcome,), notes = run(finished.config, out, "arm=lora")
    assert not any(note.startswith(("trained", "resumed")) for note in notes)
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_the_run_of_another_seed_takes_none(left: tuple[Path, Path], finished: Finished) -> None:
    _, folder = left
    notes = interrupted(finished, left[0], ["arm=lora", "seed=7"], after=1)
    assert resumed(notes) == []
    assert len(checkpoints_in(folder)) == 2


def failing(
    finished: Finished, out: Path, settings: Sequence[str], error: Exception, *, after: int
) -> Outcome:
    """Run until the device fails after so many programs."""
    launch, launched = Programs.launch, count(1)

    def until(*args: object) -> object:
        if next(launched) > after:
            raise error
        return launch(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "launch", until)
        (outcome,), _ = run(finished.config, out, *settings)
    return outcome


def test_a_run_whose_device_failed_goes_on_with_the_next_call(
    finished: Finished, tmp_path: Path
) -> None:
    broken = RuntimeError("CUDA error: unspecified launch failure")
    failed = failing(finished, tmp_path, ["arm=lora"], broken, after=7)
    assert failed.failure is not None
    assert failed.failure.kind == "error"
    assert failed.kept == BEGUN_KEPT
    assert failed.folder == tmp_path / f".{finished.lora.folder.name}.partial"
    assert read_json(failed.folder / FAILURE) == failed.failure.row()
    (outcome,), notes = run(finished.config, tmp_path, "arm=lora")
    assert resumed(notes) == ["resumed at step 7 of 18"]
    assert contents(outcome.folder) == contents(finished.lora.folder)
    assert [path.name for path in tmp_path.iterdir()] == [outcome.folder.name]


def test_a_run_that_diverged_begins_again(finished: Finished, tmp_path: Path) -> None:
    (failed,), _ = run(finished.config, tmp_path, "arm=lora", "train.learning_rate=1e30")
    assert failed.failure is not None
    assert failed.failure.is_settled
    assert failed.kept == ""
    assert failed.folder.name.endswith(".unfinished-1")
    assert not (failed.folder / CHECKPOINTS).exists()


@pytest.mark.parametrize(
    "more",
    [
        ["arm=lora", "seed=[42, 7]"],
        ["arm=[lora, swap]", "swap.num_branches=2", "swap.branch_ratio=0.5"],
    ],
    ids=["seeds", "arms"],
)
def test_an_experiment_that_grows_goes_on(
    more: Sequence[str], left: tuple[Path, Path], finished: Finished
) -> None:
    outcomes, notes = run(finished.config, left[0], *more)
    assert resumed(notes) == ["resumed at step 7 of 18"]
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert contents(outcomes[0].folder) == contents(finished.lora.folder)


def test_a_cohort_that_grows_goes_on(
    finished: Finished, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "num_slots", lambda *_: 2)
    interrupted(finished, tmp_path, THREE, after=8)
    outcomes, notes = run(finished.config, tmp_path, THREE[0], "seed=[1, 2, 3, 4]", THREE[2])
    assert len(resumed(notes)) == 1
    assert sum(note.startswith("trained already: ") for note in notes) == 2
    for outcome in outcomes[:3]:
        assert contents(outcome.folder) == contents(three / outcome.folder.name)


def test_a_larger_rank_beside_a_run_leaves_it_another_room(
    left: tuple[Path, Path], finished: Finished
) -> None:
    notes = interrupted(finished, left[0], ["arm=[lora, shrink]"], after=1)
    (said,) = [note for note in notes if note.startswith("trained again: ")]
    assert "room.rank was 4, now it is 16" in said


def test_another_processor_is_told(
    left: tuple[Path, Path], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "processor_name", lambda: "Abacus")
    notes = interrupted(finished, left[0], ["arm=lora"], after=1)
    assert resumed(notes) == ["resumed at step 7 of 18"]
    (said,) = [note for note in notes if " and goes on on Abacus with " in note]
    assert said.partition(": it began on ")[0].endswith(finished.lora.folder.name)


def test_a_run_does_not_go_on_with_another_teacher(finished: Finished, tmp_path: Path) -> None:
    interrupted(finished, tmp_path, TAUGHT, after=6 + 3)
    (weights,) = tmp_path.glob(f"{TEACHERS}/*/{ADAPTER}/adapter_model.safetensors")
    save_file({name: 1.5 * row for name, row in load_file(weights).items()}, weights)
    notes = interrupted(finished, tmp_path, TAUGHT, after=1)
    assert resumed(notes) == []
    (said,) = [note for note in notes if note.startswith("trained again: ")]
    assert f"teachers.{weights.parents[1].name} was 'sha256:" in said


def test_a_run_that_has_learned_needs_no_teacher_for_its_evaluation(
    finished: Finished, taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(taught / TEACHERS, tmp_path / TEACHERS)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "finish_runs", stop)
        with pytest.raises(KeyboardInterrupt):
            run(finished.config, tmp_path, *TAUGHT)
    shutil.rmtree(tmp_path / TEACHERS)
    monkeypatch.setattr(Programs, "launch", None)
    (outcome,), notes = run(finished.config, tmp_path, *TAUGHT)
    assert contents(outcome.folder) == contents(taught / outcome.folder.name)
    assert not any("first, in" in note for note in notes)
    assert not (tmp_path / TEACHERS).exists()


def stop(*_args: object, **_options: object) -> None:
    raise KeyboardInterrupt
