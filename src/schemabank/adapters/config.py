"""``adapter_config.json`` as PEFT writes it: which settings are plain LoRA, and which are refused.

The file may come from anywhere. A text that PEFT would use as a regular expression is refused
unread, and so is every unknown setting that is switched on.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from schemabank.common.errors import InputError
from schemabank.common.files import inside, read_json
from schemabank.config.settings import LoraSettings
from schemabank.models.blocknames import BLOCK_LISTS

CONFIG = "adapter_config.json"
PROVENANCE = "schemabank.yaml"  # beside it, all settings of the run that wrote it
NEEDED = ("r", "lora_alpha", "lora_dropout", "target_modules")
# Other settings of PEFT's LoraConfig, of 0.2 to 0.21, that change nothing of what an adapter
# computes: names, versions, and how it was started or trained.
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "bias",  # it has a check of its own, as have the next six
    "exclude_modules",
    "fan_in_fan_out",  # how the base model's weights lie, which the adapter does not touch
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "peft_type",
    "revision",
    "use_rslora",  # it is a setting of ours
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
    "velora_config",
}
# Starts such as PiSSA's also change the base model's weights.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter's configuration says.

    Attributes:
        settings: rank, scale and targets.
        base_name: hub id or folder of the base model; ``None`` where nothing says so.
        revision: of the base model on the hub, or ``None``.
        excluded: names of layers that have no adapter though they match a target.
        transposed: whether the base model's layers keep their weights transposed, as GPT-2's do,
            which PEFT wants to know for merging.
    """

    settings: LoraSettings
    base_name: str | None = None
    revision: str | None = None
    excluded: tuple[str, ...] = ()
    transposed: bool = False

    def dump(self) -> dict[str, object]:
        """Return the contents of the file."""
        settings = self.settings
        config: dict[str, object] = {
            "base_model_name_or_path": self.base_name,
            "bias": "none",
            "inference_mode": True,
            "lora_alpha": settings.lora_alpha,
            "lora_dropout": settings.lora_dropout,
            "peft_type": "LORA",
            "r": settings.r,
            "target_modules": settings.target_modules,
            "task_type": "CAUSAL_LM",
        }
        # PEFT's defaults are left out.
        others = {
            "use_rslora": settings.use_rslora,
            "layers_to_transform": settings.layers_to_transform,
            "exclude_modules": self.excluded,
            "fan_in_fan_out": self.transposed,
            "revision": self.revision,
        }
        return config | {name: value for name, value in others.items() if value}


def read_config(folder: Path) -> AdapterConfig:
    """Read an adapter's configuration.

    Raises:
        InputError: it is missing or damaged, or says more than plain LoRA.
    """
    path = inside(folder, CONFIG)
    config = read_json(path, finite=True)
    _check_plain(folder, config)
    return AdapterConfig(
        settings=_lora_settings(path, config),
        base_name=_text_or_none(path, config, "base_model_name_or_path"),
        revision=_text_or_none(path, config, "revision"),
        excluded=tuple(_layer_names(path, config, "exclude_modules")),
        transposed=config.get("fan_in_fan_out") is True,
    )


def is_named(path: str, names: Iterable[str]) -> bool:
    """PEFT's rule for a list of targets: a name is a layer's whole path, or its last parts."""
    return any(path == name or path.endswith("." + name) for name in names)


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what a plain LoRA stack would silently compute differently.

    An unknown setting is one of these, unless it is switched off.
    """
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{str(folder)!r} holds an adapter of type {config.get('peft_type')!r:.80}, allowed is "
            "LORA: use it with PEFT"
        )
    known = WITHOUT_EFFECT.union(NEEDED)
    used = [f"{name:.80}" for name in sorted(config) if name not in known and config[name]]
    start = config.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool | str)) or start not in PLAIN_STARTS:
        used.append(f"init_lora_weights {start!r:.80}")
    if config.get("bias", "none") != "none":
        used.append("bias")
    if isinstance(config.get("target_modules"), str):  # it would be a regular expression
        used.append("target_modules as a pattern")
    if isinstance(config.get("exclude_modules"), str):
        used.append("exclude_modules as a pattern")
    if not _names_blocks(config.get("layers_pattern")):
        used.append("layers_pattern")
    if used:
        raise InputError(
            f"{str(folder)!r} uses {', '.join(used)}, allowed is plain LoRA with a list of "
            "targets: evaluate it with PEFT, or merge it and name the merged folder as the model"
        )


def _names_blocks(pattern: object) -> bool:
    """Whether a pattern of the list of blocks is its plain name, which says nothing new."""
    names = pattern if isinstance(pattern, list) else [pattern] if pattern else []
    return all(isinstance(n, str) and n.rpartition(".")[2] in BLOCK_LISTS for n in names)


def _lora_settings(path: Path, config: Mapping[str, Any]) -> LoraSettings:
    try:
        found = {name: config[name] for name in NEEDED}
    except KeyError as error:
        raise InputError(
            f"{str(path)!r} lacks {error}, allowed are {', '.join(NEEDED)}: restore the file that "
            "PEFT wrote"
        ) from error
    found["use_rslora"] = config.get("use_rslora") or False
    if not isinstance(found["use_rslora"], bool):
        raise _wrong_value(path, "use_rslora", found["use_rslora"], "true or false")
    found["target_modules"] = _layer_names(path, config, "target_modules")
    for name in NEEDED[:3]:
        is_number = isinstance(found[name], int if name == "r" else int | float)
        if isinstance(found[name], bool) or not is_number:
            raise _wrong_value(path, name, found[name], "a number")
    try:
        return LoraSettings.model_validate(
            {**found, "layers_to_transform": _adapted_blocks(config)}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        place = problem["loc"][0] if problem["loc"] else "layers_to_transform"
        raise InputError(
            f"{str(path)!r}: {place} is {problem['input']!r:.80}, but {problem['msg']}: restore "
            "the file that PEFT wrote"
        ) from error


def _adapted_blocks(config: Mapping[str, Any]) -> object:
    """The blocks that an adapter is on; ``None`` for all.

    PEFT also writes a single block as a number, and all of them as an empty list.
    """
    blocks = config.get("layers_to_transform")
    return [blocks] if isinstance(blocks, int) else blocks or None


def _layer_names(path: Path, config: Mapping[str, Any], name: str) -> Sequence[str]:
    """A list of layers' names."""
    value = config.get(name) or []
    if not isinstance(value, list) or not all(isinstance(v, str) and v for v in value):
        raise _wrong_value(path, name, value, "a list of names of layers")
    return list(dict.fromkeys(value))


def _text_or_none(path: Path, config: Mapping[str, Any], name: str) -> str | None:
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong_value(path, name, value, "text")
    return value or None


def _wrong_value(path: Path, name: str, value: object, allowed: str) -> InputError:
    return InputError(
        f"{str(path)!r}: {name} is {value!r:.80}, allowed is {allowed}: restore the file that PEFT "
        "wrote"
    )
