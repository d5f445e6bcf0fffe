"""Whether stock PEFT puts an adapter on the layers that SchemaBank trains, asked before training.

PEFT reads a list of targets in its own way: for some mixtures of experts it takes ``down_proj`` for
the routed experts' weights, which are no layers here. An adapter that PEFT loads elsewhere is
another adapter.
"""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import peft
from peft import LoraConfig, LoraModel
from peft.tuners.lora.layer import LoraLayer
from transformers import PreTrainedModel

from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.stack import AdapterStack
from schemabank.engine.targets import layout_of, resolved, target_layers
from schemabank.models.frozen import lent
from schemabank.models.refusals import RefusalError, asking


def check_peft_layers(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Let stock PEFT choose its layers on the plain base model, which is left as it was.

    Raises:
        InputError: a target without a linear layer, or one that PEFT takes for something else.
    """
    wanted, settings = settings, resolved(model, settings)
    problem = _find_disagreement(model, settings)
    if problem is None:
        return
    alone = {
        target: _find_disagreement(model, settings.model_copy(update={"target_modules": (target,)}))
        for target in settings.target_modules
    }
    bad = [target for target, found in alone.items() if found is not None]
    is_list = wanted.target_modules == settings.target_modules
    named = "names" if is_list else "finds"
    usable = [] if is_list else _usable(model, settings, bad)
    raise InputError(
        f"lora.target_modules {named} {', '.join(map(repr, bad or settings.target_modules))}, for "
        f"which stock PEFT {peft.__version__} has other layers of {type(model).__name__} than "
        f"SchemaBank ({problem}): allowed are targets on which both agree, "
        + (f"write [{', '.join(usable)}]" if usable else "leave it out")
    )


def _usable(model: PreTrainedModel, settings: LoraSettings, bad: Sequence[str]) -> list[str]:
    """The targets that can have an adapter by themselves."""
    found = []
    for target in settings.target_modules:
        if target not in bad:
            alone = settings.model_copy(update={"target_modules": (target,)})
            with suppress(InputError):
                AdapterStack(model, lora=[alone]).remove()
                found.append(target)
    return found


def _find_disagreement(model: PreTrainedModel, settings: LoraSettings) -> str | None:
    """How PEFT's choice of layers differs; ``None`` where it does not."""
    ours = set(target_layers(model, settings))
    blocks, layout = settings.layers_to_transform, layout_of(model, settings)
    asked: dict[str, Any] = {
        "r": settings.r,
        "lora_alpha": settings.lora_alpha,
        "lora_dropout": 0.0,  # with it PEFT refuses weights that are no layers, and says only that
        "target_modules": list(settings.target_modules),
        "layers_to_transform": None if blocks is None else list(blocks),
        "fan_in_fan_out": layout.transposed,
        "exclude_modules": list(layout.excluded),
    }
    with lent(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's choice of layers is all that counts here
        try:
            with asking():
                LoraModel(model, LoraConfig(**asked), "default", low_cpu_mem_usage=True)
        except RefusalError as refusal:
            return str(refusal)
        theirs = {path for path, m in model.named_modules() if isinstance(m, LoraLayer)}
    only = [f"only PEFT takes {path}" for path in sorted(theirs - ours)]
    only += [f"PEFT leaves out {path}" for path in sorted(ours - theirs)]
    return only[0] if only else None
