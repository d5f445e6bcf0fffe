"""Results of other tools: which tool wrote what lies at a place, and its runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.files import LARGEST_JSON, parse_json, read_text
from schemabank.report.reading import inspectlogs, lmeval, peftresults, wandbruns
from schemabank.report.reading.itemresults import ItemResults, TaskRun, item_results
from schemabank.report.reading.places import Place, ResultFile, result_files
from schemabank.report.reading.table import ScoreTable

LM_EVAL, INSPECT, PEFT = "lm-evaluation-harness", "Inspect", peftresults.PEFT
WANDB = wandbruns.WANDB
SUFFIXES = (".json", ".eval")


def holds_evaluations(path: Path) -> bool:
    """Whether a folder or file is of a tool that is read here.

    Raises:
        InputError: a file there cannot be read.
    """
    return any(tool_of(file.path) for file in result_files(Place(path), suffixes=SUFFIXES))


def tool_of(path: Path) -> str | None:
    """Return the tool that wrote a file, by its name or by what it holds; ``None`` for others.

    Raises:
        InputError: a JSON file cannot be read.
    """
    if path.suffix == ".eval":
        return INSPECT
    if lmeval.is_results(path):
        return LM_EVAL
    tree = parse_json(read_text(path, at_most=LARGEST_JSON), str(path))
    if not isinstance(tree, dict):
        return None
    if inspectlogs.is_log(tree):
        return INSPECT
    if wandbruns.is_summary(path, tree):
        return WANDB
    return PEFT if peftresults.is_peft_result(tree) else None


def read_evaluations(
    places: Sequence[Place], metric: str | None, cluster_by: str | None
) -> ItemResults | ScoreTable:
    """Read all runs at some places: their items, or their scores where no items are known.

    Args:
        places: folders or files.
        metric: name of the score; ``None`` for each task's first.
        cluster_by: field that names an item's cluster.

    Raises:
        InputError: there are none, of several tools, or of other items.
    """
    files: dict[str, list[ResultFile]] = {}
    for place in places:
        found = list(_of_tools(place))
        if not found:
            raise InputError(
                f"{str(place.path)!r} holds no results of {LM_EVAL} (results_DATE.json) or {PEFT}, "
                f"no log of {INSPECT} (.eval or .json) and no summary of {WANDB} "
                f"({wandbruns.SUMMARY}): name a folder that does"
            )
        for tool, file in found:
            files.setdefault(tool, []).append(file)
    if len(files) > 1:
        raise InputError(f"the results are of {' and '.join(files)}: report one tool at a time")
    ((tool, own),) = files.items()
    name = places[0].path.resolve().name if len(places) == 1 else ", ".join(_named(places))
    if tool == PEFT:
        _refuse_without_items(tool, metric, cluster_by)
        return peftresults.read_peft_results(name, own)
    if tool == WANDB:
        _refuse_without_items(tool, None, cluster_by)
        return wandbruns.read_summaries(name, own, metric)
    return item_results(name, tool, _runs(tool, own, metric, cluster_by))


def _refuse_without_items(tool: str, metric: str | None, cluster_by: str | None) -> None:
    for option, value in (("--metric", metric), ("--cluster-by", cluster_by)):
        if value is not None:
            one = f"the one score {peftresults.SCORE!r} and " if tool == PEFT else ""
            raise InputError(
                f"{option} {value!r}: not allowed with results of {tool}, which have {one}no "
                "items: leave it out"
            )


def _of_tools(place: Place) -> Iterator[tuple[str, ResultFile]]:
    for file in result_files(place, suffixes=SUFFIXES):
        tool = tool_of(file.path)
        if tool == PEFT:  # whose files name their arm and seed, whatever folder they lie in
            yield tool, ResultFile(file.path, place.arm, place.seed)
        elif tool is not None:
            yield tool, file


def _named(places: Sequence[Place]) -> list[str]:
    return list(dict.fromkeys(place.arm or place.path.name for place in places))


def _runs(
    tool: str, files: Sequence[ResultFile], metric: str | None, cluster_by: str | None
) -> Iterator[TaskRun]:
    for file in files:
        if tool == LM_EVAL:
            yield from lmeval.read_run(file, metric, cluster_by)
        else:
            yield inspectlogs.read_log(file, metric, cluster_by)
