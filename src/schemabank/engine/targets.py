"""Which layers of a model get an adapter, and what stock PEFT needs to know to find the same ones.

An adapter sits on a linear layer of the text model that every token goes through once. So there is
none on the output layer, which the engine applies to labelled positions itself, none on a vision
tower, and none on the weights of a mixture's routed experts, which are not layers.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.config.targets import ALL_LINEAR, ATTENTION, is_choice, is_open
from schemabank.engine.joined import JoinedLinear
from schemabank.models.architecture import decoder_blocks, decoder_prefix
from schemabank.models.refusals import RefusalError, asking

Linear = nn.Linear | Conv1D | JoinedLinear
Layer = TypeVar("Layer", bound=nn.Module)

LINEAR = (nn.Linear, Conv1D, JoinedLinear)
PROBE_TOKENS = 4
# Of Mamba's mixers: the model or its fused kernels read these weights without calling the layer.
READ_BY_MIXERS = ("dt_proj", "out_proj")


@dataclass(frozen=True)
class Layout:
    """What PEFT needs to know besides a list of targets.

    Attributes:
        transposed: whether the layers store their weights transposed, as in GPT-2.
        excluded: paths of modules outside the text model that match a target.
    """

    transposed: bool = False
    excluded: tuple[str, ...] = ()


PLAIN = Layout()


def resolved(model: PreTrainedModel, settings: LoraSettings) -> LoraSettings:
    """Return the settings with names of layers in place of ``all-linear`` or of patterns.

    The default becomes the names that the model has for its attention's layers, or where it has no
    attention, as Mamba, for those of its mixers.

    Raises:
        InputError: a pattern that matches no linear layer.
    """
    if not is_open(settings.target_modules):
        return settings
    inside = _chosen_starts(model, settings.layers_to_transform)
    linear = _linear_layers(model, within=decoder_prefix(model))
    paths = [path for path in linear if path.startswith(inside)]
    names: list[str] = []
    if settings.target_modules == ATTENTION:
        known = all(any(matches(path, name, inside) for path in paths) for name in ATTENTION)
        names = [] if known else _own_names(model, paths)
        return settings.model_copy(update={"target_modules": tuple(names) or ATTENTION})
    for target in settings.target_modules:
        names += _chosen_by(model, target, paths) if is_choice(target) else [target]
    return settings.model_copy(update={"target_modules": tuple(dict.fromkeys(names))})


def said_of(model: PreTrainedModel, settings: LoraSettings) -> str | None:
    """Say which layers stand in for the default targets; ``None`` where none do."""
    found = resolved(model, settings).target_modules
    if settings.target_modules != ATTENTION or found == ATTENTION:
        return None
    return (
        f"LoRA is on {', '.join(found)}, which {type(model).__name__} has in place of the default "
        f"lora.target_modules ({', '.join(ATTENTION)})"
    )


def _own_names(model: PreTrainedModel, paths: Sequence[str]) -> list[str]:
    """The names of the attention's layers among these, or else of the mixers'; none without."""
    attention = attention_targets(model, paths)
    if attention:
        return attention
    mixers = _starts_of(model, "Mixer")
    inner = [path.rpartition(".")[2] for path in paths if path.startswith(mixers)]
    return [name for name in dict.fromkeys(inner) if name not in READ_BY_MIXERS]


def _chosen_by(model: PreTrainedModel, target: str, paths: Sequence[str]) -> list[str]:
    """Names for the layers that ``all-linear`` or a pattern stands for, and for no others."""
    is_all = target == ALL_LINEAR
    chosen = {path for path in paths if is_all or re.fullmatch(target, path)}
    if paths and not chosen:
        raise InputError(
            f"lora.target_modules has the pattern {target!r}, which matches the whole path of no "
            f"linear layer: allowed are patterns for paths such as {paths[0]}, or names, as "
            f"{paths[0].rpartition('.')[2]}: correct it"
        )

    ends_of_others = {end for path in paths if path not in chosen for end in _ends(path)}

    # As in a list by hand, a target is the last name of a path, unless others end so, too.
    @cache
    def names_no_other(name: str) -> bool:
        return name not in ends_of_others and _other_match(model, name, ("",)) is None

    return [_shortest(path, names_no_other) for path in paths if path in chosen]


def target_layers(model: PreTrainedModel, settings: LoraSettings) -> dict[str, Linear]:
    """Return the layers that get an adapter, by path.

    Raises:
        InputError: a block that the model does not have, a target that matches no linear layer, or
            one that also matches something else.
    """
    inside = _chosen_starts(model, settings.layers_to_transform)
    linear = _linear_layers(model, within=decoder_prefix(model))
    for target in settings.target_modules:
        other = _other_match(model, target, inside)
        if other is None and any(matches(path, target, inside) for path in linear):
            continue
        indices = settings.layers_to_transform
        of_blocks = "" if indices is None else f" of the blocks {', '.join(map(str, indices))}"
        found = "" if other is None else f"{other} and "
        raise InputError(
            f"lora.target_modules names {target!r}, which matches {found}no linear layer"
            f"{of_blocks}: {_allowed_targets(model, [p for p in linear if p.startswith(inside)])}"
        )
    # In the order of the model, not of the targets: the index of a layer is in its dropout's key.
    wanted = settings.target_modules
    return {p: layer for p, layer in linear.items() if any(matches(p, t, inside) for t in wanted)}


def attention_targets(model: PreTrainedModel, paths: Iterable[str]) -> list[str]:
    """Return names for the layers of the attention among linear layers, and for no others.

    Args:
        model: whose attention is what transformers calls so in its classes' names.
        paths: of the linear layers that can be named.
    """
    starts = _starts_of(model, "Attention")
    every = list(paths)
    ends_of_others = {e for path in every if not path.startswith(starts) for e in _ends(path)}
    inner = [path for path in every if path.startswith(starts)]
    return list(dict.fromkeys(_shortest(p, lambda e: e not in ends_of_others) for p in inner))


def blocks_of(model: PreTrainedModel, paths: Iterable[str]) -> dict[str, int]:
    """Return the index of each layer's decoder block; their number, if it is in none."""
    starts = _block_starts(model)
    return {
        path: next((i for i, start in enumerate(starts) if path.startswith(start)), len(starts))
        for path in paths
    }


def matches(path: str, target: str, inside: tuple[str, ...]) -> bool:
    """Apply PEFT's rule for a target: it is a layer's whole path, or the end of one.

    In the second case the path must be ``inside`` of one of the chosen blocks.
    """
    return path == target or (path.endswith("." + target) and path.startswith(inside))


def layout_of(model: PreTrainedModel, settings: LoraSettings) -> Layout:
    """Return what PEFT needs to know besides the settings to find the same layers."""
    prefix, wanted = decoder_prefix(model), settings.target_modules
    # Of any kind: Gemma 4's tower has linear layers inside others, which PEFT cannot take.
    outside = [path for path, _ in model.named_modules() if not path.startswith(prefix)]
    layers = target_layers(model, settings).values()
    return Layout(
        transposed=any(isinstance(layer, Conv1D) for layer in layers),
        excluded=tuple(p for p in outside if any(matches(p, t, ("",)) for t in wanted)),
    )


@contextmanager
def counting_calls(layers: Mapping[str, Layer], num_tokens: int) -> Iterator[dict[str, int]]:
    """Count for a while how often each layer gets all tokens at once.

    A call with anything else, such as the few tokens that a router sends to an expert, or one that
    fails, raises the count so far that it cannot end up as 1.
    """
    counts = dict.fromkeys(layers, 0)

    def entering(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_layer: nn.Module, _args: tuple[Tensor, ...]) -> None:
            counts[path] += num_tokens + 1

        return hook

    def leaving(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], _output: object) -> None:
            if _has_all_tokens(args[0], num_tokens):
                counts[path] -= num_tokens

        return hook

    hooks = [layer.register_forward_pre_hook(entering(path)) for path, layer in layers.items()]
    hooks += [layer.register_forward_hook(leaving(path)) for path, layer in layers.items()]
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
    found: Sequence[str] = (),
) -> None:
    """Refuse a layer that not every token goes through once.

    Args:
        layers: the layers with adapters, by path.
        run: runs the model with adapters on tokens ``(slot, batch, token)``.
        num_slots: slots.
        device: the model's.
        found: the targets that ``all-linear`` or a pattern stands for, where one was given.

    Raises:
        InputError: names the first such layer.
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
        # The layer that failed, or else the first that was not reached.
        path = max(bad or list(layers), key=lambda path: counts[path])
        named = f"{'finds' if found else 'names'} {path.rpartition('.')[2]!r}"
        raise InputError(
            f"lora.target_modules {named}, but not every token goes through {path} once{reason}, "
            "as through a mixture's routed experts or a layer whose weights the model reads by "
            f"itself: allowed are other linear layers, {_without(path, found)}"
        )


def _without(path: str, found: Sequence[str]) -> str:
    """How a layer is left out of what ``all-linear`` or a pattern found, or of a list by hand."""
    others = [target for target in found if not matches(path, target, ("",))]
    return f"write [{', '.join(others)}]" if others else "leave it out"


def _has_all_tokens(inputs: Tensor, num_tokens: int) -> bool:
    """Whether a layer's input is ``(row, token, in)``, in one of three forms.

    A mixture gives its shared expert rows and tokens in one dimension, and the compressed keys of
    DeepSeek's attention have one head: ``(row, 1, token, in)``.
    """
    is_known = inputs.dim() in {2, 3} or (inputs.dim() == 4 and inputs.shape[1] == 1)
    return is_known and inputs[..., 0].numel() == num_tokens


def _shortest(path: str, fits: Callable[[str], bool]) -> str:
    """Return the shortest end of a path that fits, or all of it."""
    return next((end for end in _ends(path) if fits(end)), path)


def _ends(path: str) -> Iterator[str]:
    """Yield all that :func:`matches` takes for a path, the shortest first."""
    parts = path.split(".")
    for start in reversed(range(len(parts))):
        yield ".".join(parts[start:])


def _starts_of(model: PreTrainedModel, kind: str) -> tuple[str, ...]:
    """How paths begin inside the modules whose classes' names end so."""
    modules = model.named_modules()
    return tuple(f"{path}." for path, module in modules if type(module).__name__.endswith(kind))


def _allowed_targets(model: PreTrainedModel, paths: Sequence[str]) -> str:
    """What may be named instead of a target without a layer, and what is a good choice."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    if not names:
        return "the model has none, use another model"
    attention = attention_targets(model, paths)
    choice = f", such as the attention's [{', '.join(attention)}]" if attention else ""
    return f"allowed are {', '.join(names)}, name some of those{choice}, or write {ALL_LINEAR}"


def _linear_layers(model: PreTrainedModel, *, within: str = "") -> dict[str, Linear]:
    """Return the linear layers by path, without the output layer."""
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LINEAR)
        and module is not head
        and path.startswith(within)
        and ".base" not in path  # the layer that a joined one stands for
    }


def _other_match(model: PreTrainedModel, target: str, inside: tuple[str, ...]) -> str | None:
    """Describe what a target matches that is not a linear layer; ``None``: nothing."""
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


def _chosen_starts(model: PreTrainedModel, indices: Sequence[int] | None) -> tuple[str, ...]:
    """Return how the paths of layers in these blocks begin; without indices, any path fits."""
    if indices is None:
        return ("",)
    starts = _block_starts(model)
    unknown = [index for index in indices if index >= len(starts)]
    if unknown:
        raise InputError(
            f"lora.layers_to_transform names block {unknown[0]}, but the model has {len(starts)} "
            f"blocks: allowed are 0 to {len(starts) - 1}, name those"
        )
    return tuple(starts[index] for index in indices)


def _block_starts(model: PreTrainedModel) -> list[str]:
    """Return how the paths of layers in each decoder block begin."""
    paths = {module: path for path, module in model.named_modules()}
    # The dot keeps the layers of block 10 out of block 1.
    return [f"{paths[block]}." for block in decoder_blocks(model)]
