"""Runs of a program that is interrupted, and the same call, which goes on with them."""

import errno
import os
import re
import shutil
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import schemabank as sb
from schemabank.engine.cohort import Cohort
from schemabank.engine.programs import Programs
from schemabank.runs import programsaves, resuming, steplogs, together
from schemabank.runs.checkpoints import checkpoints_in
from schemabank.runs.folder import CHECKPOINTS, CONFIG, METRICS, TRAINED, claimed, has_trained
from schemabank.runs.together import RunResult
from tiny import tiny_model, tiny_tokenizer
from tinyruns import wait_for_checkpoints

PAIRS = [(f"{i}+{i}=", f"{2 * i}") for i in range(12)]
HELD_OUT = [("20+20=", "40"), ("7+8=", "15")]
MEASURED = sb.ValidationSettings(eval_steps=1, early_stopping_patience=1)


def config(arm: str = "lora", **changes: Any) -> sb.RunConfig:  # noqa: ANN401
    train = {"max_steps": 5, "learning_rate": 1e-2, "batch_size": 4, **changes.pop("train", {})}
    own = {"arm": arm, "lora": {"r": 4, "lora_alpha": 10}, "train": train} | changes
    own["engine"] = {"checkpoint_steps": 1}
    if arm == "schemabank":
        own["bank"] = {"num_schemas": 8, "rank": 4}
    return sb.RunConfig.model_validate(own)


RUNS = {
    "one": config(seed=1),
    "a / b": config(seed=2, train={"max_steps": 7}),
    "banks": config("schemabank", seed=3),
    "swap": config("swap", swap={"num_branches": 2, "branch_ratio": 0.4}),
}
# The second gets worse at once and stops; the first keeps weights from before its end.
VALIDATED = {
    "slow": config(train={"max_steps": 8, "learning_rate": 3e-2}),
    "wild": config(train={"max_steps": 8, "learning_rate": 3.0}),
    "banks": config("schemabank", seed=3, train={"max_steps": 12}),
}


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for every checkpoint to be written, so that none is left out."""
    wait_for_checkpoints(monkeypatch)
    monkeypatch.setattr("os.fsync", lambda _: None)  # what takes long on some disks


def train(
    runs: Mapping[str, sb.RunConfig],
    folder: Path | None,
    *,
    slots: int,
    **more: Any,  # noqa: ANN401 -- of several types
) -> dict[str, RunResult]:
    given = {"examples": PAIRS, "quiet": True, **more}
    return sb.train_cohort(
        tiny_model("llama"), tiny_tokenizer(), runs, slots=slots, checkpoints=folder, **given
    )


def interrupted(
    runs: Mapping[str, sb.RunConfig],
    folder: Path,
    *,
    after: int,
    **more: Any,  # noqa: ANN401 -- of several types
) -> None:
    """Train until so many programs were launched."""
    launch, launched = Programs.launch, count(1)

    def until(*args: Any) -> object:  # noqa: ANN401 -- of several types
        if next(launched) > after:
            raise KeyboardInterrupt
        return launch(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "launch", until)
        with pytest.raises(KeyboardInterrupt):
            train(runs, folder, **more)


def assert_same(ours: Mapping[str, RunResult], theirs: Mapping[str, RunResult]) -> None:
    assert list(ours) == list(theirs)
    for name, own in ours.items():
        other = theirs[name]
        assert own.failure is other.failure is None
        assert own.steps == other.steps
        assert (own.validation_loss, own.validations) == (other.validation_loss, other.validations)
        assert own._weights is not None
        assert other._weights is not None
        for path, pair in other._weights.tensors.items():
            assert all(map(torch.equal, own._weights.tensors[path], pair)), (name, path)


@contextmanager
def without_a_step() -> Iterator[None]:
    """As a program would be that ended before it had saved its results, and is called again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "launch", None)
        yield


def assert_trained(place: Path, count: int = 1) -> None:
    """What the runs have come to is there, and nothing that only training needed."""
    left = list(place.iterdir())
    assert len(left) == count
    for folder in left:
        assert folder.name.startswith(".")
        assert folder.name.endswith(".partial")
        assert {path.name for path in folder.iterdir()} <= {CONFIG, METRICS, TRAINED, CHECKPOINTS}
        assert has_trained(folder)
        assert checkpoints_in(folder) == []


@pytest.mark.parametrize("slots", [1, 2])
def test_interrupted_runs_end_as_undisturbed_ones_to_the_bit(slots: int, tmp_path: Path) -> None:
    whole, place = train(RUNS, tmp_path / "whole", slots=slots), tmp_path / "parts"
    for after in (2, 7, 3):
        interrupted(RUNS, place, after=after, slots=slots)
    told: list[tuple[str, int]] = []
    found = train(RUNS, place, slots=slots, on_step=lambda step: told.append((step.run, step.step)))
    assert_same(found, whole)
    assert 0 < len(told) < sum(len(each.steps) for each in whole.values())
    assert_trained(place, 4)
    assert_trained(tmp_path / "whole", 4)


def test_a_folder_in_use_is_found_before_any_run_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another batch size train last, in a cohort of their own."""
    runs = {"one": config(), "two": config(train={"batch_size": 2})}
    digests, launched = list[str](), list[object]()
    digest, launch = together.held_model_digest, Programs.launch

    def counting(*args: Any) -> str:  # noqa: ANN401 -- of several types
        digests.append(digest(*args))
        return digests[-1]

    def taking_note(*args: Any) -> object:  # noqa: ANN401 -- of several types
        launched.append(args)
        return launch(*args)

    monkeypatch.setattr(together, "held_model_digest", counting)
    monkeypatch.setattr(Programs, "launch", taking_note)
    with (
        claimed(tmp_path / programsaves._file_name("two")),
        pytest.raises(sb.InputError, match="is in use by another run"),
    ):
        train(runs, tmp_path, slots=1)
    assert (len(digests), launched) == (1, [])
    train(runs, tmp_path, slots=1)
    assert launched


@pytest.mark.parametrize("slots", [1, 2])
def test_more_runs_beside_those_that_go_on_change_nothing_of_them(
    slots: int, tmp_path: Path
) -> None:
    """But with another room in the slots they begin again."""
    few = {"one": config(seed=1), "two": config(seed=2, train={"max_steps": 7})}
    more = {**few, "three": config(seed=3), "wide": config(seed=4, lora={"r": 8})}
    whole, told = train(few, tmp_path / "whole", slots=slots), list[tuple[str, int]]()
    interrupted(few, tmp_path / "parts", after=6, slots=slots)
    found = train(
        {name: more[name] for name in ("one", "two", "three")},
        tmp_path / "parts",
        slots=slots,
        on_step=lambda step: told.append((step.run, step.step)),
    )
    assert_same({name: found[name] for name in few}, whole)
    assert len(told) == 5 + 5 + 7 - (6 if slots == 1 else 11)
    assert_trained(tmp_path / "parts", 3)
    interrupted(few, tmp_path / "wide", after=3, slots=2)
    train(more, tmp_path / "wide", slots=2)
    names = [path.name for path in (tmp_path / "wide").iterdir()]
    assert sum(name.endswith(".unfinished-1") for name in names) == 2


@pytest.mark.parametrize(("slots", "moments"), [(1, (7,)), (3, (1, 5))])
def test_so_do_those_that_are_measured_and_stopped(
    slots: int, moments: Sequence[int], tmp_path: Path
) -> None:
    more: dict[str, Any] = {"slots": slots, "validation": HELD_OUT, "validate": MEASURED}
    whole = train(VALIDATED, tmp_path / "whole", **more)
    assert len(whole["wild"].steps) < 8, "it was stopped"
    with without_a_step():
        assert_same(train(VALIDATED, tmp_path / "whole", on_step=pytest.fail, **more), whole)
    for after in moments:
        place = tmp_path / str(after)
        interrupted(VALIDATED, place, after=after, **more)
        interrupted(VALIDATED, place, after=2, **more)
        assert_same(train(VALIDATED, place, **more), whole)


def test_runs_that_memory_left_one_slot_go_on_as_a_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"one": config(seed=1), "two": config(seed=2)}
    prepare = Programs.prepare

    def too_large(programs: Programs, *args: Any) -> object:  # noqa: ANN401 -- of several types
        if programs._stack.num_slots == 2 and len(told) >= 4:
            raise torch.OutOfMemoryError("no room")
        return prepare(programs, *args)

    told: list[tuple[str, int]] = []
    more: dict[str, Any] = {"slots": 2, "on_step": lambda step: told.append((step.run, step.step))}
    with monkeypatch.context() as patch:
        patch.setattr(Programs, "prepare", too_large)
        whole = train(runs, tmp_path / "whole", **more)
        told.clear()
        interrupted(runs, tmp_path / "parts", after=6, **more)
    assert told[:4] == [("one", 0), ("two", 0), ("one", 1), ("two", 1)]
    assert told[4:] == [("one", 2), ("one", 3), ("one", 4), ("two", 2)], "one after the other"
    found = train(runs, tmp_path / "parts", **more)
    assert len(told) == 10, "no step is taken twice"
    assert_same(found, whole)


@pytest.mark.parametrize("same", [True, False])
def test_examples_that_lie_in_a_file_are_known_by_what_they_say(
    same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pairs", "tokens"):
        monkeypatch.setattr(f"schemabank.runs.{name}.MOST_BYTES", 0)
    interrupted({"one": config()}, tmp_path, after=3, slots=1)
    told: list[int] = []
    found = train(
        {"one": config()},
        tmp_path,
        slots=1,
        examples=PAIRS if same else PAIRS[1:],
        on_step=lambda step: told.append(step.step),
    )
    assert told == ([3, 4] if same else [0, 1, 2, 3, 4])
    assert [step.step for step in found["one"].steps] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "other", [{"examples": PAIRS[1:]}, {"validation": HELD_OUT[1:]}, {"validate": None}], ids=str
)
def test_other_inputs_begin_again(other: dict[str, Any], tmp_path: Path) -> None:
    more: dict[str, Any] = {"slots": 1, "validation": HELD_OUT, "validate": MEASURED}
    runs, place = {"one": config()}, tmp_path / "parts"
    interrupted(runs, place, after=3, **more)
    more |= other
    assert_same(train(runs, place, **more), train(runs, tmp_path / "whole", **more))
    ends = {path.name.rpartition(".")[2] for path in place.iterdir()}
    assert ends == {"partial", "unfinished-1"}


def test_what_is_saved_stays_while_a_run_has_failed(tmp_path: Path) -> None:
    runs = {"good": config(), "bad": config(train={"learning_rate": 1e30})}
    found = train(runs, tmp_path, slots=1)
    assert [each.failure is None for each in found.values()] == [True, False]
    assert any(path.name.startswith(".good-") for path in tmp_path.iterdir())


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Handle SIGINT as Python does; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_in_the_last_step_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model, runs = tiny_model("llama"), {"one": config(train={"max_steps": 2})}
    told: list[int] = []

    def interrupting(step: sb.RunStep) -> None:
        told.append(step.step)
        if step.step == 1:
            signal.raise_signal(signal.SIGINT)

    def again() -> dict[str, RunResult]:
        return sb.train_cohort(
            model,
            tiny_tokenizer(),
            runs,
            PAIRS,
            checkpoints=tmp_path,
            on_step=interrupting,
            quiet=True,
        )

    with pytest.raises(KeyboardInterrupt):
        again()
    assert_same(again(), train(runs, tmp_path / "whole", slots=1))
    assert told == [0, 1], "it had trained"


def full(*_args: object, **_options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_later_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"one": config(seed=1), "two": config(seed=2)}
    whole, line = train(runs, tmp_path / "whole", slots=2), steplogs._json_line

    def full_for_one(step: sb.RunStep) -> str:
        if (step.run, step.step) == ("one", 2):
            full()
        return line(step)

    with monkeypatch.context() as patch:
        patch.setattr(steplogs, "_json_line", full_for_one)
        assert_same(train(runs, tmp_path / "log", slots=2), whole)
        interrupted(runs, tmp_path / "again", after=4, slots=2)
    told: list[tuple[str, int]] = []
    again = train(
        runs, tmp_path / "again", slots=2, on_step=lambda step: told.append((step.run, step.step))
    )
    assert_same(again, whole)
    assert sorted(told) == [("one", 2), ("one", 3), ("one", 4), ("two", 4)]
    monkeypatch.setattr(steplogs, "write_trained", full)
    assert_same(train(runs, tmp_path / "end", slots=2), whole)
    assert_trained(tmp_path / "again", 2)


@pytest.mark.parametrize(
    ("runs", "victim"),
    [(RUNS, "swap"), ({**VALIDATED, "third": config(seed=4)}, "slow")],
    ids=["runs", "validated"],
)
def test_a_folder_that_is_lost_costs_no_run_that_has_ended(
    runs: Mapping[str, sb.RunConfig], victim: str, tmp_path: Path
) -> None:
    """A program goes on without its disk: it holds the weights of the three runs in two slots."""
    more: dict[str, Any] = {"slots": 2, "validation": HELD_OUT}
    if "slow" in runs:
        more["validate"] = MEASURED
    whole = train(runs, tmp_path / "whole", **more)
    place, free = tmp_path / "runs", Cohort.free

    def lost(cohort: Cohort) -> None:
        if victim in cohort.finished:
            assert victim in cohort.finished.held
            (folder,) = place.glob(f".{victim}*.partial")
            shutil.rmtree(folder / TRAINED)
        free(cohort)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cohort, "free", lost)
        found = train(runs, place, **more)
    assert all(one.failure is None for one in found.values())
    assert_same(found, whole)
    assert_same(train(runs, place, **more), whole)


def test_one_that_is_full_at_the_start_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.runs.resuming._write_config", full)
    monkeypatch.setattr(Programs, "launch", None)
    with pytest.raises(sb.InputError, match=r"the run 'one' cannot be saved \(.*\): free some"):
        train({"one": config()}, tmp_path, slots=1)


def test_settings_of_checkpoints_have_an_effect_with_a_folder_alone(tmp_path: Path) -> None:
    runs = {"one": config(train={"max_steps": 1})}
    with pytest.warns(UserWarning, match=r"engine\.checkpoint_steps: no effect on train_cohort"):
        train(runs, None, slots=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(runs, tmp_path, slots=1)


def test_names_may_be_longer_than_those_of_files(tmp_path: Path) -> None:
    names = ["名" * 300 + end for end in "ab"]
    runs = {name: config(seed=n, train={"max_steps": 2}) for n, name in enumerate(names)}
    interrupted(runs, tmp_path, after=3, slots=1)
    told: list[str] = []
    train(runs, tmp_path, slots=1, on_step=lambda step: told.append(step.run))
    assert told == [names[1]]
    assert_trained(tmp_path, 2)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(sb.InputError, match=r"cannot write to .* choose another folder of"):
        train({"one": config()}, tmp_path / "file", slots=1)


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.ENOSPC, "free some space, or choose another folder of checkpoints"),
        (errno.EACCES, "make the folder writable, or choose another folder of checkpoints"),
        (errno.EROFS, "choose another folder of checkpoints"),
    ],
)
def test_what_to_do_about_a_folder_that_cannot_be_written_fits_the_error(
    number: int, mend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(resuming, "_write_config", refused)
    reason = re.escape(f"[Errno {number}] {os.strerror(number)}")
    said = rf"the run 'one' cannot be saved \({reason}\): {mend}\Z"
    with pytest.raises(sb.InputError, match=said):
        train({"one": config()}, tmp_path, slots=1)


def test_one_that_another_program_uses_is_refused(tmp_path: Path) -> None:
    def second(_step: sb.RunStep) -> None:
        train({"one": config()}, tmp_path, slots=1)

    with pytest.raises(sb.InputError, match=r"is in use .* or choose another folder of checkpoi"):
        train({"one": config()}, tmp_path, slots=1, on_step=second)


def tuned(
    run: sb.RunConfig, place: Path, stops: Sequence[int], tuner: sb.Tuner | None = None
) -> tuple[Any, ...]:
    """What a Tuner comes to, whose training ends at some steps before it ends by itself.

    Each time the model is another one with the same weights, unless a Tuner is given.
    """
    more: dict[str, Any] = {"validation": HELD_OUT, "checkpoints": place, "quiet": True}
    if run.arm != "swap":
        more["validate"] = MEASURED

    def stop(step: sb.RunStep) -> None:
        if step.step in stops:
            raise KeyboardInterrupt

    own = tuner or sb.Tuner(tiny_model("llama"), tiny_tokenizer(), run)
    with nullcontext() if tuner else own:
        if stops:
            with pytest.raises(KeyboardInterrupt):
                own.train(PAIRS, on_step=stop, **more)
        else:
            steps = own.train(PAIRS, **more)
            tensors = {
                path: (*map(Tensor.clone, pair),)
                for path, pair in own.stack.lora.tensors(0).items()
            }
            return steps, own.validation_loss, own.validations, tensors
    return tuned(run, place, stops[1:], tuner)


@pytest.mark.parametrize("name", ["slow", "banks", "swap", "shrink"])
def test_a_tuner_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    run = {**RUNS, **VALIDATED, "shrink": config("shrink", train={"max_steps": 8})}[name]
    whole = tuned(run, tmp_path / "whole", ())
    others = [tuned(run, tmp_path / "others", (1, 4))]
    with without_a_step():
        others.append(tuned(run, tmp_path / "whole", ()))
    with sb.Tuner(tiny_model("llama"), tiny_tokenizer(), run) as tuner:
        others.append(tuned(run, tmp_path / "same", (2, 3), tuner))
    for found in others:
        assert found[:3] == whole[:3]
        assert all(all(map(torch.equal, found[3][path], pair)) for path, pair in whole[3].items())
    for place in tmp_path.iterdir():
        assert_trained(place)  # nothing was begun anew and kept aside


def test_a_tuner_says_what_has_no_effect_without_a_folder(tmp_path: Path) -> None:
    with sb.Tuner(tiny_model("llama"), tiny_tokenizer(), config()) as tuner:
        with pytest.warns(UserWarning, match=r"engine\.checkpoint_steps: no effect on a Tuner"):
            tuner.train(PAIRS, quiet=True)
        tuner.train(PAIRS, checkpoints=tmp_path, quiet=True)


def test_a_run_of_several_does_not_go_on_alone_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"one": config(seed=1), "two": config(seed=2)}
    train(runs, tmp_path, slots=2)
    told: list[int] = []
    capsys.readouterr()
    one = {"one": runs["one"]}
    train(one, tmp_path, slots=2, quiet=False, on_step=lambda step: told.append(step.step))
    assert told == [*range(5)]
    said = "stack was 'of several runs', now it is 'of this run alone': it is trained again"
    assert said in capsys.readouterr().err
