"""An adapter's folder on disk, in PEFT's format, and the bank's beside it.

Writing is plain. Reading is strict: the folder may come from anywhere.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemabank.config import LoraSettings
from schemabank.errors import InputError
from schemabank.rundir import read_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PROVENANCE = "schemabank.yaml"
PREFIX = "base_model.model."

# Settings of PEFT's LoraConfig that make another computation than plain LoRA's.
SPECIAL = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
)
# Starts such as PiSSA's also change the base model's weights.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")

LoraTensors = dict[str, tuple[Tensor, Tensor]]


def save_adapter(
    folder: Path, tensors: LoraTensors, settings: LoraSettings, *, base_name: str, card: str
) -> None:
    """Write an adapter in PEFT's format.

    Args:
        folder: created here; must not exist.
        tensors: ``A: (rank, in)`` and ``B: (out, rank)`` by the path of their layer.
        settings: rank, scale and targets.
        base_name: hub id or folder of the base model.
        card: text of the model card.

    Raises:
        InputError: the folder exists.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            f"{str(folder)!r} exists and is not overwritten: name a new folder"
        ) from error
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": settings.lora_dropout,
        "peft_type": "LORA",
        "r": settings.r,
        "target_modules": list(settings.target_modules),
        "task_type": "CAUSAL_LM",
    }
    if settings.layers_to_transform is not None:
        config["layers_to_transform"] = list(settings.layers_to_transform)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {}
    for path, (a, b) in tensors.items():
        weights[f"{PREFIX}{path}.lora_A.weight"] = a.cpu()
        weights[f"{PREFIX}{path}.lora_B.weight"] = b.cpu()
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "README.md").write_text(card, encoding="utf-8")


def model_card(base_name: str, settings: LoraSettings, *, training: str) -> str:
    """Return a model card with the metadata that the hub reads.

    Args:
        base_name: hub id or folder of the base model.
        settings: rank, scale and targets.
        training: sentences on how the adapter was trained.
    """
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

Rank {settings.r}, alpha {settings.lora_alpha:g}, on {_places(settings)}.
It is a plain LoRA adapter: nothing of the training's routing is left in it, and it costs what any
LoRA adapter costs.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base_name}")
model = PeftModel.from_pretrained(base, "path/to/this/adapter")
```
"""


def _places(settings: LoraSettings) -> str:
    """The layers that have an adapter, in words."""
    targets, blocks = ", ".join(settings.target_modules), settings.layers_to_transform
    return targets if blocks is None else f"{targets} of the blocks {', '.join(map(str, blocks))}"


def load_adapter(folder: Path) -> tuple[LoraSettings, LoraTensors]:
    """Read a LoRA adapter that PEFT or :func:`save_adapter` wrote.

    Raises:
        InputError: files are missing, or the adapter is more than plain LoRA.
    """
    config = read_json(folder / CONFIG)
    _check_plain(folder, config)
    try:
        weights = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"cannot read {str(folder / WEIGHTS)!r} ({error}): name an adapter that has it whole"
        ) from error
    _check_only_lora(folder, weights)
    settings = _lora_settings(folder, config)
    paths = [key.removesuffix(".lora_A.weight") for key in weights if key.endswith("lora_A.weight")]
    return settings, {
        path.removeprefix(PREFIX): (
            weights[f"{path}.lora_A.weight"].float(),
            weights[f"{path}.lora_B.weight"].float(),
        )
        for path in paths
    }


def save_bank(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a bank's weights as safetensors."""
    folder.mkdir()
    save_file({k: v.cpu() for k, v in tensors.items()}, folder / "bank.safetensors")


def load_bank(folder: Path) -> dict[str, Tensor]:
    """Read a bank's weights.

    Raises:
        InputError: there is no bank.
    """
    try:
        return dict(load_file(folder / "bank.safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{str(folder)!r} holds no bank ({error}): allowed is --routing off, or a run of "
            "the arm schemabank"
        ) from error


def _lora_settings(folder: Path, config: Mapping[str, Any]) -> LoraSettings:
    names = ("r", "lora_alpha", "lora_dropout", "target_modules")
    try:
        found = {name: config[name] for name in names}
        return LoraSettings.model_validate({**found, "layers_to_transform": _blocks(config)})
    except KeyError as error:
        raise InputError(
            f"{str(folder / CONFIG)!r} lacks {error}, allowed are {', '.join(names)}: restore the "
            "file that PEFT wrote"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        raise InputError(
            f"{str(folder / CONFIG)!r}: {problem['loc'][0]} is {problem['input']!r}, but "
            f"{problem['msg']}: restore the file that PEFT wrote"
        ) from error


def _blocks(config: Mapping[str, Any]) -> object:
    """The blocks that an adapter is on; ``None`` for all, or where a pattern of names says which.

    PEFT also writes a single block as a number, and all of them as an empty list.
    """
    blocks = config.get("layers_to_transform")
    if config.get("layers_pattern"):
        return None
    return [blocks] if isinstance(blocks, int) else blocks or None


def _check_only_lora(folder: Path, weights: Iterable[str]) -> None:
    """Refuse an adapter with more weights than LoRA's, whatever its configuration says."""
    ends = (".lora_A.weight", ".lora_B.weight")
    other = [key for key in weights if not (key.startswith(PREFIX) and key.endswith(ends))]
    if other:
        raise InputError(
            f"{str(folder / WEIGHTS)!r} holds {other[0]!r}, allowed are LoRA's A and B of linear "
            "layers: evaluate it with PEFT, or merge it and name the merged folder as the model"
        )


def _check_plain(folder: Path, config: Mapping[str, object]) -> None:
    """Refuse what a plain LoRA stack would silently compute differently."""
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{str(folder)!r} holds an adapter of type {config.get('peft_type')!r}, allowed is LORA"
        )
    used = [name for name in SPECIAL if config.get(name)]
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        used.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if config.get("bias", "none") != "none":
        used.append("bias")
    if not isinstance(config.get("target_modules"), list):
        used.append("target_modules as a pattern")
    if used:
        raise InputError(
            f"{str(folder)!r} uses {', '.join(used)}, allowed is plain LoRA with a list of "
            "targets: evaluate it with PEFT, or merge it and name the merged folder as the model"
        )
