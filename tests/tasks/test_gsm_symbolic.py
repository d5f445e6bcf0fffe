"""gsm_symbolic: exact split sizes, no overlaps, held-out templates, and sound items."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.config.task import GsmSymbolicSettings
from schemabank.stats.clusters import are_enough
from schemabank.tasks import Example, TaskData, gsm_symbolic

GROUPS = ("seen", "held_out")
SRC = Path(gsm_symbolic.__file__).parents[2]
SETTINGS: dict[str, Any] = {
    "train_size": 300,
    "validation_size": 40,
    "test_size": 50,
    "held_out_ratio": 0.2,
    "max_question_words": None,
    "data_seed": 0,
}


def load(**changes: Any) -> TaskData:  # noqa: ANN401 - settings of several types
    return gsm_symbolic.load(**{**SETTINGS, **changes})


@pytest.fixture(scope="module")
def data() -> TaskData:
    return load(train_size=2000)


def templates(examples: list[Any]) -> set[str]:
    return {example.fields["template"] for example in examples}


def test_split_sizes_are_exact(data: TaskData) -> None:
    assert len(data.train) == 2000
    assert len(data.validation) == 40
    assert Counter(e.group for e in data.test) == {"seen": 50, "held_out": 50}
    assert data.train[17].id == "gsm_symbolic/train/17"
    assert data.validation[17].id == "gsm_symbolic/validation/17"
    assert data.test[17].id == "gsm_symbolic/test/seen/17"
    assert data.test[67].id == "gsm_symbolic/test/held_out/17"


def test_the_template_is_what_examples_are_drawn_with(data: TaskData) -> None:
    """By default 17 are held out, so many clusters has a verdict on new kinds of problem."""
    everything = [*data.train, *data.validation, *data.test]
    assert all(example.cluster == example.fields["template"] for example in everything)
    assert len(templates([e for e in load(test_size=200).test if e.group == "held_out"])) == 17


def test_the_quickstart_has_too_few_held_out_templates_for_a_verdict() -> None:
    """As docs/tasks.md says."""
    (task,) = {run.task for run in load_experiment(SRC.parent / "configs/quickstart.yaml").runs()}
    test = gsm_symbolic.load(**task.gsm_symbolic.model_dump()).test
    clusters = {group: {e.cluster for e in test if e.group == group} for group in GROUPS}
    assert {group: len(found) for group, found in clusters.items()} == {"seen": 12, "held_out": 4}
    assert not are_enough(4)


def test_no_question_and_no_id_stands_twice(data: TaskData) -> None:
    everything = data.train + data.validation + data.test
    assert len({e.question for e in everything}) == len(everything)
    assert len({e.id for e in everything}) == len(everything)


def numbers(examples: list[Example]) -> set[tuple[str, ...]]:
    return {(e.fields["template"], *re.findall(r"\d+(?:[.,:/]\d+)*", e.question)) for e in examples}


@pytest.mark.parametrize("words", [None, 30])
def test_no_item_has_template_and_numbers_of_another_split(words: int | None) -> None:
    """At the default sizes 11 of 200 seen test and 18 of 200 validation items had, by chance."""
    sizes = {"train_size": 2000, "validation_size": 200, "test_size": 200}
    drawn = load(**sizes, max_question_words=words)
    train, validation, test = map(numbers, (drawn.train, drawn.validation, drawn.test))
    assert [len(drawn.split(s)) for s in ("train", "validation", "test")] == [2000, 200, 400]
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert templates(drawn.validation) <= templates(drawn.train)


def test_how_many_items_repeat_within_a_split_is_as_the_page_says() -> None:
    page = " ".join((SRC.parent / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    drawn = load(**GsmSymbolicSettings().model_dump())
    for split, words in (
        ("train", "{} of the {} training examples are distinct by template and numbers"),
        ("validation", "{} of the {} for validation"),
        ("test", "{} of the {} for testing"),
    ):
        found = drawn.split(split)
        assert words.format(f"{len(numbers(found)):,}", f"{len(found):,}") in page


def test_a_template_without_numbers_left_is_refused() -> None:
    message = r"template \d+ has no numbers left for (validation|train): .* lower test_size"
    with pytest.raises(InputError, match=message):
        load(test_size=1500, validation_size=150, held_out_ratio=0, max_question_words=25)


def test_held_out_templates_appear_in_one_group_only(data: TaskData) -> None:
    seen = templates(data.train) | templates(data.validation)
    held_out = templates([e for e in data.test if e.group == "held_out"])
    assert seen.isdisjoint(held_out)
    assert templates([e for e in data.test if e.group == "seen"]) <= seen
    assert len(templates(data.train)) == 68
    assert 10 < len(held_out) <= 17


def test_solutions_are_in_the_usual_form(data: TaskData) -> None:
    for example in data.train + data.validation + data.test:
        steps, _, answer = example.solution.rpartition("\n#### ")
        assert answer == example.answer
        assert example.answer.isdecimal()
        assert "####" not in steps
        assert not gsm_symbolic.states_falsehood(steps)
        assert example.question == example.question.strip()
        assert "Do not include units" not in example.question
        assert re.search(r"\.\d{7}", example.question + example.solution) is None


def test_every_template_ends_its_solution_with_the_answer() -> None:
    module = gsm_symbolic._generator_module()
    kept: Counter[int] = Counter()
    for template, item in gsm_symbolic._drawn(123, module.tasks_ok):
        assert item is not None
        marked = item["metadata"]["answer_cot"].rpartition("\n#### ")[2]
        assert Decimal(marked) == Decimal(item["answer"])
        kept[template] += gsm_symbolic._question_and_solution(template, item) is not None
        if kept.total() == 3000:
            break
    assert set(kept) == set(module.tasks_ok)
    assert len(module.tasks_ok) == 85
    assert min(kept.values()) > 0


def test_splits_hold_other_numbers_than_training(data: TaskData) -> None:
    by_template = {e.fields["template"]: e for e in data.train}
    for example in data.validation:
        other = by_template[example.fields["template"]]
        assert example.question != other.question


def test_a_split_does_not_depend_on_the_splits_drawn_after_it(data: TaskData) -> None:
    other = load(train_size=100, validation_size=60)
    assert other.test == data.test
    assert other.validation[:40] == data.validation
    assert load(train_size=40, validation_size=60).train == other.train[:40]


def test_data_seed_changes_every_split(data: TaskData) -> None:
    other = load(data_seed=1)
    for split in ("train", "validation", "test"):
        questions = {e.question for e in data.split(split)}
        share = sum(e.question in questions for e in other.split(split)) / len(other.split(split))
        assert share < 0.3  # the smallest templates have a few hundred questions only


def test_the_same_data_in_another_process(data: TaskData) -> None:
    program = (
        "import hashlib; from schemabank.tasks import gsm_symbolic; "
        f"d = gsm_symbolic.load(**{SETTINGS | {'train_size': 2000}!r}); "
        "print(hashlib.sha256(repr((d.train, d.validation, d.test)).encode()).hexdigest())"
    )
    env = {**os.environ, "PYTHONHASHSEED": "4321", "PYTHONPATH": str(SRC)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    own = repr((data.train, data.validation, data.test))
    assert result.stdout.strip() == hashlib.sha256(own.encode()).hexdigest()


def test_held_out_templates_are_fixed_and_nested() -> None:
    ids = list(range(85))
    previous: frozenset[int] = frozenset()
    for ratio in (0.0, 0.1, 0.2, 0.5):
        seen, held_out = gsm_symbolic.split_templates(ids, ratio)
        assert len(held_out) == round(85 * ratio)
        assert seen | held_out == set(ids)
        assert seen.isdisjoint(held_out)
        assert previous <= held_out
        assert gsm_symbolic.split_templates(ids[::-1], ratio) == (seen, held_out)
        previous = held_out


def test_without_held_out_templates_there_is_no_such_group() -> None:
    data = load(held_out_ratio=0.0, test_size=60)
    assert Counter(e.group for e in data.test) == {"seen": 60}


def test_empty_splits_are_allowed() -> None:
    data = load(train_size=0, validation_size=0, test_size=1)
    assert (data.train, data.validation, len(data.test)) == ([], [], 2)


def test_max_question_words_is_kept() -> None:
    data = load(max_question_words=30)
    everything = data.train + data.validation + data.test
    assert len(everything) == 300 + 40 + 2 * 50
    assert max(len(e.question.split()) for e in everything) <= 30


def test_limit_that_leaves_no_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsm_symbolic, "MAX_FRUITLESS_DRAWS", 3000)
    with pytest.raises(InputError, match=r"max_question_words 5 leaves no template .* 21 words"):
        load(max_question_words=5)


def test_size_beyond_what_exists_names_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsm_symbolic, "MAX_FRUITLESS_DRAWS", 150)
    with pytest.raises(InputError, match=r"yields only \d+ of the 100000 .* at most 21 words"):
        load(held_out_ratio=0.0, max_question_words=21, test_size=100_000)


@pytest.mark.parametrize(
    "change",
    [
        {"train_size": -1},
        {"validation_size": -1},
        {"test_size": -1},
        {"data_seed": -1},
        {"max_question_words": 0},
        {"held_out_ratio": -0.1},
        {"held_out_ratio": 1.0},
        {"held_out_ratio": 0.999},
    ],
)
def test_bad_settings_are_refused_by_name(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(InputError, match=name):
        load(**change)


@pytest.mark.parametrize(
    "steps",
    [
        "She needs 99 / 22 = 4 trays.",
        "So that's 0.36*80 = 28 students",
        "John has $71.94 - $53.94 = $17 left.",
        "First 3+4=7, then 7+1=9.",
        "5 / 0 = 0",
    ],
)
def test_false_equations_are_found(steps: str) -> None:
    assert gsm_symbolic.states_falsehood(steps)


@pytest.mark.parametrize(
    "steps",
    [
        "She needs 99 / 11 = 9 trays.",
        "10/60 = 1/6 blocks, 12÷1/3=36 minutes",
        "we get 2x+70=218",
        "chances are 6 / 12 = 50.0%",
        "She has 75 + 46 + 20 = 141 toys",
        "2(40+38) = 156",
        "116/209*1881 = 1044",
        "10 / 3 = 3.33 each",
        "3 * 4 = 12 - 2 = 10",
        "no equation at all",
    ],
)
def test_right_and_unread_equations_pass(steps: str) -> None:
    assert not gsm_symbolic.states_falsehood(steps)


def make_item(*, steps: str = "It is so.", marked: str = "5", answer: str = "5") -> dict[str, Any]:
    return {
        "question": "How many?" + gsm_symbolic.SUFFIX,
        "answer": answer,
        "metadata": {"answer_cot": f"{steps}\n#### {marked}"},
    }


def test_decimal_point_of_a_whole_answer_is_dropped() -> None:
    text = gsm_symbolic._question_and_solution(3, make_item(marked="5.0"))
    assert text == ("How many?", "It is so.\n#### 5", "5")


@pytest.mark.parametrize(
    "item",
    [
        make_item(marked="5.5", answer="5.5"),
        make_item(marked="-5", answer="-5"),
        make_item(steps="1 + 1 = 3"),
        make_item(steps="It is 0.6666666666666666."),
    ],
)
def test_unsound_items_are_skipped(item: dict[str, Any]) -> None:
    assert gsm_symbolic._question_and_solution(3, item) is None


@pytest.mark.parametrize(
    "item",
    [
        make_item(marked="6"),
        make_item(marked="five"),
        make_item() | {"question": "How many?"},
        make_item() | {"metadata": {"answer_cot": "It is 5."}},
    ],
)
def test_a_changed_package_is_refused_loudly(item: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="template 3 "):
        gsm_symbolic._question_and_solution(3, item)


def test_streams_of_one_seed_share_no_item_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    class Recorder:
        def __init__(self, config: SimpleNamespace) -> None:
            seeds.append(config.seed)
            self.task_indices = [0] * config.size

        def __getitem__(self, index: int) -> dict[str, Any]:
            return make_item() | {"question": f"{seeds[-1]} {index}?{gsm_symbolic.SUFFIX}"}

    module = SimpleNamespace(
        tasks_ok=[0, 1],
        GSMSymbolicDataset=Recorder,
        GSMSymbolicDatasetConfig=SimpleNamespace,
    )
    monkeypatch.setattr(gsm_symbolic, "_generator_module", lambda: module)
    for data_seed in (0, 1):
        load(held_out_ratio=0.0, data_seed=data_seed)
    assert len(set(seeds)) == 6
    ordered = sorted(seeds)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 2**32


def test_package_is_not_imported_before_it_is_used() -> None:
    program = (
        "import sys; from schemabank.tasks import gsm_symbolic; "
        "print('reasoning_gym' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
