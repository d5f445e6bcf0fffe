"""Out of a stack into the world: a plain PEFT adapter, the bank beside it, a merged model.

Every export is loaded again by stock PEFT and its logits are compared with the stack's in float32
before anyone is told that it succeeded.
"""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemabank.cohort.joined import JoinedLinear
from schemabank.cohort.stack import AdapterStack
from schemabank.config import LoraSettings
from schemabank.errors import InputError
from schemabank.models import BaseModel
from schemabank.rundir import read_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PROVENANCE = "schemabank.yaml"
TOLERANCE = 1e-5
PROBE = "If 3 pens cost 6 dollars, how much do 7 pens cost? The answer is: 14"
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


def probe_logits(stack: AdapterStack, base: BaseModel) -> Tensor:
    """Every slot's logits on a short text with the banks off, ``(slot, token, vocabulary)``.

    The adapters are those that are saved, in float32, even where the model computes with others.
    """
    tokens = _probe(base).expand(stack.num_slots, 1, -1)
    adapters = stack.groups["lora"]
    saved = {p: adapters.master[name] for name, p in adapters.parameters.items()}
    with stack.evaluating("off"), _in_float32(base.model, saved):
        return stack.head(stack.hidden(tokens)).float().cpu()


def check_with_peft(folder: Path, base: BaseModel, expected: Tensor) -> float:
    """Load an adapter with stock PEFT and compare its logits.

    Args:
        folder: the adapter.
        base: the plain base model; it is left as it was.
        expected: ``(token, vocabulary)``, from :func:`probe_logits`.

    Returns:
        The largest difference relative to the largest logit.

    Raises:
        RuntimeError: the difference exceeds ``TOLERANCE``.
    """
    with _in_float32(base.model), torch.no_grad():
        model = _peft_model(base, folder)
        logits = model(input_ids=_probe(base), use_cache=False).logits[0].float().cpu()
        model.unload()
    return _compare(logits, expected, f"the adapter in {str(folder)!r}")


def save_merged(folder: Path, adapter: Path, base: BaseModel) -> float:
    """Merge an adapter into its base model and write the whole model.

    The merge is done and stored in the base model's number type here, float32.

    Returns:
        The largest relative difference of the reloaded model's logits from the adapter's.
    """
    with torch.no_grad():
        model = _peft_model(base, adapter)
        expected = model(input_ids=_probe(base), use_cache=False).logits[0].float()
        merged: PreTrainedModel = model.merge_and_unload()
        merged.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
        reloaded = type(merged).from_pretrained(folder, dtype=torch.float32)
        logits = reloaded(input_ids=_probe(base), use_cache=False).logits[0].float()
    return _compare(logits, expected, f"the merged model in {str(folder)!r}")


def _peft_model(base: BaseModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        return PeftModel.from_pretrained(base.model, str(folder))


def _compare(logits: Tensor, expected: Tensor, what: str) -> float:
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"{what} gives other logits than the run: relative difference {difference:.2e}, "
            f"allowed {TOLERANCE:.0e}"
        )
    return difference


def _probe(base: BaseModel) -> Tensor:
    return torch.tensor([base.tokenizer(PROBE)["input_ids"]], device=base.model.device)


@contextmanager
def _in_float32(
    model: PreTrainedModel, exact: Mapping[nn.Parameter, Tensor] | None = None
) -> Iterator[None]:
    """Compute in float32 for a while; the same weights stand there again afterwards.

    Args:
        model: the model.
        exact: parameters that are known in float32, where they need no conversion.
    """
    known = exact or {}
    originals = [(p, p.data) for p in model.parameters() if p.dtype != torch.float32]
    joined = {m.joined for m in model.modules() if isinstance(m, JoinedLinear)}
    products = [(each, each.weight, each.bias) for each in joined]
    for parameter, data in originals:
        parameter.data = known[parameter] if parameter in known else data.float()
    for each, weight, bias in products:
        each.weight, each.bias = weight.float(), None if bias is None else bias.float()
    try:
        yield
    finally:
        for parameter, data in originals:
            parameter.data = data
        for each, weight, bias in products:
            each.weight, each.bias = weight, bias


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
