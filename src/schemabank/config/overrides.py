"""Settings of the command line: ``--set a.b=value``, each put into a tree of settings.

The value is read as the setting's type asks for. A setting that is a text takes it as it stands, as
a shell passes it on; all others take it as YAML.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.plainyaml import Location, parse_yaml
from schemabank.config.places import is_text
from schemabank.config.presets import PRESETS
from schemabank.config.problems import dotted_key
from schemabank.config.train import EQUAL_RATE_STAGES

Tree = dict[str, Any]

# A stage has one of these. Setting one of them removes the other.
EITHER_OR = {"learning_rate": "learning_rate_ratio", "learning_rate_ratio": "learning_rate"}
NULLS = {"null", "Null", "NULL", "~"}  # of YAML
QUOTES = "'\""


def apply_override(tree: Tree, text: str) -> Location:
    """Change a tree by one ``--set`` and return where."""
    key, value = parse_override(text)
    return assign(tree, key, value, f"--set {text!r}")


def parse_override(text: str) -> tuple[list[str], object]:
    """Return the parts of the key of ``a.b=value``, and the value as the setting reads it.

    Raises:
        InputError: it is no ``a.b=value``, or no value of that setting can be written like this.
    """
    name, equals, value = text.partition("=")
    key = name.strip().split(".")
    if not equals or not name.strip():
        raise InputError(f"--set {text!r} is not KEY=VALUE: write it like train.learning_rate=1e-4")
    if not value.strip():
        # What a shell makes of a variable that is not set is no wish for an empty value.
        raise InputError(
            f"--set {text!r}: the value is empty, allowed is a value: write null for none, [] for "
            "an empty list, or '\"\"' for an empty text"
        )
    # The blank of `a = b` belongs to the sign.
    return key, _read_value(key, value.removeprefix(" ") if name[-1] == " " else value, text)


def _read_value(key: Sequence[str], value: str, text: str) -> object:
    bare = value.strip()
    if is_text(key) and bare not in NULLS and not _is_quoted(bare):
        return value
    try:
        parsed, _ = parse_yaml(bare, "the value")
    except InputError as error:
        raise InputError(f"--set {text!r:.200}: {error}, or quote it") from error
    if parsed is None and bare not in NULLS:
        raise InputError(
            f"--set {text!r}: the value is a comment of YAML, allowed is a value: remove the # or "
            "write null for none"
        )
    return parsed


def _is_quoted(bare: str) -> bool:
    """Whether a text is one of YAML in quotes, as a whole."""
    if len(bare) < 2 or bare[0] not in QUOTES or bare[-1] != bare[0]:
        return False
    try:
        return isinstance(parse_yaml(bare, "it")[0], str)
    except InputError:
        return False


def assign(tree: Tree, key: Sequence[str], value: object, said: str) -> Location:
    """Set a dotted key, where a stage of the curriculum is given by its name; return its place.

    Args:
        tree: changed in place.
        key: the key's parts.
        value: its value.
        said: how the user said it, for messages.

    Raises:
        InputError: the key leads nowhere.
    """
    if key[0] == "curriculum":
        tree.setdefault("curriculum", _default_stages(tree.get("preset", "sound")))
    node: Any = tree
    location: Location = ()
    for part in key[:-1]:
        index = _key_or_index(node, location, part, said)
        if isinstance(node, dict):
            node.setdefault(part, {})
        node, location = node[index], (*location, index)
    index = _key_or_index(node, location, key[-1], said)
    if location[:1] == ("curriculum",) and index in EITHER_OR and isinstance(node, dict):
        node.pop(EITHER_OR[index], None)
    node[index] = value
    return (*location, index)


def _key_or_index(node: object, location: Location, part: str, said: str) -> str | int:
    """Return where a part of a dotted key leads inside ``node``."""
    if isinstance(node, dict):
        return part
    if location != ("curriculum",) or not isinstance(node, list):
        raise InputError(
            f"{said}: {dotted_key(location)} is {node!r:.200}, which has no settings inside: "
            "set it as a whole"
        )
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if part not in names:
        raise InputError(
            f"{said}: the curriculum has no stage {part!r}, allowed are "
            f"{', '.join(map(str, names))}: name one of them"
        )
    return names.index(part)


def _default_stages(preset: object) -> list[Tree]:
    of_preset = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    own: list[Tree] | None = of_preset.get("curriculum")
    if own:
        return deepcopy(own)
    return [stage.model_dump(mode="json", exclude_defaults=True) for stage in EQUAL_RATE_STAGES]
