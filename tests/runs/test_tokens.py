"""Texts as tokens: what is cut, what ends them, and where many of them lie."""

from collections.abc import Callable, Sequence
from itertools import chain

import pytest
from transformers import PreTrainedTokenizerFast

from chattemplates import GEMMA3, LLAMA3, MARKS, MISTRAL, PHI3, QWEN2, QWEN3, SMOLLM2
from schemabank.common.errors import InputError
from schemabank.common.stored import Stored
from schemabank.config.task import TaskSettings
from schemabank.engine.batches import Encoded
from schemabank.runs import tokens
from schemabank.runs.tokens import end_token_id, tokenise, tokenise_chats
from schemabank.tasks import Example
from schemabank.tasks.base import Turn
from tiny import END_TOKEN_ID, sentencepiece_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
DEFAULTS = TaskSettings()


class TestLimits:
    TEXTS = (
        ("a", "how many are left? ", "12345678"),
        ("b", "how many are left? ", "1"),
        ("c", "2+2+2+2+2=", "10"),
    )

    def test_examples_within_the_budget_are_cut_on_the_right(self) -> None:
        whole = tokenise(self.TEXTS, TaskSettings(), TOKENIZER)
        limit = len(whole[1].tokens)
        cut = tokenise(self.TEXTS, TaskSettings(max_length=limit, max_cut_ratio=0.34), TOKENIZER)
        assert [e.cut for e in cut] == [True, False, False]
        assert cut[0].tokens == whole[0].tokens[:limit]
        assert cut[0].label_start == whole[0].label_start

    def test_more_cut_examples_than_the_budget(self) -> None:
        limit = len(tokenise(self.TEXTS, TaskSettings(), TOKENIZER)[1].tokens)
        with pytest.raises(InputError) as error:
            tokenise(self.TEXTS, TaskSettings(max_length=limit, max_cut_ratio=0.3), TOKENIZER)
        assert str(error.value) == (
            f"task.max_length is {limit}, which cuts 1 of 3 training examples: allowed is a share "
            "of task.max_cut_ratio = 0.3, raise either"
        )

    def test_a_completion_that_is_cut_off_whole(self) -> None:
        length = len(TOKENIZER(self.TEXTS[0][1])["input_ids"])
        settings = TaskSettings(max_length=length, max_cut_ratio=1.0)
        with pytest.raises(InputError) as error:
            tokenise(self.TEXTS, settings, TOKENIZER)
        assert str(error.value) == (
            f"example 'a': its prompt alone has {length} tokens, so the limit "
            f"task.max_length = {length} cuts off its whole completion: allowed is "
            f"at least {length + 1}, raise the limit or leave the example out"
        )
        wider = settings.model_copy(update={"max_length": length + 1})
        assert tokenise(self.TEXTS, wider, TOKENIZER)[0].num_labels == 1


def test_a_special_token_spelled_out_in_the_text_is_no_end() -> None:
    encoded = tokenise([("a", "p", "x")], TaskSettings(end_token=False), TOKENIZER)[0]
    assert END_TOKEN_ID not in encoded.tokens


def test_a_tokenizer_without_an_end_token() -> None:
    tokenizer = tiny_tokenizer()
    assert end_token_id(tokenizer) == END_TOKEN_ID
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token: give it an eos_token"):
        end_token_id(tokenizer)


@pytest.mark.parametrize("make", [tiny_tokenizer, lambda: sentencepiece_tokenizer(end=True)])
def test_many_texts_have_the_tokens_that_each_has_alone(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    texts = [(f"id/{i}", f"the number {i} is ", f" {i}\n" * (i % 3 + 1)) for i in range(600)]
    together = tokenise(texts, DEFAULTS, make())
    assert list(together) == [*chain(*(tokenise([text], DEFAULTS, make()) for text in texts))]
    assert len(together) > 2 * tokens.AT_ONCE


def test_tokens_in_a_file_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"id/{i}", f"the number {i:02} is ", "1" * (i % 3 + 1)) for i in range(30)]
    in_memory = tokenise(texts, TaskSettings(), TOKENIZER)
    monkeypatch.setattr(tokens, "MOST_BYTES", 1000)
    in_file = tokenise(iter(texts), TaskSettings(), TOKENIZER)
    assert isinstance(in_memory, list)
    assert isinstance(in_file, Stored)
    assert list(in_file) == in_memory
    settings = TaskSettings(max_length=len(in_memory[0].tokens))
    with pytest.raises(InputError, match="which cuts 20 of 30 training examples"):
        tokenise(texts, settings, TOKENIZER)


TALK = (
    Turn("system", "Add."),
    Turn("user", " What is 1 and 1? "),
    Turn("assistant", "  2\n", learned=True),
    Turn("user", "And 2?"),
    Turn("assistant", "That is 4.", learned=True),
)


def templated(template: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a template, whose marks are tokens of their own."""
    made = tiny_tokenizer()
    made.add_special_tokens({"additional_special_tokens": list(MARKS), "bos_token": "<|begin|>"})
    made.chat_template = template
    return made


def chat(turns: Sequence[Turn]) -> Example:
    return Example("e/1", "q", turns[-1].content, turns[-1].content, turns=tuple(turns))


def learned(
    template: str, turns: Sequence[Turn] = TALK, settings: TaskSettings = DEFAULTS
) -> tuple[Encoded, list[str]]:
    """A chat's tokens, and the texts of the ranges that the loss sees."""
    made = templated(template)
    (encoded,) = tokenise_chats([chat(turns)], settings, made)
    seen = set(encoded.labelled.tolist())
    starts = [i for i in sorted(seen) if i - 1 not in seen]
    stops = [i + 1 for i in sorted(seen) if i + 1 not in seen]
    pairs = zip(starts, stops, strict=True)
    return encoded, [made.decode(encoded.tokens[start:stop]) for start, stop in pairs]


@pytest.mark.parametrize(
    ("template", "turns", "texts"),
    [
        (SMOLLM2, TALK, ["  2\n<|im_end|>", "That is 4.<|im_end|>"]),
        (SMOLLM2, TALK[1:], ["  2\n<|im_end|>", "That is 4.<|im_end|>"]),
        (QWEN2, TALK, ["  2\n<|im_end|>", "That is 4.<|im_end|>"]),
        (QWEN2, TALK[1:], ["  2\n<|im_end|>", "That is 4.<|im_end|>"]),
        (QWEN3, TALK[:3], ["<think>\n\n</think>\n\n  2\n<|im_end|>"]),
        (LLAMA3, TALK, ["2<|eot_id|>", "That is 4.<|eot_id|>"]),
        (GEMMA3, TALK, ["2<end_of_turn>", "That is 4.<end_of_turn>"]),
        (MISTRAL, TALK[1:], [" 2<|end|>", " That is 4.<|end|>"]),
        (PHI3, TALK[:3], ["  2\n<|end_of_turn|>\n<|end|>"]),
    ],
)
def test_the_loss_is_on_what_the_assistant_says_and_the_mark_that_ends_it(
    template: str, turns: Sequence[Turn], texts: list[str]
) -> None:
    encoded, found = learned(template, turns)
    assert found == texts
    made = templated(template)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    text = made.apply_chat_template(messages, tokenize=False)
    assert made.decode(encoded.tokens) == text.rstrip(), "the model reads the template's own text"
    invited = made.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)
    ids = invited["input_ids"]
    assert list(encoded.tokens[: len(ids)]) == ids, "as whoever asks the model gives it to it"


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (QWEN3, ["<think>\n\n</think>\n\n" + said for said in ("  2\n", "That is 4.")]),
        (PHI3, ["  2\n", "That is 4."]),
    ],
)
def test_a_template_that_writes_earlier_turns_in_another_way_learns_each_as_the_last(
    template: str, texts: list[str]
) -> None:
    _, found = learned(template)
    end = "<|im_end|>" if template == QWEN3 else "<|end_of_turn|>"
    last = "" if template == QWEN3 else "\n<|end|>"
    assert found == [f"{texts[0]}{end}", f"{texts[1]}{end}{last}"]


@pytest.mark.parametrize("template", [SMOLLM2, QWEN2, LLAMA3, GEMMA3])
def test_a_limit_takes_labels_from_the_end_and_never_gives_one_to_another_turn(
    template: str,
) -> None:
    whole, _ = learned(template)
    seen = whole.labelled.tolist()
    for limit in range(max(8, whole.label_start + 1), len(whole.tokens) + 1):
        cut, _ = learned(template, TALK, TaskSettings(max_length=limit, max_cut_ratio=1))
        assert cut.tokens == whole.tokens[:limit]
        assert cut.labelled.tolist() == [i for i in seen if i < limit]
        assert cut.num_labels == len(cut.labelled) > 0
    with pytest.raises(InputError, match="its prompt alone has"):
        learned(template, TALK, TaskSettings(max_length=whole.label_start, max_cut_ratio=1))


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (MISTRAL, TALK[:3], "leaves out or changes turn 1 of 'e/1', where system says"),
        (GEMMA3, [*TALK[:3], Turn("assistant", "3", learned=True)], "roles must alternate"),
    ],
)
def test_a_chat_that_a_template_changes_or_does_not_know_is_refused(
    template: str, turns: Sequence[Turn], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        learned(template, turns)
