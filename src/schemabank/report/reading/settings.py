"""Settings of runs as a report reads and writes them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from schemabank.common.errors import InputError
from schemabank.common.files import check_regular, read_text
from schemabank.common.plainyaml import parse_yaml
from schemabank.config.naming import flat
from schemabank.config.settings import RunConfig
from schemabank.config.settingsfile import validated
from schemabank.runs.folder import CONFIG

SEED_LINE = re.compile(r"^seed: \d+\n", re.MULTILINE)

Config = Mapping[str, Any]


def read_config(folder: Path) -> Config:
    """Return a run's settings without its seed.

    Raises:
        InputError: they cannot be read.
    """
    check_regular(folder / CONFIG)
    try:
        return _parsed(SEED_LINE.sub("", read_text(folder / CONFIG)))
    except InputError as error:
        raise InputError(
            f"{str(folder / CONFIG)!r} holds no settings of a run ({error}): restore it, or move "
            "the run's folder away"
        ) from error


@cache
def _parsed(text: str) -> Config:
    """All settings of a run as they are written; equal texts are parsed once."""
    tree = parse_yaml(text, CONFIG)[0]
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"{tree!r:.60} are no settings by name")
    settings = validated(tree, RunConfig, lambda _: CONFIG)
    return settings.model_dump(mode="json", exclude={"seed"})


def settings_of(config: Config) -> dict[str, object]:
    """Return settings by their dotted names; a stage of the curriculum by its own name."""
    stages = {stage["name"]: stage for stage in config.get("curriculum", ())}
    return flat({**config, **({"curriculum": stages} if stages else {})})


def words(value: object) -> str:
    """A setting's value as a user writes it, in one line."""
    if isinstance(value, str):
        return value
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**9))
        .removesuffix("...\n")
        .strip()
    )


def label_of(names: Sequence[str], settings: Mapping[str, object]) -> str:
    """Return settings as text: the value of a single one, else values by the names' last words."""
    if len(names) == 1:
        return words(settings.get(names[0]))
    short = [name.rpartition(".")[2] for name in names]
    told = short if len(set(short)) == len(short) else names
    return " ".join(
        f"{name}={words(settings.get(full))}" for name, full in zip(told, names, strict=True)
    )
