"""Prompts and targets: what the model reads and writes."""

import subprocess
import sys
from dataclasses import replace

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks import Example, TaskData
from schemabank.tasks.prompts import few_shot_examples, fill, prompt_text, target_text

PAPER_TEMPLATE = "{question}\nThe answer is: "


def example(number: int, *, answer: str = "") -> Example:
    answer = answer or str(number)
    return Example(
        id=f"task/train/{number}",
        question=f"How much is {number}?",
        solution=f"It is {number}.\n#### {answer}",
        answer=answer,
    )


HOW = replace(example(0), question="How?")


def test_prompt_keeps_the_space_after_the_colon() -> None:
    text = prompt_text(HOW, template=PAPER_TEMPLATE, shots=[], target="final")
    assert text == "How?\nThe answer is: "


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("final", "Q: How much is 1?\nA: 1\n\nQ: How much is 2?\nA: 2\n\nQ: How?\nA: "),
        (
            "solution",
            "Q: How much is 1?\nA: It is 1.\n#### 1\n\n"
            "Q: How much is 2?\nA: It is 2.\n#### 2\n\nQ: How?\nA: ",
        ),
    ],
)
def test_shots_stand_in_front_with_their_targets(target: str, expected: str) -> None:
    shots = [example(1), example(2)]
    text = prompt_text(HOW, template="Q: {question}\nA: ", shots=shots, target=target)
    assert text == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{0} {question} { x } {{ {}", "{0} How? { x } {{ {}"),
        ("{{question}}: {question}", "{question}: How?"),
        ("{topic}: {question} {topic}", "sums: How? sums"),
        ("{question text}|{factual?}|{2nd}", "text|yes|two"),
        (
            '{answer: "a"}{a.b}{a{b}}{naïve col-name/x}',
            "quoted|dotted|nested|marks".replace("|", ""),
        ),
        (
            "{{question text}} {{factual?}} {{any name, at all}} {topic}",
            "{question text} {factual?} {any name, at all} sums",
        ),
        (
            '{"a": 1, "b": {question}} \\frac{1}{2} {\n} {{1}}',
            '{"a": 1, "b": How?} \\frac{1}{2} {\n} {{1}}',
        ),
        ("{{topic}} is {topic}, {{{topic}}}", "{topic} is sums, {{topic}}"),
    ],
)
def test_columns_are_filled_in_and_other_braces_are_literal(template: str, expected: str) -> None:
    fields = {
        "topic": "sums",
        "question text": "text",
        "factual?": "yes",
        "2nd": "two",
        'answer: "a"': "quoted",
        "a.b": "dotted",
        "a{b}": "nested",
        "naïve col-name/x": "marks",
    }
    asked = replace(HOW, fields=fields)
    assert prompt_text(asked, template=template, shots=[], target="final") == expected


def test_a_question_may_hold_a_placeholder_itself() -> None:
    asked = replace(HOW, question="What does {question} mean?")
    text = prompt_text(asked, template="{question}!", shots=[], target="final")
    assert text == "What does {question} mean?!"


@pytest.mark.parametrize("template", ["", "The answer is: ", "{}", "{ x }", "{{question}}"])
def test_a_template_without_a_column_is_refused(template: str) -> None:
    with pytest.raises(InputError, match=r"holds no column: allowed are \{question\}"):
        prompt_text(HOW, template=template, shots=[], target="final")


@pytest.mark.parametrize(
    ("name", "guess"),
    [
        ("Question", "question"),
        (" question ", "question"),
        ("question_text", "question text"),
        ("questiontext", "question text"),
        ("factual", "factual?"),
        ("what, then", None),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(
    name: str, guess: str | None
) -> None:
    asked = replace(HOW, fields={"question text": "text", "factual?": "yes"})
    with pytest.raises(InputError, match=r"write \{\{.*\}\} for these very characters") as caught:
        prompt_text(asked, template=f"{{{name}}}: {{question}}", shots=[], target="final")
    assert (f"(did you mean {guess!r}?)" in str(caught.value)) == (guess is not None)


def test_a_column_that_other_rows_have_is_no_literal_text_in_this_one() -> None:
    with pytest.raises(InputError, match=r"\{2\. part\}, which row 3 lacks"):
        fill("{a} {2. part}", {"a": "x"}, where="row 3", names=("a", "2. part"))


def test_a_column_that_the_data_lacks_is_named_with_the_example() -> None:
    with pytest.raises(InputError, match=r"\{topic\}, which the example 'task/train/0' lacks"):
        prompt_text(HOW, template="{topic}: {question}", shots=[], target="final")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("72", "72"),
        ("1,200", "1200"),
        ("-3,000,000", "-3000000"),
        ("$1,200.50", "$1200.50"),
        ("1,2", "1,2"),
        ("1, 200", "1, 200"),
        ("Paris, France", "Paris, France"),
        ("in 1,200 years", "in 1,200 years"),
    ],
)
def test_final_target_drops_thousands_commas_of_numbers_only(answer: str, expected: str) -> None:
    assert target_text(example(5, answer=answer), target="final") == expected


def test_solution_target_is_the_solution_as_it_stands() -> None:
    written = example(5, answer="1,200")
    assert target_text(written, target="solution") == "It is 5.\n#### 1,200"


def test_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="'answer' is not one of solution, final"):
        target_text(example(5), target="answer")


def test_few_shot_examples_are_fixed_and_nested() -> None:
    examples = [example(i) for i in range(30)]
    data = TaskData(train=examples, validation=[], test=[])
    turned = TaskData(train=examples[::-1], validation=[], test=[])
    eight = few_shot_examples(data, 8)
    assert len({e.id for e in eight}) == 8
    assert few_shot_examples(data, 3) == eight[:3]
    assert few_shot_examples(turned, 8) == eight
    assert few_shot_examples(data, 0) == []
    assert eight != examples[:8]


def test_few_shot_examples_follow_the_documented_hash() -> None:
    data = TaskData(train=[example(i) for i in range(30)], validation=[], test=[])
    program = (
        "import hashlib; ids = [f'task/train/{i}' for i in range(30)]; "
        "print(*sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:5])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert [e.id for e in few_shot_examples(data, 5)] == printed.split()


@pytest.mark.parametrize("k", [-1, 4])
def test_more_shots_than_examples_are_refused(k: int) -> None:
    data = TaskData(train=[example(i) for i in range(3)], validation=[], test=[])
    with pytest.raises(InputError, match="0 to 3"):
        few_shot_examples(data, k)


def test_a_sentence_about_long_columns_is_short() -> None:
    with pytest.raises(ValueError, match="unheard") as caught:
        fill("{unheard}", {"x" * 200_000: "1", "question": "2"}, where="a row")
    assert len(str(caught.value)) < 1000
