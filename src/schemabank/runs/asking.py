"""Completions of a program's own prompts: texts, or chats that the assistant is to answer."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from transformers import PreTrainedTokenizerBase

from schemabank.adapters.files import ENDS, PREFIX
from schemabank.common.errors import InputError
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.config.settingsfile import validated
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.execute import default_executor
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.models.checks import end_token_ids
from schemabank.runs.evaluate import Procedure, complete, completion_text
from schemabank.runs.modelfit import check_prompts
from schemabank.runs.pairs import as_examples
from schemabank.runs.prepare import chat_item
from schemabank.runs.tokens import as_chat, beginning
from schemabank.tasks import Item
from schemabank.tasks.seams import plain_tokens

Prompt: TypeAlias = str | Sequence[Mapping[str, object]]
"""A text, or a chat as a list of messages."""

ALLOWED = (
    'allowed is a list of texts, ["2 + 2 = ", …], or of chats, each a list of messages '
    '{"role": "user", "content": "…"}'
)
PROMPT = "prompt"
ANSWER = {"role": "assistant", "content": "answer"}  # stands where the model's own will stand


def completions(
    stack: AdapterStack,
    base: BaseModel,
    prompts: Sequence[Prompt],
    config: RunConfig,
    asked: Mapping[str, object],
    *,
    stop: Sequence[str],
) -> list[str]:
    """Complete prompts with the adapter of a stack of one slot.

    Args:
        stack: with the adapter.
        base: the model that it sits on, from :func:`decodable`.
        prompts: texts or chats.
        config: how a run's prompts become tokens.
        asked: settings of ``eval``.
        stop: texts that end a completion.

    Raises:
        InputError: other prompts, ones that the model has no room for, or settings out of range.
    """
    settings = validated(dict(asked), EvalSettings, lambda _: "as an argument of generate()")
    _tell_without_draws(settings)
    ends = _texts(stop)
    items = _items(prompts, config, base.tokenizer)
    check_prompts(items, settings.max_new_tokens, base.model, base.tokenizer)
    how = Procedure.of(config.task, settings, routing="off")
    marks = dict.fromkeys(item.end_text for item in items if item.end_text)
    how = replace(how, stop=(*ends, *marks))
    with stack.evaluating("off"):
        longest_first = sorted(range(len(items)), key=lambda i: -len(items[i].prompt_tokens))
        executor = default_executor(base.model.device, explain=lambda _: None)
        (done,) = complete(stack, base, [items[i] for i in longest_first], how, executor=executor)
    by_place = dict(zip(longest_first, done, strict=True))
    return [completion_text(item, by_place[i], base, how.stop)[0] for i, item in enumerate(items)]


def decodable(base: BaseModel, stack: AdapterStack) -> BaseModel:
    """Return the base model with what ends its texts, and with how it is decoded.

    Raises:
        InputError: nothing ends a text, or the model cannot be decoded at all.
    """
    ends = end_token_ids(base.name, base.model, base.tokenizer)
    with stack.evaluating("off"), stack.uncompiled():
        by_slot = why_by_slot(base.model)
        if by_slot is not None:
            check_generates(base.model)
    return replace(base, end_token_ids=ends, by_slot=by_slot)


def check_adapter(stack: AdapterStack) -> None:
    """Refuse to decode with an adapter whose weights are not finite: all logits would be NaN.

    Raises:
        InputError: a weight is not; the first such tensor is named as in the adapter's file.
    """
    for path, pair in stack.lora.tensors(0).items():
        for end, tensor in zip(ENDS, pair, strict=True):
            lost = int((~tensor.isfinite()).sum())
            if lost:
                raise InputError(
                    f"the adapter's tensor {PREFIX}{path}{end} holds {lost:,} of "
                    f"{tensor.numel():,} values that are not finite: allowed are finite ones; its "
                    "training has diverged, or a program wrote them, so train it anew at a lower "
                    "learning rate, or begin with another adapter"
                )


def _tell_without_draws(settings: EvalSettings) -> None:
    """Warn the program that calls generate() of what has no effect where nothing is drawn."""
    given = {"top_p": settings.top_p != 1, "seed": settings.sampling_seed != 0}
    idle = [name for name, is_set in given.items() if is_set]
    if settings.temperature == 0 and idle:
        warnings.warn(
            f"{', '.join(idle)}: no effect at temperature 0, where nothing is drawn; leave this "
            "out, or set a temperature",
            stacklevel=4,
        )


def _items(prompts: object, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[Item]:
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise InputError(f"the prompts are a {type(prompts).__name__}: {ALLOWED}")
    return [_item(index, prompt, config, tokenizer) for index, prompt in enumerate(prompts)]


def _item(
    index: int, prompt: object, config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> Item:
    if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes) and prompt:
        row = {"prompt": list(prompt), "completion": [ANSWER]}
        (example,) = as_examples([row], purpose=PROMPT)
        _check_unicode(index, "".join(turn.content for turn in example.turns))
        return replace(chat_item(example, tokenizer), id=f"{PROMPT}/{index}")
    if not isinstance(prompt, str) or not prompt:
        raise InputError(f"prompt {index} is {prompt!r:.80}: {ALLOWED}")
    _check_unicode(index, prompt)
    text = as_chat(prompt, config.task, tokenizer)
    tokens = [*beginning(config.task, tokenizer), *plain_tokens(text, tokenizer)]
    return Item(
        id=f"{PROMPT}/{index}",
        group="all",
        prompt=text,
        prompt_tokens=tuple(tokens),
        target_tokens=(),
        golds=(),
    )


def _check_unicode(index: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"prompt {index} is no Unicode ({error}): mend it") from error


def _texts(stop: object) -> tuple[str, ...]:
    """Refuse a text in place of a list of texts, whose letters would each end a completion."""
    is_list = isinstance(stop, Sequence) and not isinstance(stop, str | bytes)
    if not is_list or not all(isinstance(text, str) and text for text in cast(Sequence[str], stop)):
        raise InputError(
            f"stop is {stop!r:.80}: allowed is a list of texts that are not empty, such as "
            '["\\n"], write it as one'
        )
    return tuple(cast(Sequence[str], stop))
