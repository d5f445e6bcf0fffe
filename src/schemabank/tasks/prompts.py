"""Owns the text a model reads and the text it should write, for every task.

A template such as ``{question} The answer is:`` is filled from an example's columns. Training,
scoring and few-shot examples all join prompt and target without anything in between; a template
therefore ends with the white space it wants.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import nsmallest

from schemabank.common.errors import InputError, did_you_mean
from schemabank.tasks.base import Example, TaskData, text_hash

TARGETS = ("solution", "final")
# What looks like a column's name in braces, though there is none: {question text}, {factual?}.
NAME = r'[^\W\d][^{}\n"]*'
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
    worked = [_fill_example(template, shot) + target_text(shot, target=target) for shot in shots]
    return "\n\n".join([*worked, _fill_example(template, example)])


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


def fill(
    template: str, columns: Mapping[str, str], *, where: str, names: Iterable[str] | None = None
) -> str:
    """Fill a template by plain replacement, so that braces in the columns stay as they are.

    Args:
        template: text in which ``{name}`` stands for a column at least once, whatever characters
            its name has; ``{{name}}`` is the text ``{name}``. Braces around anything that cannot be
            a name, such as ``{}``, ``{1}`` or ``{"a": 1}``, are literal.
        columns: texts by name.
        where: what the columns are of, for messages.
        names: of the columns that the data has, where this row may lack some.

    Raises:
        InputError: a column that is not there, or a template without any.
    """
    known = tuple(columns) if names is None else tuple(names)
    allowed = ", ".join(f"{{{name:.100}}}" for name in columns)[:300]
    found = list(_brace_pattern(known).finditer(template))
    for brace in found:
        name = brace["unknown"] or brace["column"]
        if name is not None and name not in columns:
            raise InputError(
                f"the template {template!r} names {{{name}}}, which {where} lacks"
                f"{did_you_mean(name, columns)}: allowed are {allowed}; write {{{{{name}}}}} for "
                "these very characters"
            )
    if not any(brace["column"] for brace in found):
        raise InputError(
            f"the template {template!r} holds no column: allowed are {allowed}, write at least one"
        )
    return _brace_pattern(known).sub(lambda m: m["literal"] or columns[m["column"]], template)


def columns_in(template: str, names: Iterable[str]) -> list[str]:
    """Return the columns that a template fills in, of those with these names."""
    return [
        brace["column"]
        for brace in _brace_pattern(tuple(names)).finditer(template)
        if brace["column"]
    ]


def unknown_in(template: str, names: Iterable[str]) -> list[str]:
    """Return what a template has in braces that looks like a column but is none of these."""
    found = _brace_pattern(tuple(names)).finditer(template)
    return list(dict.fromkeys(brace["unknown"] for brace in found if brace["unknown"]))


@lru_cache
def _brace_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    """Find braces around these columns, around what looks like a column, and doubled braces."""
    longest_first = sorted(map(re.escape, names), key=len, reverse=True)
    known = "|".join(longest_first) or "(?!)"
    return re.compile(
        rf"\{{(?P<literal>\{{(?:{known}|{NAME})\}})\}}|\{{(?P<column>{known})\}}"
        rf"|\{{(?P<unknown>\s*(?:{known})\s*|{NAME})\}}"
    )


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
    return nsmallest(k, data.train, key=lambda example: text_hash(example.id))


def _fill_example(template: str, example: Example) -> str:
    columns = {"question": example.question, **example.fields}
    return fill(template, columns, where=f"the example {example.id!r}")
