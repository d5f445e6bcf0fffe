"""Eval logs of Inspect (inspect_ai): one JSON object, or a zip of JSON objects (``.eval``).

A log holds one task and one model. A sample has scores by the name of the scorer; several epochs
of a sample are answers to the same item. The formats are those of
https://github.com/UKGovernmentBEIS/inspect_ai/blob/44b41cd36a6bf4b63dc7dfb17554fc7e0eed3566/src/inspect_ai/log/_recorders/eval.py
and its values become numbers as in its `value_to_float` (``scorer/_metric.py``), but what that
cannot read is refused here.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from schemabank.common.archives import zip_names, zip_texts
from schemabank.common.errors import InputError
from schemabank.common.files import parse_json, read_json
from schemabank.report.reading.itemresults import ScoredItem, TaskRun, as_score
from schemabank.report.reading.lmeval import field_of
from schemabank.report.reading.places import ResultFile

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
SAMPLING = "model_generate_config"
CONDITIONS = ("task_version", "task_args", "config", "solver", "solver_args", SAMPLING)
HEADER, SAMPLES = "header.json", "samples/"

Log = Mapping[str, Any]


def is_log(tree: Mapping[str, object]) -> bool:
    """Whether what a JSON file holds is a log of this tool."""
    return isinstance(tree.get("eval"), dict) and "status" in tree


def read_log(file: ResultFile, metric: str | None, cluster_by: str | None) -> TaskRun:
    """Read the items of a log.

    Args:
        file: the log.
        metric: name of the scorer; ``None`` for the first.
        cluster_by: dotted name of a field of the samples' metadata.

    Raises:
        InputError: it cannot be read, was not finished, or a sample has no score.
    """
    if file.path.suffix == ".eval":
        header, samples = _unzipped(file.path)
    else:
        header = read_json(file.path)
        samples = _listed(header, file.path)
    about = header.get("eval")
    if not isinstance(about, dict) or not isinstance(about.get("task"), str):
        raise InputError(
            f"{str(file.path)!r} has no object 'eval' that names a task: allowed is a log of "
            "Inspect, restore it"
        )
    if header.get("status") != "success":
        raise InputError(
            f"{str(file.path)!r} has the status {header.get('status')!r:.40}, allowed is "
            "'success': finish the evaluation (inspect eval-retry), or move the log away"
        )
    arm, seed = file.named(str(about.get("model")))
    chosen = metric or _first_score(header, file.path)
    items = _items(_complete(samples, header, file.path), chosen, cluster_by)
    return TaskRun(arm, seed, about["task"], chosen, str(file.path), items, _conditions(about))


def as_number(value: object, where: str) -> float:
    """Return the number that a score's value stands for.

    Raises:
        InputError: it stands for none from 0 to 1.
    """
    if isinstance(value, str):
        known = LETTERS.get(value, WORDS.get(value.lower()))
        if known is not None:
            return known
        with contextlib.suppress(ValueError):
            value = float(value)
    return as_score(value, where)


def _listed(tree: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Log]]:
    samples = tree.get("samples")
    if not isinstance(samples, list) or not all(isinstance(own, dict) for own in samples):
        raise InputError(
            f"{str(path)!r} has no list 'samples': allowed is a log with its samples, write it "
            "with log_samples=True"
        )
    for number, sample in enumerate(samples, start=1):
        yield f"{path} sample {number}", sample


def _unzipped(path: Path) -> tuple[Log, Iterator[tuple[str, Log]]]:
    """The header of a zipped log, and its samples, which are read when they are asked for."""
    names = zip_names(path)
    if HEADER not in names:
        raise InputError(
            f"{str(path)!r} has no {HEADER}: allowed is a finished log of Inspect, finish the "
            "evaluation (inspect eval-retry), or move the log away"
        )
    ((_, header),) = _objects(path, [HEADER])
    return header, _objects(path, [name for name in names if name.startswith(SAMPLES)])


def _objects(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Log]]:
    for where, text in zip_texts(path, names):
        tree = parse_json(text, where)
        if not isinstance(tree, dict):
            raise InputError(f"{where} holds no JSON object: restore the log")
        yield where, tree


def _complete(
    samples: Iterator[tuple[str, Log]], header: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, Log]]:
    """Pass samples on; refuse others than as many as the results say."""
    number = 0
    for number, own in enumerate(samples, start=1):  # noqa: B007 -- their number is used below
        yield own
    results = header.get("results")
    said = results.get("total_samples") if isinstance(results, dict) else None
    if number == 0 or (isinstance(said, int) and said != number):
        raise InputError(
            f"{str(path)!r} says that it has {said} samples, but holds {number}: restore the log"
        )


def _conditions(about: Mapping[str, Any]) -> dict[str, str]:
    """What should be alike in all runs; the seed of sampling may differ."""
    found = {key: about[key] for key in CONDITIONS if about.get(key) not in (None, {})}
    if isinstance(sampling := found.pop(SAMPLING, None), dict):
        found[SAMPLING] = {key: value for key, value in sampling.items() if key != "seed"}
    return {key: json.dumps(value, sort_keys=True) for key, value in found.items()}


def _first_score(header: Mapping[str, Any], path: Path) -> str:
    """The first score of the results; of a scorer with several values, as ``SCORER.PART``."""
    results = header.get("results")
    scores = results.get("scores") if isinstance(results, dict) else None
    first = scores[0] if isinstance(scores, list) and scores else None
    first = first if isinstance(first, dict) else {}
    name, scorer = first.get("name"), first.get("scorer")
    if not isinstance(name, str):
        raise InputError(
            f"{str(path)!r} names no score in its results: allowed is a log that was scored, run "
            "inspect score, or name the scorer with --metric"
        )
    return f"{scorer}.{name}" if isinstance(scorer, str) and scorer != name else name


def _items(
    samples: Iterator[tuple[str, Log]], metric: str, cluster_by: str | None
) -> dict[str, ScoredItem]:
    """All items, whose scores are means over epochs."""
    values: dict[str, dict[object, float]] = {}
    items: dict[str, ScoredItem] = {}
    for where, sample in samples:
        key, epoch = json.dumps(sample.get("id")), sample.get("epoch", 1)
        if "id" not in sample or not isinstance(epoch, int):
            raise InputError(f"{where} has no id or no epoch: restore the log")
        own = values.setdefault(key, {})
        if epoch in own:
            raise InputError(f"{where} has the id {key:.60} and epoch {epoch} a second time")
        own[epoch] = as_number(_value(sample, metric, where), where)
        said = json.dumps([sample.get("input"), sample.get("target")], sort_keys=True)
        content = hashlib.sha256(said.encode()).hexdigest()
        cluster = (
            None if cluster_by is None else field_of(sample.get("metadata"), cluster_by, where)
        )
        items.setdefault(key, ScoredItem(0.0, content, cluster))
    means = {key: sum(own.values()) / len(own) for key, own in values.items()}
    return {key: ScoredItem(means[key], own.content, own.cluster) for key, own in items.items()}


def _value(sample: Mapping[str, Any], metric: str, where: str) -> object:
    """A sample's value of the score; one of a score with several values is named behind a dot."""
    scores = sample.get("scores")
    scores = scores if isinstance(scores, dict) else {}
    name, _, part = (metric, "", "") if metric in scores else metric.partition(".")
    own = scores.get(name)
    value = own.get("value") if isinstance(own, dict) else None
    if part and isinstance(value, dict):
        value = value.get(part)
    if value is None or isinstance(value, dict | list):
        known = ", ".join(scores) or "none, as a sample that failed"
        raise InputError(
            f"{where} has no score {metric!r} (its scores are {known}): allowed is one number or "
            "letter for every sample, name the scorer with --metric (SCORER or SCORER.PART), or "
            "repeat what failed (inspect eval-retry)"
        )
    return value
