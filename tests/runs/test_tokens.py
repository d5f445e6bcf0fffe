"""Texts as tokens: what is cut, what ends them, and where many of them lie."""

import pytest

from schemabank.common.errors import InputError
from schemabank.common.stored import Stored
from schemabank.config.task import TaskSettings
from schemabank.runs import tokens
from schemabank.runs.tokens import end_token_id, tokenise
from tiny import END_TOKEN_ID, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


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
