"""Owns what is said of PEFT's configurations where settings of ours are due.

PEFT is not imported for it: a program that has such a configuration has imported it itself.
"""

from typing import Any

# What LoraConfig and LoraSettings both have.
SHARED = ("r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules", "layers_to_transform")
# Fields of a LoraConfig that say nothing of training, or what is so here anyway.
SILENT = {
    *("task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision"),
    *("auto_mapping", "peft_version", "runtime_config", "fan_in_fan_out"),
}


def refuse_pefts(given: object) -> None:
    """Refuse a configuration of PEFT's.

    Raises:
        TypeError: saying what to write instead. Pydantic lets it through as it is; it would put a
            ``ValueError`` among lines of its own.
    """
    if (sentence := instead_of(given)) is not None:
        raise TypeError(sentence)


def instead_of(given: object) -> str | None:
    """Say what to write instead of a configuration of PEFT's; ``None`` for anything else."""
    kind = next((k for k in type(given).__mro__ if k.__module__.startswith("peft.")), None)
    if kind is None:
        return None
    begin = f"PEFT's {kind.__name__} was given, but allowed is a schemabank.LoraSettings"
    if kind.__name__ != "LoraConfig":
        return f"{begin}, since plain LoRA alone is trained here: train it with PEFT"
    found, usual = vars(given), vars(kind())
    written = ", ".join(
        f"{name}={_written(name, found[name])!r}"
        for name in SHARED
        if found.get(name) is not None and found[name] is not False
    )
    known = {*SHARED, *SILENT}
    more = [name for name in found if name not in known and found[name] != usual.get(name)]
    without = f" without {', '.join(more)}, which is not trained here" if more else ""
    layers = (
        ", and name target_modules, since PEFT's defaults are mostly other layers than ours"
        if found.get("target_modules") is None
        else ""
    )
    return f"{begin}: write LoraSettings({written}){without}{layers}"


def _written(name: str, value: Any) -> object:  # noqa: ANN401 -- whatever PEFT takes
    """A field's value as settings take it."""
    if isinstance(value, set):
        return sorted(value)
    return [value] if name == "layers_to_transform" and isinstance(value, int) else value
