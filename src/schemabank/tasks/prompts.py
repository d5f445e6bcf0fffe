"""Owns the text a model reads and the text it should write, for every task.

A template such as ``{question} The answer is:`` is filled by plain replacement, so that braces in
code or mathematics stay as they are. Training, scoring and few-shot examples all join prompt and
target without anything in between; a template therefore ends with the white space it wants.
"""

import hashlib
import re
from collections.abc import Sequence

from schemabank.errors import InputError
from schemabank.tasks.base import Example, TaskData

QUESTION_MARK = "{question}"
TARGETS = ("solution", "final")
# A whole answer written with thousands commas: 1,200 or -$3,000,000.50, but no list such as "1, 2".
THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")


def prompt_text(question: str, *, template: str, shots: Sequence[Example], target: str) -> str:
    """Return the prompt for a question, after the worked examples ``shots``.

    Args:
        question: the question's text.
        template: text that holds ``{question}`` exactly once; other braces are literal.
        shots: examples shown first, each in the same template followed by its own target.
        target: which target the shots show, see `target_text`.
    """
    worked = [_fill(template, shot.question) + target_text(shot, target=target) for shot in shots]
    return "\n\n".join([*worked, _fill(template, question)])


def target_text(example: Example, *, target: str) -> str:
    """Return what the model should write for an example, without an end-of-sequence token.

    ``solution`` is the worked solution as it stands. ``final`` is the answer alone, as the data set
    writes it, except that thousands commas are removed where the whole answer is one number
    (``1,200`` becomes ``1200``); commas in any other answer are part of it and stay.
    """
    if target == "solution":
        return example.solution
    if target == "final":
        is_grouped = THOUSANDS.fullmatch(example.answer)
        return example.answer.replace(",", "") if is_grouped else example.answer
    raise InputError(f"target {target!r} is not one of {', '.join(TARGETS)}: name one of them")


def few_shot_examples(data: TaskData, k: int) -> list[Example]:
    """Return the first ``k`` training examples in the order of the SHA-256 of their ids.

    The choice is fixed, so every model and seed sees the same shots, and ``k`` shots begin with
    the shots of every smaller ``k``.
    """
    if not 0 <= k <= len(data.train):
        raise InputError(
            f"{k} few-shot examples were asked for, but the training split allows 0 to "
            f"{len(data.train)}: ask for a number in that range"
        )
    ranked = sorted(data.train, key=lambda example: hashlib.sha256(example.id.encode()).digest())
    return ranked[:k]


def _fill(template: str, question: str) -> str:
    if template.count(QUESTION_MARK) != 1:
        raise InputError(
            f"prompt template {template!r} holds {QUESTION_MARK} {template.count(QUESTION_MARK)} "
            f"times, but it must stand there exactly once: write it where the question belongs"
        )
    return template.replace(QUESTION_MARK, question)
