"""Facts about a loaded model that configurations tell in many ways: blocks, sizes, positions."""

from torch import nn
from transformers import PreTrainedModel

from schemabank.errors import InputError

BLOCK_LISTS = ("layers", "h")  # what decoders call their ModuleList of blocks; "h" is GPT-2's name


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks, first to last."""
    decoder = model.get_decoder()
    for attribute in BLOCK_LISTS:
        blocks = getattr(decoder, attribute, None)
        if isinstance(blocks, nn.ModuleList):
            return list(blocks)
    raise InputError(
        f"{type(model).__name__} has no known decoder blocks: {type(decoder).__name__} has none of "
        f"{', '.join(BLOCK_LISTS)}; use a decoder-only model such as Llama, Qwen2 or Gemma 3."
    )
