"""What runs need before anything is computed: device, base model, data, resolved settings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from schemabank.common.errors import InputError
from schemabank.common.waiting import Note, waiting
from schemabank.config.settings import RunConfig
from schemabank.config.settingsfile import validated
from schemabank.config.task import RecordsSettings, TaskSettings
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.execute import use_given_cores
from schemabank.models.basemodel import BaseModel, load_base_model, resolve_dtype
from schemabank.runs.progress import Reporter
from schemabank.tasks import records
from schemabank.tasks.base import TaskData
from schemabank.tasks.catalog import load_task, metric_of, prompt_of, split_of
from schemabank.tasks.scoring.scores import METRICS


def resolve_device(name: str) -> torch.device:
    """Turn the setting into a device; ``auto`` takes the GPU if there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device is 'cuda', but no GPU is visible: use auto or cpu")
    use_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_gpu else "cpu")


def device_name(device: torch.device) -> str:
    """Return a GPU's own name, or the kind of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def resolved(
    runs: Sequence[RunConfig], device: torch.device, *, note: Note = lambda _: None
) -> list[RunConfig]:
    """Fill in settings that depend on machine, task and data, so that a hash covers them."""
    tasks = {r.task for r in runs if r.task.name == "records"}
    with waiting("reading the data of the task records", note):
        known = {task: records.recognised(task) for task in tasks}
        of_records = {task.records for task in known.values()}
        digests = {own: own.digest or records.data_digest(own) for own in of_records}
    return [_resolved_run(run, device, known.get(run.task, run.task), digests) for run in runs]


def loaded_base(run: RunConfig, device: torch.device, note: Note) -> BaseModel:
    """Load a run's base model, and say so if that takes long."""
    with waiting(f"loading the base model {run.model.name}", note):
        return load_base(run, device)


def loaded_task(task: TaskSettings, note: Note) -> TaskData:
    """Load a task's data, and say so if that takes long."""
    with waiting(f"loading the data of the task {task.name}", note):
        return load_task(task)


def load_base(run: RunConfig, device: torch.device) -> BaseModel:
    """Load a run's base model."""
    if device.type == "cpu":
        use_given_cores()
    base = load_base_model(
        run.model.name,
        dtype=resolve_dtype(run.model.dtype, device),
        device=device,
        revision=run.model.revision,
    )
    return replace(base, by_slot=why_by_slot(base.model))


def announce_decoding(run: RunConfig, base: BaseModel, reporter: Reporter) -> None:
    """Say so if a model decodes one slot after another instead of all at once.

    Raises:
        InputError: its texts are needed and cannot be decoded at all.
    """
    if base.by_slot is None or not METRICS[metric_of(run.task)].decodes:
        return
    check_generates(base.model)
    reporter.note(
        f"decoding: one run at a time, by transformers' generate, which takes longer: "
        f"{base.by_slot}"
    )


def _resolved_run(
    run: RunConfig,
    device: torch.device,
    task: TaskSettings,
    digests: Mapping[RecordsSettings, str],
) -> RunConfig:
    """A run with its task as the data say, and everything that follows filled in."""
    dtype = str(resolve_dtype(run.model.dtype, device)).removeprefix("torch.")
    model = run.model.model_copy(update={"dtype": dtype})
    own: dict[str, object] = {"metric": metric_of(task)}
    is_chat = task.name == "records" and task.records.messages is not None
    if not is_chat:  # a chat has no template
        own["prompt"] = prompt_of(task)
    if task.name == "records":
        digest = digests[task.records]
        own["records"] = task.records.model_copy(update={"digest": digest})
    asked = run.eval.model_copy(update={"split": split_of(task, run.eval.split)})
    update = {"model": model, "task": task.model_copy(update=own), "eval": asked}
    found = run.model_copy(update=update)
    if is_chat:  # tags may not go with a chat template
        found = validated(found.model_dump(mode="json"), RunConfig, lambda _: "with a chat")
    return found
