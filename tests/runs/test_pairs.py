from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from schemabank.common.errors import InputError
from schemabank.common.stored import Stored
from schemabank.runs import pairs
from schemabank.runs.pairs import as_examples
from schemabank.tasks.base import Turn

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "other": None}]
TABLE = {"prompt": ["a", "c"], "completion": ["b", "d"]}


@pytest.mark.parametrize(
    "examples",
    [
        [("a", "b"), ("c", "d")],
        (["a", "b"], ["c", "d"]),
        ROWS,
        datasets.Dataset.from_list(ROWS),
        datasets.Dataset.from_dict(TABLE).select(range(2)),
        [(np.str_("a"), "b"), {"prompt": "c", "completion": "d"}],
    ],
)
def test_pairs_and_columns_are_taken(examples: object) -> None:
    found = as_examples(examples)
    assert [(e.question, e.solution) for e in found] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (["ab", "cd"], "training example 0 is 'ab': allowed are a list of pairs"),
        ("ab", "the training examples are a str: allowed"),
        (TABLE, "are a dict: allowed"),
        (pd.DataFrame(TABLE), r"are a DataFrame: .* give table\.to_dict\(\"records\"\)"),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict(TABLE)),
            r"such as data\[\"train\"\]",
        ),
        (
            datasets.Dataset.from_dict(TABLE).to_iterable_dataset(),
            r"are a IterableDataset: .* by datasets\.Dataset\.from_generator\(streamed\.__iter__\)",
        ),
        ({("a", "b")}, "are a set"),
        (None, "are a NoneType"),
        ([], "there are 0 training examples"),
        (datasets.Dataset.from_dict({"prompt": [], "completion": []}), "0 training examples"),
        (datasets.Dataset.from_dict({"text": ["x"]}), "has the columns text and no prompt"),
        ([{"text": "x"}], "this is plain text, .* TRL's SFTTrainer$"),
        ([{"input_ids": [1], "labels": [1]}], "these are tokens, .* give the texts"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], "no completion: these are preferences"),
        ([{"question": "a", "answer": "b"}], "rename 'question' to 'prompt' and 'answer' to 'comp"),
        ([{"text": "a", "label": "b"}], "rename 'text' to 'prompt' and 'label' to 'completion'$"),
        ([{"prompt": "a", "response": "b"}], "; rename 'response' to 'completion'$"),
        (
            [{"instruction": "a", "input": "b", "output": "c"}],
            r"; make pairs of 'instruction' and 'output', with 'input' in the prompt$",
        ),
        (
            [{"context": "a", "question": "b", "answer": "c"}],
            r"; make pairs of 'question' and 'answer', with 'context' in the prompt$",
        ),
        (
            [{"context": "a", "input": "b", "passage": "c", "output": "d"}],
            r"of 'input' and 'output', with 'context' and 'passage' in the prompt$",
        ),
        ([{"prompt": "a", "context": "b", "response": "c"}], "; rename 'response' to 'completion'"),
        ([{"input": "a", "output": "b"}], "; rename 'input' to 'prompt' and 'output' to 'compl"),
        (
            [{"prompt": "a", "instruction": "b", "output": "c"}],
            "; make pairs of 'instruction' and 'output'$",
        ),
        (
            [{"completion": "a", "question": "b", "answer": "c"}],
            "; make pairs of 'question' and 'answer'$",
        ),
        (
            [{"text": "a", "summary": "b"}],
            "SFTTrainer; or, if one column answers another, make pairs of them$",
        ),
        ([{"prompt": "a", "text": "b"}], "plain text, .*; or, if one column answers another, make"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "text": "d"}], "as completions$"),
        ([{"text": "a", "input_ids": [1]}], "lets train by a method, too$"),
        ([{"a": "a", "b": "b"}], "rename its columns, or make pairs of them$"),
        ([{"prompt": "a", "answer": "b"}], "has the columns prompt, answer and no completion"),
        ([("a", "b"), ("a", "b", "c")], r"example 1 is \('a', 'b', 'c'\)"),
        ([("a",)], r"example 0 is \('a',\)"),
        ([{"a", "b"}], "example 0 is"),
        ([None], "example 0 is None"),
        ([("a", 4)], "completion of training example 0 is 4, a int: allowed is text"),
        ([("a", None)], "is None, a NoneType"),
        ([("a", float("nan"))], "is nan, a float"),
        ([("a", b"b")], "is b'b', a bytes"),
        ([("a", True)], "is True, a bool"),
        ([([{"role": "user", "content": "a"}], "b")], "prompt of training example 0 is"),
        ([("a", "b"), ("a", " ")], "completion of training example 1 is empty"),
        ([("a", "\ud83d")], "is no Unicode"),
    ],
)
def test_anything_else_is_refused(examples: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_examples(examples)


def test_a_streamed_data_set_is_taken_as_the_message_says(tmp_path: Path) -> None:
    streamed = datasets.Dataset.from_dict(TABLE).to_iterable_dataset()
    table = datasets.Dataset.from_generator(streamed.__iter__, cache_dir=str(tmp_path))
    assert [(e.question, e.solution) for e in as_examples(table)] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("make", [lambda: (p for p in [("a", "b")]), lambda: iter([("a", "b")])])
def test_what_can_be_read_only_once_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="make a list of it"):
        as_examples(make())


CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": SHARED, "source": "x"},
        {"prompt": CHAT[:1], "completion": CHAT[1:]},
    ],
)
@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_chats_are_taken(row: dict[str, object], kind: Callable[[object], object]) -> None:
    found = as_examples(kind([row, row]))
    assert [example.id for example in found] == ["examples/0", "examples/1"]
    turns = (Turn("user", "a"), Turn("assistant", "b", learned=True))
    assert all((e.turns, e.question, e.answer) == (turns, "a", "b") for e in found)


@pytest.mark.parametrize("rows", [ROWS[:1] * 40, [{"messages": CHAT}] * 40])
def test_examples_that_are_too_large_for_memory_lie_in_a_file(
    rows: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = datasets.Dataset.from_list(rows)
    in_memory = as_examples(table)
    monkeypatch.setattr(pairs, "MOST_BYTES", 2000)
    in_file = as_examples(table)
    assert isinstance(in_memory, list)
    assert isinstance(in_file, Stored)
    assert list(in_file) == in_memory


def test_pairs_are_examples_without_turns() -> None:
    (first, second) = as_examples(ROWS)
    assert (first.question, first.solution, second.answer) == ("a", "b", "d")
    assert not first.turns


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"messages": CHAT}, ("a", "b")], "training example 1 is .*, but others are chats"),
        ([{"messages": CHAT}, {"text": "x"}], "training example 1 has None in column 'messages'"),
        ([{"messages": CHAT[:1]}], "training example 0 has no turn of the assistant"),
        ([{"messages": "x"}], "has the columns messages and no prompt"),
        ([], "there are 0 training examples"),
    ],
)
def test_chats_that_are_none_are_refused(examples: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_examples(examples)
