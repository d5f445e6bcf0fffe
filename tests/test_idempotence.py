"""Whatever cuts or cleans a text leaves what it gave alone: the cut is what it is of itself."""

import time
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import printable as without_steering
from schemabank.common.lines import marked_line
from schemabank.report.page.markup import visible
from schemabank.runs.folder import slug
from schemabank.tasks.narrativeqa import join_punctuation
from schemabank.tasks.programs import cut as cut_program
from schemabank.tasks.scoring.answers import canonical_number, cut_next_question, extract
from schemabank.tasks.scoring.metrics import choice_letter, normalised
from schemabank.tasks.scoring.scores import _answer_text as answer_line

MARKS = [
    *("### Question", "## Problem 4", "### Input:", "# Q", "Question:", "**Q**: ", "Exercise 3"),
    *("[Schema: 5] ", "[INST]", "</s>", "<|im_end|>", "<end_of_turn>", "<|im_start|>", "user"),
    *("The answer is", "The answer is: ", "answer: B", "####", "\\boxed{", "}", "?\n", "\n\n"),
    *("<<", ">>", "<<1>>", "{,}", "\\$", "\\!", "\\frac{1}{2}", "$", "1,234", "18", "-", "."),
    *("\ndef f():", "\n    return 1", "\n#", "\nif ", "\nassert ", "\n```", "```python", '\n"""'),
    *("'''", "(", ")", "\\\n", "class ", "def ", "async def f(): pass", "\n@g", "x = [", "    "),
    *("the", "a", "an", "A", "B", " s ", " ll ", "I", "we", "n't", "'", "\u200b", "\r", "\r\n"),
    *(
        "\t",
        "\f",
        "\x1c",
        "\u2028",
        "\x00",
        "\ud800",
        "İ",
        "a\u0307",
        "²",
        "٣",
        "[",
        "] ",
        " .",
        ", ",
    ),
]
texts = st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=12).map("".join)
Clean = Callable[[str], str | None]
CLEANERS: dict[str, Clean] = {
    "the text before a next question": cut_next_question,
    "the answer line": answer_line,
    "a number's spelling": canonical_number,
    "the answer of a completion": lambda text: extract(text).answer,
    "a chosen letter": choice_letter,
    "SQuAD's form": normalised,
    "a function's body": partial(cut_program, kind="humaneval"),
    "a program": partial(cut_program, kind="mbpp"),
    "joined punctuation": join_punctuation,
    "a file name": slug,
    "what HTML can hold": visible,
    "what a terminal can show": marked_line,
    "a line of the live screen": without_steering,
}


@pytest.mark.parametrize("name", CLEANERS)
@examples(200)
@given(text=texts)
def test_what_is_cleaned_stays_as_it_is(name: str, text: str) -> None:
    clean = CLEANERS[name]
    once = clean(text)
    assert once is None or clean(once) == once


@pytest.mark.parametrize("before", ["", "18\n", "18\n\n"])
@pytest.mark.parametrize("end", ["</s>", "[INST]", "<|im_end|>", "<|user|>", "<start_of_turn>user"])
def test_a_heading_before_a_mark_of_the_end_is_a_next_question(before: str, end: str) -> None:
    assert cut_next_question(f"{before}### Question{end}") == before
    assert cut_next_question(f"{before}### Question {end}\n### Question") == before


def test_cutting_again_and_again_takes_linear_time() -> None:
    for piece in ("### Question</s>", "### Question", "?\nThe answer is:\n\n5", "<<\n\n"):
        start = time.process_time()
        cut_next_question("<<5" + piece * (100_000 // len(piece)))
        assert time.process_time() - start < 2
