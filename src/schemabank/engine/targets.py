"""Which layers of a model get an adapter, and what stock PEFT must be told to find the same ones.

An adapter sits on a linear layer of the text model that sees every token once: not on the output
layer, which the engine applies to labelled positions itself, not on a vision tower, and not on the
weights of a mixture's routed experts, which are no layers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from schemabank.common.errors import InputError
from schemabank.config.settings import ALL_LINEAR, LoraSettings
from schemabank.engine.joined import JoinedLinear
from schemabank.models.architecture import decoder_blocks, decoder_prefix
from schemabank.models.refusals import RefusalError, asking

Linear = nn.Linear | Conv1D | JoinedLinear
Layer = TypeVar("Layer", bound=nn.Module)

LINEAR = (nn.Linear, Conv1D, JoinedLinear)
PROBE_TOKENS = 4


@dataclass(frozen=True)
class Layout:
    """What a list of targets alone does not tell PEFT.

    Attributes:
        transposed: whether the layers' weights lie the other way round, as in GPT-2.
        excluded: paths of layers outside the text model that match a target.
    """

    transposed: bool = False
    excluded: tuple[str, ...] = ()


PLAIN = Layout()


def resolved(model: PreTrainedModel, settings: LoraSettings) -> LoraSettings:
    """Return the settings with the names of a model's layers in place of ``all-linear``."""
    if ALL_LINEAR not in settings.target_modules:
        return settings
    inside = _inside(model, settings.layers_to_transform)
    paths = [p for p in _linear_layers(model, within=decoder_prefix(model)) if p.startswith(inside)]
    names = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    return settings.model_copy(update={"target_modules": tuple(names)})


def target_layers(model: PreTrainedModel, settings: LoraSettings) -> dict[str, Linear]:
    """Return the layers that get an adapter, by path.

    Raises:
        InputError: a block that the model does not have, or a target that matches no linear layer
            or something else besides.
    """
    inside = _inside(model, settings.layers_to_transform)
    linear = _linear_layers(model, within=decoder_prefix(model))
    for target in settings.target_modules:
        other = _other_match(model, target, inside)
        if other is None and any(matches(path, target, inside) for path in linear):
            continue
        names = sorted({p.rpartition(".")[2] for p in linear if p.startswith(inside)})
        indices = settings.layers_to_transform
        of_blocks = "" if indices is None else f" of the blocks {', '.join(map(str, indices))}"
        found = "" if other is None else f"{other} and "
        allowed = f"allowed are {', '.join(names)}, name some of those"
        raise InputError(
            f"lora.target_modules names {target!r}, which matches {found}no linear layer"
            f"{of_blocks}: {allowed if names else 'the model has none, use another model'}"
        )
    wanted = settings.target_modules
    return {p: layer for p, layer in linear.items() if any(matches(p, t, inside) for t in wanted)}


def blocks_of(model: PreTrainedModel, paths: Iterable[str]) -> dict[str, int]:
    """Return the index of the decoder block that each layer is in; one behind, outside of all."""
    names = {module: path for path, module in model.named_modules()}
    inside = [f"{names[block]}." for block in decoder_blocks(model)]
    return {
        path: next((i for i, start in enumerate(inside) if path.startswith(start)), len(inside))
        for path in paths
    }


def matches(path: str, target: str, inside: tuple[str, ...]) -> bool:
    """PEFT's rule for a list of targets: the whole path, or its last names in a chosen block."""
    return path == target or (path.endswith("." + target) and path.startswith(inside))


def layout_of(model: PreTrainedModel, settings: LoraSettings) -> Layout:
    """Return what PEFT must be told beside the settings to find the same layers."""
    prefix, wanted = decoder_prefix(model), settings.target_modules
    outside = [path for path in _linear_layers(model) if not path.startswith(prefix)]
    layers = target_layers(model, settings).values()
    return Layout(
        transposed=any(isinstance(layer, Conv1D) for layer in layers),
        excluded=tuple(p for p in outside if any(matches(p, t, ("",)) for t in wanted)),
    )


@contextmanager
def counting_calls(layers: Mapping[str, Layer], num_tokens: int) -> Iterator[dict[str, int]]:
    """Count for a while how often each layer is given all tokens at once."""
    counts = dict.fromkeys(layers, 0)

    def note(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            (inputs,) = args
            whole = inputs.dim() in {2, 3} and inputs[..., 0].numel() == num_tokens
            counts[path] += 1 if whole else num_tokens + 1  # never one in all

        return hook

    hooks = [layer.register_forward_pre_hook(note(path)) for path, layer in layers.items()]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def check_calls(
    layers: Mapping[str, nn.Module],
    run: Callable[[Tensor], object],
    *,
    num_slots: int,
    device: torch.device,
    found: bool = False,
) -> None:
    """Refuse a layer that not every token goes through once.

    Args:
        layers: with adapters, by path.
        run: the model with adapters, from tokens ``(slot, batch, token)``.
        num_slots: slots.
        device: of the model.
        found: whether ``all-linear`` has found them.

    Raises:
        InputError: naming the first such layer.
    """
    tokens = torch.arange(1, 1 + PROBE_TOKENS, device=device).expand(num_slots, 1, -1)
    reason = ""
    with counting_calls(layers, tokens.numel()) as counts, torch.no_grad():
        try:
            with asking():
                run(tokens)
        except RefusalError as refusal:
            reason = f" ({refusal})"
    bad = [path for path, count in counts.items() if count != 1]
    if bad or reason:
        path = (bad or list(layers))[0]
        name = path.rpartition(".")[2]
        named = f"is all-linear and finds {name!r}" if found else f"names {name!r}"
        raise InputError(
            f"lora.target_modules {named}, but not every token goes through {path} once{reason}, "
            "as through a mixture's routed experts or a layer whose weights the model reads by "
            f"itself: allowed are other linear layers, {'list them' if found else 'leave it out'}"
        )


def _linear_layers(model: nn.Module, *, within: str = "") -> dict[str, Linear]:
    """The linear layers by path, without the output layer."""
    assert isinstance(model, PreTrainedModel)
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LINEAR)
        and module is not head
        and path.startswith(within)
        and ".base" not in path  # of a joined layer
    }


def _other_match(model: PreTrainedModel, target: str, inside: tuple[str, ...]) -> str | None:
    """What a target matches that is no linear layer, in words."""
    prefix = decoder_prefix(model)
    for path, module in model.named_modules():
        if path.startswith(prefix) and matches(path, target, inside):
            if not isinstance(module, LINEAR):
                return f"{path} ({type(module).__name__})"
            return None
    for path, weight in model.named_parameters():
        if path.startswith(prefix) and matches(path, target, inside):
            return f"{path} (a weight, {' x '.join(map(str, weight.shape))})"
    return None


def _inside(model: PreTrainedModel, indices: Sequence[int] | None) -> tuple[str, ...]:
    """Return how paths of the layers in these blocks begin; without indices, those of all."""
    if indices is None:
        return ("",)
    blocks = decoder_blocks(model)
    unknown = [index for index in indices if index >= len(blocks)]
    if unknown:
        raise InputError(
            f"lora.layers_to_transform names block {unknown[0]}, but the model has {len(blocks)} "
            f"blocks: allowed are 0 to {len(blocks) - 1}, name those"
        )
    paths = {module: path for path, module in model.named_modules()}
    return tuple(f"{paths[blocks[index]]}." for index in indices)
