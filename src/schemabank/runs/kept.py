"""Checks of what an earlier call left of a run's training: it is whole, and would be the same now.

:mod:`schemabank.runs.trained` holds runs whose training is over, and
:mod:`schemabank.runs.checkpoints` runs in the middle of it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import ValidationError

from schemabank.common.cores import processor_name
from schemabank.common.errors import InputError, first_line
from schemabank.common.files import inside, read_json, read_text, sha256
from schemabank.config.file import load_run, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.engine.execute import num_threads
from schemabank.runs.folder import CONFIG, STAGES
from schemabank.runs.inputs import Digests, recorded_versions
from schemabank.runs.loading import device_name
from schemabank.runs.resultshape import StoredPart
from schemabank.runs.stacks import room_of

WEIGHTS, STATE, DIGESTS = "weights.safetensors", "state.json", "digests.json"
MEND = "it is trained again"
PROCESSOR = "processor"  # told where it differs, and not asked to be the same
# When a run is saved, and who watches it, changes nothing of what it comes to.
FREE = ("checkpoint_minutes", "checkpoint_steps", "trackers", "tracker_project")

MadeWith = Mapping[str, Any]
"""What decides a run's bits beside its own settings."""
S = TypeVar("S", bound=StoredPart)


def made_with(inputs: Digests, planned: Sequence[RunConfig], device: torch.device) -> MadeWith:
    """Return what decides the bits of a run beside its own settings.

    Args:
        inputs: digests of the base model, its tokenizer and the task's examples.
        planned: the runs of its cohort, for all of which its slots have room.
        device: where it trains.
    """
    made: dict[str, Any] = {
        "inputs": dict(inputs),
        "versions": recorded_versions(),
        "device": device_name(device),
        "room": room_of(planned),
    }
    if device.type == "cpu":
        made[PROCESSOR] = {"name": processor_name(), "threads": num_threads()}
    return made


def other_processor(before: MadeWith, now: MadeWith) -> str:
    """Say that a run goes on with another processor or number of threads; empty if it does not.

    Neither is asked to be the same: a machine is seldom there twice. But both may change the last
    bits of a sum.
    """
    own, other = before.get(PROCESSOR), now.get(PROCESSOR)
    if own is None or other is None or own == other:
        return ""
    return (
        f"it began on {_processor(own)} and goes on on {_processor(other)}, so that its last bits "
        "may be others than without the interruption"
    )


def check_made(folder: Path, before: MadeWith, now: MadeWith) -> None:
    """Refuse what was made with something else than it would be made with now.

    Raises:
        InputError: naming all that differs.
    """
    if found := made_otherwise(before, now):
        raise InputError(
            f"{str(folder)!r} was trained with something else, allowed is the same: {found}: {MEND}"
        )


def made_otherwise(before: MadeWith, now: MadeWith) -> str:
    """Say what was another when something was made than it is now; empty if nothing that counts."""
    counted = {name: value for name, value in now.items() if name != PROCESSOR}
    other = [_difference(name, before.get(name), value) for name, value in counted.items()]
    return "; ".join(filter(None, other))


def check_settings(folder: Path, run: RunConfig, *, is_over: bool) -> None:
    """Refuse a folder of a run with other settings, but for those that change nothing now.

    Args:
        folder: of the run.
        run: its settings now.
        is_over: whether its training is.

    Raises:
        InputError: naming all that differs, or the settings cannot be read.
    """
    path = folder / CONFIG
    # To read YAML takes longer than all else that is read of a run, and there may be hundreds.
    if read_text(path) == to_yaml(run):
        return
    before = load_run(path)
    free = FREE + (_free_afterwards(run, before) if is_over else ())
    now = {name: getattr(run.engine, name) for name in free}
    same = before.model_copy(update={"engine": before.engine.model_copy(update=now)})
    # As they are written, without sections of other methods, which the file has not.
    written = [yaml.safe_load(to_yaml(each)) for each in (same, run)]
    if found := _difference("settings", *written):
        raise InputError(f"{str(path)!r} has other settings, allowed are the same: {found}: {MEND}")


def _free_afterwards(run: RunConfig, before: RunConfig) -> tuple[str, ...]:
    """What else of the engine's settings decides nothing of a run whose training is over.

    - ``slots`` changes the weights within rounding, as it changes those of a finished run, which is
      used again whatever it is now. It may have to be lowered for an evaluation to fit.
    - ``keep_stages`` changes no weight. But a training that kept no stages has none to give.
    - ``device`` counts, since another one rounds in another way all along.
    """
    keeps = before.engine.keep_stages or not run.uses("bank")
    return ("slots", "keep_stages") if keeps else ("slots",)


def read_stored(path: Path, kind: type[S]) -> S:
    """Read a JSON file of a known shape.

    Raises:
        InputError: it is another file than was written.
    """
    try:
        return kind.model_validate(read_json(path, finite=True))
    except ValidationError as error:
        raise InputError(
            f"{str(path)!r} is not what was written ({first_line(error)}): {MEND}"
        ) from error


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files by their path in a folder.

    Raises:
        InputError: one is missing, or a link.
        OSError: one cannot be read.
    """
    paths = (folder / name for name in names)
    return {str(p.relative_to(folder)): sha256(kept_file(p.parent, p.name)) for p in paths}


def kept_file(folder: Path, name: str) -> Path:
    """Return the path of a file that an earlier call has written into a folder of its own.

    Raises:
        InputError: it is missing, or a link that leads out of the folder.
    """
    path = folder / name
    if not os.path.lexists(path):
        raise InputError(f"{str(path)!r} is missing, allowed are whole files: {MEND}")
    return inside(folder, name)


def stage_files(folder: Path, stages: Iterable[str] | None = None) -> list[str]:
    """Return the paths in a run's folder of all files of its stages, or of some of them.

    Args:
        folder: of the run.
        stages: names of the stages' folders; ``None``: all that is there.
    """
    top = folder / STAGES
    within = top.rglob("*") if stages is None else (p for n in stages for p in _below(top / n))
    paths = sorted({*folder.glob(STAGES), *within})
    kept = [path for path in paths if path.is_symlink() or not path.is_dir()]  # links are refused
    return [str(path.relative_to(folder)) for path in kept]


def _below(top: Path) -> list[Path]:
    """A path and all that is below it, as far as it is there."""
    return [*top.parent.glob(top.name), *top.rglob("*")]


def _processor(made: object) -> str:
    """A processor in words, whatever a file says of it."""
    if not isinstance(made, dict):
        return repr(made)[:80]
    return f"{str(made.get('name'))[:80]} with {str(made.get('threads'))[:8]} threads"


def _difference(name: str, before: object, now: object) -> str:
    """What is another now than it was, in words; nothing where both are the same."""
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [_difference(f"{name}.{key}", before.get(key), now[key]) for key in now]
        return "; ".join(filter(None, parts)) or f"{name} had more"
    if isinstance(before, list) and isinstance(now, list):
        return f"{name} had {len(before)} runs, now {len(now)}, and not the same"
    return f"{name} was {before!r:.80}, now it is {now!r:.80}"
