"""Files of answers: what is read back, what is torn, and what is refused."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.engine.decoding.completion import Completion
from schemabank.runs import answerfiles
from schemabank.runs.answerfiles import Answered, AnswerFile, Bounds, names
from schemabank.runs.folder import ANSWERS, RunClaim, claimed

HEAD = {"version": 1, "device": "cpu", "stop": ("a", "b"), "processor": {"name": "x", "threads": 1}}
BOUNDS = Bounds(prompts=6, questions=3, max_new_tokens=4, vocabulary=50)
COMPLETIONS = {
    0: Completion([1, 2, 3], "end_token"),
    4: Completion([], "end_token"),
    2: Completion([49, 0, 7, 7], "length"),
    5: Completion([8], "stop_text"),
}
LOSSES = {2: (0.1, 1e-300), 0: (math.inf, 3.0)}


@pytest.fixture
def claim(tmp_path: Path) -> Iterator[RunClaim]:
    with claimed(tmp_path / "run") as found:
        yield found


@pytest.fixture
def path(claim: RunClaim) -> Path:
    """A file with answers, written in two goes."""
    file = opened(claim)
    assert read(claim) == (Answered(), "")
    for prompt, completion in COMPLETIONS.items():
        file.completed(prompt, completion)
    file.write()
    for question, losses in LOSSES.items():
        file.measured(question, losses)
    file.write()
    assert file.pending == []
    return claim.path / ANSWERS / "whole.jsonl"


def opened(claim: RunClaim, **changes: object) -> AnswerFile:
    return AnswerFile(claim, "whole.jsonl", {**HEAD, **changes})


def read(claim: RunClaim, **changes: object) -> tuple[Answered, str]:
    return opened(claim, **changes).read(BOUNDS)


def rewritten(path: Path, number: int, **changes: Any) -> None:  # noqa: ANN401
    """Change a line, with the digest that belongs to it."""
    rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    rows[number] |= changes
    path.write_bytes(b"".join(map(answerfiles._line, rows)))


def test_answers_are_read_as_they_were_written(claim: RunClaim, path: Path) -> None:
    assert read(claim) == (Answered(COMPLETIONS, LOSSES), "")
    assert [path.name for path in path.parent.iterdir()] == ["whole.jsonl"]


@pytest.mark.usefixtures("path")
def test_a_loss_that_is_no_number_is_kept(claim: RunClaim) -> None:
    file = opened(claim)
    file.read(BOUNDS)
    file.measured(1, (math.nan, -math.inf))
    file.write()
    found, lost = read(claim)
    assert math.isnan(found.losses[1][0])
    assert (found.losses[1][1], lost) == (-math.inf, "")


@pytest.mark.parametrize(
    "part", [b"", b"{", b'{"sha256": "0123456789abcdef", "row": {"prom', b"\0"]
)
def test_what_is_torn_at_the_end_is_no_loss_and_goes(
    part: bytes, claim: RunClaim, path: Path
) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"{", 0, whole.rindex(b'"row"'))] + part)
    file = opened(claim)
    first, last = LOSSES
    assert file.read(BOUNDS) == (Answered(COMPLETIONS, {first: LOSSES[first]}), "")
    file.measured(last, LOSSES[last])
    file.write()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 1, 60])
def test_a_torn_head_is_nothing(size: int, claim: RunClaim, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:size])
    file = opened(claim)
    assert file.read(BOUNDS) == (Answered(), "")
    file.completed(0, COMPLETIONS[0])
    file.write()
    assert read(claim)[0].completions == {0: COMPLETIONS[0]}


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version was 1, now it is 2"),
        ({"device": "other"}, "device was 'cpu', now it is 'other'"),
        ({"more": 1}, "more was None, now it is 1"),
    ],
)
def test_answers_of_another_evaluation_are_refused(
    changes: dict[str, object], said: str, claim: RunClaim
) -> None:
    with pytest.raises(InputError, match=f"they are of another evaluation: {said}"):
        read(claim, **changes)
    file = opened(claim, **changes)
    file.completed(0, COMPLETIONS[0])
    file.write()
    assert read(claim, **changes)[0].completions == {0: COMPLETIONS[0]}


@pytest.mark.usefixtures("path")
def test_another_processor_is_told_by_others(claim: RunClaim) -> None:
    file = opened(claim, processor={"name": "y", "threads": 2})
    assert file.read(BOUNDS)[0].completions == COMPLETIONS
    assert file.before["processor"] == {"name": "x", "threads": 1}


def elsewhere(path: Path) -> None:
    other = path.parents[2] / "other"
    path.rename(other)
    path.symlink_to(other)


def all_elsewhere(path: Path) -> None:
    other = path.parents[2] / "others"
    path.parent.rename(other)
    path.parent.symlink_to(other)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("{}\n"), "line 1 is not what was written"),
        (lambda path: path.write_text("[" * 9999 + "\n"), "line 1 is not what was written"),
        (lambda path: path.write_text('{"row": 1}\n'), "line 1 is not what was written"),
        (lambda path: path.write_bytes(b"\xff\n"), "line 1 is not what was written"),
        (elsewhere, "outside its folder"),
        (all_elsewhere, "is a link, allowed is a folder"),
    ],
)
def test_a_file_that_is_none_is_refused(
    spoil: Callable[[Path], object], said: str, claim: RunClaim, path: Path
) -> None:
    spoil(path)
    with pytest.raises(InputError, match=said):
        read(claim)


@pytest.mark.usefixtures("path")
def test_a_file_that_is_too_large_is_refused(
    claim: RunClaim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerfiles, "LARGEST_JSON", 200)
    with pytest.raises(InputError, match="has more than 200 bytes"):
        read(claim)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": 6},
        {"prompt": -1},
        {"prompt": "0"},
        {"tokens": [1] * 5},
        {"tokens": [50]},
        {"tokens": [-1]},
        {"tokens": "x"},
        {"tokens": [1.5]},
        {"tokens": [], "stop_reason": "stop_text"},
        {"tokens": [1], "stop_reason": "length"},
        {"stop_reason": "x"},
    ],
)
def test_an_answer_that_no_run_gives_ends_what_counts(
    changes: dict[str, object], claim: RunClaim, path: Path
) -> None:
    rewritten(path, 2, **changes)
    found, lost = read(claim)
    assert found == Answered({0: COMPLETIONS[0]}, {})
    assert lost.startswith("whole.jsonl line 3 is ")


@pytest.mark.parametrize("changes", [{"question": 3}, {"losses": [1.0]}, {"losses": ["x", 1.0]}])
def test_so_do_losses(changes: dict[str, object], claim: RunClaim, path: Path) -> None:
    rewritten(path, 5, **changes)
    found, lost = read(claim)
    assert found == Answered(COMPLETIONS, {})
    assert lost.startswith("whole.jsonl line 6 is ")


def test_a_digit_that_a_disk_changed_is_seen(claim: RunClaim, path: Path) -> None:
    path.write_text(path.read_text().replace("49", "48"))
    found, lost = read(claim)
    assert found.completions == {n: COMPLETIONS[n] for n in (0, 4)}
    assert lost == "whole.jsonl line 4 is not what was written: what follows is evaluated anew"


def test_slots_without_a_run_have_files_with_the_last_run() -> None:
    assert list(names(3, 2, "trimmed")) == [
        (0, "trimmed.jsonl"),
        (1, "trimmed.jsonl"),
        (1, "trimmed-slot2.jsonl"),
    ]
