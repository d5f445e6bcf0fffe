"""The command ``schemabank routing``: analyses a run once and keeps the result in a folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.extras import require
from schemabank.common.folders import check_new, new_folder
from schemabank.config.file import to_yaml
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.report.routing.analysis import analyse
from schemabank.report.routing.report import JSON, write_report
from schemabank.report.routing.routed import RoutingQuestion
from schemabank.runs.effects import idle_in_routing, sentences
from schemabank.runs.folder import ROUTING
from schemabank.runs.inputs import check_same, check_used_again, recorded_in
from schemabank.runs.loading import resolve_device, resolved
from schemabank.runs.located import asked_of_routing
from schemabank.runs.progress import Reporter
from schemabank.runs.stored import read_routing
from schemabank.tasks.catalog import TASKS


def route(
    folder: Path,
    question: RoutingQuestion,
    overrides: Sequence[str],
    out: Path | None,
    reporter: Reporter,
) -> tuple[Path, Mapping[str, Any]]:
    """Analyse a run's routing and write the report; one that is there already is reused.

    Args:
        folder: a finished run of the arm ``schemabank``.
        question: what is asked.
        overrides: ``a.b=value`` settings on top of the run's own.
        out: folder to write; must not exist. ``None``: inside the run's folder, under a hash of
            the question.
        reporter: where progress goes.

    Returns:
        The folder, and the contents of its ``routing.json``.

    Raises:
        InputError: no such run, no bank, a field that the data lacks, ``out`` exists, a setting
            plays no part, the analysis that is there is damaged, or
            what draws is not installed.
    """
    run, (own, adapter) = asked_of_routing(folder, overrides)
    (run,) = resolved([run], resolve_device(run.engine.device), note=reporter.note)
    for sentence in sentences(idle_in_routing(overrides, run, split=question.split)):
        reporter.note(sentence)
    found = check_used_again(folder, adapter, run, overrides, reporter.note)
    place = out or folder / ROUTING / _question_id(run, question)
    if out is None and (place / JSON).is_file():
        known = read_routing(place / JSON)
        mend = "restore it, or name a new folder with --out"
        check_same(recorded_in(known), found, place, mend=mend)
        _check_clusters(known, place)
        reporter.note(f"reused: {place} (same question, finished)")
        return place, known
    check_new(place)
    require("report", "schemabank routing draws heat maps and")
    report = analyse(folder, run, question, reporter, trained_on=own.task)
    report["inputs"] = dict(found)
    with new_folder(place) as partial:
        write_report(partial, report)
    return place, report


def _check_clusters(known: Mapping[str, Any], place: Path) -> None:
    """Refuse an analysis that took examples for independent that were drawn together.

    Raises:
        InputError: it is used again, and its shuffles would say too much.
    """
    cluster = TASKS[known["task"]].cluster if known["task"] in TASKS else None
    if cluster is not None and known.get("num_clusters") is None:
        raise InputError(
            f"{str(place)!r} is of an older version, which shuffled examples of {known['task']} as "
            f"if those with one {cluster} had not been drawn together: remove it, or name a new "
            "folder with --out"
        )


def _question_id(run: RunConfig, question: RoutingQuestion) -> str:
    settings = to_yaml(run.model_copy(update={"engine": EngineSettings()}))
    text = settings + json.dumps(asdict(question), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
