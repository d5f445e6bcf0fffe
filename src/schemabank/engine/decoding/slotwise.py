"""Decoding with transformers' ``generate``, one slot at a time, for models with other attention.

The result is that of :func:`schemabank.engine.decoding.decode.generate`: the same limits, draws and
records. Prompts of one length are completed together, so that no row is padded: models with
recurrent states, and some with positions of their own, get padded rows wrong.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from schemabank.engine.decoding.completion import Completion, Limits, Memory, Stopped
from schemabank.engine.decoding.decode import Advance, check_prompts
from schemabank.engine.decoding.sampling import Sampling, draw
from schemabank.engine.stack import AdapterStack


def generate_by_slot(
    stack: AdapterStack,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: Sequence[int],
    batch_size: int,
    sampling: Sampling | None = None,
    stopped: Stopped = lambda _prompt, _tokens: False,
    advance: Advance = lambda _: None,
    memory: Memory | None = None,
) -> list[list[Completion]]:
    """Complete the same prompts with every slot's adapter, one after the other.

    Call it inside ``stack.evaluating(...)``.

    Args:
        stack: the adapters, in evaluation mode.
        prompts: token ids of each prompt.
        max_new_tokens: limit of a completion.
        end_token_ids: tokens that end a completion.
        batch_size: completions decoded at once, at most.
        sampling: how tokens are drawn; without it, the most likely one is taken.
        stopped: from a prompt's tokens and its completion's, whether the completion ends here,
            though none is an end token.
        advance: called with the number of prompts that all slots have completed since the last
            call.
        memory: completions that are known from an earlier call. A batch of which all are known to
            a slot is not computed; any other is computed whole, and so to the same bits.

    Returns:
        Completions as ``[slot][prompt]``.

    Raises:
        InputError: a prompt without tokens.
    """
    check_prompts(prompts)
    limits = Limits(max_new_tokens, frozenset(end_token_ids), stopped)
    completions = [[Completion() for _ in prompts] for _ in range(stack.num_slots)]
    memory = memory or Memory()
    with stack.uncompiled(), plain_generation(stack.model):
        for chosen in _batches_of_one_length(prompts, batch_size):
            tokens = torch.tensor([prompts[i] for i in chosen], device=stack.model.device)
            drawing = None if sampling is None else _Drawing(sampling, chosen, tokens.device)
            # A drawing has no state, so every slot gets the same noise, as in our own decoder.
            for slot in range(stack.num_slots):
                known = memory.completions(slot)
                if all(prompt in known for prompt in chosen):
                    for prompt in chosen:
                        completions[slot][prompt] = known[prompt]
                    continue
                with stack.only(slot):
                    rows = _generate_rows(stack.model, tokens, limits, drawing)
                for prompt, row in zip(chosen, rows, strict=True):
                    _extend_to_end(completions[slot][prompt], row, prompts[prompt], limits)
                    if prompt not in known:
                        memory.completed(slot, prompt, completions[slot][prompt])
            advance(len(chosen))
    return completions


def _generate_rows(
    model: PreTrainedModel, tokens: Tensor, limits: Limits, drawing: "_Drawing | None"
) -> list[list[int]]:
    """Return what ``generate`` writes behind each row of ``tokens``; ended rows are padded.

    Args:
        model: the model with its adapters.
        tokens: ``(row, token)``, without padding.
        limits: what ends a completion.
        drawing: chooses tokens; without it, the most likely one is taken.
    """
    width, ends = tokens.shape[1], sorted(limits.ends)
    written: Tensor = model.generate(  # type: ignore[operator]  # typed as a module's attribute
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        generation_config=GenerationConfig(
            max_new_tokens=limits.max_new_tokens,
            do_sample=False,
            eos_token_id=ends or None,
            # Any token may pad, since padding is cut off without being looked at.
            pad_token_id=ends[0] if ends else 0,
            disable_compile=True,
        ),
        logits_processor=LogitsProcessorList([] if drawing is None else [drawing]),
        stopping_criteria=StoppingCriteriaList([_StopTexts(width, limits.stopped)]),
    )
    rows: list[list[int]] = written[:, width:].tolist()
    return rows


class _Drawing(LogitsProcessor):
    """Leaves ``generate`` a single token to choose: the one that :func:`draw` gives.

    So greedy decoding takes it, and samples do not depend on transformers' own sampling.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[int], device: torch.device) -> None:
        self._sampling = sampling
        keys = [sampling.keys[i] for i in prompts]
        self._keys = torch.tensor(keys, dtype=torch.int32, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        positions = torch.full_like(self._keys, input_ids.shape[1], dtype=torch.long)
        chosen = draw(scores, self._sampling, keys=self._keys, positions=positions)
        left = torch.full_like(scores, -torch.inf)
        return left.scatter_(1, chosen[:, None], 0.0)


class _StopTexts(StoppingCriteria):
    """Ends rows that have just written a stop text.

    :class:`Limits` asks the same function when completions are recorded, so both find the same end.
    """

    def __init__(self, width: int, stopped: Stopped) -> None:
        self._width, self._stopped = width, stopped

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        del scores, kwargs
        rows = input_ids.tolist()
        ends = [self._stopped(row[: self._width], row[self._width :]) for row in rows]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)


@contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model's own defaults, such as a repetition penalty, from ``generate`` for a while."""
    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def _batches_of_one_length(
    prompts: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[int]]:
    """Yield indices of prompts of one length, a batch at a time; the longest prompts come first."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    for length in sorted(by_length, reverse=True):
        indices = by_length[length]
        for start in range(0, len(indices), batch_size):
            yield indices[start : start + batch_size]


def _extend_to_end(
    completion: Completion, row: Sequence[int], prompt: Sequence[int], limits: Limits
) -> None:
    """Add a row's tokens to a completion until it ends; what follows is padding."""
    for token in row:
        if limits.extend(completion, token, prompt):
            return
