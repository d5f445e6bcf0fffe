"""How a model is decoded: by our decoder, all slots at once, or by ``generate``.

Our decoder has its own cache and needs to replace the model's attention. A few tokens show whether
that works, before anything is trained. If it does not, transformers decodes the model, one slot at
a time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from schemabank.common.errors import InputError, first_line
from schemabank.common.memory import is_out_of_memory
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding.rowcache import (
    DecodingRows,
    attention_windows,
    row_attention_in,
)
from schemabank.engine.decoding.slotwise import plain_generation
from schemabank.engine.stack import AdapterStack
from schemabank.models.precise import can_be_precise, in_float32
from schemabank.models.refusals import RefusalError, asking

TEXTS = ([1, 2, 3, 4], [5, 6, 7, 8])
PROMPTS = ([1, 2, 3], [4])  # of different lengths, so that positions matter
ALLOWED = {torch.float32: 1e-3, torch.float64: 1e-3}  # differences relative to the largest logit
ALLOWED_ROUNDED = 5e-2  # the same in types with fewer digits


def why_by_slot(model: PreTrainedModel) -> str | None:
    """Return why our decoder cannot decode a model; ``None``: it can.

    Args:
        model: the plain base model, which is left unchanged.
    """
    return _problem_with(_difference_of_ours, model)


def check_generates(model: PreTrainedModel) -> None:
    """Let ``generate`` write a few tokens in two rows, and check its logits.

    Raises:
        InputError: it fails, or its logits are not those of the whole texts.
    """
    problem = _problem_with(_difference_of_generate, model)
    if problem is not None:
        raise InputError(
            f"the model {type(model).__name__} can be decoded neither by SchemaBank nor by "
            f"transformers' generate ({problem}): allowed are causal models that generate, use "
            "one, or a task that decodes nothing, such as perplexity"
        )


def _problem_with(
    difference_of: Callable[[PreTrainedModel], float], model: PreTrainedModel
) -> str | None:
    """Return why a way of decoding fails for a model; ``None``: it does not."""
    try:
        with asking():
            difference = difference_of(model)
            if _is_too_large(difference, model.dtype) and can_be_precise(model):
                return _problem_in_float32(difference_of, model, rounded=difference)
    except (RefusalError, InputError) as refusal:
        return first_line(refusal)
    return _sentence(difference) if _is_too_large(difference, model.dtype) else None


def _problem_in_float32(
    difference_of: Callable[[PreTrainedModel], float], model: PreTrainedModel, *, rounded: float
) -> str | None:
    """Ask again with all digits: in some models, rounding alone makes a large difference."""
    try:
        with in_float32(model):
            difference = difference_of(model)
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        if not is_out_of_memory(error):
            raise
        return f"{_sentence(rounded)}, and memory is too short to compute them in float32"
    return _sentence(difference) if _is_too_large(difference, torch.float32) else None


def _is_too_large(difference: float, dtype: torch.dtype) -> bool:
    # `not <=` and not `>`: a difference that is NaN must count as too large.
    return not difference <= ALLOWED.get(dtype, ALLOWED_ROUNDED)


def _sentence(difference: float) -> str:
    return f"its logits differ by {difference:.1e} from those of whole texts"


def _difference_of_ours(model: PreTrainedModel) -> float:
    attention_windows(model)
    stack = AdapterStack(model, lora=[LoraSettings()], adapters=False)
    try:
        with stack.evaluating("off"):
            return _difference_from_whole_texts(stack)
    finally:
        stack.remove()


def _difference_of_generate(model: PreTrainedModel) -> float:
    tokens = torch.tensor(TEXTS, device=model.device)
    settings = GenerationConfig(
        max_new_tokens=3,
        do_sample=False,
        pad_token_id=0,
        disable_compile=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    with plain_generation(model):
        written: Any = model.generate(  # type: ignore[operator]  # typed as a module's attribute
            input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=settings
        )
    found = torch.stack(written.logits, dim=1)
    with torch.no_grad():
        whole = model(input_ids=written.sequences, use_cache=False).logits
    return _relative_difference(found, whole[:, tokens.shape[1] - 1 : -1])


def _difference_from_whole_texts(stack: AdapterStack) -> float:
    """Return the largest relative difference of single steps' logits from those of whole texts."""
    rows = DecodingRows(stack, num_rows=len(PROMPTS), longest=3, max_new_tokens=3, steps=1)
    first = rows.prefill(PROMPTS, range(len(PROMPTS)))
    with row_attention_in(stack.model):
        found = rows.logits(len(PROMPTS), rows.cache.length)
    worst = 0.0
    for logits, prompt, token in zip(found, PROMPTS, first, strict=True):
        text = torch.tensor([[[*prompt, token]]], device=logits.device)
        whole = stack.head(stack.hidden(text)[0, -1])
        worst = max(worst, _relative_difference(logits, whole))
    return worst


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest expected number."""
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    return (difference / largest).item()
