"""modelfit.py: texts that a model cannot read are found before any compute."""

from dataclasses import replace

import pytest
from torch import nn

from architectures import tiny_architecture
from cohorts import data
from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.models.architecture import num_positions
from schemabank.models.basemodel import BaseModel
from schemabank.runs.modelfit import check_distill, check_items, check_positions, check_training
from schemabank.tasks import Item
from tiny import END_TOKEN_ID, VOCAB_SIZE, tiny_model, tiny_tokenizer


def item(prompt: tuple[int, ...], target: tuple[int, ...] = (7, END_TOKEN_ID)) -> Item:
    return Item(
        id="sum/1",
        group="all",
        cluster="",
        prompt="",
        prompt_tokens=prompt,
        target_tokens=target,
        golds=("1",),
        fields={},
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "mpt", "gemma3"])
def test_prompts_beyond_the_models_positions(name: str) -> None:
    model = tiny_architecture(name)
    items = [item((1, 2, 3)), item((1,))]
    check_positions(items, EvalSettings(max_new_tokens=253), model)
    with pytest.raises(InputError, match=r"longest prompt has 3 tokens .* model has 256 positions"):
        check_positions(items, EvalSettings(max_new_tokens=254), model)


def test_a_model_without_a_limit_takes_every_text() -> None:
    model = tiny_architecture("bloom", max_position_embeddings=None)
    assert num_positions(model) is None
    check_positions([item((1,) * 5000)], EvalSettings(), model)
    check_training(data(), model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_training_examples_beyond_the_models_positions(name: str) -> None:
    training = data()
    widest = max(bucket.width for bucket in training.schedule.buckets)
    longest = max(training.encoded, key=lambda e: len(e.tokens))
    check_training(training, tiny_architecture(name, max_position_embeddings=widest))
    tags = [[5, 6, 7], [5]]
    check_training(
        training, tiny_architecture(name, max_position_embeddings=widest + 3), prefixes=tags
    )
    with pytest.raises(InputError) as error:
        check_training(
            training, tiny_architecture(name, max_position_embeddings=widest + 2), prefixes=tags
        )
    assert str(error.value) == (
        f"the training example {longest.id!r} has {len(longest.tokens)} tokens and 3 of tags, with "
        f"padding {widest + 3}, but the model has {widest + 2} positions: allowed are as many, "
        "leave the example out or lower task.max_length"
    )


def test_tokens_that_the_model_has_no_vector_for() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.add_tokens(["<|answer|>"], special_tokens=True)
    (added,) = tokenizer("<|answer|>")["input_ids"]
    assert added == VOCAB_SIZE
    base = BaseModel("tiny", None, model, tokenizer, (END_TOKEN_ID,), "made here")
    message = (
        r"has the token '<\|answer\|>', number 300 of the tokenizer, but the model has vectors for "
        r"300 tokens: allowed are those, leave the token out, or resize"
    )
    check_items([item((299,))], EvalSettings(), base)
    for unreadable in (item((1, added, 2)), item((1,), (added, END_TOKEN_ID))):
        with pytest.raises(InputError, match=f"'sum/1' {message}"):
            check_items([item((1,)), unreadable], EvalSettings(), base)
    training = replace(data(), tokenizer=tokenizer)
    check_training(training, model)
    with pytest.raises(InputError, match=f"'a tag prefix' {message}"):
        check_training(training, model, prefixes=[[added]])
    first, *others = training.encoded
    odd = replace(first, tokens=(*first.tokens, added))
    with pytest.raises(InputError, match=message):
        check_training(replace(training, encoded=[*others, odd]), model)
    model.resize_token_embeddings(VOCAB_SIZE + 1)
    check_items([item((1, added, 2))], EvalSettings(), base)


@pytest.mark.parametrize(("known", "refused"), [(5, 6), (VOCAB_SIZE + 9, VOCAB_SIZE + 10)])
def test_so_many_tokens_as_the_output_layer_knows_can_be_learned_from_teachers(
    known: int, refused: int
) -> None:
    """The layer may tell of fewer tokens than have vectors, or of more."""
    model = tiny_model("llama")
    model.set_output_embeddings(nn.Linear(model.config.hidden_size, known, bias=False))
    base = BaseModel("tiny", None, model, tiny_tokenizer(), (END_TOKEN_ID,), "made here")

    def run(top_k: int) -> RunConfig:
        settings = {"arm": "lora", "distill": {"teachers": 2, "top_k": top_k}}
        return RunConfig.model_validate(settings)

    check_distill(run(known), data(), base)
    with pytest.raises(InputError, match=rf"top_k is {refused}, allowed is 2 to {known}, .*lower"):
        check_distill(run(refused), data(), base)
