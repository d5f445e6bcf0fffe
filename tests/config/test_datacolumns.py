"""What the names of columns say about rows."""

import pytest

from schemabank.config.datacolumns import (
    PAIRS,
    contexts_of,
    known_pair,
    may_be_answered,
    other_training,
    prompt_of,
)


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        (("question", "answer"), "{question}\nAnswer: "),
        (("id", "title", "context", "question", "answer"), "{context}\n{question}\nAnswer: "),
        (("question", "passage", "answer"), "{passage}\n{question}\nAnswer: "),
        (("instruction", "input", "output"), "{instruction}\n{input}\nAnswer: "),
        (("instruction", "context", "response"), "{instruction}\n{context}\nAnswer: "),
        (("input", "output"), "{input}\nAnswer: "),
        (("context", "input", "output"), "{context}\n{input}\nAnswer: "),
        (("prompt", "context", "completion"), "{prompt}"),
    ],
)
def test_a_context_stands_beside_what_is_asked(columns: tuple[str, ...], prompt: str) -> None:
    pair = known_pair(columns)
    assert pair is not None
    assert prompt_of(pair[0], columns) == prompt


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("text",), "TRL's SFTTrainer"),
        (("id", "text"), "divide each text into the columns prompt and completion"),
        (("prompt", "chosen", "rejected"), "TRL's DPOTrainer"),
        (("chosen", "rejected"), "these are preferences"),
        (("input_ids", "attention_mask"), "give the texts that the tokens were made of"),
    ],
)
def test_other_training_is_named_with_the_way_on(columns: tuple[str, ...], said: str) -> None:
    assert known_pair(columns) is None
    found = other_training(columns)
    assert found is not None
    assert said in found
    assert "what is trained here is the completion of a prompt, or a chat" in found


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("text",), False),
        (("id", "text"), True),
        (("prompt", "text"), True),
        (("prompt", "chosen", "text"), True),
        (("chosen", "rejected", "text"), False),
        (("input_ids", "text"), False),
        (("a", "b"), False),
    ],
)
def test_plain_text_beside_other_columns_may_be_answered(
    columns: tuple[str, ...], found: bool
) -> None:
    assert may_be_answered(columns) is found


def test_what_is_asked_about_is_never_what_is_asked() -> None:
    assert contexts_of("question", ["input", "question", "context"]) == ["context", "input"]
    assert contexts_of("input", ["input", "output"]) == []
    assert contexts_of("prompt", ["prompt", "context"]) == []


@pytest.mark.parametrize("columns", PAIRS)
def test_a_pair_is_found_in_any_order(columns: tuple[str, str]) -> None:
    assert known_pair(reversed(columns)) == columns


def test_other_names_say_nothing() -> None:
    assert known_pair(["a", "b"]) is None
    assert other_training(["a", "b"]) is None
