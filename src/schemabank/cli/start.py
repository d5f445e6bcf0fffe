"""The commands to start with: a first configuration, and what editors know of all settings."""

from typing import Annotated

import typer

from schemabank.cli.printing import print_json


def config_schema(
    of_suites: Annotated[bool, typer.Option("--suite", help="That of suite files.")] = False,
) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    from schemabank.config.settings import ExperimentConfig
    from schemabank.suites.file import SuiteConfig

    print_json((SuiteConfig if of_suites else ExperimentConfig).model_json_schema())
