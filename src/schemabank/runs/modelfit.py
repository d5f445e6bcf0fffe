"""Whether texts fit a model, found before any compute: its positions and its vocabulary."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.engine.batches import Encoded
from schemabank.engine.run import TrainingData
from schemabank.models.architecture import num_embeddings, num_positions
from schemabank.models.basemodel import BaseModel
from schemabank.tasks import Item


def check_items(items: Sequence[Item], settings: EvalSettings, base: BaseModel) -> None:
    """Refuse questions that the model cannot read or complete.

    Raises:
        InputError: naming the longest prompt, or the token.
    """
    _check_tokens(
        ((item.id, (*item.prompt_tokens, *item.target_tokens)) for item in items),
        base.model,
        base.tokenizer,
    )
    check_positions(items, settings, base.model)


def check_positions(items: Sequence[Item], settings: EvalSettings, model: PreTrainedModel) -> None:
    """Refuse prompts and completions that outgrow the model's positions.

    Raises:
        InputError: naming the longest prompt.
    """
    allowed = num_positions(model)
    longest = max(len(item.prompt_tokens) for item in items)
    needed = max(
        len(i.prompt_tokens) + max(len(i.target_tokens), settings.max_new_tokens * i.has_end)
        for i in items
    )
    if allowed is not None and needed > allowed:
        raise InputError(
            f"the longest prompt has {longest} tokens and eval.max_new_tokens is "
            f"{settings.max_new_tokens}, but the model has {allowed} positions: use fewer shots, "
            "fewer new tokens or shorter windows"
        )


def check_training(
    data: TrainingData, model: PreTrainedModel, *, prefixes: Iterable[Sequence[int]] = ()
) -> None:
    """Refuse training examples that the model cannot read.

    Padding counts too, since a model with learned positions needs one for each padded token.

    Args:
        data: the examples.
        model: the base model.
        prefixes: tokens that tags put in front of an example.

    Raises:
        InputError: naming the example.
    """
    shown = [*prefixes]
    named = chain(((e.id, e.tokens) for e in data.encoded), (("a tag prefix", p) for p in shown))
    _check_tokens(named, model, data.tokenizer)
    allowed = num_positions(model)
    room = max(map(len, shown), default=0)
    needed = max(bucket.width for bucket in data.schedule.buckets) + room
    if allowed is not None and needed > allowed:
        longest = max(data.encoded, key=lambda e: len(e.tokens))
        with_tags = f" and {room} of tags" if room else ""
        raise InputError(
            f"the training example {longest.id!r} has {len(longest.tokens)} tokens{with_tags}, "
            f"with padding {needed}, but the model has {allowed} positions: allowed are as many, "
            "leave the example out or lower task.max_length"
        )


def check_prompts(
    items: Sequence[Item],
    max_new_tokens: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a program's prompts that the model cannot read or has no room to complete.

    Raises:
        InputError: naming the prompt.
    """
    _check_tokens(((item.id, item.prompt_tokens) for item in items), model, tokenizer)
    allowed = num_positions(model)
    for item in items:
        needed = len(item.prompt_tokens) + max_new_tokens
        if allowed is not None and needed > allowed:
            raise InputError(
                f"{item.id!r} has {len(item.prompt_tokens)} tokens and max_new_tokens is "
                f"{max_new_tokens}, but the model has {allowed} positions: allowed are as many, "
                "shorten the prompt or lower max_new_tokens"
            )


def check_encoded(
    examples: Sequence[Encoded], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse examples for validation that the model cannot read.

    Raises:
        InputError: naming the example.
    """
    _check_tokens(((e.id, e.tokens) for e in examples), model, tokenizer)
    allowed = num_positions(model)
    longest = max(examples, key=lambda e: len(e.tokens))
    if allowed is not None and len(longest.tokens) > allowed:
        raise InputError(
            f"the example {longest.id!r} has {len(longest.tokens)} tokens, but the model has "
            f"{allowed} positions: allowed are as many, leave the example out or lower "
            "task.max_length"
        )


def _check_tokens(
    texts: Iterable[tuple[str, Sequence[int]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse a token that the model has no vector for."""
    allowed = num_embeddings(model)
    for name, tokens in texts:
        if tokens and max(tokens) >= allowed:
            unknown = max(tokens)
            text = tokenizer.convert_ids_to_tokens([unknown])[0]
            raise InputError(
                f"{name!r} has the token {text!r}, number {unknown} of the tokenizer, but the "
                f"model has vectors for {allowed} tokens: allowed are those, leave the token out, "
                "or resize and train the model's embeddings before you use it here"
            )


def check_distill(
    run: RunConfig, data: TrainingData, base: BaseModel, *, prefixes: Iterable[Sequence[int]] = ()
) -> None:
    """Refuse teachers of a run whose labels they could not predict, or not so many tokens of it.

    Raises:
        InputError: no adapter to learn from, tags among the labels, or more tokens than the model
            knows.
    """
    if not run.num_teachers:
        return
    if not any("lora" in stage.train for stage in run.stages()):
        raise InputError(
            f"distill.teachers is {run.distill.teachers}, but no stage trains lora, so that every "
            "teacher's adapter is the untouched model: allowed is 0, or let a stage train lora"
        )
    if any(prefixes) and not data.completion_only:
        raise InputError(
            f"distill.teachers is {run.distill.teachers}, but task.completion_only_loss is false "
            f"and tags.delivery is {run.tags.delivery!r}, so that the loss is on tags, which no "
            "teacher predicts: allowed is completion_only_loss true, or the delivery loss"
        )
    known = _num_logits(base.model)
    if run.distill.top_k > known:
        raise InputError(
            f"distill.top_k is {run.distill.top_k}, allowed is 2 to {known}, the tokens that the "
            "model's output layer knows: lower it"
        )


def _num_logits(model: PreTrainedModel) -> int:
    """How many tokens a model tells the chances of; it may have vectors for more, or for fewer."""
    with torch.no_grad():
        tokens = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        return int(model(input_ids=tokens, use_cache=False).logits.shape[-1])
