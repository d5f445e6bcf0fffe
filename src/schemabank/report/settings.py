"""Settings of runs as a report reads and writes them."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from schemabank.errors import InputError
from schemabank.files import check_regular, read_text
from schemabank.naming import flat
from schemabank.plainyaml import parse_yaml
from schemabank.rundir import CONFIG

SEED_LINE = re.compile(r"^seed: \d+\n", re.MULTILINE)

Config = Mapping[str, Any]


def read_config(folder: Path) -> Config:
    """Return a run's settings without its seed.

    Raises:
        InputError: they cannot be read.
    """
    check_regular(folder / CONFIG)
    found = _parsed(SEED_LINE.sub("", read_text(folder / CONFIG)))
    if not isinstance(found, dict):
        raise InputError(
            f"{str(folder / CONFIG)!r} holds no settings: restore it, or move the run's folder away"
        )
    stages = found.get("curriculum", [])
    named = [s.get("name") if isinstance(s, dict) else None for s in _listed(stages)]
    if not isinstance(stages, list) or not all(isinstance(name, str) for name in named):
        raise InputError(
            f"{str(folder / CONFIG)!r} has a curriculum of another kind than a list of named "
            "stages: restore it, or move the run's folder away"
        )
    return found


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


@cache
def _parsed(text: str) -> object:
    try:
        return parse_yaml(text, CONFIG)[0]
    except InputError:
        return None


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
