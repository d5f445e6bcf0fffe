"""Runs of Weights & Biases: a CSV that was exported from a table of runs, or runs' summaries.

Both have scores of whole runs and none of single items, so that runs are compared over seeds alone.
The names are those of https://docs.wandb.ai: the columns Name, State and Group, the file
``wandb-summary.json``. Which of a run's many numbers is its score, only the user knows.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from schemabank.common.errors import InputError, did_you_mean
from schemabank.common.files import read_json
from schemabank.report.reading.itemresults import FLOAT_DIGITS, as_score
from schemabank.report.reading.places import ResultFile, arm_and_seed
from schemabank.report.reading.table import (
    ScoreRow,
    ScoreTable,
    head_of,
    known,
    parse_share,
    read_cells,
    read_text,
)

WANDB = "Weights & Biases"
SUMMARY = "wandb-summary.json"
COLUMNS = ("Name", "State")  # of every table that is exported
GROUP, FINISHED = "Group", "finished"
MOST_NAMED = 8  # columns in a message
# Words in the name of a number of which less is better.
LESS_IS_BETTER = {"loss", "perplexity", "ppl", "error", "wer", "cer", "mse", "mae", "rmse", "nll"}
SEEDS = "a column of the seed (config), a run's name such as lora-seed1, or --arm NAME:SEED=PATH"


def is_exported_table(path: Path) -> bool:
    """Whether the head of a CSV is that of an exported table.

    Raises:
        InputError: it cannot be read.
    """
    return set(COLUMNS) <= set(head_of(read_text(path)[0]))


def read_exported_table(path: Path, metric: str | None) -> ScoreTable:
    """Read an exported table: its arms are the column ``arm``, the group, or the runs' names.

    Raises:
        InputError: no or another metric, a run that did not finish, or one without a score.
    """
    text, digest = read_text(path)
    head = head_of(text)
    lines = list(read_cells(text, path, COLUMNS, [name for name in head if name not in COLUMNS]))
    score = _checked_metric(metric, head, _shares(head, lines), path.name)
    seed_column, arm_column = _column("seed", head, path), _column("arm", head, path)
    rows = []
    for line, cells in lines:
        where = f"{path.name} line {line}, the run {cells['Name']!r:.80},"
        if cells["State"].lower() != FINISHED:
            raise InputError(
                f"{where} has the state {cells['State']!r:.40}, allowed is {FINISHED!r}: leave it "
                "out of the export, or let it finish"
            )
        if not known(cells[score]):
            raise InputError(f"{where} has no {score!r}: leave it out of the export, or log it")
        arm, seed = arm_and_seed([cells["Name"]])
        arm = known(cells.get(arm_column, "")) or known(cells.get(GROUP, "")) or arm or ""
        seed = known(cells.get(seed_column, "")) or seed
        exact, decimals = parse_share(cells[score], where)
        rows.append(ScoreRow(arm, "", seed, exact, decimals, None, line))
    return _table(path.name, digest, rows)


def is_summary(path: Path, tree: Mapping[str, object]) -> bool:
    """Whether a JSON file is a run's summary."""
    return path.name == SUMMARY or {"_runtime", "_timestamp", "_step"} <= set(tree)


def read_summaries(name: str, files: Sequence[ResultFile], metric: str | None) -> ScoreTable:
    """Read summaries, whose arms and seeds are named by folders or by ``--arm``.

    Raises:
        InputError: no or another metric, or a summary without an arm or a score.
    """
    rows = []
    for line, file in enumerate(files, start=1):
        found = dict(_numbers(read_json(file.path)))
        shares = [key for key, value in found.items() if 0 <= value <= 1]
        score = _checked_metric(metric, list(found), shares, str(file.path))
        if not file.arm:
            raise InputError(f"{str(file.path)!r} is of no arm: name it by --arm NAME:SEED=PATH")
        exact = Fraction(as_score(found[score], f"{str(file.path)!r}"))
        rows.append(ScoreRow(file.arm, "", file.seed, exact, FLOAT_DIGITS, None, line))
    said = json.dumps([[row.arm, row.seed, str(row.exact)] for row in rows])
    return _table(name, hashlib.sha256(said.encode()).hexdigest(), rows)


def _table(name: str, digest: str, rows: Sequence[ScoreRow]) -> ScoreTable:
    """Refuse runs of which nobody knows which is which."""
    seen: dict[tuple[str, str | None], int] = {}
    with_seed = {row.arm for row in rows if row.seed is not None}
    for row in rows:
        first = seen.setdefault((row.arm, row.seed), row.line)
        if first != row.line or (row.seed is None and row.arm in with_seed):
            seed = "no seed" if row.seed is None else f"seed {row.seed}"
            raise InputError(
                f"{name} has several runs of arm {row.arm!r}, one of them (row {row.line}) with "
                f"{seed}: allowed is one run a seed; seeds come from {SEEDS}"
            )
    if not with_seed:
        raise InputError(f"{name} has no run with a seed, which a comparison takes: give {SEEDS}")
    return ScoreTable(name, digest, tuple(rows), "", tool=WANDB)


def _checked_metric(
    metric: str | None, names: Sequence[str], shares: Sequence[str], where: str
) -> str:
    """The score's name, if it can be one."""
    usable = [name for name in shares if not _is_less_better(name)]
    named = ", ".join(usable[:MOST_NAMED]) + (" and others" * (len(usable) > MOST_NAMED))
    allowed = f"allowed are shares from 0 to 1 of which more is better ({named or 'none here'})"
    if metric is None:
        raise InputError(
            f"{where} is of {WANDB}, whose runs have many numbers: name the score by --metric, "
            f"{allowed}"
        )
    if metric not in names:
        guess = did_you_mean(metric, usable)
        raise InputError(f"--metric {metric!r:.80} is not in {where}{guess}: {allowed}")
    if _is_less_better(metric):
        raise InputError(f"--metric {metric!r:.80} is a number of which less is better: {allowed}")
    return metric


def _is_less_better(name: str) -> bool:
    return bool(LESS_IS_BETTER & set(re.findall(r"[a-z]+", name.lower())))


def _shares(head: Sequence[str], lines: Sequence[tuple[int, Mapping[str, str]]]) -> list[str]:
    """The columns whose every cell is a share."""
    return [name for name in head if lines and all(_is_share(row[name]) for _, row in lines)]


def _is_share(cell: str) -> bool:
    try:
        parse_share(cell, "")
    except InputError:
        return False
    return True


def _column(name: str, head: Sequence[str], path: Path) -> str:
    """The column of a setting, whatever it is nested in; empty where there is none."""
    found = [own for own in head if re.split(r"[./]", own.removesuffix(".value"))[-1] == name]
    if len(found) > 1:
        raise InputError(
            f"{path.name} has the columns {', '.join(found)}, of which each may be the {name}: "
            "allowed is one, leave the others out of the export"
        )
    return found[0] if found else ""


def _numbers(tree: Mapping[str, object], start: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a summary, nested ones by dotted names; without those of the library."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{start}{name}.")
        elif isinstance(value, int | float) and not name.startswith("_"):
            yield f"{start}{name}", value
