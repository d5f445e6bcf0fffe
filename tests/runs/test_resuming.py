"""A call that ends while runs are evaluated, and the next one, which goes on from there."""

import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from schemabank.cli import app
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.common.files import read_json, sha256
from schemabank.common.writing import write_json
from schemabank.config.file import load_experiment, load_run
from schemabank.engine.programs import Programs
from schemabank.runs import experiment, finish
from schemabank.runs.experiment import run_experiment
from schemabank.runs.folder import ADAPTER, CONFIG, COST, FAILURE, METRICS, RESULT, TRAINED
from schemabank.runs.kept import DIGESTS, STATE, WEIGHTS
from schemabank.runs.members import Member, Outcome
from tinyruns import Finished, Notes, run, snapshot

pytestmark = pytest.mark.usefixtures("gsm8k")


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file of a run that is the same each time."""
    found = {name: digest for name, (_, digest) in snapshot(folder).items()}
    del found[COST]
    return found


def refuse(*_args: object, **_options: object) -> list[Outcome]:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def left(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of an experiment that was interrupted when schemabank was to be evaluated."""
    out = tmp_path_factory.mktemp("left") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        finish_runs = experiment.finish_runs

        def until_schemabank(*args: object, **options: object) -> list[Outcome]:
            (member,) = args[0]
            return (refuse if member.run.arm == "schemabank" else finish_runs)(*args, **options)

        patch.setattr(experiment, "finish_runs", until_schemabank)
        with pytest.raises(KeyboardInterrupt):
            run(finished.config, out)
    return out


@pytest.fixture
def out(left: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(left, tmp_path / "runs"))


def partial(finished: Finished, out: Path) -> Path:
    return out / f".{finished.schemabank.folder.name}.partial"


def test_only_the_evaluation_is_computed_and_no_byte_differs(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = partial(finished, out)
    before = (folder / METRICS).stat()
    assert not any(path.name.endswith(".unfinished-1") for path in out.iterdir())
    (folder / "predictions.jsonl").write_text("half of th")
    (folder / RESULT).write_text("{}")
    shutil.copytree(folder / "adapter", folder / "bank", dirs_exist_ok=True)
    shutil.rmtree(folder / "adapter")
    (folder / "adapter").symlink_to(folder / "bank")
    monkeypatch.setattr(Programs, "launch", refuse)
    outcomes, notes = run(finished.config, out)
    assert [outcome.reused for outcome in outcomes] == [True, True, False]
    again = outcomes[2].folder
    assert f"trained already: {again} (same configuration), to be evaluated" in notes
    assert contents(again) == contents(finished.schemabank.folder)
    assert (again / METRICS).stat().st_mtime_ns == before.st_mtime_ns
    assert {path.name for path in out.iterdir()} == {o.folder.name for o in outcomes}


def test_what_was_evaluated_before_the_call_ended_is_not_evaluated_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs of a cohort, two at once."""
    short = ("arm=lora", "seed=[1, 2, 3]", "engine.slots=2", "train.num_train_epochs=1")
    runs, evaluated = load_experiment(finished.config, short), list[int]()
    whole = run_experiment(runs, tmp_path / "whole", Notes())
    evaluate, most = finish._evaluate, 1

    def counted(members: Sequence[Member], *given: Any) -> Any:  # noqa: ANN401
        if len(evaluated) == most:
            raise KeyboardInterrupt
        evaluated.append(len(members))
        return evaluate(members, *given)

    monkeypatch.setattr(finish, "_evaluate", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(runs, tmp_path / "runs", Notes())
    most = 9
    outcomes = run_experiment(runs, tmp_path / "runs", Notes())
    assert evaluated == [2, 1]
    assert [outcome.reused for outcome in outcomes] == [True, True, False]
    for outcome, undisturbed in zip(outcomes, whole, strict=True):
        assert contents(outcome.folder) == contents(undisturbed.folder)


def test_the_time_of_the_earlier_call_counts(finished: Finished, out: Path) -> None:
    place = partial(finished, out) / TRAINED
    state = read_json(place / STATE)
    assert isinstance(state["training_s"], float)
    assert 0 < state["training_s"] < 60
    write_json(place / STATE, {**state, "training_s": 7200.0})
    write_json(place / DIGESTS, {**read_json(place / DIGESTS), STATE: sha256(place / STATE)})
    outcomes, _ = run(finished.config, out)
    training_s = read_json(outcomes[2].folder / COST)["training_s"]
    assert isinstance(training_s, float)
    assert 7200 <= training_s < 7260  # in tenths of a second


@pytest.mark.parametrize("torn", ["num_steps", WEIGHTS])
def test_a_training_of_other_steps_or_weights_is_refused_though_its_digests_fit(
    torn: str, finished: Finished, out: Path
) -> None:
    place = partial(finished, out) / TRAINED
    if torn == WEIGHTS:
        rows = load_file(place / WEIGHTS)
        save_file({**rows, "lora": rows["lora"][:1]}, place / WEIGHTS)
    else:
        write_json(place / STATE, {**read_json(place / STATE), torn: 1})
    digests = {name: sha256(place / name) for name in (STATE, WEIGHTS)}
    write_json(place / DIGESTS, {**read_json(place / DIGESTS), **digests})
    outcomes, _ = run(finished.config, out)
    assert outcomes[2].failure is not None
    for words in ("steps and weights that are kept of", "remove the folder '.schemabank-"):
        assert words in outcomes[2].failure.message
    shutil.rmtree(place)
    outcomes, _ = run(finished.config, out)
    assert contents(outcomes[2].folder) == contents(finished.schemabank.folder)


def test_a_torn_run_is_trained_again_and_kept_aside(finished: Finished, out: Path) -> None:
    weights = partial(finished, out) / TRAINED / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    outcomes, notes = run(finished.config, out)
    again = outcomes[2].folder
    (said,) = [note for note in notes if note.startswith(f"trained again: {again} (")]
    assert "is not what was written" in said
    assert said.endswith(f"{again.name}.unfinished-1 has what was there")
    assert contents(again) == contents(finished.schemabank.folder)
    assert (again.with_name(f"{again.name}.unfinished-1") / TRAINED / WEIGHTS).exists()


def test_a_folder_without_a_whole_training_is_begun_anew(finished: Finished, out: Path) -> None:
    folder = partial(finished, out)
    (folder / TRAINED).rename(folder / f".{TRAINED}.0.partial")
    outcomes, notes = run(finished.config, out)
    assert not any(note.startswith("trained") for note in notes)
    assert contents(outcomes[2].folder) == contents(finished.schemabank.folder)


def test_what_a_kill_left_in_a_finished_run_goes(finished: Finished, left: Path, out: Path) -> None:
    outcomes, _ = run(finished.config, out)
    folder = outcomes[2].folder
    shutil.copytree(partial(finished, left) / TRAINED, folder / TRAINED)
    again, _ = run(finished.config, out)
    assert again[2].reused
    assert contents(folder) == contents(finished.schemabank.folder)


@pytest.mark.parametrize(
    "failing",
    [
        (OSError("No space left on device"), "disk", "No space left on device"),
        (torch.OutOfMemoryError("no room"), "memory", "eval.batch_size is 4"),
        (MemoryError(), "memory", "eval.batch_size is 4"),
        (InputError("there is no sandbox"), "input", "there is no sandbox"),
        (RuntimeError("broken"), "error", "broken"),
    ],
)
@pytest.mark.parametrize("where", ["finish.evaluate_forms", "finish.probe", "members.save_adapter"])
def test_a_run_that_fails_in_its_evaluation_keeps_its_training(
    where: str,
    failing: tuple[Exception, str, str],
    finished: Finished,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error, kind, words = failing
    if where == "members.save_adapter" and kind not in {"disk", "input"}:
        pytest.skip("a file's contents are small")
    with monkeypatch.context() as patch:
        patch.setattr(f"schemabank.runs.{where}", raising(error))
        outcomes, _ = run(finished.config, out)
    failure, folder = outcomes[2].failure, partial(finished, out)
    assert failure is not None
    assert failure.kind == kind
    assert words in failure.message
    assert outcomes[2].kept.startswith("its training, which the same command only evaluates")
    can_be_evaluated = f"schemabank eval {folder / ADAPTER} --out NEW" in outcomes[2].kept
    assert can_be_evaluated == (where != "members.save_adapter")
    assert outcomes[2].folder == folder
    assert read_json(folder / FAILURE) == failure.row()

    monkeypatch.setattr(Programs, "launch", refuse)
    outcomes, notes = run(finished.config, out)
    again = outcomes[2].folder
    assert f"trained already: {again} (same configuration), to be evaluated" in notes
    assert contents(again) == contents(finished.schemabank.folder)
    assert {path.name for path in out.iterdir()} == {o.folder.name for o in outcomes}


def raising(error: Exception) -> Callable[..., object]:
    def fails(*_args: object, **_options: object) -> object:
        raise error

    return fails


def test_a_kept_training_can_be_evaluated_in_another_way(
    finished: Finished, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the message says: the same words, with a folder for NEW."""
    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish.evaluate_forms", raising(MemoryError()))
        outcomes, _ = run(finished.config, out)
    command = outcomes[2].kept.partition("with other settings: schemabank ")[2]
    asked = shlex.split(command.replace("NEW", str(tmp_path / "new")))
    ended = CliRunner().invoke(app, asked)
    assert ended.exit_code == 0, ended.stderr
    assert load_run(tmp_path / "new" / CONFIG).eval.batch_size == 1
    found, whole = (
        read_json(place / RESULT)["groups"]
        for place in (tmp_path / "new", finished.schemabank.folder)
    )
    assert found["all"]["gold_nll"] == pytest.approx(whole["all"]["gold_nll"], rel=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("where", ["rescale._losses_with_progress", "members.write_json"])
def test_weights_that_are_not_what_the_run_would_end_as_are_not_offered_for_evaluation(
    where: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another scale than would have been chosen, or without the files beside them."""
    full = OSError("No space left on device")
    monkeypatch.setattr(f"schemabank.runs.{where}", raising(full))
    asked = load_experiment(finished.config, ["arm=lora", "rescale.factors=[0.5]"])
    (outcome,) = run_experiment(asked, tmp_path, Notes())
    assert (outcome.folder / ADAPTER).is_dir()
    assert outcome.kept == "its training, which the same command only evaluates"


def test_a_kept_run_for_which_there_is_no_room_keeps_its_training_and_says_so(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        full = torch.OutOfMemoryError("no room")
        patch.setattr("schemabank.runs.training.build_stack", raising(full))
        outcomes, _ = run(finished.config, out)
    folder = partial(finished, out)
    assert outcomes[2].folder == folder
    assert outcomes[2].failure == Failure("memory", "no room")
    assert read_json(folder / FAILURE) == {"kind": "memory", "failure": "no room"}
    assert outcomes[2].kept == "its training, which the same command only evaluates"
    outcomes, _ = run(finished.config, out)
    assert contents(outcomes[2].folder) == contents(finished.schemabank.folder)


def test_the_reason_names_no_place_since_its_file_is_moved_with_the_folder(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish.evaluate_forms", raising(RuntimeError("broken")))
        run(finished.config, out)
    weights = partial(finished, out) / TRAINED / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    outcomes, _ = run(finished.config, out)
    aside = out / f"{outcomes[2].folder.name}.unfinished-1"
    assert read_json(aside / FAILURE) == {"kind": "error", "failure": "broken"}


def test_the_command_that_evaluates_what_is_kept_stands_at_the_end_of_its_line(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it can be copied whole, also where the folder's name has blanks and quotes."""
    monkeypatch.setattr("schemabank.runs.finish.evaluate_forms", raising(MemoryError()))
    place = tmp_path / "it's a $HOME"
    args = ["train", str(finished.config), "--set", "arm=lora", "--out", str(place)]
    ended = CliRunner().invoke(app, args)
    assert ended.exit_code == 1
    (line,) = [line for line in ended.stderr.splitlines() if "schemabank eval " in line]
    (folder,) = place.iterdir()
    command = shlex.split(line[line.index("schemabank eval ") :])
    assert command[2:] == [
        str(folder / ADAPTER),
        *("--out", "NEW", "--set", "eval.batch_size=1"),
    ]


def test_a_run_that_diverges_in_its_evaluation_is_put_aside(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverged = Failure("diverged", "no finite likelihood")
    monkeypatch.setattr("schemabank.runs.finish._not_finite", lambda _: diverged)
    outcomes, _ = run(finished.config, out)
    assert outcomes[2].failure == diverged
    assert outcomes[2].folder.name.endswith(".unfinished-1")
    assert not partial(finished, out).exists()


def test_a_run_of_a_cohort_whose_evaluation_fails_costs_no_training_of_any(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = load_experiment(finished.config, ["arm=lora", "seed=[1, 2]", "engine.slots=2"])
    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish.evaluate_forms", raising(MemoryError()))
        outcomes = run_experiment(asked, tmp_path, Notes())
    for outcome in outcomes:
        assert outcome.failure is not None
        assert "lower it or engine.slots" in outcome.failure.message
    monkeypatch.setattr(Programs, "launch", refuse)
    fewer = ["arm=lora", "seed=[1, 2]", "engine.slots=1"]  # as it says
    asked = load_experiment(finished.config, fewer)
    assert [o.failure for o in run_experiment(asked, tmp_path, Notes())] == [None, None]
