"""Options that several commands have."""

from typing import Annotated

import typer


def setting_keys(incomplete: str) -> list[str]:
    """Return the settings that a shell may complete a beginning of ``--set`` to."""
    from schemabank.config.places import setting_names
    from schemabank.config.settings import ExperimentConfig

    names = list(setting_names(ExperimentConfig))
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    return [f"{name}=" for name in leaves if name.startswith(incomplete)]


def task_names(incomplete: str) -> list[str]:
    """Return the tasks that a shell may complete a beginning to."""
    from schemabank.config.task import TASK_NAMES

    return [name for name in TASK_NAMES if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting; as often as needed.",
        autocompletion=setting_keys,
    ),
]
Treatment = Annotated[str | None, typer.Option(metavar="ARM", help="Arm examined.")]
Control = Annotated[str | None, typer.Option(metavar="ARM", help="Arm that it is compared with.")]
Primary = Annotated[
    str | None,
    typer.Option(
        metavar="SETTING", help="Declared primary, in epochs say; default: mean over all."
    ),
]
Group = Annotated[
    str | None, typer.Option(help="Part of the split to compare runs on; default: the first.")
]
