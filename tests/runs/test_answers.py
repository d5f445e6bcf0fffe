"""Evaluations that are interrupted, and the next call, which goes on from what was answered."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from damage import flip
from schemabank.config.file import load_experiment
from schemabank.engine.programs import Programs
from schemabank.runs import answerfiles, answers, finish, kept
from schemabank.runs.answers import KeptAnswers
from schemabank.runs.experiment import run_experiment
from schemabank.runs.folder import ANSWERS, COST, how_far
from schemabank.runs.members import ANSWERS_KEPT
from schemabank.runs.progress import SAVING
from tinyruns import Finished, Notes, run, snapshot

pytestmark = pytest.mark.usefixtures("gsm8k", "every_answer")

LORA = ("arm=lora",)
THREE = ("arm=lora", "seed=[1, 2, 3]", "engine.slots=2", "train.num_train_epochs=1")
LOSSES = ("arm=lora", "task.metric=perplexity", "train.num_train_epochs=1")


@pytest.fixture
def every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every answer as soon as it is there."""
    keep_every_answer(monkeypatch)


def keep_every_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "how_often", lambda _: (None, 1))
    monkeypatch.setattr("os.fsync", lambda _: None)  # what takes long on some disks


def interrupted(
    finished: Finished, out: Path, settings: Sequence[str] = (), *, after: int
) -> list[str]:
    """Run until evaluations have come to so many places between two steps; return what was said."""
    look, looked, notes = KeptAnswers.look, count(1), Notes()

    def until(own: KeptAnswers) -> None:
        look(own)
        if next(looked) > after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptAnswers, "look", until)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(load_experiment(finished.config, settings), out, notes)
    return notes.lines


def answered(patch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Take note of what is answered: its kind, the slot, and the index of a prompt or question."""
    found: list[tuple[str, int, int]] = []
    completed, measured = KeptAnswers.completed, KeptAnswers.measured

    def completing(own: KeptAnswers, slot: int, prompt: int, *given: Any) -> None:  # noqa: ANN401
        found.append(("completion", slot, prompt))
        completed(own, slot, prompt, *given)

    def measuring(own: KeptAnswers, question: int, losses: Sequence[Any]) -> None:
        found.extend(("losses", slot, question) for slot in range(len(losses)))
        measured(own, question, losses)

    patch.setattr(KeptAnswers, "completed", completing)
    patch.setattr(KeptAnswers, "measured", measuring)
    return found


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file that is the same each time."""
    found = {name: digest for name, (_, digest) in snapshot(folder).items()}
    return {name: digest for name, digest in found.items() if Path(name).name != COST}


def gone_on(notes: Sequence[str]) -> list[str]:
    return [note for note in notes if note.startswith("evaluation goes on")]


@pytest.fixture(scope="module")
def six(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run lora in the middle of its evaluation, for tests to copy."""
    out = tmp_path_factory.mktemp("six") / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        keep_every_answer(patch)
        interrupted(finished, out, LORA, after=10)
    return out


@pytest.fixture
def left(six: Path, finished: Finished, tmp_path: Path) -> tuple[Path, Path]:
    """The folder of runs, and the file of the answers of lora, some of which are there."""
    out = Path(shutil.copytree(six, tmp_path / "runs"))
    return out, out / f".{finished.lora.folder.name}.partial" / ANSWERS / "whole.jsonl"


def test_every_arm_and_form_goes_on_to_the_same_bytes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in both forms of base, then in lora and schemabank, in decoding and in losses."""
    said, again = [], answered(monkeypatch)
    for after in (12, 16, 30, 45, 12, 16, 30, 12, 16):
        said += interrupted(finished, tmp_path, after=after)
    monkeypatch.setattr(Programs, "launch", refuse)
    _, notes = run(finished.config, tmp_path)
    assert contents(tmp_path) == contents(finished.out)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())
    for name in ("base-", "lora-", "schemabank-"):
        assert any(f": {name}" in note for note in gone_on([*said, *notes]))
    assert any(note.endswith(", prompts trimmed") for note in gone_on(said))
    assert len(again) == 4 * 2 * 6, "nothing was answered twice: four forms, both kinds, six items"


def refuse(*_args: object, **_options: object) -> None:
    raise AssertionError("a run is trained")


@pytest.mark.parametrize("moments", [(6, 14, 9, 12), (11,), (13,)])
def test_runs_beside_each_other_go_on_also_where_a_slot_is_empty(
    moments: Sequence[int], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    run(finished.config, whole, *THREE)
    counted, said = answered(monkeypatch), list[str]()
    for after in moments:
        said += interrupted(finished, tmp_path / "parts", THREE, after=after)
    _, notes = run(finished.config, tmp_path / "parts", *THREE)
    assert contents(tmp_path / "parts") == contents(whole)
    assert gone_on([*said, *notes])
    assert len(counted) == len(set(counted)) * 2 == 2 * 2 * 2 * 6, "two parts of two slots"


def test_losses_alone_are_an_evaluation_too(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("schemabank.runs.evaluate.NLL_BATCH", 2)
    run(finished.config, tmp_path / "whole", *LOSSES)
    counted = answered(monkeypatch)
    interrupted(finished, tmp_path / "parts", LOSSES, after=1)
    (outcome,), notes = run(finished.config, tmp_path / "parts", *LOSSES)
    assert gone_on(notes) == [f"evaluation goes on with item 5 of 6: {outcome.folder.name}"]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert sorted(counted) == [("losses", 0, question) for question in range(6)]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(path.read_bytes() + b'{"sha256": "01'), Path.unlink]
)
def test_what_was_torn_off_is_nothing_to_speak_of(
    spoil: Callable[[Path], None], left: tuple[Path, Path], finished: Finished
) -> None:
    out, path = left
    spoil(path)
    interrupted(finished, out, LORA, after=12)  # which writes behind it
    (outcome,), notes = run(finished.config, out, *LORA)
    assert not any("not used" in note for note in notes)
    assert len(gone_on(notes)) == 1
    assert contents(outcome.folder) == contents(finished.lora.folder)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["row"] for line in path.read_text().splitlines()]


def rewritten(path: Path, number: int, **changes: object) -> None:
    """Change a line, with the digest that belongs to it."""
    own = rows(path)
    own[number] |= changes
    path.write_bytes(b"".join(map(answerfiles._line, own)))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (flip, " is not what was written"),
        (lambda p: rewritten(p, 0, version=0), "of another evaluation: version was 0, now it is 1"),
        (lambda path: rewritten(path, 0, weights="x"), "of another evaluation: weights was 'x'"),
        (lambda path: rewritten(path, 0, prompts="x"), "of another evaluation: prompts was 'x'"),
        (lambda path: rewritten(path, 0, slots=2), "of another evaluation: slots was 2"),
        (lambda path: rewritten(path, 0, device="cuda"), "of another evaluation: device was"),
        (
            lambda path: rewritten(path, 0, procedure={"batch_size": 1}),
            "procedure.batch_size was 1",
        ),
        (lambda path: rewritten(path, 1, prompt=6), "line 2 is an answer that no run gives here"),
    ],
)
def test_what_does_not_fit_is_said_once_and_evaluated_anew(
    spoil: Callable[[Path], object], said: str, left: tuple[Path, Path], finished: Finished
) -> None:
    out, path = left
    spoil(path)
    (outcome,), notes = run(finished.config, out, *LORA)
    (note,) = [note for note in notes if note.startswith("answers of an earlier call are not used")]
    assert said in note
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_a_link_to_a_folder_elsewhere_is_not_followed(
    left: tuple[Path, Path], finished: Finished, tmp_path: Path
) -> None:
    out, path = left
    path.parent.rename(tmp_path / "others")
    path.parent.symlink_to(tmp_path / "others")
    before = snapshot(tmp_path / "others")
    (outcome,), notes = run(finished.config, out, *LORA)
    assert not gone_on(notes)
    assert contents(outcome.folder) == contents(finished.lora.folder)
    assert snapshot(tmp_path / "others") == before


def test_what_stands_before_a_damaged_line_counts(
    left: tuple[Path, Path], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, path = left
    lines, counted = path.read_bytes().splitlines(keepends=True), answered(monkeypatch)
    path.write_bytes(b"".join([*lines[:3], b"\0" * 50 + b"\n", *lines[4:]]))
    (outcome,), notes = run(finished.config, out, *LORA)
    assert sum(note.startswith("answers of an earlier call") for note in notes) == 1
    assert sum(kind == "completion" for kind, _, _ in counted) == 6 - 2
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_another_processor_is_told(
    left: tuple[Path, Path], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "processor_name", lambda: "Abacus")
    _, notes = run(finished.config, left[0], *LORA)
    (said,) = [note for note in notes if " and goes on on Abacus with " in note]
    assert said.startswith("evaluation: it began on ")


def test_a_run_goes_on_whatever_runs_are_beside_it(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more begins beside it, or one less, whose folder is gone or which is finished."""
    two = (LORA[0], "seed=[1, 2]", *THREE[2:])
    whole = tmp_path / "whole"
    run(finished.config, whole, *two)
    interrupted(finished, tmp_path / "more", two, after=12)
    shutil.copytree(tmp_path / "more", tmp_path / "less")
    for path in (tmp_path / "less").glob(".lora-seed2-*"):
        shutil.rmtree(path)
    for name, settings in (("less", two), ("more", (*LORA, "seed=[0, 1, 2]", *THREE[2:]))):
        with monkeypatch.context() as patch:
            counted = answered(patch)
            outcomes, notes = run(finished.config, tmp_path / name, *settings)
        assert [outcome.failure for outcome in outcomes] == [None] * len(outcomes)
        assert not any("not used" in note for note in notes)
        again = [prompt for kind, _, prompt in counted if kind == "completion"]
        assert len(again) < 6 * len(outcomes)
        for outcome in outcomes[-2:]:
            assert contents(outcome.folder) == contents(whole / outcome.folder.name)


def test_one_that_was_answered_is_not_asked_again_when_those_beside_it_are_finished(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ended between the ends of two runs of a part; one had a bank, and is named."""
    asked = ("arm=[schemabank, lora]", "engine.slots=2", "train.num_train_epochs=1")
    run(finished.config, tmp_path / "whole", *asked)
    with monkeypatch.context() as patch:
        check, checked = finish.check_with_peft, count(1)

        def ended(*given: Any) -> object:  # noqa: ANN401
            if next(checked) == 2:
                raise KeyboardInterrupt
            return check(*given)

        patch.setattr(finish, "check_with_peft", ended)
        with pytest.raises(KeyboardInterrupt):
            run(finished.config, tmp_path / "runs", *asked)
    counted = answered(monkeypatch)
    outcomes, notes = run(finished.config, tmp_path / "runs", *asked)
    assert sum(outcome.reused for outcome in outcomes) == 1
    assert not counted
    assert gone_on(notes)[0].startswith("evaluation goes on after all 6 items: ")
    assert contents(tmp_path / "runs") == contents(tmp_path / "whole")


class TerminatedError(Exception):
    """What the program of these tests does at SIGTERM."""


@pytest.fixture
def program() -> Iterator[None]:
    """A program that handles SIGTERM itself, as ours does."""

    def ended(*_args: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, ended)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("program")
def test_a_signal_waits_until_answers_are_kept(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the next time by the clock is far; one that comes at the end counts, too."""
    monkeypatch.setattr(answers, "how_often", lambda _: (3600.0, None))
    look, looked, notes = KeptAnswers.look, count(1), Notes()

    def asked(own: KeptAnswers) -> None:
        if next(looked) == 10:
            signal.raise_signal(signal.SIGTERM)
        look(own)

    with monkeypatch.context() as patch:
        patch.setattr(KeptAnswers, "look", asked)
        with pytest.raises(TerminatedError):
            run_experiment(load_experiment(finished.config, LORA), tmp_path, notes)
    assert SAVING in notes.lines
    assert not list(tmp_path.glob(".*.lock"))
    (outcome,), said = run(finished.config, tmp_path, *LORA)
    assert len(gone_on(said)) == 1
    assert contents(outcome.folder) == contents(finished.lora.folder)


@pytest.mark.parametrize(("seconds", "is_kept"), [(0.0, True), (3600.0, False)])
def test_by_the_clock_they_are_kept_when_it_is_time(
    seconds: float,
    is_kept: bool,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "how_often", lambda _: (seconds, None))
    interrupted(finished, tmp_path, LORA, after=12)
    assert bool(list(tmp_path.glob(f".*/{ANSWERS}/*"))) == is_kept


def test_without_checkpoints_and_on_a_gpu_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "how_often", lambda _: (None, None))
    made: list[object] = []
    monkeypatch.setattr(answers, "_Keeping", lambda *given: made.append(given))

    class Stack:
        class model:  # noqa: N801 -- an attribute
            device = torch.device("cpu")

    answers.recalling([], Stack, None, {}, print)  # type: ignore[arg-type]
    monkeypatch.setattr(answers, "how_often", lambda _: (300.0, None))
    Stack.model.device = torch.device("cuda")
    answers.recalling([], Stack, None, {}, print)  # type: ignore[arg-type]
    assert not made


@pytest.mark.parametrize(
    ("number", "mend"), [(errno.ENOSPC, "; free some space"), (errno.EIO, "")], ids=str
)
def test_where_they_cannot_be_written_a_line_says_so_and_the_evaluation_goes_on(
    number: int, mend: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(answerfiles, "make_folder", full)
        (outcome,), notes = run(finished.config, tmp_path, *LORA)
    (said,) = [note for note in notes if f"answers could not be kept ([Errno {number}]" in note]
    assert said.endswith(f"it goes on from those that were{mend}")
    assert contents(outcome.folder) == contents(finished.lora.folder)


def test_a_base_run_that_fails_keeps_its_answers(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish._write_predictions", fails)
        (failed,), _ = run(finished.config, tmp_path, "arm=base")
    assert failed.failure is not None
    assert failed.kept == ANSWERS_KEPT
    place = tmp_path / finished.base.folder.name
    assert how_far(place).startswith(f"{ANSWERS} ")
    (outcome,), notes = run(finished.config, tmp_path, "arm=base")
    assert [note.partition(":")[0] for note in gone_on(notes)] == [
        "evaluation goes on after all 6 items"
    ] * 2
    assert contents(outcome.folder) == contents(finished.base.folder)
