"""Which run or adapter a folder holds, and the settings that are asked on top of its own.

Nothing here loads torch, so that a folder or a setting that is wrong is refused at once.
"""

from collections.abc import Sequence
from pathlib import Path

from schemabank.adapters.config import CONFIG as ADAPTER_CONFIG
from schemabank.adapters.config import PROVENANCE, read_config
from schemabank.common.errors import InputError
from schemabank.config.file import load_run, overridden
from schemabank.config.overrides import parse_override
from schemabank.config.settings import ModelSettings, RunConfig
from schemabank.runs.effects import check_asked_of_evaluation, check_asked_of_routing
from schemabank.runs.folder import ADAPTER, CONFIG, RESULT, STAGES

RunAndAdapter = tuple[
    RunConfig, Path | None
]  # settings, and the folder of the adapter if there is one


def asked_of_evaluation(folder: Path, overrides: Sequence[str]) -> RunAndAdapter:
    """Return what an evaluation is asked of: the run's settings with overrides, and its adapter.

    Raises:
        InputError: the folder is no run and no adapter, or a setting is wrong or plays no part.
    """
    check_asked_of_evaluation(overrides)
    run, adapter = locate(folder, overrides)
    return as_asked(run.model_copy(update={"eval": run.evaluation()}), overrides), adapter


def asked_of_routing(folder: Path, overrides: Sequence[str]) -> tuple[RunConfig, RunAndAdapter]:
    """Return a run's settings with overrides, and what :func:`locate` says of it.

    Raises:
        InputError: as :func:`asked_of_evaluation`.
    """
    check_asked_of_routing(overrides)
    located = locate(folder)
    return as_asked(located[0], overrides), located


def named(model: str | None) -> list[str]:
    """Return the override that names a base model; none without one."""
    return [] if model is None else [f"model.name={model}"]


def locate(folder: Path, overrides: Sequence[str] = ()) -> RunAndAdapter:
    """Return the settings of a run or adapter, and the folder of its adapter if it has one.

    Args:
        folder: a run, a kept stage or an adapter.
        overrides: settings that will be put on top; they may name a base model where none is.

    Raises:
        InputError: the folder is none of these.
    """
    if (folder / RESULT).is_file() and (folder / CONFIG).is_file():
        adapter = folder / ADAPTER
        return load_run(folder / CONFIG), adapter if adapter.is_dir() else None
    kept_stage = folder.resolve().parent.name == STAGES  # not a run that failed
    if kept_stage and (folder / ADAPTER / PROVENANCE).is_file():
        return load_run(folder / ADAPTER / PROVENANCE), folder / ADAPTER
    if (folder / ADAPTER_CONFIG).is_file():
        if (folder / PROVENANCE).is_file():
            return load_run(folder / PROVENANCE), folder
        return _settings_of_adapter(folder, overrides), folder
    raise InputError(
        f"{str(folder)!r} is neither a finished run ({CONFIG} and {RESULT}) nor a LoRA adapter "
        f"({ADAPTER_CONFIG}): name one of those"
    )


def _settings_of_adapter(folder: Path, overrides: Sequence[str]) -> RunConfig:
    """The settings of an adapter that somebody else trained."""
    config = read_config(folder)
    name = config.base_name
    for key, value in map(parse_override, overrides):
        if key == ["model", "name"] and isinstance(value, str):
            name = value
    if not name:
        raise InputError(
            f"{str(folder / ADAPTER_CONFIG)!r} does not name its base model: allowed is a hub id "
            "or a folder, set model.name with --set"
        )
    of_hub = config.base_name == name and not Path(name).is_dir()
    model = ModelSettings(name=name, revision=config.revision if of_hub else None)
    return RunConfig(arm="lora", model=model, lora=config.settings)


def as_asked(run: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Apply overrides; another task has its own prompt and metric unless they override these."""
    asked = overridden(run, overrides)
    if asked.task.name == run.task.name:
        own, other = run.task.records, asked.task.records
        if other != own and other.digest == own.digest:  # other data, whose digest is not known yet
            return overridden(asked, ["task.records.digest=null"])
        return asked
    task = run.task.model_copy(update={"prompt": None, "metric": None, "stop": ()})
    scored = run.eval.model_copy(update={"split": None})
    return overridden(run.model_copy(update={"task": task, "eval": scored}), overrides)
