"""Digests of a run's inputs: the base model, its tokenizer and the task's examples.

A run's id is a hash of its settings, which name a model and a task but do not hold them. So the
digests stand in its ``result.json`` and beside its adapter. They are compared before the run is
used again: with other weights or data in the same place it would be another run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from schemabank.adapters.config import CONFIG, PROVENANCE
from schemabank.adapters.files import WEIGHTS
from schemabank.common.errors import InputError
from schemabank.common.files import json_lines, read_json
from schemabank.common.waiting import Note
from schemabank.config.naming import set_by
from schemabank.config.settings import ModelSettings, RunConfig
from schemabank.config.task import TaskName, TaskSettings
from schemabank.models.digests import MODEL, TOKENIZER, files_digest, model_digests
from schemabank.models.files import locate
from schemabank.runs.folder import BANK, PREDICTIONS, RESULT, is_finished
from schemabank.tasks import TaskData
from schemabank.tasks.catalog import TASKS, is_of_data, load_task

INPUTS = "inputs.json"
DATA = "data"
ADAPTER_DIGEST, BANK_DIGEST = "adapter", "bank"
NAMES = {
    MODEL: "the base model",
    TOKENIZER: "the tokenizer",
    DATA: "the task's data",
    ADAPTER_DIGEST: "the adapter",
    BANK_DIGEST: "the bank",
}
RECORDED_VERSIONS = (
    "schemabank",
    "torch",
    "transformers",
    "peft",
    "reasoning-gym",
    "rouge-score",
    "sacrebleu",
    "nltk",
)
OLDER = "made before the model and the data were recorded, so that both may be others now"

Digests = Mapping[str, str]


def data_digest(data: TaskData) -> str:
    """Return the SHA-256 of a task's examples, with their splits and order."""
    found = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for example in data.split(split):
            plain = dict(vars(example))  # ten times as fast as asdict, which copies every text
            plain["turns"] = [turn if turn.extra else turn[:3] for turn in example.turns]
            if data.cluster_field is not None:
                plain["cluster"] = ""  # digests of these are older than the clusters, which repeat
            for name in ("turns", "tools"):
                if not plain[name]:
                    del plain[name]  # digests of examples without chats are older than these
            row = [split, plain]
            found.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return f"sha256:{found.hexdigest()}"


def recorded_versions() -> dict[str, str | None]:
    """Return the versions of the packages that decide a run's result."""
    return {name: _version(name) for name in RECORDED_VERSIONS}


class Present:
    """The inputs that are there now. Each is read once, however many runs share it."""

    def __init__(self) -> None:
        self._known: dict[ModelSettings | TaskSettings, Digests | str] = {}

    def of(self, run: RunConfig, *, with_data: bool = True) -> tuple[dict[str, str], list[str]]:
        """Return the digests for a run, and a reason for each input that cannot be read now."""
        model = run.model.model_copy(update={"dtype": "auto"})
        found: dict[str, str] = {}
        missing: list[str] = []
        for settings in (model, run.task) if with_data else (model,):
            if settings not in self._known:
                self._known[settings] = _digests_now(settings)
            digests = self._known[settings]
            if isinstance(digests, str):
                missing.append(digests)
            else:
                found |= digests
        return found, missing


def check_reusable(run: RunConfig, folder: Path, result: Mapping[str, Any], now: Present) -> str:
    """Make sure that a finished run is one of the inputs that are there now.

    Args:
        run: its settings.
        folder: where it is.
        result: its ``result.json``.
        now: the inputs.

    Returns:
        What could not be compared, for a note; empty if all was.

    Raises:
        InputError: an input is another one.
    """
    recorded = recorded_in(result)
    if not recorded:
        return OLDER
    found, missing = now.of(run)
    mend = "restore it, or choose another --out for runs of the new one"
    check_same(recorded, found, folder, mend=mend)
    return "; ".join(missing)


def check_all_clusters(folders: Mapping[RunConfig, Path]) -> None:
    """Refuse finished runs whose scores are to be used, and whose items' clusters are not recorded.

    Trials of a search are among them: how near two learning rates are to each other is judged over
    clusters, and the items of older and of newer trials are no pairs. Teachers are not, since
    nothing but their adapters is used.

    Args:
        folders: of runs, finished or not.

    Raises:
        InputError: one of them is of an older version.
    """
    mend = "choose another --out for new runs; `schemabank eval` may still use its adapter"
    for run, folder in folders.items():
        if is_finished(folder):
            check_clusters(folder, run.task.name, mend=mend)


def check_clusters(folder: Path, task: TaskName, *, mend: str) -> None:
    """Refuse a finished run or evaluation whose items' clusters are not recorded.

    Raises:
        InputError: it is used again as if its items were independent.
    """
    if lacks_clusters(folder, task):
        raise InputError(
            f"{str(folder)!r} is of an older version, which did not record that items of {task} "
            f"with one {TASKS[task].cluster} were drawn together, so errors and intervals over its "
            f"items would be too small: {mend}"
        )


def lacks_clusters(folder: Path, task: TaskName) -> bool:
    """Whether a run's items should name what they were drawn with, and do not.

    Older versions recorded no clusters for tasks that generate their examples. A packed run, which
    has no predictions, is not looked at.
    """
    if TASKS[task].cluster is None or not (folder / PREDICTIONS).exists():
        return False
    return any(not row.get("cluster") for _, row in islice(json_lines(folder / PREDICTIONS), 1))


def check_used_again(
    folder: Path,
    adapter: Path | None,
    asked: RunConfig,
    overrides: Sequence[str],
    note: Note,
    *,
    with_data: bool = True,
) -> Digests:
    """Make sure that a run or adapter is used with the inputs that it was made with.

    Args:
        folder: the run, kept stage or adapter.
        adapter: folder of its adapter, if it has one.
        asked: the settings with which it is to be used.
        overrides: those that were changed on purpose: another model or task is then allowed.
        note: told what is not compared.
        with_data: whether the task's data plays a part.

    Returns:
        The digests for these settings, as far as the inputs can be read.

    Raises:
        InputError: an input is another one.
    """
    recorded = _recorded_at(folder)
    if not recorded and adapter is not None:
        recorded = recorded_beside(adapter)
    found, missing = Present().of(asked, with_data=with_data)
    new = _named_anew(overrides, asked.task)
    compared = {name: digest for name, digest in recorded.items() if name not in new}
    if recorded and MODEL in new:
        note(f"--set changes the base model: {folder} is used on another than its training's")
    if DATA in new & recorded.keys() & found.keys() and recorded[DATA] != found[DATA]:
        note(
            f"--set changes the examples: they are others than those that {folder} was made with, "
            "and its training may have seen some of them"
        )
    own = (folder / RESULT).exists() or (adapter is not None and (adapter / PROVENANCE).exists())
    if not recorded and own:
        note(f"{folder} was {OLDER}")
    mend = "restore it, or name another on purpose with --set"
    check_same(compared, found, folder, mend=mend)
    for reason in missing:
        note(reason)
    return {**found, **adapter_digests(adapter)}


def adapter_digests(adapter: Path | None) -> dict[str, str]:
    """Return the digests of an adapter's folder and of the bank beside it, if they are there."""
    if adapter is None:
        return {}
    found = {ADAPTER_DIGEST: files_digest(adapter, [CONFIG, WEIGHTS])}
    bank = adapter.parent / BANK
    if bank.is_dir():
        found[BANK_DIGEST] = files_digest(bank, ["*.safetensors"])
    return found


def check_same(recorded: Digests, found: Digests, folder: Path, *, mend: str) -> None:
    """Refuse inputs that differ from those recorded; what one side lacks is not compared.

    Raises:
        InputError: the first of them that differs.
    """
    difference = _first_difference(recorded, found, repr(str(folder)))
    if difference is not None:
        raise InputError(f"{difference}; allowed is the same, {mend}")


def why_no_longer(recorded: Digests, run: RunConfig, now: Present) -> str | None:
    """Say why a run may end in another way now than it did: its inputs have changed.

    Args:
        recorded: digests of the inputs at that time.
        run: its settings.
        now: the inputs that are there now; what cannot be read is not compared.

    Returns:
        The reason, or ``None`` if they are the same.
    """
    if not recorded:
        return f"it was {OLDER}"
    found, _ = now.of(run)
    return _first_difference(recorded, found, "it")


def recorded_in(result: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests in a checked ``result.json`` or ``routing.json``; older ones have none."""
    inputs = result.get("inputs", {})
    return {name: inputs[name] for name in NAMES if name in inputs}


def recorded_beside(adapter: Path) -> dict[str, str]:
    """Return the digests beside an adapter; none where others have trained it.

    Raises:
        InputError: one of them is no text.
    """
    path = adapter / INPUTS
    return _digests_of(read_json(path), path) if path.exists() else {}


def _named_anew(overrides: Sequence[str], task: TaskSettings) -> set[str]:
    """The inputs that the user names on purpose, so that they may differ from training's."""
    names = {name for text in overrides for name in set_by(text)}
    new = {MODEL, TOKENIZER} if names & {"model.name", "model.revision"} else set()
    if any(is_of_data(name, task.name) for name in names):
        new.add(DATA)
    return new


def _recorded_at(folder: Path) -> dict[str, str]:
    """The digests in a folder's ``result.json``, whatever else is in there."""
    path = folder / RESULT
    return _digests_of(read_json(path).get("inputs", {}), path) if path.exists() else {}


def _digests_of(inputs: object, path: Path) -> dict[str, str]:
    known = inputs if isinstance(inputs, dict) else {"": inputs}
    wrong = {n: d for n, d in known.items() if not (isinstance(d, str) and d.isascii())}
    if wrong:
        raise InputError(
            f"{str(path)!r} holds {wrong!s:.80} in its inputs, allowed are digests as text: "
            "restore it"
        )
    return {name: str(known[name]) for name in NAMES if name in known}


def _first_difference(recorded: Digests, found: Digests, made: str) -> str | None:
    """The first input that differs, in words."""
    for name, said in NAMES.items():
        before, after = recorded.get(name), found.get(name)
        if before is not None and after is not None and before != after:
            return (
                f"{said} is not the one that {made} was made with: it was {_shortened(before)}, "
                f"now it is {_shortened(after)}"
            )
    return None


def _digests_now(settings: ModelSettings | TaskSettings) -> Digests | str:
    """The digests of a model or of a task's data, or why there are none."""
    try:
        if isinstance(settings, ModelSettings):
            what = "the base model"
            return model_digests(locate(settings.name, settings.revision))
        what = "the task's data"
        return {DATA: data_digest(load_task(settings))}
    except InputError as error:
        return f"{what} could not be compared ({error})"


def _shortened(digest: str) -> str:
    return digest if "@" in digest else f"{digest:.19}…"


@cache  # a package is looked for on the whole path
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # SchemaBank itself in a source tree, or a task's data package
        return None
