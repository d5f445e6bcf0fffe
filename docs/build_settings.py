"""Write docs/settings.md from the settings' own definitions: python docs/build_settings.py."""

import json
from pathlib import Path

from pydantic import BaseModel

from schemabank.config.presets import PRESETS
from schemabank.config.settings import CommonSettings, ExperimentConfig
from schemabank.config.train import StageSettings

TARGET = Path(__file__).with_name("settings.md")
HEADER = """# Settings

`python docs/build_settings.py` makes this page from `schemabank/config/`. A configuration has
these keys; `arm` and `seed` may be lists, with one run for each entry. A seed decides initial
weights, data order and dropout. `--set train.learning_rate=1e-4` overrides a setting. A
stage is addressed by its name: `--set curriculum.joint.learning_rate=1e-4`.
[The command line](command-line.md#values-of---set) says how values are read.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEADER, _section("top level", ExperimentConfig)]
    for name, field in CommonSettings.model_fields.items():
        if isinstance(field.default, BaseModel):
            parts.append(_section(name, type(field.default)))
    parts.append(_section("curriculum (a list of stages)", StageSettings))
    parts.append("## Preset `paper`\n\nIt differs from these defaults in:\n\n```json")
    parts.append(json.dumps(PRESETS["paper"], indent=2) + "\n```\n")
    return "\n".join(parts)


def _section(title: str, model: type[BaseModel], prefix: str = "") -> str:
    rows = [f"## {title}\n", "| key | default | meaning |", "|---|---|---|"]
    rows += _rows(model, prefix)
    return "\n".join(rows) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            if model is not ExperimentConfig:
                rows += _rows(type(field.default), f"{prefix}{name}.")
            continue
        if name == "curriculum":
            default = "three stages: " + ", ".join(stage.name for stage in field.default)
        elif field.is_required():
            default = "required"
        else:
            default = f"`{json.dumps(field.default)}`"
        rows.append(f"| `{prefix}{name}` | {default} | {field.description} |")
    return rows


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
