"""Results of the lm-evaluation-harness, written with ``--output_path`` and ``--log_samples``.

A run's folder has ``results_DATE.json``, and ``samples_TASK_DATE.jsonl`` with one line for each
item and filter. The format is that of `save_results_aggregated` and `save_results_samples` in
https://github.com/EleutherAI/lm-evaluation-harness/blob/034ab03621186e68aa1f73ee1508370580ea77b5/lm_eval/loggers/evaluation_tracker.py
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.files import is_number, json_lines, read_json
from schemabank.report.reading.itemresults import OTHERWISE, ScoredItem, TaskRun, as_score
from schemabank.report.reading.places import ResultFile

RESULTS = re.compile(r"results_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.json", re.ASCII)
ROUNDING = 1e-6
NO_METRICS = ("alias", "name", "sample_len")
NOT_FILTERED = "none"


def is_results(path: Path) -> bool:
    """Whether a file's name is that of results of this tool."""
    return RESULTS.fullmatch(path.name) is not None


def read_run(file: ResultFile, metric: str | None, cluster_by: str | None) -> Iterator[TaskRun]:
    """Read the items of all tasks of one evaluation.

    Args:
        file: ``results_DATE.json``.
        metric: name of the score, with or without its filter; ``None`` for each task's first one.
        cluster_by: dotted name of a field of the items' documents.

    Raises:
        InputError: a file is missing or malformed, or the items are not those of the results.
    """
    tree: dict[str, Any] = read_json(file.path)
    results = tree.get("results")
    if not isinstance(results, dict) or not all(isinstance(own, dict) for own in results.values()):
        raise InputError(
            f"{str(file.path)!r} has no object 'results' of tasks: allowed is what lm_eval writes, "
            "restore it"
        )
    groups = tree.get("group_subtasks")
    groups = groups if isinstance(groups, dict) else {}
    arm, seed = file.named(str(tree.get("model_name") or file.path.parent.name))
    found = RESULTS.fullmatch(file.path.name)
    assert found is not None
    tasks = [name for name in results if not groups.get(name)]  # a group has no items of its own
    for task in tasks:
        if "/" in task or not task.isprintable():
            raise InputError(
                f"{str(file.path)!r} has the task {task!r:.100}: allowed are names that a file may "
                "have, rename the task"
            )
        samples = file.path.with_name(f"samples_{task}_{found['date']}.jsonl")
        if not samples.exists():
            raise InputError(
                f"{str(file.path)!r} has the task {task!r:.80}, but {samples.name} is not beside "
                "it: run lm_eval with --log_samples, or restore the file"
            )
        chosen = _chosen_metric(results[task], _lower_is_better(tree, task), metric, task, file)
        items, prompts = _read_items(samples, chosen, cluster_by)
        _check_complete(file, task, chosen, tree, items)
        conditions = _conditions(tree, task) | {"prompts": prompts}
        yield TaskRun(arm, seed, task, ",".join(chosen), str(samples), items, conditions)


def _lower_is_better(tree: Mapping[str, Any], task: str) -> set[str]:
    known = tree.get("higher_is_better")
    own = known.get(task) if isinstance(known, dict) else None
    own = own if isinstance(own, dict) else {}
    return {name for name, is_higher in own.items() if is_higher is False}


def _chosen_metric(
    own: Mapping[str, Any], lower: set[str], metric: str | None, task: str, file: ResultFile
) -> tuple[str, str]:
    """A metric and its filter: as asked, or the task's first of which more is better."""
    names = [name for name in own if "," in name and "_stderr," not in name]
    pairs = [(name, by) for name, _, by in (full.partition(",") for full in names)]
    usable = [(name, by) for name, by in pairs if name not in lower]
    for name, by in usable:
        if metric in {None, name, f"{name},{by}"}:
            return name, by
    listed = ", ".join(f"{name},{by}" for name, by in usable) or "none here"
    less = ", ".join(sorted({name for name, _ in pairs} & lower))
    raise InputError(
        f"{str(file.path)!r}: task {task!r:.80} has no metric {metric or 'that can be compared'}: "
        f"allowed are those of which more is better ({listed}{f'; not {less}' if less else ''}): "
        f"name one with --metric, or {OTHERWISE}"
    )


def _read_items(
    samples: Path, metric: tuple[str, str], cluster_by: str | None
) -> tuple[dict[str, ScoredItem], str]:
    """The items of one filter, and a digest of their prompts."""
    name, by = metric
    items: dict[str, ScoredItem] = {}
    prompts: dict[str, str] = {}
    for where, row in json_lines(samples):
        if row.get("filter", NOT_FILTERED) != by:
            continue
        if "doc_id" not in row or name not in row:
            lacks = "doc_id" if "doc_id" not in row else f"metric {name!r:.80}"
            raise InputError(f"{where} has no {lacks}: allowed is what lm_eval writes, restore it")
        key = str(row["doc_id"])
        if key in items:
            raise InputError(
                f"{where} has the doc_id {key:.80} for the filter {by!r:.80} a second time: "
                "allowed is once, restore the file"
            )
        content = f"{row.get('doc_hash', '')}{row.get('target_hash', '')}"
        cluster = None if cluster_by is None else field_of(row.get("doc"), cluster_by, where)
        items[key] = ScoredItem(as_score(row[name], where), content, cluster)
        prompts[key] = str(row.get("prompt_hash", ""))
    said = json.dumps(prompts, sort_keys=True)
    return items, hashlib.sha256(said.encode()).hexdigest()[:12] if any(prompts.values()) else ""


def field_of(tree: object, name: str, where: str) -> str:
    """Return a field that names an item's cluster.

    Raises:
        InputError: it is not there, or holds more than a text or a number.
    """
    value = tree
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        known = ", ".join(map(str, tree)) if isinstance(tree, dict) else "no fields"
        raise InputError(
            f"{where} has {value!r:.60} as its {name!r:.80}, allowed is a text or a whole number; "
            f"it has {known:.200}: name a field of every item with --cluster-by"
        )
    return str(value)


def _check_complete(
    file: ResultFile,
    task: str,
    metric: tuple[str, str],
    tree: Mapping[str, Any],
    items: Mapping[str, ScoredItem],
) -> None:
    """Refuse items that are not as many, or not of the mean, that the results say."""
    counts = tree.get("n-samples")
    own = counts.get(task) if isinstance(counts, dict) else None
    number = own.get("effective") if isinstance(own, dict) else None
    if number is not None and number != len(items):
        raise InputError(
            f"{str(file.path)!r} says that {number!r:.40} items of {task!r:.80} were scored, but "
            f"its samples have {len(items)} for the filter {metric[1]!r:.80}: restore the "
            "file of samples"
        )
    said = tree["results"][task][",".join(metric)]
    mean = sum(item.score for item in items.values()) / max(len(items), 1)
    if not is_number(said, at_most=1) or abs(said - mean) > ROUNDING:
        raise InputError(
            f"{str(file.path)!r} has {','.join(metric)} of {task!r:.80} as {said!r:.40}, but its "
            f"items have the mean {mean:.6g}: allowed are metrics that are means over items, name "
            "one with --metric, or restore the files"
        )


def _conditions(tree: Mapping[str, Any], task: str) -> dict[str, str]:
    """What should be alike in all runs of a task."""
    found = {}
    for key in ("versions", "n-shot"):
        own = tree.get(key)
        if isinstance(own, dict) and task in own:
            found[key] = str(own[task])
    configs = tree.get("configs")
    config = configs.get(task) if isinstance(configs, dict) else None
    if isinstance(config, dict) and config.get("generation_kwargs"):
        found["generation_kwargs"] = json.dumps(config["generation_kwargs"], sort_keys=True)
    for key in ("system_instruction_sha", "chat_template_sha", "fewshot_as_multiturn"):
        if tree.get(key) is not None:
            found[key] = str(tree[key])
    return found
