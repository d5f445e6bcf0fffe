"""Which run is which: arms and seeds of other tools' results, from names of folders or --arm."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.errors import InputError
from schemabank.common.files import check_regular

SEED = re.compile(r"(?:^|[-_. ])seed[-_= ]?(\d{1,18})(?=$|[-_. ])", re.IGNORECASE | re.ASCII)
NAMED = re.compile(r"(?P<arm>[^=]+?)(?::(?P<seed>\d{1,18}))?=(?P<path>.+)", re.ASCII | re.DOTALL)
MOST_FILES, DEEPEST = 20_000, 8


@dataclass(frozen=True)
class Place:
    """Where the results of one run, or of several, lie.

    Attributes:
        path: a file, or a folder that they lie in or below.
        arm: as named; ``None`` where names of folders, or the files themselves, say it.
        seed: likewise.
    """

    path: Path
    arm: str | None = None
    seed: str | None = None


@dataclass(frozen=True)
class ResultFile:
    """A file of results, and what is known of its run before it is read.

    Attributes:
        path: of the file.
        arm: ``None`` where only the file itself can tell.
        seed: ``None`` where nothing names one.
    """

    path: Path
    arm: str | None
    seed: str | None

    def named(self, model: str) -> tuple[str, str | None]:
        """Return arm and seed; those of the model's name where no folder says them."""
        if self.arm is not None:
            return self.arm, self.seed
        arm, seed = arm_and_seed([model])
        return arm or model, self.seed or seed


def read_places(results: Path | None, arms: Sequence[str]) -> list[Place]:
    """Return where results lie: a folder or file of all arms, or what --arm names.

    Raises:
        InputError: both or neither are given, or an option is malformed.
    """
    if (results is None) == (not arms):
        given = "both were given" if arms else "neither was given"
        raise InputError(
            f"results are named by a path or by --arm NAME=PATH, and {given}: give one of the two"
        )
    if results is not None:
        return [Place(results)]
    found = []
    for text in arms:
        parts = NAMED.fullmatch(text)
        if parts is None or not parts["arm"].strip() or not parts["arm"].isprintable():
            raise InputError(
                f"--arm {text!r:.100}: allowed is NAME=PATH or NAME:SEED=PATH: write it so, as "
                "--arm lora:1=evals/lora-1"
            )
        seed = parts["seed"] and str(int(parts["seed"]))  # 01 is 1, as in names of folders
        found.append(Place(Path(parts["path"]), parts["arm"].strip(), seed))
    return found


def result_files(place: Place, *, suffixes: Sequence[str]) -> Iterator[ResultFile]:
    """Yield the files below a place, in the order of their names.

    Raises:
        InputError: the place is not there, holds too many files, or a pipe under such a name.
    """
    if not place.path.exists():
        raise InputError(f"{str(place.path)!r} does not exist: name a folder or file of results")
    if place.path.is_file():
        yield ResultFile(place.path, place.arm, place.seed)
        return
    for number, path in enumerate(sorted(_below(place.path, DEEPEST)), start=1):
        if number > MOST_FILES:
            raise InputError(
                f"{str(place.path)!r} holds more than {MOST_FILES:,} files: name the folder of the "
                "results alone"
            )
        if path.name.endswith(tuple(suffixes)):
            check_regular(path)  # a pipe that nobody writes to would be waited for
            arm, seed = arm_and_seed(path.relative_to(place.path).parts[:-1])
            yield ResultFile(path, place.arm or arm, place.seed or seed)


def arm_and_seed(parts: Sequence[str]) -> tuple[str | None, str | None]:
    """Return what names of folders say, from the outermost.

    The arm is the first name, without a ``seed 1`` in it; the seed may stand in any name.
    """
    seeds = [found[1] for part in parts if (found := SEED.search(part))]
    bare = [SEED.sub("", part, count=1).strip("-_. ") for part in parts]
    arm = next((name for name in bare if name), None)
    return arm, str(int(seeds[0])) if seeds else None


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Files below a folder; links to folders are not followed."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if depth and not path.is_symlink():
                yield from _below(path, depth - 1)
        else:
            yield path
