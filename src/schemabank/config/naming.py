"""What runs are called on a screen, and their settings by dotted name."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemabank.config.file import NOT_IDENTITY, run_id
from schemabank.config.overrides import apply_override
from schemabank.config.settings import RunConfig

MOST_SETTINGS = 4  # in a title


def dotted_settings(run: RunConfig) -> dict[str, object]:
    """Return the settings that a run's arm uses, by dotted name."""
    return dotted(run.model_dump(mode="json", exclude=NOT_IDENTITY | run.unused_sections))


def titles_of(runs: Sequence[RunConfig]) -> dict[str, str]:
    """Return a title for every run by its id: arm, seed, and the settings in which its arm varies.

    A setting goes by the last part of its name, unless another that varies ends in the same part.
    Settings beyond the fourth are only counted.
    """
    titles: dict[str, str] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        settings = {run: dotted_settings(run) for run in runs if run.arm == arm}
        names = _varying_settings(list(settings.values()))
        for run, own in settings.items():
            told = [f"{short}={own[name]}" for name, short in names.items() if name in own]
            more = [f"{len(told) - MOST_SETTINGS} more"] if len(told) > MOST_SETTINGS else []
            start = f"{arm} seed {run.seed}"
            titles[run_id(run)] = ", ".join([start, *told[:MOST_SETTINGS], *more])
    return {run_id(run): titles[run_id(run)] for run in runs}


def _varying_settings(settings: Sequence[Mapping[str, object]]) -> dict[str, str]:
    """Names of the settings that are not the same everywhere, each with its short name."""
    names = [
        name
        for name in dict.fromkeys(name for own in settings for name in own)
        if name != "seed" and len({repr(own.get(name)) for own in settings}) > 1
    ]
    last = [name.rpartition(".")[2] for name in names]
    return {
        name: short if last.count(short) == 1 else name
        for name, short in zip(names, last, strict=True)
    }


def dotted(tree: Mapping[str, Any]) -> dict[str, object]:
    """Return settings by dotted names; a stage of the curriculum goes by its own name."""
    stages = tree.get("curriculum")
    if isinstance(stages, Sequence) and all(isinstance(stage, Mapping) for stage in stages):
        named = {s.get("name"): {k: v for k, v in s.items() if k != "name"} for s in stages}
        tree = {**tree, "curriculum": named}
    return flat(tree)


def set_by(text: str) -> list[str]:
    """Return the dotted names that an ``a.b=value`` sets; its value may be a whole section.

    An empty section goes by its own name. So does anything set inside the curriculum, since its
    stages differ from run to run.

    Raises:
        InputError: the text is no ``a.b=value``.
    """
    name = text.partition("=")[0].strip()
    if name.split(".")[0] == "curriculum":
        return [name]
    tree: dict[str, Any] = {}
    apply_override(tree, text)
    return list(dotted(tree)) or [name]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return the values of nested mappings by dotted names."""
    found: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
