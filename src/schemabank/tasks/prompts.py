"""Owns the text a model reads and the text it should write, for every task.

A template such as ``{question} The answer is:`` is filled from an example's columns. Training,
scoring and few-shot examples all join prompt and target without anything in between; a template
therefore ends with the white space it wants.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from schemabank.errors import InputError
from schemabank.tasks.base import Example, TaskData

TARGETS = ("solution", "final")
# {name} is a column, {{name}} the text {name}; any other brace stands for itself.
PLACEHOLDER = re.compile(r"\{(\{[^\W\d][\w.-]*\})\}|\{([^\W\d][\w.-]*)\}")
# A whole answer written with thousands commas: 1,200 or -$3,000,000.50, but no list such as "1, 2".
THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(,\d{3})+(\.\d+)?")


def prompt_text(example: Example, *, template: str, shots: Sequence[Example], target: str) -> str:
    """Return the prompt for an example, after the worked examples ``shots``.

    Args:
        example: what is asked.
        template: see :func:`fill`; ``{question}`` and the example's fields are its columns.
        shots: examples shown first, each in the same template followed by its own target.
        target: which target the shots show, see `target_text`.
    """
    worked = [_fill(template, shot) + target_text(shot, target=target) for shot in shots]
    return "\n\n".join([*worked, _fill(template, example)])


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


def fill(template: str, columns: Mapping[str, str], *, where: str) -> str:
    """Fill a template by plain replacement, so that braces in the columns stay as they are.

    Args:
        template: text in which ``{name}`` stands for a column at least once; ``{{name}}`` is the
            text ``{name}``, and all other braces are literal.
        columns: texts by name.
        where: what the columns are of, for messages.

    Raises:
        InputError: a column that is not there, or a template without any.
    """
    names = [match[2] for match in PLACEHOLDER.finditer(template) if match[2]]
    allowed = ", ".join(f"{{{name}}}" for name in columns)
    if not names:
        raise InputError(
            f"the template {template!r} holds no column: allowed are {allowed}, write at least one"
        )
    for name in names:
        if name not in columns:
            raise InputError(
                f"the template {template!r} names {{{name}}}, which {where} lacks: allowed are "
                f"{allowed}; write {{{{{name}}}}} for these very characters"
            )
    return PLACEHOLDER.sub(lambda m: m[1] or columns[m[2]], template)


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


def _fill(template: str, example: Example) -> str:
    columns = {"question": example.question, **example.fields}
    return fill(template, columns, where=f"the example {example.id!r}")
