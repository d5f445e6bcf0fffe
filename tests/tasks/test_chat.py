"""What a chat template makes of a prompt, or that it is refused before anything is computed."""

from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig, TaskSettings
from schemabank.runs.prepare import evaluation_items, task_training_data, tokenise
from schemabank.tasks import Example, TaskData
from schemabank.tasks.chat import in_chat
from tiny import sentencepiece_tokenizer, tiny_tokenizer

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
ASKED = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
CHAT = TaskSettings(chat_template=True, prompt="Question: {question}\n")


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def example(number: int) -> Example:
    return Example(
        id=f"e/{number}", question=f"What is  {number}\nand 1?", solution="18", answer="18"
    )


DATA = TaskData(train=[example(1), example(2)], validation=[], test=[example(3)])


def test_the_prompt_is_the_users_turn_but_for_white_space_around_it() -> None:
    text = in_chat("\nWhat is 1?\n", tokenizer(ASKED))
    assert text == "<|user|>What is 1?<|assistant|>"


@pytest.mark.parametrize(
    "template",
    [
        "You are kind.",
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content[:15] }}",
        "{{ messages[0].content[-12:] }}",
        "{{ messages[0].content.split('Question:')[0] }}",
        "{{ messages[0].content | upper }}",
    ],
)
def test_a_template_that_leaves_the_prompt_out_is_refused_everywhere(template: str) -> None:
    made, settings = tokenizer(template), EvalSettings(split="test", few_shot=1)
    with pytest.raises(InputError, match="leaves out the prompt 'Question: What is"):
        evaluation_items(DATA, CHAT, settings, made)
    with pytest.raises(InputError, match="leaves out the prompt 'Question: What is"):
        task_training_data(DATA.train, RunConfig(arm="lora", task=CHAT), made)
    with pytest.raises(InputError, match="leaves out the prompt 'Question: What is of"):
        tokenise([("a", "Question: What is of my own? ", "b")], CHAT, made)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('Only tools, please') }}", "TemplateError: Only tools, please"),
        ("{{ messages[1].content }}", "UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ messages | sum }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (None, "has no chat template"),
    ],
)
def test_a_template_that_raises_gives_one_sentence(template: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        in_chat("What is 1?", tokenizer(template))
    assert "\n" not in str(caught.value)


def test_a_template_that_asks_for_today_gets_the_same_day_every_day() -> None:
    dated = "Today is {{ strftime_now('%A, %-d %B %Y') }} ({{ strftime_now('%Y-%m-%d') }}). "
    text = in_chat("What is 1?", tokenizer(dated + ASKED))
    assert text.startswith("Today is Friday, 26 July 2024 (2024-07-26). <|user|>What is 1?")
    if_asked = "{% macro day() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ day() }} "
    assert in_chat("1?", tokenizer(if_asked + ASKED)) == "26 Jul 2024 <|user|>1?<|assistant|>"


@pytest.mark.parametrize("template", ["{operations}: ", "{first word} is what?"])
def test_a_prompt_without_its_question_is_refused(template: str) -> None:
    fields = {"operations": "addition", "first word": "What"}
    asked = [Example("e/1", "What is 1?", "1", "1", fields)]
    data = TaskData(train=asked, validation=asked, test=asked)
    task = TaskSettings(prompt=template)
    with pytest.raises(InputError, match=r"leaves the question of 'e/1' out: .*\{question\}"):
        evaluation_items(data, task, EvalSettings(), tiny_tokenizer())
    with pytest.raises(InputError, match="leaves the question of 'e/1' out"):
        task_training_data(asked, RunConfig(arm="lora", task=task), tiny_tokenizer())


def test_an_empty_question_is_refused() -> None:
    asked = [Example("e/1", " \n", "1", "1")]
    with pytest.raises(InputError, match="'e/1' asks nothing"):
        task_training_data(asked, RunConfig(arm="lora"), tiny_tokenizer())


@pytest.mark.parametrize(
    ("words", "is_known"), [(["What", "is", "one"], True), (["一加二是多少？"], False)]
)
def test_prompts_that_the_tokenizer_does_not_know_are_refused(
    words: Sequence[str], is_known: bool
) -> None:
    made = sentencepiece_tokenizer(byte_fallback=False)
    asked = [Example("e/1", " ".join(words), "1", "1")]
    data = TaskData(train=asked, validation=[], test=asked)
    task = TaskSettings(prompt="{question}")
    if is_known:
        evaluation_items(data, task, EvalSettings(split="test"), made)
        return
    with pytest.raises(InputError, match=r"prompts' \d+ tokens are '<unk>'"):
        evaluation_items(data, task, EvalSettings(split="test"), made)
    with pytest.raises(InputError, match="does not know their text"):
        task_training_data(asked, RunConfig(arm="lora", task=task), made)


@pytest.mark.parametrize(("start", "beginning"), [("", 0), ("{{ bos_token }}", 1)])
def test_a_tag_prefix_stands_behind_the_beginning_token_that_a_template_writes(
    start: str, beginning: int
) -> None:
    made = sentencepiece_tokenizer()
    made.chat_template = f"{start}Q: {{{{ messages[0].content }}}}"
    run = RunConfig(arm="lora", task=TaskSettings(chat_template=True))
    data = task_training_data([Example("e/1", "What is 1?", "1", "1")], run, made)
    assert data.beginning == beginning
    assert (data.encoded[0].tokens[0] == made.bos_token_id) == bool(beginning)
