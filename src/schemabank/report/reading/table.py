"""A plain table of results: ``arm,epochs,seed,score[,n_items]``, one run a row.

A row without a seed is a reference, such as the untouched model or the best constant answer.
Scores are kept as exact fractions of what is printed, so that figures derived from them round as
they do on paper.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from pathlib import Path
from statistics import mean

from schemabank.common.errors import InputError
from schemabank.common.files import read_bytes

LARGEST_TABLE = 64 * 2**20
COLUMNS = ("arm", "epochs", "seed", "score")
OPTIONAL = ("n_items",)
SHARE = re.compile(r"(\d*)\.?(\d*)(?:[eE]([+-]?\d{1,2}))?", re.ASCII)
LONGEST_NUMBER = 40  # characters
MOST_ITEMS = 10**9
CONTROLS = ("lora", "baseline", "base", "control")
# How pandas, R, Julia and databases write a cell that holds nothing; case does not count.
MISSING = frozenset({"na", "nan", "n/a", "#n/a", "<na>", "<nan>", "null", "none", "nil", "missing"})
NO_ARM = MISSING - {"none"}  # which an arm may well be called


@dataclass(frozen=True)
class ScoreRow:
    """One run, or one reference.

    Attributes:
        arm: what was trained.
        setting: or any other setting, as text; may be empty.
        seed: as text; ``None`` for a reference.
        exact: the score as printed, a share in [0, 1].
        decimals: of the printed share.
        num_items: that it was scored on, where the table says so.
        line: in the file.
    """

    arm: str
    setting: str
    seed: str | None
    exact: Fraction
    decimals: int
    num_items: int | None
    line: int

    @property
    def score(self) -> float:
        """The score, a share in [0, 1]."""
        return float(self.exact)

    @property
    def num_correct(self) -> int | None:
        """The nearest count of right answers; ``None`` where the number of items is unknown."""
        return None if self.num_items is None else round(self.exact * self.num_items)


@dataclass(frozen=True)
class ScoreTable:
    """All rows of a file.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        rows: in the file's order.
        setting_name: what the column ``epochs`` stands for; empty where nothing varies.
        of_tasks: whether settings are tasks, among which nobody chooses a best one.
        tool: that wrote the results, where it keeps no scores of single items.
    """

    name: str
    sha256: str
    rows: tuple[ScoreRow, ...]
    setting_name: str = "epochs"
    of_tasks: bool = False
    tool: str = ""

    @property
    def references(self) -> list[ScoreRow]:
        """Rows without a seed."""
        return [row for row in self.rows if row.seed is None]

    @property
    def arms(self) -> list[str]:
        """Arms that have seeds, in the file's order."""
        return list(dict.fromkeys(row.arm for row in self.rows if row.seed is not None))

    @property
    def trained(self) -> list[str]:
        """Arms that have seeds and are no reference."""
        references = {row.arm for row in self.references}
        return [arm for arm in self.arms if arm not in references]

    def runs(self, arm: str, setting: str | None = None) -> list[ScoreRow]:
        """Return an arm's runs, of one setting or, for ``None``, of all."""
        return [
            row
            for row in self.rows
            if row.arm == arm and row.seed is not None and setting in (None, row.setting)
        ]

    def settings(self, *arms: str) -> list[str]:
        """Return the settings that all these arms have, in their order."""
        found = [{row.setting for row in self.runs(arm)} for arm in arms]
        every = dict.fromkeys(row.setting for row in self.runs(arms[0]))
        return in_order([name for name in every if all(name in own for own in found)])

    def scores(self, arm: str, setting: str) -> dict[str, Fraction]:
        """Return the scores by seed, seeds in their order."""
        found = {str(row.seed): row.exact for row in self.runs(arm, setting)}
        return {seed: found[seed] for seed in in_order(list(found))}

    def means(self, arm: str, settings: Sequence[str]) -> dict[str, Fraction]:
        """Return each seed's mean over settings, of seeds that have them all."""
        found = [self.scores(arm, name) for name in settings]
        seeds = [seed for seed in found[0] if all(seed in own for own in found)]
        return {seed: mean(own[seed] for own in found) for seed in seeds}


def read_scores(path: Path) -> ScoreTable:
    """Read a table of results.

    Raises:
        InputError: the file cannot be read, or a line is wrong; it is named.
    """
    text, digest = read_text(path)
    rows: list[ScoreRow] = []
    seen: dict[tuple[str, str, str | None], int] = {}
    for line, cells in read_cells(text, path, COLUMNS, OPTIONAL):
        row = _parse_row(cells, f"{path.name} line {line}", line)
        first = seen.setdefault((row.arm, row.setting, row.seed), line)
        if first != line:
            raise InputError(
                f"{path.name} line {line}: arm {row.arm!r:.80}, epochs {row.setting!r:.80}, seed "
                f"{row.seed or ''!r:.80} stands on line {first} already: a run is one row, remove "
                "one"
            )
        rows.append(row)
    with_seed = {row.arm for row in rows if row.seed}
    for row in rows:
        if row.seed is None and row.arm in with_seed:
            raise InputError(
                f"{path.name} line {row.line}: {row.arm!r:.80} has rows with a seed, and a row "
                "without one is a reference: give it its seed or a name of its own"
            )
    setting_name = "epochs" if any(row.setting for row in rows) else ""
    return ScoreTable(path.name, digest, tuple(rows), setting_name)


def choose_arms(table: ScoreTable, treatment: str | None, control: str | None) -> tuple[str, str]:
    """Return the treatment and the control: as asked, else the two arms that there are.

    Of two arms the control is the one called lora, baseline, base or control.

    Raises:
        InputError: an arm that is not there, the same twice, or more than two to choose from.
    """
    arms = table.arms
    for name in (treatment, control):
        if name is not None and name not in arms:
            raise InputError(
                f"arm {name!r:.80} has no runs in {table.name}: name one of {_arms_named(arms)}"
            )
    if treatment is None or control is None:
        given = treatment or control
        others = [arm for arm in arms if arm != given]
        if len(others) != 2 - (given is not None):
            raise _undecided(table.name, arms)
        if given is None:
            known = [arm for arm in others if arm.lower() in CONTROLS]
            if len(known) != 1:
                raise _undecided(table.name, arms)
            control = known[0]
            others.remove(control)
        treatment, control = treatment or others[0], control or others[0]
    if treatment == control:
        raise InputError(f"{treatment!r} is treatment and control: name two of {_arms_named(arms)}")
    if not table.settings(treatment, control):
        mend = (
            "task in common: evaluate both on one"
            if table.of_tasks
            else "setting of epochs in common: give rows of both with the same value in that column"
        )
        raise InputError(f"{treatment!r} and {control!r} have no {mend}")
    return treatment, control


def in_order(names: list[str]) -> list[str]:
    """Sort names by value where all are numbers, else keep their order."""
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return names
    return sorted(names, key=values.__getitem__) if all(map(isfinite, values.values())) else names


def read_cells(
    text: str, path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the stripped cells, by column, of every row of a CSV.

    Raises:
        InputError: a column is missing or unknown, or a row has too many or too few cells.
    """
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    head: list[str] = []
    try:
        for cells in lines:
            found = [cell.strip() for cell in cells]
            if not any(found):
                continue
            if odd := [cell for cell in found if not cell.isprintable()]:
                raise InputError(
                    f"{path.name} line {lines.line_num}: {odd[0]!r:.80} has characters that cannot "
                    "be printed: write plain text on one line"
                )
            if not head:
                _check_head(found, path, columns, optional)
                head = found
                continue
            if len(found) != len(head):
                raise InputError(
                    f"{path.name} line {lines.line_num}: {len(found)} cells for {len(head)} "
                    f"columns: give one each of {', '.join(head)}"
                )
            yield lines.line_num, dict(zip(head, found, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path.name} line {lines.line_num} is no CSV ({error}): separate cells by commas and "
            "quote those that hold one"
        ) from error
    if not head:
        raise InputError(f"{path.name} is empty: give the columns {', '.join(columns)} and rows")


def head_of(text: str) -> list[str]:
    """Return the names of a CSV's columns; nothing where there is no first row."""
    rows = ([cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")))
    try:
        return next(filter(any, rows), [])
    except csv.Error:
        return []


def known(cell: str) -> str:
    """Return a cell that may be empty, as empty where it says that it holds nothing."""
    return "" if cell.lower() in MISSING else cell


def read_text(path: Path) -> tuple[str, str]:
    """Read a CSV: its text, and the SHA-256 of its bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        data = read_bytes(path, at_most=LARGEST_TABLE)
        return data.decode("utf-8-sig"), hashlib.sha256(data).hexdigest()
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {str(path)!r} ({error}): name a CSV in UTF-8") from error


def _check_head(
    found: Sequence[str], path: Path, columns: Sequence[str], optional: Sequence[str]
) -> None:
    missing = [name for name in columns if name not in found]
    unknown = [name for name in found if name not in (*columns, *optional)]
    if missing or unknown or len(set(found)) != len(found):
        wanted = ",".join(columns) + "".join(f"[,{name}]" for name in optional)
        raise InputError(
            f"{path.name} line 1: columns {','.join(found)!r:.200}: allowed is {wanted}, each "
            "once; name the columns so"
        )


def _parse_row(cells: dict[str, str], place: str, line: int) -> ScoreRow:
    if not cells["arm"] or cells["arm"].lower() in NO_ARM:
        said = f"{cells['arm']!r:.80}, which names no arm" if cells["arm"] else "empty"
        raise InputError(f"{place}: arm is {said}: name what was trained, as lora")
    exact, decimals = parse_share(cells["score"], place)
    return ScoreRow(
        arm=cells["arm"],
        setting=known(cells["epochs"]),
        seed=known(cells["seed"]) or None,
        exact=exact,
        decimals=decimals,
        num_items=_parse_count(known(cells.get("n_items", "")), place),
        line=line,
    )


def parse_share(text: str, place: str) -> tuple[Fraction, int]:
    """Return a score as printed, and its decimals.

    Raises:
        InputError: it is no share.
    """
    found = SHARE.fullmatch(text)
    if found is None or not (found[1] or found[2]) or len(text) > LONGEST_NUMBER:
        raise InputError(
            f"{place}: score {text!r:.80} is no share: allowed are numbers from 0 to 1, write "
            "0.028 for 2.8 %"
        )
    exact = Fraction(text)
    if exact > 1:
        raise InputError(
            f"{place}: score {text} is above 1: allowed are shares from 0 to 1, divide percent by "
            "100"
        )
    return exact, max(0, len(found[2]) - int(found[3] or 0))


def _parse_count(text: str, place: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= MOST_ITEMS):
        raise InputError(
            f"{place}: n_items {text!r:.80} is no number of items: give a whole number from 1, or "
            "leave it empty"
        )
    return int(text)


def _undecided(name: str, arms: Sequence[str]) -> InputError:
    return InputError(
        f"{name} has the arms {_arms_named(arms)}, so treatment and control are not clear: allowed "
        f"without a word are two arms, just one of them called {' or '.join(CONTROLS)}; name them "
        "with --treatment and --control"
    )


def _arms_named(arms: Sequence[str]) -> str:
    return ", ".join(arms) or "none with a seed"
