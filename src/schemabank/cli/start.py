"""The commands to start with: a first configuration, and what editors know of all settings."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemabank.cli.options import task_names
from schemabank.cli.printing import print_json, print_lines, warn
from schemabank.common.errors import InputError

if TYPE_CHECKING:
    from schemabank.config.start import Start


def init(
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Default: records with --data, else conditional (generated).",
            autocompletion=task_names,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Your data: a file (JSONL, CSV, Parquet, ...), a folder or a hub data set.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Base model; default: the embedded one.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="Such as 'Q: {question}'; default: by the columns."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="Such as '{answer}'; default: by the columns."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: stdout.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write a commented configuration to begin with, for your data, model and task."""
    from schemabank.config.start import SCHEMA, Start

    start = Start(task=task, data=data, model=model, prompt=prompt, target=target)
    if out is None:
        sys.stdout.write(_fitted(start))
        return
    if out.name == SCHEMA:
        raise InputError(
            f"--out {str(out)!r} is the name of the JSON Schema that is written beside the "
            "configuration: name another file"
        )
    schema = json.dumps(_schema(of_suites=False), indent=2, ensure_ascii=False) + "\n"
    text = _fitted(start, file=str(out))
    _write_new({out: text, out.parent / SCHEMA: schema}, force=force)
    print_lines([f"{out}: written, and {out.parent / SCHEMA} for editors"])
    print_lines([f"next: {shlex.join(['schemabank', 'train', str(out)])}"])


def config_schema(
    of_suites: Annotated[bool, typer.Option("--suite", help="That of suite files.")] = False,
) -> None:
    """Print the JSON Schema of configuration files, for editors."""
    print_json(_schema(of_suites=of_suites))


def _fitted(start: "Start", *, file: str = "config.yaml") -> str:
    """Return the configuration, and name the columns that it leaves out on stderr.

    They may be parts of the prompt.
    """
    from schemabank.tasks.firstrow import fitted_yaml

    found = fitted_yaml(start, file=file)
    if found.unused:
        warn(f"not used: {', '.join(found.unused)}")
    return found.text


def _schema(*, of_suites: bool) -> dict[str, object]:
    from schemabank.config.settings import ExperimentConfig
    from schemabank.config.settingsfile import EXTENDS
    from schemabank.suites.file import LEFT_OUT_BY_NULL, SuiteConfig

    schema = (SuiteConfig if of_suites else ExperimentConfig).model_json_schema()
    schema["properties"][EXTENDS] = {
        "type": "string",
        "description": "Another file, whose settings this one's are put on top of.",
    }
    schema["required"] = []  # the other file may have it
    for section in LEFT_OUT_BY_NULL if of_suites else ():
        inner = schema["properties"][section]
        inner["additionalProperties"] = {"anyOf": [inner["additionalProperties"], {"type": "null"}]}
    return schema


def _write_new(files: dict[Path, str], *, force: bool) -> None:
    """Write texts into files, none of which may exist with another text, unless it is forced.

    Raises:
        InputError: one exists, or cannot be written; nothing was written.
    """
    from schemabank.common.files import read_text
    from schemabank.common.folders import check_writable
    from schemabank.common.writing import whole_file

    for path, text in files.items():
        if path.is_dir() or (path.exists() and not force and read_text(path) != text):
            mend = "name another file with --out" + ("" if path.is_dir() else ", or add --force")
            raise InputError(f"{str(path)!r} exists and is not overwritten: {mend}")
        check_writable(path)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
