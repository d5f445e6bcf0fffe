"""A table of items of any tool: ``arm,seed,item,score[,task][,cluster]``, one answer a row."""

from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.report.reading.itemresults import ItemResults, ScoredItem, TaskRun, item_results
from schemabank.report.reading.table import (
    NO_ARM,
    OPTIONAL,
    head_of,
    known,
    parse_share,
    read_cells,
    read_text,
)

COLUMNS = ("arm", "seed", "item", "score")
MORE = ("task", "cluster")
assert "item" not in OPTIONAL  # which tells the two kinds of tables apart


def is_item_table(path: Path) -> bool:
    """Whether the head of a CSV names items.

    Raises:
        InputError: it cannot be read.
    """
    return "item" in head_of(read_text(path)[0])


def read_item_table(path: Path) -> ItemResults:
    """Read a table of items.

    Raises:
        InputError: the file cannot be read, a line is wrong, or runs have other items.
    """
    runs: dict[tuple[str, str | None, str], dict[str, ScoredItem]] = {}
    for line, cells in read_cells(read_text(path)[0], path, COLUMNS, MORE):
        where = f"{path.name} line {line}"
        arm, item = cells["arm"], cells["item"]
        if not arm or arm.lower() in NO_ARM or not item:
            raise InputError(
                f"{where}: arm is {arm!r:.80} and item {item!r:.80}, allowed are names: write what "
                "was trained, as lora, and the item's id"
            )
        seed, task = known(cells["seed"]) or None, known(cells.get("task", "")) or path.stem
        own = runs.setdefault((arm, seed, task), {})
        if item in own:
            raise InputError(
                f"{where}: arm {arm!r:.80}, seed {seed or ''!r:.80} and task {task!r:.80} have the "
                f"item {item!r:.60} on another line already: an item is one row, remove one"
            )
        score = float(parse_share(cells["score"], where)[0])
        own[item] = ScoredItem(score, cluster=known(cells.get("cluster", "")) or None)
    found = [TaskRun(*place, "score", path.name, items) for place, items in runs.items()]
    return item_results(path.name, "a table of items", found)
