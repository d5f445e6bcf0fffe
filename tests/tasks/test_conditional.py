"""The generated rules: every answer recomputed independently, splits apart, draws that stay."""

import hashlib
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.config.task import ConditionalSettings
from schemabank.tasks import conditional
from schemabank.tasks.base import Example, TaskData
from schemabank.tasks.conditional import RULES, TEMPLATES

# The first 50 examples of each split with the settings of `load` below.
DIGEST = "05a5f8c246132914"
GROUPS = ("seen", "held_out")


def load(**changes: Any) -> TaskData:  # noqa: ANN401
    sizes = {"train_size": 200, "validation_size": 60, "test_size": 60}
    fixed = {"num_rules": 8, "held_out_ratio": 0.25, "show_rule": False, "data_seed": 0}
    return conditional.load(**(sizes | fixed | changes))


def everything(data: TaskData) -> list[Example]:
    return [*data.train, *data.validation, *data.test]


def independent_answer(kind: str, numbers: list[int]) -> int:
    """The rules once more, by what kind of thing the word names."""
    first, second, third, last = numbers
    ranked = sorted(numbers)
    return {
        "animal": first,
        "fruit": last,
        "tool": ranked[0],
        "country": ranked[3],
        "vehicle": second,
        "clothing": first + 1,
        "instrument": last - 1,
        "profession": third,
        "body": second + 1,
        "furniture": third - 1,
        "drink": ranked[0] - 1,
        "colour": ranked[3] + 1,
    }[kind]


KINDS = (
    *("animal", "fruit", "tool", "country", "vehicle", "clothing"),
    *("instrument", "profession", "body", "furniture", "drink", "colour"),
)


@pytest.mark.parametrize("show_rule", [False, True])
def test_every_answer_follows_from_its_question(show_rule: bool) -> None:
    data = load(num_rules=12, train_size=3000, validation_size=600, test_size=600)
    if show_rule:
        data = load(num_rules=12, train_size=600, show_rule=True)
    kind_of = {word: kind for kind, rule in zip(KINDS, RULES, strict=True) for word in rule.words}
    for example in everything(data):
        words = [w for w in re.findall(r"\w+", example.question) if w in kind_of]
        assert words == [example.fields["word"]]
        kind = kind_of[words[0]]
        numbers = [int(n) for n in re.findall(r"\d", example.question)]
        assert example.answer == str(independent_answer(kind, numbers)), example
        assert example.fields["rule"] == f"rule-{KINDS.index(kind)}"
        assert example.solution.endswith(f" {example.answer}.\n#### {example.answer}")


def test_one_example_in_full() -> None:
    example = load().train[5]
    assert example == Example(
        id="conditional/train/5",
        question="For jacket: 2 1 4 8. What comes out?",
        solution=(
            "The word names a piece of clothing, so the answer is the first number plus one: "
            "2 + 1 = 3.\n#### 3"
        ),
        answer="3",
        fields={"rule": "rule-5", "template": "1", "word": "jacket"},
        cluster="jacket",
    )


def test_a_shown_rule_stands_before_the_same_question() -> None:
    hidden, shown = everything(load()), everything(load(show_rule=True))
    for without, example in zip(hidden, shown, strict=True):
        rule = RULES[int(example.fields["rule"].removeprefix("rule-"))]
        assert example.question == (
            f"If the word names {rule.condition}, answer {rule.operation}. {without.question}"
        )
        assert (example.id, example.solution) == (without.id, without.solution)


def test_words_name_one_kind_each_and_wordings_hold_both_parts_once() -> None:
    words = [word for rule in RULES for word in rule.words]
    assert len(set(words)) == len(words)
    assert {len(rule.words) for rule in RULES} == {24}
    assert len({(rule.pick, rule.step) for rule in RULES}) == len(RULES)
    for template in TEMPLATES:
        assert Counter(re.findall(r"\{\w+\}", template)) == {"{word}": 1, "{numbers}": 1}
        assert not set(re.findall(r"\w+", template)) & set(words)


def test_texts_are_short() -> None:
    for example in everything(load(num_rules=12)):
        assert len(re.findall(r"\w+|[^\w\s]", example.question)) < 25
        assert 0 <= int(example.answer) <= 10


def test_rules_are_balanced() -> None:
    data = load(train_size=803)
    counts = Counter(example.fields["rule"] for example in data.train)
    assert set(counts) == {f"rule-{i}" for i in range(8)}
    assert set(counts.values()) == {100, 101}
    for group in ("seen", "held_out"):
        rules = Counter(e.fields["rule"] for e in data.test if e.group == group)
        assert set(rules.values()) == {7, 8}


def test_words_wordings_and_numbers_are_drawn_evenly() -> None:
    train = load(train_size=20_000).train
    words = Counter(e.fields["word"] for e in train)
    assert len(words) == 8 * 18
    assert max(words.values()) < 2 * min(words.values())
    templates = Counter(e.fields["template"] for e in train)
    assert len(templates) == 6
    assert max(templates.values()) < 1.2 * min(templates.values())


def test_no_question_stands_twice_and_splits_share_no_numbers() -> None:
    data = load(train_size=4000, validation_size=1000, test_size=1000)
    questions = [example.question for example in everything(data)]
    assert len(set(questions)) == len(questions)
    ids = {example.id for example in everything(data)}
    assert len(ids) == len(questions)
    lists = [
        {tuple(re.findall(r"\d", example.question)) for example in split}
        for split in (data.train, data.validation, data.test)
    ]
    assert all(not a & b for a, b in [*pairwise(lists), (lists[0], lists[2])])
    assert [len(some) > 200 for some in lists] == [True] * 3


def test_held_out_words_and_wordings_occur_in_their_group_alone() -> None:
    data = load(train_size=4000, test_size=1000)
    seen = [e for e in everything(data) if e.group != "held_out"]
    held_out = [e for e in data.test if e.group == "held_out"]
    assert [e.group for e in data.test] == ["seen"] * 1000 + ["held_out"] * 1000
    assert {e.group for e in data.train + data.validation} == {"all"}
    for name, num_held_out in (("word", 8 * 6), ("template", 2)):
        values = {e.fields[name] for e in held_out}
        assert len(values) == num_held_out
        assert not values & {e.fields[name] for e in seen}


def test_the_word_is_what_examples_are_drawn_with() -> None:
    """In whatever wording; so 1,000 held-out items are 40 words by default."""
    data = conditional.load(**ConditionalSettings(test_size=1000).model_dump())
    assert all(example.cluster == example.fields["word"] for example in everything(data))
    clusters = {group: {e.cluster for e in data.test if e.group == group} for group in GROUPS}
    assert {group: len(found) for group, found in clusters.items()} == {"seen": 152, "held_out": 40}
    assert not clusters["seen"] & clusters["held_out"]


def test_a_larger_share_holds_out_all_of_a_smaller_one() -> None:
    held_out = []
    for ratio in (0.05, 0.25, 0.5, 0.8):
        test = load(held_out_ratio=ratio, test_size=1000).test
        held_out.append({e.fields["word"] for e in test if e.group == "held_out"})
    assert all(small < large for small, large in pairwise(held_out))
    assert [len(words) for words in held_out] == [8 * 2, 8 * 6, 8 * 12, 8 * 20]


def test_nothing_held_out_leaves_one_group() -> None:
    data = load(held_out_ratio=0)
    assert [e.group for e in data.test] == ["seen"] * 60


@examples(25)
@given(*[st.integers(0, 100)] * 3, st.integers(1, 12), st.integers(0, 5))
def test_a_smaller_split_begins_a_larger_one_whatever_the_others(
    train_size: int, validation_size: int, test_size: int, num_rules: int, data_seed: int
) -> None:
    settings = {"num_rules": num_rules, "data_seed": data_seed}
    small = load(
        train_size=train_size, validation_size=validation_size, test_size=test_size, **settings
    )
    large = load(train_size=100, validation_size=100, test_size=100, **settings)
    assert small.train == large.train[:train_size]
    assert small.validation == large.validation[:validation_size]
    assert small.test == large.test[:test_size] + large.test[100 : 100 + test_size]


def test_a_rules_questions_do_not_depend_on_the_number_of_rules() -> None:
    def questions(num_rules: int) -> list[str]:
        train = load(num_rules=num_rules, train_size=20 * num_rules).train
        return [e.question for e in train if e.fields["rule"] == "rule-1"]

    assert questions(2) == questions(12)


def test_seeds_differ() -> None:
    assert load(data_seed=0).train != load(data_seed=1).train


def test_the_draws_stay_what_they_are() -> None:
    data = load()
    text = "\n".join(
        f"{e.id}|{e.question}|{e.solution}"
        for split in (data.train, data.validation, data.test)
        for e in split[:50]
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train_size": -1}, "train_size -1 is below 0: use 0 or more"),
        ({"validation_size": -2}, "validation_size -2 is below 0: use 0 or more"),
        ({"test_size": -1}, "test_size -1 is below 0: use 0 or more"),
        ({"data_seed": -1}, "data_seed -1 is below 0: use 0 or more"),
        ({"num_rules": 0}, "num_rules 0 is outside 1 to 12"),
        ({"num_rules": 13}, "num_rules 13 is outside 1 to 12"),
        ({"held_out_ratio": -0.1}, r"held_out_ratio -0.1 must lie in \[0, 1\)"),
        ({"held_out_ratio": 1.0}, "held_out_ratio 1.0 must"),
        ({"held_out_ratio": 0.95}, "leave at least one of 8 wordings"),
        (
            {"test_size": 100_000},
            "12500 examples of one rule .* test/held_out .* allows 1740: lower",
        ),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        load(**changes)


def test_as_many_as_are_allowed_can_be_drawn() -> None:
    allowed = 1740
    test = load(num_rules=1, test_size=allowed, train_size=0, validation_size=0).test
    assert len({e.question for e in test}) == 2 * allowed
    with pytest.raises(InputError, match=f"{allowed + 1} examples .* allows {allowed}: lower"):
        load(num_rules=1, test_size=allowed + 1)
