"""Facts about a loaded model that each configuration and class gives in its own way.

A configuration may be nested (a Gemma 3 with its vision tower keeps its text model's in
``text_config``), a size may have another name, and a linear layer may be GPT-2's ``Conv1D``.
"""

import inspect

from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from schemabank.common.errors import InputError
from schemabank.models.blocknames import BLOCK_LISTS

AutoClass = type[AutoModelForCausalLM | AutoModelForImageTextToText]

POSITIONS = ("max_position_embeddings", "max_seq_len")  # the latter is MPT's name


def auto_class(config: PreTrainedConfig) -> AutoClass:
    """Return which of transformers' classes loads a model.

    It is the one for causal models, unless only the other knows the model, as LLaVA or Qwen2-VL: a
    text model together with its vision tower.
    """
    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """Return the text model without its output layer."""
    decoder: nn.Module = model.get_decoder()
    itself = decoder is model  # what Llama 4's text model answers
    return model.base_model if itself else decoder


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks, first to last."""
    decoder = decoder_of(model)
    for attribute in BLOCK_LISTS:
        blocks = getattr(decoder, attribute, None)
        if isinstance(blocks, nn.ModuleList):
            return list(blocks)
    raise InputError(
        f"{type(model).__name__} has no known decoder blocks: {type(decoder).__name__} has none of "
        f"{', '.join(BLOCK_LISTS)}; use a decoder-only model such as Llama, Qwen2 or Gemma 3."
    )


def cache_keyword(model: PreTrainedModel) -> str:
    """Return by which name a model is given its cache: another one since transformers 5.24.

    A forward that is wrapped may name neither. It gets the older name, which every version takes.
    """
    known = inspect.signature(model.base_model.forward).parameters
    new = "cache" in known and "past_key_values" not in known
    return "cache" if new else "past_key_values"


def hidden_size(model: PreTrainedModel) -> int:
    """Return the width of the states between blocks."""
    size: int = model.config.get_text_config(decoder=True).hidden_size
    return size


def num_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a text may have at most; ``None`` where the model names no limit."""
    config = model.config.get_text_config(decoder=True)
    for name in POSITIONS:
        limit = getattr(config, name, None)
        if limit is not None:
            return int(limit)
    return None


def num_embeddings(model: PreTrainedModel) -> int:
    """Return how many tokens the model has a vector for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def linear_sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the input's and the output's width of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (rows, columns) if isinstance(layer, Conv1D) else (columns, rows)


def decoder_prefix(model: PreTrainedModel) -> str:
    """Return how the paths of the text model's modules begin."""
    decoder = decoder_of(model)
    path = next(path for path, module in model.named_modules() if module is decoder)
    return f"{path}." if path else ""
