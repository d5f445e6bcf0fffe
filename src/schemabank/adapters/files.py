"""An adapter's folder on disk, in PEFT's format, and the bank's beside it.

An adapter may come from anywhere, so every way in passes one reader, :func:`load_adapter`. It takes
plain LoRA alone: matrices A and B in pairs, of the configured rank, on every configured target and
nowhere else, all values finite. What a folder holds beside that is neither read nor copied.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from schemabank.adapters.config import CONFIG, AdapterConfig, is_named, read_config
from schemabank.adapters.tensorfiles import Header, read_tensors
from schemabank.common.errors import InputError
from schemabank.common.files import inside, read_text
from schemabank.common.folders import new_folder
from schemabank.common.writing import writing_tensors
from schemabank.config.settings import LoraSettings
from schemabank.engine.stack import AdapterStack
from schemabank.engine.targets import PLAIN, Layout

WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"
BANK_WEIGHTS = "bank.safetensors"
PREFIX = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")

BANK_NAME = re.compile(r"layers\.\d{1,4}\.(router|U|V|attributes|query)")

LoraTensors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA adapter.

    Attributes:
        config: rank, scale, targets and base model.
        tensors: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.
    """

    config: AdapterConfig
    tensors: LoraTensors


def save_adapter(
    folder: Path,
    tensors: LoraTensors,
    settings: LoraSettings,
    *,
    base_name: str,
    card: str,
    layout: Layout = PLAIN,
) -> None:
    """Write an adapter in PEFT's format.

    Args:
        folder: created here; must not exist.
        tensors: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.
        settings: rank, scale and targets.
        base_name: hub id or folder of the base model.
        card: text of the model card.
        layout: what PEFT must be told beside ``settings`` to find the same layers.

    Raises:
        InputError: the folder exists, or its place cannot be written.
    """
    config = AdapterConfig(
        settings, base_name, excluded=layout.excluded, transposed=layout.transposed
    )
    with new_folder(folder, mend="name a new folder") as partial:
        write_adapter(partial, Adapter(config, tensors), card=card)


def write_adapter(folder: Path, adapter: Adapter, *, card: str) -> None:
    """Write an adapter in PEFT's format into an empty folder."""
    text = json.dumps(adapter.config.dump(), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    weights = {}
    for path, pair in adapter.tensors.items():
        for end, tensor in zip(ENDS, pair, strict=True):
            weights[f"{PREFIX}{path}{end}"] = tensor.cpu().contiguous()
    with writing_tensors(folder / WEIGHTS) as file:
        save_file(weights, file, metadata={"format": "pt"})
    (folder / CARD).write_text(card, encoding="utf-8")


def model_card(
    base_name: str, settings: LoraSettings, *, training: str, loader: str = "AutoModelForCausalLM"
) -> str:
    """Return a model card with the metadata that the hub reads.

    Args:
        base_name: hub id or folder of the base model.
        settings: rank, scale and targets.
        training: sentences on how the adapter was trained.
        loader: name of the class of transformers that loads the base model.
    """
    rule = ", rank-stabilised" if settings.use_rslora else ""
    return f"""---
base_model: {base_name}
library_name: peft
pipeline_tag: text-generation
tags:
- lora
- schemabank
---

# LoRA adapter for {base_name}

{training}

Rank {settings.r}, alpha {settings.lora_alpha:g}{rule}, on {_targets_in_words(settings)}.
It is a plain LoRA adapter: nothing of the training's routing is left in it, and it costs what any
LoRA adapter costs.

```python
from peft import PeftModel
from transformers import {loader}

base = {loader}.from_pretrained("{base_name}")
model = PeftModel.from_pretrained(base, "path/to/this/adapter")
```
"""


def _targets_in_words(settings: LoraSettings) -> str:
    """The layers that have an adapter, in words."""
    targets, blocks = ", ".join(settings.target_modules), settings.layers_to_transform
    return targets if blocks is None else f"{targets} of the blocks {', '.join(map(str, blocks))}"


def load_adapter(folder: Path) -> Adapter:
    """Read a plain LoRA adapter that PEFT or :func:`save_adapter` wrote.

    Raises:
        InputError: files are missing, damaged or lie elsewhere, or the adapter is more than plain
            LoRA, not finite, or not what its configuration says.
    """
    config = read_config(folder)

    def check(found: Mapping[str, Header]) -> None:
        _check_weights(folder, found, config)

    mend = "name an adapter that has it whole; pickles (adapter_model.bin) are not read"
    weights = read_tensors(inside(folder, WEIGHTS), mend=mend, check=check)
    layers = [key.removesuffix(ENDS[0]) for key in weights if key.endswith(ENDS[0])]
    pairs = {layer: (weights[layer + ENDS[0]], weights[layer + ENDS[1]]) for layer in layers}
    return Adapter(config, {layer.removeprefix(PREFIX): pair for layer, pair in pairs.items()})


def put_on(stack: AdapterStack, slot: int, adapter: Adapter) -> None:
    """Give a slot of a stack, which was made with its settings, an adapter's weights.

    Raises:
        InputError: the adapter is not one of this model.
    """
    excluded = [path for path in stack.lora.layers if is_named(path, adapter.config.excluded)]
    stack.lora.load(slot, adapter.tensors, without=excluded)


def load_card(folder: Path) -> str | None:
    """Read an adapter's model card, if it has one.

    Raises:
        InputError: it is damaged or lies elsewhere.
    """
    return read_text(inside(folder, CARD)) if (folder / CARD).exists() else None


def save_bank(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a bank's weights as safetensors."""
    folder.mkdir()
    with writing_tensors(folder / BANK_WEIGHTS) as path:
        save_file({k: v.cpu() for k, v in tensors.items()}, path)


def load_bank(folder: Path) -> dict[str, Tensor]:
    """Read a bank's weights.

    Raises:
        InputError: there is no bank, or it is damaged, not finite, or holds other weights.
    """

    def check(found: Mapping[str, Header]) -> None:
        other = [name for name in found if BANK_NAME.fullmatch(name) is None]
        if other or not found:
            raise InputError(
                f"{str(folder / BANK_WEIGHTS)!r} holds {other[0] if other else 'nothing'!r:.80}, "
                "allowed are the weights of banks, such as 'layers.1.router': restore the file"
            )

    mend = "allowed is --routing off, or a run of the arm schemabank"
    if not (folder / BANK_WEIGHTS).exists():
        raise InputError(f"{str(folder)!r} holds no bank ({BANK_WEIGHTS} is missing): {mend}")
    return read_tensors(inside(folder, BANK_WEIGHTS), mend=mend, check=check)


def _check_weights(folder: Path, found: Mapping[str, Header], config: AdapterConfig) -> None:
    """Refuse weights that are not those of the configuration, all of them and no others."""
    _check_only_lora(folder, found)
    where = str(folder / WEIGHTS)
    layers = sorted({key.removesuffix(end) for key in found for end in ENDS if key.endswith(end)})
    for layer in layers:
        for end, axis in zip(ENDS, (0, 1), strict=True):
            _check_matrix(where, layer + end, found.get(layer + end), axis, config.settings.r)
    paths = [layer.removeprefix(PREFIX) for layer in layers]
    targets = config.settings.target_modules
    for path in paths:
        if not is_named(path, targets) or is_named(path, config.excluded):
            raise InputError(
                f"{where} holds weights of {path!r}, allowed are the targets in {CONFIG}, "
                f"{', '.join(targets):.200}: restore the file that belongs to it"
            )
    for target in targets:
        if not any(is_named(path, [target]) for path in paths):
            raise InputError(
                f"{where} has no weights of the target {target!r}, which {CONFIG} names: allowed "
                "is an adapter that is whole, restore the file"
            )


def _check_matrix(where: str, name: str, head: Header | None, axis: int, rank: int) -> None:
    """Refuse an A or B that is missing or whose ``axis`` is not the rank."""
    if head is None:
        raise InputError(
            f"{where} lacks {name!r}, allowed are A and B in pairs: name an adapter that is whole"
        )
    if len(head.shape) != 2 or head.shape[axis] != rank or 0 in head.shape:
        raise InputError(
            f"{where} holds {name!r} of shape {list(head.shape)}, but {CONFIG} says r {rank}: "
            "allowed is that rank, restore the file that belongs to it"
        )


def _check_only_lora(folder: Path, weights: Iterable[str]) -> None:
    """Refuse an adapter with more weights than LoRA's, whatever its configuration says."""
    other = [key for key in weights if not (key.startswith(PREFIX) and key.endswith(ENDS))]
    if other:
        raise InputError(
            f"{str(folder / WEIGHTS)!r} holds {other[0]!r:.200}, allowed are LoRA's A and B of "
            "linear layers: evaluate it with PEFT, or merge it and name the merged folder as the "
            "model"
        )
