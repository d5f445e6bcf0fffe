from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig, TaskSettings
from schemabank.engine.decoding.completion import Completion
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import _stop_test, completion_text
from schemabank.runs.prepare import evaluation_items, task_training_data
from schemabank.tasks import Example, TaskData
from schemabank.tasks.seams import (
    beginning_tokens,
    continuation_text,
    continuation_tokens,
    leading_tokens,
    plain_tokens,
)
from tiny import sentencepiece_tokenizer, tiny_model, tiny_tokenizer

BYTES = tiny_tokenizer()
PIECES = sentencepiece_tokenizer()
BODIES = ("    return x\n", "18", " 18", "\n\n#### 18", "é€", "", "a  b", " ", "\t\treturn")


def bert_tokenizer() -> PreTrainedTokenizerFast:
    unknown, start, end = special = ["[UNK]", "[CLS]", "[SEP]"]
    words = [*special, "what", "is", "18", "a", "?"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, clean_up_tokenization_spaces=True
    )


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "sentencepiece"])
@pytest.mark.parametrize("prompt", ["def f(x):\n", "The answer is: ", "a", "é", " "])
@pytest.mark.parametrize("body", BODIES)
def test_what_follows_a_prompt_is_read_as_it_was_written(
    tokenizer: PreTrainedTokenizerBase, prompt: str, body: str
) -> None:
    before = plain_tokens(prompt, tokenizer)
    tokens = continuation_tokens(body, tokenizer)
    assert continuation_text(before, tokens, tokenizer) == body


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_any_text_comes_back_behind_any_prompt(body: str, prompt: str) -> None:
    before = plain_tokens(prompt.replace("▁", "_"), PIECES)
    body = body.replace("▁", "_")  # a blank to such a tokenizer
    assert continuation_text(before, continuation_tokens(body, PIECES), PIECES) == body


def blank_first_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with a blank in front of every text, which decoding leaves there."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BLANK_FIRST = blank_first_tokenizer()


@pytest.mark.parametrize(
    "tokenizer",
    [BYTES, PIECES, BLANK_FIRST],
    ids=["bytes", "sentencepiece", "blank first"],
)
@pytest.mark.parametrize("text", ["[Schema: 5,12] ", "[Schema: 7]", "a\n"])
def test_a_prefix_and_the_prompt_behind_it_are_read_as_they_were_written(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    prompt = plain_tokens("Tom has", tokenizer)
    adds_blank = tokenizer is not BYTES and not text.endswith(" ")
    whole = text + (" " if adds_blank else "") + "Tom has"
    found = tokenizer.decode(leading_tokens(text, tokenizer) + prompt)
    assert found == (" " if tokenizer is BLANK_FIRST else "") + whole


def test_a_tokenizer_of_its_own_ways_keeps_a_prefixs_tokens() -> None:
    tokenizer = bert_tokenizer()
    assert leading_tokens("What is ", tokenizer) == plain_tokens("What is ", tokenizer)


def test_decoded_alone_the_indentation_would_lack_a_blank() -> None:
    tokens = continuation_tokens("    return", PIECES)
    assert PIECES.decode(tokens) == "   return"
    assert PIECES.convert_ids_to_tokens(tokens)[0] == "▁▁▁▁"


def test_a_tokenizer_that_adds_nothing_keeps_a_texts_own_tokens() -> None:
    assert continuation_tokens("    return 1", BYTES) == plain_tokens("    return 1", BYTES)


def test_a_character_in_two_parts_is_read_whole_on_the_side_that_ends_it() -> None:
    tokens = plain_tokens("a€b", BYTES)
    split = 2  # within the three bytes of the sign
    assert BYTES.decode(tokens[:split]) != "a"
    assert continuation_text(tokens[:split], tokens[split:], BYTES) == "€b"
    assert continuation_text(tokens[:split], [], BYTES) == ""


def test_blanks_before_punctuation_stay() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    before, body = plain_tokens("f", tokenizer), "x = [1 , 2] if y else 'n' n't ?"
    assert continuation_text(before, continuation_tokens(body, tokenizer), tokenizer) == body


def test_a_tokenizer_that_gives_no_text_back_is_left_to_its_ways() -> None:
    tokenizer = bert_tokenizer()
    assert continuation_tokens("What IS 18", tokenizer) == plain_tokens("what is 18", tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "beginning"),
    [
        (BYTES, ()),
        (PIECES, (1,)),
        (sentencepiece_tokenizer(end=True), (1,)),
        (bert_tokenizer(), (1,)),
    ],
    ids=["bytes", "sentencepiece", "add_eos_token", "bert"],
)
def test_special_tokens_before_a_text_are_told_from_those_behind_it(
    tokenizer: PreTrainedTokenizerBase, beginning: Sequence[int]
) -> None:
    assert beginning_tokens(tokenizer) == tuple(beginning)


def test_special_tokens_that_change_the_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(_: object, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1, 5] if add_special_tokens else [len(text) + 5]}

    monkeypatch.setattr(type(PIECES), "__call__", call)
    with pytest.raises(InputError, match="post-processor"):
        beginning_tokens(PIECES)


def example(number: int) -> Example:
    return Example(
        id=str(number), question=f"What is {number}?", solution="    18\n#### 18", answer="18"
    )


class TestEndTokenBehindEveryText:
    TOKENIZER = sentencepiece_tokenizer(end=True)
    DATA = TaskData(train=[example(1), example(2)], validation=[], test=[example(3)])

    def test_it_is_not_in_the_prompts_of_training(self) -> None:
        run = RunConfig(arm="lora")
        data = task_training_data(self.DATA.train, run, self.TOKENIZER)
        for encoded in data.encoded:
            prompt = list(encoded.tokens[: encoded.label_start])
            target = list(encoded.tokens[encoded.label_start :])
            assert prompt[0] == 1
            assert 2 not in prompt
            assert target.count(2) == 1 == target[-1] - 1
            assert continuation_text(prompt, target[:-1], self.TOKENIZER) == "    18\n#### 18"
        assert data.beginning == 1, "a tag's prefix stands behind <s>"

    @pytest.mark.parametrize("shots", [0, 2])
    def test_it_is_not_in_the_prompts_of_evaluation(self, shots: int) -> None:
        settings = EvalSettings(few_shot=shots, split="test")
        (item,) = evaluation_items(self.DATA, TaskSettings(), settings, self.TOKENIZER)
        assert item.prompt_tokens[0] == 1
        assert 2 not in item.prompt_tokens
        assert continuation_text((1,), item.prompt_tokens[1:], self.TOKENIZER).strip() == (
            item.prompt.strip()
        ), "shots keep the white space at their seams"

    def test_the_items_begin_as_training_does(self) -> None:
        settings = EvalSettings(split="test")
        (item,) = evaluation_items(self.DATA, TaskSettings(), settings, self.TOKENIZER)
        data = task_training_data(self.DATA.test, RunConfig(arm="lora"), self.TOKENIZER)
        assert data.encoded[0].tokens[: len(item.prompt_tokens)] == item.prompt_tokens
        assert data.encoded[0].tokens[len(item.prompt_tokens) :] == item.target_tokens


class TestCompletions:
    BASE = BaseModel(
        name="tiny",
        hub_id=None,
        model=tiny_model("llama"),
        tokenizer=sentencepiece_tokenizer(),
        end_token_ids=(2,),
        source="made here",
    )

    def test_a_completion_keeps_its_indentation(self) -> None:
        settings = EvalSettings(split="test")
        data = TaskData(train=[], validation=[], test=[example(1)])
        (item,) = evaluation_items(data, TaskSettings(), settings, self.BASE.tokenizer)
        done = Completion(tokens=list(item.target_tokens[:-1]))
        assert completion_text(item, done, self.BASE, ())[0] == "    18\n#### 18"
        assert completion_text(item, done, self.BASE, ("\n#",)) == ("    18", "stop_text")

    @pytest.mark.parametrize(
        ("body", "mark", "ends"),
        [
            (" stop", " stop", True),
            ("stop", " stop", False),
            ("a  stop", "  stop", True),
            ("é", "é", True),
            ("x" * 40 + "\n\n", "\n\n", True),
            ("\n", "\n\n", False),
        ],
    )
    def test_stop_texts_are_looked_for_in_the_text_behind_the_prompt(
        self, body: str, mark: str, ends: bool
    ) -> None:
        prompt = plain_tokens("say\n", self.BASE.tokenizer)
        tokens = continuation_tokens(body, self.BASE.tokenizer)
        stopped = _stop_test(self.BASE, (mark,))
        assert stopped(prompt, tokens) == ends
        assert not any(stopped(prompt, tokens[:count]) for count in range(len(tokens)))
