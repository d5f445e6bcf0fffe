"""How dataclasses become what JSON knows, and under which keys.

Files of reports call a setting of an arm ``epochs``, as tables of results do, whatever it is.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

KEY = "key"  # of a field's metadata: its name in JSON
EPOCHS: Mapping[str, str] = {KEY: "epochs"}
SPLICED: Mapping[str, bool] = {"spliced": True}  # its own fields stand in its place


def plain(value: object) -> object:
    """Return dataclasses, tuples and mappings as what JSON knows; infinite numbers as ``None``."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def plain_fields(value: object) -> dict[str, object]:
    """Return a dataclass by its keys in JSON; nothing for ``None``."""
    if value is None:
        return {}
    assert is_dataclass(value)
    assert not isinstance(value, type)
    found: dict[str, object] = {}
    for field in fields(value):
        own, key = getattr(value, field.name), field.metadata.get(KEY, field.name)
        found |= plain_fields(own) if field.metadata == SPLICED else {key: plain(own)}
    return found
