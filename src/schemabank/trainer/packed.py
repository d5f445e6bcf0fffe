"""Batches whose examples lie one after another in a row, as TRL's ``padding_free`` and ``packing``.

Such a row has no mask, but positions that begin anew with every example. A method's penalties are
computed as if each example had a row of its own, and no example may see another one.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from schemabank.common.errors import InputError
from schemabank.methods.schemabank.bank import Routed

# Of the logits' spread. Rounding is far below it, also in bfloat16, and what leaks is far above:
# the architectures of the tests gave less than 1e-5 in float32, or more than 1.
LEAK = 0.05
SAME, FIRSTS = [5, 6, 7, 8], ([3, 3, 3, 3], [9, 4, 9, 4])


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether a batch's examples lie in one row; no number in it is looked at."""
    positions = batch.get("position_ids")
    return batch.get("attention_mask") is None and positions is not None and len(positions) == 1


def lengths_of(batch: Mapping[str, Any]) -> list[int] | None:
    """Return how long a batch's examples are; ``None`` where they have rows of their own.

    On a GPU the host waits here: how many examples there are, and how long the longest is, are
    shapes of what follows, and shapes are the host's. :func:`is_packed` does not wait.
    """
    if not is_packed(batch):
        return None
    positions = batch["position_ids"][0]
    starts = (positions == 0).nonzero().flatten().tolist()
    return [end - start for start, end in pairwise([*starts, len(positions)])]


def mask_of(batch: Mapping[str, Any]) -> Tensor:
    """Return ``(example, token)``, 1 for real tokens.

    Raises:
        InputError: nothing in the batch says what is padding.
    """
    lengths, mask = lengths_of(batch), batch.get("attention_mask")
    if lengths is not None:
        ones = [torch.ones_like(batch["position_ids"][0, :length]) for length in lengths]
        return nn.utils.rnn.pad_sequence(ones, batch_first=True)
    if mask is None or mask.dim() != 2:
        raise InputError(
            "a batch has no attention_mask of rows and tokens, so nothing says what is padding: "
            "allowed are collators that give one, and TRL's padding_free and packing"
        )
    assert isinstance(mask, Tensor)
    return mask


def unpacked(routed: Routed, lengths: Sequence[int]) -> Routed:
    """Return what a router did in one row as if each example had a row of its own."""

    def rows(values: Tensor) -> Tensor:
        parts = values[0, 0].split(list(lengths))
        return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)[None]

    return Routed(log_probs=rows(routed.log_probs), gates=rows(routed.gates))


@torch.no_grad()
def check_apart(model: Any, collate: Callable[[list[dict[str, Any]]], Any]) -> None:  # noqa: ANN401
    """Refuse a model in which an example of a packed row sees the one before it.

    Args:
        model: the trainer's.
        collate: the trainer's collator, which packs.

    Raises:
        InputError: another first example changes the logits of the second, or these are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        found = [_second_logits(model, collate, first) for first in FIRSTS]
    except ValueError as error:  # so says transformers of recurrent layers without their kernels
        raise InputError(
            f"args.packing or args.padding_free puts examples into one row, but this model cannot "
            f"compute it ({error}): allowed is False for both"
        ) from error
    finally:
        model.train(was_training)
    if not all(bool(logits.isfinite().all()) for logits in found):  # NaN differs by no number
        raise InputError(
            "args.packing or args.padding_free puts examples into one row, but the model's logits "
            "for such a row are not finite, so nothing tells whether it keeps examples apart: look "
            "for weights that are not finite or a type too narrow for the model, or set both to "
            "False"
        )
    if (found[0] - found[1]).abs().max() > LEAK * found[0].std():
        attention = getattr(model.config, "_attn_implementation", None)
        raise InputError(
            "args.packing or args.padding_free puts examples into one row, but in this model "
            f"(attention {attention!r}) an example then sees the one before it: allowed is False "
            "for both, or a model and an attention that keep examples apart by their positions"
        )


def _second_logits(model: Any, collate: Callable[..., Any], first: list[int]) -> Tensor:  # noqa: ANN401
    rows = [{"input_ids": ids, "labels": ids, "seq_lengths": [len(ids)]} for ids in (first, SAME)]
    device = next(model.parameters()).device
    batch = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in collate(rows).items()
        if name != "labels"
    }
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits[0, len(first) : len(first) + len(SAME)].float()
