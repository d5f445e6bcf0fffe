"""What a chat template makes of a prompt, or that it is refused before anything is computed."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from chattemplates import HERMES, LLAMA3, MISTRAL, PHI3, QWEN2, QWEN3
from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig, TaskSettings
from schemabank.engine.decoding.completion import Completion
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import completion_text
from schemabank.runs.prepare import evaluation_items, task_training_data
from schemabank.runs.tokens import tokenise, tokenise_chats
from schemabank.tasks import Example, TaskData
from schemabank.tasks.base import Turn
from schemabank.tasks.chat import chat_pieces, in_chat
from schemabank.tasks.scoring.scores import METRICS
from tiny import END_TOKEN_ID, sentencepiece_tokenizer, tiny_model, tiny_tokenizer

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
ASKED = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_CHATML = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
INST = (  # as Llama 2's: the invitation to answer is a part of the user's turn
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
NO_INVITATION = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
NO_END = (
    "{% for m in messages %}|{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}|assistant: {% endif %}"
)
COUNTS = "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}" + NO_END
SAID = "({} if m.role == 'assistant' else m.content)"
FORGETS = (  # as Qwen3's: what was thought is shown in the last turn alone
    "{% for m in messages %}<{{ m.role }}>"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}</>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = (
    Turn("user", "What is 1 and 1?"),
    Turn("assistant", "2", learned=True),
    Turn("user", "And 2? is 2"),
    Turn("assistant", "That is 4.", learned=True),
)
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
        ("{{ 'x' * 10**15 }}", "MemoryError"),
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


# Chats of several turns.


def pieces(template: str, turns: Sequence[Turn] = TALK) -> list[tuple[str, str]]:
    found = chat_pieces(chat(turns), tokenizer(template))
    return [(piece.kind, piece.text) for piece in found]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            PLAIN_CHATML,
            [
                (
                    "given",
                    "<|im_start|>user\nWhat is 1 and 1?<|im_end|>\n<|im_start|>assistant\n",
                ),
                ("said", "2"),
                ("end", "<|im_end|>"),
                (
                    "given",
                    "\n<|im_start|>user\nAnd 2? is 2<|im_end|>\n<|im_start|>assistant\n",
                ),
                ("said", "That is 4."),
                ("end", "<|im_end|>"),
            ],
        ),
        (
            INST,
            [
                ("given", "<s>[INST] What is 1 and 1? [/INST]"),
                ("said", " 2"),
                ("end", " </s>"),
                ("given", "<s>[INST] And 2? is 2 [/INST]"),
                ("said", " That is 4."),
                ("end", " </s>"),
            ],
        ),
        (
            NO_INVITATION,
            [
                ("given", "<user>What is 1 and 1?</><assistant>"),
                ("said", "2"),
                ("end", "</>"),
                ("given", "<user>And 2? is 2</><assistant>"),
                ("said", "That is 4."),
                ("end", "</>"),
            ],
        ),
        (
            NO_END,
            [
                ("given", "|user: What is 1 and 1?|assistant: "),
                ("said", "2"),
                ("given", "|user: And 2? is 2|assistant: "),
                ("said", "That is 4."),
            ],
        ),
    ],
    ids=["chatml", "inst", "no invitation", "no end"],
)
def test_a_learned_turn_is_what_the_assistant_says_and_the_mark_that_ends_it(
    template: str, expected: list[tuple[str, str]]
) -> None:
    assert pieces(template) == expected
    whole = tokenizer(template).apply_chat_template(
        [{"role": t.role, "content": t.content} for t in TALK], tokenize=False
    )
    assert "".join(text for _, text in expected) == whole.rstrip()


def test_a_turn_that_is_written_in_another_way_later_is_learned_as_a_last_one() -> None:
    assert pieces(FORGETS) == [
        ("given", "<user>What is 1 and 1?</><assistant>"),
        ("said", "<think></think>2"),
        ("end", "</>"),
        ("given", "<user>And 2? is 2</><assistant>"),
        ("said", "<think></think>That is 4."),
        ("end", "</>"),
    ]
    last = [turn._replace(learned=turn is TALK[-1]) for turn in TALK]
    assert pieces(FORGETS, last) == [
        ("given", "<user>What is 1 and 1?</><assistant>2</><user>And 2? is 2</><assistant>"),
        ("said", "<think></think>That is 4."),
        ("end", "</>"),
    ]


@pytest.mark.parametrize("word", ["2", "Zq7xW", "WW", "B", "</>", "a</>a", " 2 "])
def test_what_follows_is_found_whatever_the_turn_says(word: str) -> None:
    talk = (TALK[0], Turn("assistant", word, learned=True), *TALK[2:], *TALK[2:])
    found = pieces(FORGETS, talk)
    assert [text for kind, text in found if kind == "given"][1:] == [
        "<user>And 2? is 2</><assistant>"
    ] * 2
    assert found[1:3] == [("said", f"<think></think>{word}"), ("end", "</>")]


def test_an_end_token_that_a_last_turn_alone_has_does_not_end_earlier_ones() -> None:
    made = tokenizer(PHI3)
    found = pieces(PHI3)
    assert found[2] == ("end", "<|end_of_turn|>")
    assert found[-1] == ("end", f"<|end_of_turn|>\n{made.eos_token}")
    turns = [{"role": t.role, "content": t.content} for t in TALK]
    whole = made.apply_chat_template(turns, tokenize=False)
    assert "".join(text for _, text in found) == whole


def test_an_item_of_a_template_that_forgets_asks_as_the_template_does() -> None:
    made = tokenizer(FORGETS)
    data = TaskData(train=[], validation=[chat()], test=[])
    (item,) = evaluation_items(data, TaskSettings(chat_template=True), EvalSettings(), made)
    assert item.prompt == made.apply_chat_template(
        [{"role": t.role, "content": t.content} for t in TALK[:-1]],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert item.start_text == "<think></think>"


SCHEMAS = json.dumps([{"type": "function", "function": {"name": "add", "parameters": {}}}])
CALLS = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
WITH_TOOLS = (
    TALK[0],
    Turn("assistant", "", learned=True, extra=json.dumps(CALLS)),
    Turn("tool", "2", extra='{"name": "add"}'),
    Turn("assistant", "It is 2.", learned=True),
)
WRITTEN = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


def test_calls_of_tools_are_learned_and_their_answers_are_not() -> None:
    example = replace(chat(WITH_TOOLS), tools=SCHEMAS)
    found = [(p.kind, p.text) for p in chat_pieces(example, tokenizer(HERMES))]
    assert found[0][1].startswith(f"<|im_start|>system\n<tools>{SCHEMAS[1:-1]}</tools>")
    assert found[1:] == [
        ("said", WRITTEN),
        ("end", "<|im_end|>"),
        (
            "given",
            "\n<|im_start|>user\n<tool_response>2</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("said", "It is 2."),
        ("end", "<|im_end|>"),
    ]


def test_a_last_turn_that_calls_a_tool_is_scored_by_what_the_template_writes() -> None:
    example = replace(chat(WITH_TOOLS[:2]), tools=SCHEMAS, answer="as JSON")
    data = TaskData(train=[], validation=[example], test=[])
    made = tokenizer(HERMES)
    task = TaskSettings(chat_template=True, metric="exact_match")
    (item,) = evaluation_items(data, task, EvalSettings(), made)
    assert (item.golds, item.start_text) == ((WRITTEN,), "")


@pytest.mark.parametrize(
    ("template", "turns", "tools", "said"),
    [
        (CHATML, WITH_TOOLS, "", "leaves out the call in turn 2 of 'e/1', 'add': allowed are temp"),
        (
            HERMES.replace("{{ c.function.arguments | tojson }}", ""),
            (TALK[0], WITH_TOOLS[1]._replace(extra=json.dumps(CALLS).replace('"a"', '"addend"'))),
            SCHEMAS,
            "leaves out an argument of the call in turn 2 of 'e/1', 'addend': allowed are temp",
        ),
        (CHATML, TALK, SCHEMAS, "leaves out a tool of 'e/1', 'add': allowed are templates that"),
        (COUNTS, TALK, "", "writes what stands before turn 4 of 'e/1' in another way once more"),
    ],
)
def test_what_a_template_says_nothing_of_is_refused(
    template: str, turns: Sequence[Turn], tools: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        chat_pieces(replace(chat(turns), tools=tools), tokenizer(template))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            NO_INVITATION.replace("m.content", SAID.format("m.content | upper")),
            "leaves out or changes what the",
        ),
        (
            NO_INVITATION.replace("m.content", SAID.format("m.content[:4]")),
            r"in turn 4 of 'e/1' \('That is 4\.",
        ),
        ("{{ raise_exception('no system') if messages | length > 2 }}" + NO_END, "no system"),
        ("{{ messages | length }}" + NO_END, "in another way once more follows"),
    ],
)
def test_a_template_that_changes_a_chat_is_refused(template: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        pieces(template)


def chat(turns: Sequence[Turn] = TALK) -> Example:
    return Example("e/1", "q", turns[-1].content, turns[-1].content, turns=tuple(turns))


def test_labels_are_those_of_the_librarys_own_mask() -> None:
    made = tokenizer(CHATML)
    (encoded,) = tokenise_chats([chat()], TaskSettings(), made)
    turns = [{"role": t.role, "content": t.content} for t in TALK]
    theirs = made.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    mask = theirs["assistant_masks"]
    assert sum(mask) > 10
    end = len(theirs["input_ids"]) - len(made("\n")["input_ids"])
    assert list(encoded.tokens) == theirs["input_ids"][:end]
    assert encoded.labelled.tolist() == [i for i, is_said in enumerate(mask) if is_said]
    assert encoded.num_labels == sum(mask)
    plain = tokenizer(PLAIN_CHATML)
    assert tokenise_chats([chat()], TaskSettings(), plain) == [encoded], "no keyword is needed"


def test_a_chat_without_an_end_mark_ends_with_the_end_token_if_targets_do() -> None:
    made = tokenizer(NO_END)
    (ended,) = tokenise_chats([chat()], TaskSettings(), made)
    (bare,) = tokenise_chats([chat()], TaskSettings(end_token=False), made)
    assert ended.tokens == (*bare.tokens, made.eos_token_id)
    assert ended.labelled.tolist() == [*bare.labelled.tolist(), len(bare.tokens)]
    (marked,) = tokenise_chats([chat()], TaskSettings(), tokenizer(CHATML))
    assert marked.tokens[-1] != made.eos_token_id


def test_a_loss_on_the_whole_text_has_no_gaps() -> None:
    settings = TaskSettings(completion_only_loss=False)
    (encoded,) = tokenise_chats([chat()], settings, tokenizer(CHATML))
    assert (encoded.label_start, encoded.gaps) == (1, ())


def test_an_item_asks_for_the_last_turn_in_the_tokens_of_training() -> None:
    made = tokenizer(CHATML)
    data = TaskData(train=[], validation=[chat()], test=[chat()])
    task = TaskSettings(chat_template=True)
    (item,) = evaluation_items(data, task, EvalSettings(), made)
    (encoded,) = tokenise_chats([chat()], task, made)
    assert item.prompt_tokens + item.target_tokens == encoded.tokens
    assert made.decode(item.target_tokens) == "That is 4.<|im_end|>"
    assert made.decode(item.target_tokens[: -item.num_end]) == "That is 4."
    assert made.decode(item.prompt_tokens) == item.prompt
    assert item.prompt.endswith("And 2? is 2<|im_end|>\n<|im_start|>assistant\n")
    assert (item.golds, item.end_text) == (("That is 4.",), "<|im_end|>")
    made.add_special_tokens({"eos_token": "<|im_end|>"})
    (item,) = evaluation_items(data, task, EvalSettings(), made)
    assert (item.target_tokens[-1], item.num_end) == (made.eos_token_id, 1)
    assert item.end_text == "", "the end token is no text to look for"
    (item,) = evaluation_items(data, task, EvalSettings(), tokenizer(NO_END))
    assert (item.target_tokens[-1], item.num_end, item.end_text) == (0, 1, "")


def test_other_examples_have_no_place_in_a_chat() -> None:
    data = TaskData(train=[chat()], validation=[chat()], test=[])
    with pytest.raises(InputError, match=r"eval\.few_shot is 1, but a chat has no place"):
        evaluation_items(data, TaskSettings(), EvalSettings(few_shot=1), tokenizer(CHATML))


def test_a_cut_chat_loses_its_last_labels_and_one_cut_to_its_prompt_is_refused() -> None:
    made = tokenizer(CHATML)
    (whole,) = tokenise_chats([chat()], TaskSettings(), made)
    (start, stop), *_ = whole.gaps
    for length in (stop + 1, stop, start + 2, start, start - 1):
        settings = TaskSettings(max_length=length, max_cut_ratio=1)
        (cut,) = tokenise_chats([chat()], settings, made)
        assert cut.labelled.tolist() == [i for i in whole.labelled.tolist() if i < length]
        assert cut.cut
    with pytest.raises(InputError, match="cuts off its whole completion"):
        tokenise_chats([chat()], TaskSettings(max_length=whole.label_start), made)


def test_all_turns_of_a_chat_are_tokenised_where_a_blank_is_put_before_every_text() -> None:
    made = sentencepiece_tokenizer()
    made.chat_template = INST.replace("<s>", "{{ bos_token }}").replace("</s>", "{{ eos_token }}")
    (encoded,) = tokenise_chats([chat()], TaskSettings(), made)
    said = [encoded.tokens[i] for i in encoded.labelled]
    assert made.decode(said, skip_special_tokens=False).split("</s>")[:2] == ["2 ", " That is 4. "]
    assert replace(encoded, gaps=()).num_labels > encoded.num_labels


@pytest.mark.parametrize("template", [QWEN2, PHI3])
@pytest.mark.parametrize("role", ["tool", "developer"])
def test_a_template_that_says_nothing_of_a_turn_that_it_leaves_out_is_refused(
    template: str, role: str
) -> None:
    talk = [TALK[0], Turn(role, 'It is\t"two".'), TALK[1]]
    with pytest.raises(InputError, match=f"leaves out or changes turn 2 of 'e/1', where {role}"):
        pieces(template, talk)
    assert pieces(LLAMA3, talk), "as JSON it is whole"


@pytest.mark.parametrize(
    ("template", "start", "end"),
    [
        (QWEN3, "<think>\n\n</think>", "<|im_end|>"),
        (PHI3, "", "<|end_of_turn|>"),
        (LLAMA3, "", "<|eot_id|>"),
        (MISTRAL, "", ""),
    ],
)
def test_what_a_template_writes_around_an_answer_is_no_part_of_it(
    template: str, start: str, end: str
) -> None:
    base = BaseModel(
        name="tiny",
        hub_id=None,
        model=tiny_model("llama"),
        tokenizer=tokenizer(template),
        end_token_ids=(END_TOKEN_ID,),
        source="made here",
    )
    turns = (TALK[0], Turn("assistant", "  if so:\n    2", learned=True))
    data = TaskData(train=[], validation=[chat(turns)], test=[])
    task = TaskSettings(chat_template=True)
    (item,) = evaluation_items(data, task, EvalSettings(), base.tokenizer)
    assert (item.start_text, item.end_text) == (start, end)
    done = Completion(tokens=[t for t in item.target_tokens if t != END_TOKEN_ID])
    text, _ = completion_text(item, done, base, (end,) if end else ())
    assert text.strip() == "if so:\n    2"
    assert METRICS["exact_match"].score(text, item.golds).scores["exact_match"] == 1
