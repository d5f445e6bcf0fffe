"""Checks of a loaded base model: all weights, of the saved shapes, finite, and an end token.

For a damaged folder transformers raises many kinds of errors, or draws random weights where shapes
do not fit. Here each of these becomes one sentence that names the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.common.errors import InputError, first_line
from schemabank.common.hub import own_cache
from schemabank.common.memory import is_out_of_memory
from schemabank.models.precise import ROUNDED, can_be_precise, in_float32
from schemabank.models.refusals import RefusalError, asking

# Ends of settings' names, the last two of GGUF's.
COUNTS = ("layer", "layers", "blocks", "experts", "block_count", "expert_count")
MOST_COUNTED = 10_000  # the largest models have some hundreds

# What a later token may change of earlier logits, relative to the largest, by rounding: a mixture's
# products may have other shapes for other tokens. The second number is for types with fewer digits.
UNSEEN, UNSEEN_ROUNDED = 1e-3, 5e-2


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a model is read into an ``InputError``, but for memory."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        mend = (
            f"give a causal model known to transformers {transformers.__version__}, with "
            "safetensors and a tokenizer"
        )
        mend = own_cache().mend(error) or mend
        raise InputError(
            f"Base model {name!r} could not be loaded: {first_line(error)}; {mend}."
        ) from error


def check_counts(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration of more blocks or experts than any model has.

    transformers builds one after the other before it reads a weight, which would never end.

    Args:
        name: the model, as the user gave it.
        config: what its config.json or GGUF file says, with the configurations of its parts.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            check_counts(name, value)
        elif key.endswith(COUNTS) and isinstance(value, int | float) and value > MOST_COUNTED:
            raise InputError(
                f"Base model {name!r} has {value!r:.60} as {key:.80} in its configuration, "
                f"allowed are at most {MOST_COUNTED:,}: fetch or save it again."
            )


def check_whole(name: str, report: Mapping[str, Any]) -> None:
    """Refuse a model with weights that its files lack, or have in another shape.

    Args:
        name: the model, as the user gave it.
        report: transformers' account of the loading.
    """
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"Base model {name!r} is incomplete: its files lack {len(missing)} weights, among them "
            f"{missing[0]}; fetch or save it again."
        )
    if mismatched := sorted(report.get("mismatched_keys", ())):
        key, found, expected = mismatched[0]
        raise InputError(
            f"Base model {name!r} has {len(mismatched)} weights of another shape than its "
            f"config.json says, among them {key}, {list(found)} and not {list(expected)}; fetch or "
            "save it again."
        )


def check_finite(name: str, model: PreTrainedModel) -> None:
    """Refuse a model with a weight that is not a finite number."""
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(
                f"Base model {name!r} holds weights that are not finite, among them {key}; its "
                "training has diverged, or the file is damaged: fetch or save it again."
            )


def check_reads(name: str, model: PreTrainedModel) -> None:
    """Refuse a model that fails on a few tokens, or is not causal."""
    try:
        with asking():
            check_causal(model)
    except RefusalError as refusal:
        raise InputError(
            f"Base model {name!r} fails on a text of four tokens: {refusal}; give a causal model "
            f"that transformers {transformers.__version__} runs on text alone."
        ) from refusal


def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model whose tokens see later ones: in training it would read what it is to predict.

    Raises:
        InputError: with another last token, the logits of earlier ones are others, or some are not
            finite.
    """
    difference, allowed = _difference_by_later(model), UNSEEN
    if difference > allowed and model.dtype in ROUNDED:
        # It may be rounding alone, and a model that is not causal may make no more than that.
        precise = _difference_in_float32(model)
        difference, allowed = (difference, UNSEEN_ROUNDED) if precise is None else (precise, UNSEEN)
    if difference > allowed:
        raise InputError(
            f"the model {type(model).__name__} is not causal, its tokens see later ones: allowed "
            "are models that predict each token from those before it, use one, or set is_decoder "
            "in its config.json if it has that"
        )


@torch.no_grad()
def _difference_by_later(model: PreTrainedModel) -> float:
    """What another last token changes of the logits before it, relative to the largest."""
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device)
    first, second = logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    if not logits.isfinite().all():  # no comparison with NaN is true, so it would pass
        raise InputError(
            f"the model {type(model).__name__} gives logits that are not finite for a text of four "
            "tokens, so it cannot be trained: fetch or save it again, or use it in bfloat16 or "
            "float32 if its type is a narrower one"
        )
    # All may be 0, where an output layer is not trained yet.
    largest = first.abs().max().clamp_min(torch.finfo(first.dtype).tiny)
    difference: float = ((first - second).abs().max() / largest).item()
    return difference


def _difference_in_float32(model: PreTrainedModel) -> float | None:
    """The same with all digits; ``None`` where the model or the memory does not allow that."""
    if not can_be_precise(model):
        return None
    try:
        with asking(), in_float32(model):
            return _difference_by_later(model)
    except RefusalError:
        return None
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one of the latter
        if not is_out_of_memory(error):
            raise
        return None


def end_token_ids(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return every id that ends a text, sorted."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ends = [end for end in (*listed, tokenizer.eos_token_id) if end is not None]
    if not ends:
        raise InputError(
            f"Base model {name!r} names no end token, so nothing would end a text; set eos_token "
            "in its tokenizer_config.json or eos_token_id in its generation_config.json."
        )
    for end in ends:
        if isinstance(end, bool) or not isinstance(end, int) or end < 0:
            raise InputError(
                f"Base model {name!r} names the end token {end!r:.60}, allowed are ids from 0; "
                "correct eos_token_id in its generation_config.json."
            )
    return tuple(sorted(set(ends)))
