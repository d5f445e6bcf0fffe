"""Owns the task GSM8K: grade-school word problems with worked solutions.

Rows come from a local folder or the Hugging Face hub. Upstream has no validation split, so a fixed
hash rule carves one out of ``train``; the test split is left as it is. Paper: Cobbe et al., arXiv
2110.14168.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.files import json_lines
from schemabank.tasks import sources
from schemabank.tasks.base import Example, TaskData, check_validation_ratio, set_aside
from schemabank.tasks.task import Task

HUB_ID = "openai/gsm8k"
HUB_CONFIG = "main"
ANSWER_MARK = "####"
CALCULATOR_MARK = re.compile(r"<<([^<>]*)>>")
# A minus sign with no operand before it is a sign, not a subtraction.
SIGN = re.compile(r"(?<![\d.)])-")
OPERATORS = {"addition": "+", "subtraction": "-", "multiplication": "*", "division": "/"}

Row = tuple[str, object]  # where the row stands, for messages, and the parsed row


def load(*, validation_ratio: float, calculator_marks: bool) -> TaskData:
    """Load GSM8K.

    Args:
        validation_ratio: share of the upstream training rows that become the validation split. A
            row belongs to it by its question alone, and a larger share keeps all of a smaller one.
        calculator_marks: keep ``<<48/2=24>>`` in the worked solutions.

    The folder named by ``SCHEMABANK_DATA`` is read when the variable is set, else the hub. An id
    such as ``gsm8k/train/123`` holds the row's index upstream, in whichever split it ends. The
    field ``operations`` lists what the calculator marks compute, ``addition,division``, and is
    empty for the solutions without marks.
    """
    check_validation_ratio(validation_ratio)
    folder = sources.data_folder()
    rows = _folder_rows(folder) if folder else _hub_rows()
    examples = {
        split: [
            _make_example(
                where, row, id_=f"gsm8k/{split}/{index}", calculator_marks=calculator_marks
            )
            for index, (where, row) in enumerate(split_rows)
        ]
        for split, split_rows in rows.items()
    }
    _check_disjoint(examples["train"], examples["test"])
    train, validation = set_aside(examples["train"], validation_ratio, by=lambda e: e.question)
    return TaskData(train, validation, examples["test"])


def _folder_rows(folder: Path) -> dict[str, Iterator[Row]]:
    paths = {split: folder / "gsm8k" / f"{split}.jsonl.gz" for split in ("train", "test")}
    put = "put the upstream files there, gzipped"
    sources.check_files("GSM8K", list(paths.values()), put=put, hub_id=HUB_ID)
    return {split: json_lines(path, finite=True) for split, path in paths.items()}


def _hub_rows() -> dict[str, Iterator[Row]]:
    hub_data = sources.load_data_set(
        HUB_ID,
        HUB_CONFIG,
        sought=f"GSM8K was looked for in {sources.NOT_SET}",
        otherwise=f"set {sources.DATA_VARIABLE} to a folder with gsm8k/train.jsonl.gz and "
        "gsm8k/test.jsonl.gz",
    )
    return {
        split: sources.numbered_rows(HUB_ID, split, hub_data[split]) for split in ("train", "test")
    }


def _make_example(where: str, row: object, *, id_: str, calculator_marks: bool) -> Example:
    question, text = _question_and_answer(where, row)
    marked = text if calculator_marks else CALCULATOR_MARK.sub("", text)
    steps, mark, answer = (part.strip() for part in marked.partition(ANSWER_MARK))
    if not mark or not answer or ANSWER_MARK in answer:
        raise InputError(
            f"{where}: the answer must hold one '{ANSWER_MARK} N' at its end, not {text[-40:]!r}: "
            f"restore the upstream file"
        )
    return Example(
        id=id_,
        question=question,
        solution=f"{steps}\n{ANSWER_MARK} {answer}",
        answer=answer,
        fields={"operations": _operations(text)},
    )


def _question_and_answer(where: str, row: object) -> tuple[str, str]:
    if isinstance(row, dict):
        question, answer = row.get("question"), row.get("answer")
        if isinstance(question, str) and isinstance(answer, str):
            return question, answer
    raise InputError(
        f"{where} must be an object with the texts 'question' and 'answer': restore the upstream "
        f"file"
    )


def _operations(text: str) -> str:
    expressions = [mark.partition("=")[0] for mark in CALCULATOR_MARK.findall(text)]
    unsigned = SIGN.sub("", "|".join(expressions).replace(" ", ""))
    return ",".join(name for name, operator in OPERATORS.items() if operator in unsigned)


def _check_disjoint(train: list[Example], test: list[Example]) -> None:
    ids = {example.question: example.id for example in train}
    for example in test:
        if example.question in ids:
            raise InputError(
                f"{example.id} asks the same question as {ids[example.question]}: restore the "
                f"upstream files, whose splits share none"
            )


TASK = Task(lambda settings: load(**settings.gsm8k.model_dump()))
