"""The base model and its tokenizer, loaded and frozen.

Whatever a name means, it is loaded the same way: transformers reads a folder or a hub repository.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from schemabank.common.errors import InputError
from schemabank.common.quiet import HUB, bars_on_terminals_only
from schemabank.models.architecture import auto_class
from schemabank.models.checks import (
    check_counts,
    check_finite,
    check_reads,
    check_whole,
    end_token_ids,
    loading,
)
from schemabank.models.digests import model_digests
from schemabank.models.files import Located, locate

QUANTISED = ("quantization_config", "compression_config")  # the latter: old compressed-tensors
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class BaseModel:
    """A frozen causal language model with its tokenizer."""

    name: str  # as the user gave it
    hub_id: str | None  # for the adapter's config and model card; None for folders and GGUF files
    model: PreTrainedModel  # in eval mode, no parameter requires a gradient
    tokenizer: PreTrainedTokenizerBase  # a pad token may be missing
    end_token_ids: tuple[int, ...]  # every id that ends a text, sorted
    source: str  # one line that says where the weights came from
    digests: Mapping[str, str] = field(default_factory=dict)  # of its files, see digests.py
    by_slot: str | None = None  # why its texts are decoded one slot at a time; None: all at once


@bars_on_terminals_only(transformers_logging, HUB)
def load_base_model(
    name: str, *, dtype: torch.dtype, device: torch.device, revision: str | None = None
) -> BaseModel:
    """Load the base model called `name`, frozen, in `dtype` onto `device`.

    The name is an embedded one, a `.gguf` file, a folder or a hub id; the first that fits is taken.
    Only hub ids have a `revision` (branch, tag or commit). An unusable model raises InputError.
    """
    located = locate(name, revision)
    model, tokenizer = _load_with_tokenizer(name, located, dtype)
    # PEFT copies this into the adapters it saves; a path into our cache would be no use there.
    model.name_or_path = model.config.name_or_path = located.hub_id or name
    cast(nn.Module, model).to(device).eval().requires_grad_(False)  # in place
    check_finite(name, model)
    check_reads(name, model)
    return BaseModel(
        name=name,
        hub_id=located.hub_id,
        model=model,
        tokenizer=tokenizer,
        end_token_ids=end_token_ids(name, model, tokenizer),
        source=located.source,
        digests=model_digests(located),
    )


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn a setting into a type; "auto" is bfloat16 where the device computes in it natively."""
    if name == "auto":
        return torch.bfloat16 if _has_native_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown; give one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # torch 2.11 has no public question for this. AMX tiles always come with bfloat16.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and native


def _load_with_tokenizer(
    name: str, located: Located, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    with loading(name):
        # Two reads of one file. The counts are looked at before a configuration is made of them,
        # which some classes do block by block. And only `from_pretrained` makes it as transformers
        # does: `AutoConfig.for_model` and `from_dict` do not refuse a repository's own code, and
        # take no type for another one (a mistral with layer_types is a ministral).
        raw, _ = PretrainedConfig.get_config_dict(located.path, revision=located.revision)
        check_counts(name, raw)
        config: PretrainedConfig = AutoConfig.from_pretrained(
            located.path, revision=located.revision, trust_remote_code=False
        )
        check_unquantised(name, config)
        loaded: Any = auto_class(config).from_pretrained(
            located.path,
            revision=located.revision,
            dtype=dtype,
            use_safetensors=True,  # no pickles
            trust_remote_code=False,  # without it, transformers asks on the terminal
            output_loading_info=True,  # returns a pair, which transformers' types ignore
        )
        tokenizer = AutoTokenizer.from_pretrained(
            located.path, revision=located.revision, trust_remote_code=False
        )
    model, report = loaded
    check_whole(name, report)
    return model, tokenizer


def check_unquantised(name: str, config: PretrainedConfig) -> None:
    """Refuse quantised weights: adapters here sit on plain ones, and other packages read them.

    Raises:
        InputError: naming the model and how it is quantised.
    """
    for each in (config, config.get_text_config(decoder=True)):
        for key in QUANTISED:
            settings = getattr(each, key, None)
            if settings:
                told = settings if isinstance(settings, dict) else vars(settings)
                known = getattr(told.get("quant_method"), "value", told.get("quant_method"))
                raise InputError(
                    f"Base model {name!r} is quantised ({known or 'in some way'}, says {key} in "
                    "its config.json); allowed are weights in float32, bfloat16 or float16: give "
                    "the model that it was made from, or use schemabank.trainer, which trains on "
                    "4 bits of bitsandbytes."
                )
