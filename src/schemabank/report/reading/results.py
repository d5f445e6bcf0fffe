"""Results of other tools: which tool wrote what lies at a place, and its runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.reading import inspectlogs, lmeval
from schemabank.report.reading.itemresults import ItemResults, TaskRun, item_results
from schemabank.report.reading.places import Place, ResultFile, result_files

LM_EVAL, INSPECT = "lm-evaluation-harness", "Inspect"


def holds_results(path: Path) -> bool:
    """Whether a folder or file is of a tool that is read here.

    Raises:
        InputError: a file there cannot be read.
    """
    return any(tool_of(file.path) for file in result_files(Place(path), suffixes=SUFFIXES))


SUFFIXES = (".json", ".eval")


def tool_of(path: Path) -> str | None:
    """Return the tool that wrote a file; ``None`` for other files."""
    if lmeval.is_results(path):
        return LM_EVAL
    return INSPECT if path.suffix in SUFFIXES and inspectlogs.is_log(path) else None


def read_results(
    places: Sequence[Place], metric: str | None, cluster_by: str | None
) -> ItemResults:
    """Read all runs at some places.

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
                f"{str(place.path)!r} holds no results of {LM_EVAL} (results_DATE.json) and no log "
                f"of {INSPECT} (.eval or .json): name a folder that does"
            )
        for tool, file in found:
            files.setdefault(tool, []).append(file)
    if len(files) > 1:
        raise InputError(f"the results are of {' and '.join(files)}: report one tool at a time")
    ((tool, own),) = files.items()
    name = places[0].path.resolve().name if len(places) == 1 else ", ".join(_named(places))
    return item_results(name, tool, _runs(tool, own, metric, cluster_by))


def _of_tools(place: Place) -> Iterator[tuple[str, ResultFile]]:
    for file in result_files(place, suffixes=SUFFIXES):
        if (tool := tool_of(file.path)) is not None:
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
