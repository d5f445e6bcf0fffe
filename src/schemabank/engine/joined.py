"""Frozen linear layers with a common input, computed as one matrix product.

A GPU computes a product of a few hundred rows in less time than it takes to launch it, so fewer and
larger products are faster. The joined layers share their weights with the layers they replace.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class JoinedLinears:
    """Frozen linear layers that read the same input, computed as one matrix product.

    Args:
        layers: in the order in which the model calls them; their weights become views of one
            joined tensor, so that joining takes no memory.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = torch.cat([layer.weight.data for layer in layers])
        biases = [layer.bias for layer in layers]
        self.bias = None if biases[0] is None else torch.cat([b.data for b in biases])
        for layer, weight in zip(layers, self.weight.split(self.sizes), strict=True):
            layer.weight.data = weight
        self._inputs: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def output(self, index: int, inputs: Tensor) -> Tensor:
        """Return one layer's output; the first call with an input computes all outputs."""
        # The very same tensor, not an equal one: comparing values would wait for the device.
        if self._inputs is not inputs:
            joined = nn.functional.linear(inputs, self.weight, self.bias)
            self._inputs, self._outputs = inputs, joined.split(self.sizes, dim=-1)
        output = self._outputs[index]
        if index == len(self.sizes) - 1:  # the last one: hold the step's tensors no longer
            self._inputs, self._outputs = None, ()
        return output


class JoinedLinear(nn.Module):
    """One of :class:`JoinedLinears`, in place of the layer itself."""

    def __init__(self, base: nn.Linear, joined: JoinedLinears, index: int) -> None:
        super().__init__()
        self.base, self.joined, self.index = base, joined, index
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer to ``inputs``: ``(..., in)``."""
        return self.joined.output(self.index, inputs)


def join_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Replace the layers named in ``SIBLINGS`` by joined ones; return the old layers by path."""
    replaced: dict[str, nn.Linear] = {}
    with ExitStack() as undo:
        undo.callback(put_back, model, replaced)
        for path, parent in list(model.named_modules()):
            for names in SIBLINGS:
                replaced |= _join_siblings(parent, path, names)
        undo.pop_all()  # memory may run out on the way; now nothing has to be put back
    return replaced


def put_back(model: nn.Module, replaced: Mapping[str, nn.Linear]) -> None:
    """Undo :func:`join_linears`."""
    for path, layer in replaced.items():
        model.set_submodule(path, layer)


def _join_siblings(parent: nn.Module, path: str, names: Sequence[str]) -> dict[str, nn.Linear]:
    """Join the layers of these names, if all are there; return the old layers by path."""
    found = [getattr(parent, name, None) for name in names]
    layers = [layer for layer in found if type(layer) is nn.Linear]
    if len(layers) < len(names) or len({layer.bias is None for layer in layers}) > 1:
        return {}
    joined = JoinedLinears(layers)
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        setattr(parent, name, JoinedLinear(layer, joined, index))
    return {f"{path}.{name}": layer for name, layer in zip(names, layers, strict=True)}
