"""Two passes over a batch in one: the rows twice, of which the first ones alone have a loss.

The difference between both predictions is what `experts` calls consistency. Were these two calls of
the model, checkpointed blocks would run again with the other call's experts, and DDP would see a
second forward pass before the backward one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.engine.loss import output_head, token_divergences
from schemabank.trainer.packed import is_packed

IGNORED = -100  # by the loss
LABELS, SHIFTED = "labels", "shift_labels"
STARTS = ("cu_seq_lens_q", "cu_seq_lens_k")  # of the examples in one row, and its end
NUMBERS = "seq_idx"  # of each token's example in the row
LONGEST = ("max_length_q", "max_length_k")


def twice(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch with all of its rows twice, in the second place without labels.

    Raises:
        InputError: it holds something that does not go by rows.
    """
    axis = 1 if is_packed(batch) else 0  # examples in one row follow each other there
    size = batch["input_ids"].shape[: axis + 1]
    found = dict(batch)
    for name, value in batch.items():
        if value is None or name in LONGEST or isinstance(value, bool | int | float | str):
            continue
        if name in STARTS:
            found[name] = torch.cat([value, value[1:] + value[-1]])
            continue
        if not isinstance(value, Tensor) or value.shape[: axis + 1] != size:
            raise InputError(
                f"a batch has {name!r}, which does not go by its rows, but "
                "experts.consistency_weight runs them twice: allowed is 0, or a collator without it"
            )
        found[name] = torch.cat([value, _again(name, value)], axis)
    return found


def _again(name: str, value: Tensor) -> Tensor:
    """Return the second half of a part of a batch."""
    if name in {LABELS, SHIFTED}:
        return torch.full_like(value, IGNORED)
    # With the same numbers, an example would count as part of the first half's.
    return value + value.max() + 1 if name == NUMBERS else value


def num_labels(batch: Mapping[str, Any]) -> int:
    """Return how many labels a batch has, as its loss counts them."""
    return int((_next_labels(batch) != IGNORED).sum())


class Consistency:
    """Compares both halves of the batches that :func:`twice` returns.

    Args:
        model: of transformers; its last states are looked at until :meth:`remove`.

    Raises:
        InputError: its output layer is unknown, or has an adapter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        layer = model.get_output_embeddings()
        if any("lora_" in name for name, _ in layer.named_parameters()):
            raise InputError(
                "experts.consistency_weight is above 0 and the output layer has an adapter, but "
                "both passes are compared behind a frozen one: allowed is 0, or target_modules "
                "without the output layer"
            )
        with _evaluating(model):
            self._head: Callable[[Tensor], Tensor] = output_head(model)
        self._dtype = layer.weight.dtype
        self._states: Tensor | None = None
        self._handle = model.base_model.register_forward_hook(self._look)

    def remove(self) -> None:
        """Look no longer."""
        self._handle.remove()

    def inconsistency(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the sum of the labels' differences between both halves of a batch."""
        states, self._states = self._states, None
        assert states is not None
        labels = _next_labels(batch)
        if SHIFTED not in batch:
            states = states[:, :-1]
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        packed = is_packed(batch)
        half = batch["input_ids"].shape[1 if packed else 0] // 2
        other = (rows, columns + half) if packed else (rows + half, columns)
        first, second = (states[at].to(self._dtype) for at in ((rows, columns), other))
        return token_divergences(first, second, self._head).sum()

    def _look(self, _model: nn.Module, _args: object, output: Any) -> None:  # noqa: ANN401
        if torch.is_grad_enabled():
            self._states = output.last_hidden_state


def _next_labels(batch: Mapping[str, Any]) -> Tensor:
    """Return the label after each token but the last, or after each, where a collator says it."""
    if SHIFTED in batch:
        shifted: Tensor = batch[SHIFTED]
        return shifted
    labels: Tensor = batch[LABELS][:, 1:]
    return labels


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Drop nothing for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
