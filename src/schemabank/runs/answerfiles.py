"""A file of what one slot has answered so far in an evaluation that is under way.

It is JSON lines. The head says what they belong to: run, weights, prompts, procedure, inputs,
versions and device. Each line has a digest of its own, since lines are only added, and what a
killed process was writing is torn. Reading ends at the first line that is not what was written.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from schemabank.common.errors import InputError, first_line
from schemabank.common.files import LARGEST_JSON, inside, parse_json, read_bytes
from schemabank.common.folders import make_folder
from schemabank.common.writing import extend_file
from schemabank.engine.decoding.completion import Completion, StopReason
from schemabank.runs.folder import ANSWERS, RunClaim
from schemabank.runs.kept import made_otherwise
from schemabank.runs.recall import Losses
from schemabank.runs.resultshape import Count, StoredPart

DIGITS = 16  # of the SHA-256 of a line


class _CompletionRow(StoredPart):
    prompt: Count
    tokens: list[Count]
    stop_reason: StopReason


class _LossesRow(StoredPart):
    question: Count
    losses: Annotated[list[float], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Bounds:
    """What a slot can answer.

    Attributes:
        prompts, questions: how many it is asked.
        max_new_tokens: of a completion.
        vocabulary: the number of tokens that there are.
    """

    prompts: int
    questions: int
    max_new_tokens: int
    vocabulary: int

    def allow(self, row: "_CompletionRow | _LossesRow") -> bool:
        """Whether a slot can have answered so."""
        if isinstance(row, _LossesRow):
            return row.question < self.questions
        count = len(row.tokens) + (row.stop_reason == "end_token")
        return (
            row.prompt < self.prompts
            and 1 <= count <= self.max_new_tokens
            and (row.stop_reason != "length" or count == self.max_new_tokens)
            and max(row.tokens, default=0) < self.vocabulary
        )


@dataclass
class Answered:
    """What a slot has answered: completions by prompt, and losses by question."""

    completions: dict[int, Completion] = field(default_factory=dict)
    losses: dict[int, Losses] = field(default_factory=dict)

    def add(self, row: "_CompletionRow | _LossesRow") -> None:
        """Add one answer."""
        if isinstance(row, _LossesRow):
            self.losses[row.question] = (row.losses[0], row.losses[1])
        else:
            self.completions[row.prompt] = Completion(row.tokens, row.stop_reason)


class AnswerFile:
    """A file of what one slot has answered, in a run's folder.

    Args:
        claim: of the run.
        name: of the file.
        head: what the answers belong to.

    Attributes:
        pending: lines that are not written yet.
    """

    def __init__(self, claim: RunClaim, name: str, head: Mapping[str, Any]) -> None:
        self._claim, self._name, self._head = claim, name, json.loads(json.dumps(head))
        self._size = 0  # of what is there and counts
        self.pending: list[bytes] = []
        self.before: Mapping[str, Any] = self._head

    def read(self, bounds: Bounds) -> tuple[Answered, str]:
        """Return what is there, and what of it cannot be used; what is torn off is no loss.

        Raises:
            InputError: it belongs to something else, or is not what was written.
            OSError: it cannot be read.
        """
        found, place = Answered(), self._place()
        if not os.path.lexists(place / self._name):
            return found, ""
        lines = read_bytes(inside(place, self._name), at_most=LARGEST_JSON).split(b"\n")
        torn = lines.pop()
        if not lines:
            return found, ""
        self.before = self._checked_head(lines[0])
        size = len(lines[0]) + 1
        for number, line in enumerate(lines[1:], 2):
            try:
                row = _parsed(line, f"{self._name} line {number}", bounds)
            except InputError as error:
                self._size = size
                is_end = number == len(lines) and not torn
                return found, "" if is_end else str(error)
            found.add(row)
            size += len(line) + 1
        self._size = size
        return found, ""

    def completed(self, prompt: int, completion: Completion) -> None:
        """Add a completion to what is to be written."""
        row = {"prompt": prompt, "tokens": completion.tokens, "stop_reason": completion.stop_reason}
        self.pending.append(_line(row))

    def measured(self, question: int, losses: Losses) -> None:
        """Add losses to what is to be written."""
        self.pending.append(_line({"question": question, "losses": list(losses)}))

    def write(self) -> None:
        """Write what is pending, and wait until it is on the disk.

        Raises:
            OSError, InputError: it cannot be written; nothing more can.
        """
        if not self.pending:
            return
        self._claim.check_there()
        place = self._place()
        make_folder(place)
        head = [] if self._size else [_line(self._head)]
        content = b"".join([*head, *self.pending])
        extend_file(place / self._name, self._size, content)  # what is torn at its end goes
        self._size += len(content)
        self.pending.clear()

    def _place(self) -> Path:
        place = self._claim.path / ANSWERS
        if place.is_symlink():
            raise InputError(f"{str(place)!r} is a link, allowed is a folder: remove it")
        return place

    def _checked_head(self, line: bytes) -> Mapping[str, Any]:
        before = _unwrapped(line, f"{self._name} line 1")
        if other := made_otherwise(before, self._head):
            raise InputError(f"they are of another evaluation: {other}")
        return before


def _line(row: Mapping[str, Any]) -> bytes:
    text = json.dumps(row)
    return f'{{"sha256": "{_digest(text)}", "row": {text}}}\n'.encode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _unwrapped(line: bytes, where: str) -> dict[str, Any]:
    """Return what a line holds, if it is what was written."""
    wrong = InputError(f"{where} is not what was written: what follows is evaluated anew")
    try:
        value = parse_json(line.decode(), where)
    except (UnicodeDecodeError, InputError) as error:
        raise wrong from error
    row = value.get("row") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(row, dict):
        raise wrong
    if value.get("sha256") != _digest(json.dumps(row)):
        raise wrong
    return row


def _parsed(line: bytes, where: str, bounds: Bounds) -> _CompletionRow | _LossesRow:
    row = _unwrapped(line, where)
    kind = _CompletionRow if "prompt" in row else _LossesRow
    try:
        found = kind.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{where} is no answer ({first_line(error)})") from error
    if not bounds.allow(found):
        raise InputError(f"{where} is an answer that no run gives here")
    return found


def names(num_slots: int, num_members: int, form: str) -> Iterator[tuple[int, str]]:
    """Yield in whose folder each slot's answers are, by the member's index, and the file's name.

    Slots that no run has complete prompts, too, and how long that takes them decides with which
    rows the others are computed. The last run keeps what they complete.
    """
    for slot in range(num_slots):
        is_own = slot < num_members
        yield min(slot, num_members - 1), f"{form}.jsonl" if is_own else f"{form}-slot{slot}.jsonl"
