"""Harmed inputs: whatever a file holds, a reader takes it or says what is wrong with it.

A case of the campaign is a batch of inputs of one kind, by its seed; each input of it has a seed of
its own. A batch runs in a forked process, so that a crash is seen, with a limit on its memory. An
alarm ends an input that takes long, and a canary shows whether anything was executed.
"""

import json
import os
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is no file is looked for there

from faults.canary import Canary
from faults.child import run
from faults.kinds import WRITERS, readers
from faults.mutations import Draw, harm
from schemabank.common.errors import InputError

Row = dict[str, Any]
NUMBER = 510  # batches
BATCH = 200
# Readers of models and runs take longer than others, so that they have fewer batches.
CYCLE = (
    *("configurations", "data", "adapters", "tables", "run folders"),
    *("configurations", "data", "adapters", "tables", "models' configs"),
)
LONGEST_S = 10.0  # of a processor, for one input
LONGEST_WAIT_S = 120.0  # by the clock, for one that waits, as for a pipe
MOST_GROWTH = 1024 * 2**20  # bytes of memory that a batch may take more
MOST_RESERVED = 8 * 2**30  # of addresses, of which a file that is mapped takes some
LONGEST_SENTENCE = 3000
FOUND = "found.json"


class TooLongError(BaseException):
    """An input took longer than is allowed; no reader catches it."""


@dataclass
class Inputs:
    """Tries batches in a folder of its own."""

    root: Path
    whole: dict[str, Path] = field(default_factory=dict)

    def tried(self, seed: int) -> Row:
        """Read a batch of harmed inputs in a process of its own."""
        kind = CYCLE[seed % len(CYCLE)]
        place = self._place(kind)
        work = Path(tempfile.mkdtemp(dir=self.root, prefix=f"batch-{seed}-"))
        canary = Canary(work / "outside" / "canary")
        canary.path.parent.mkdir()
        # Crashes and hangs are said as errors are; the batch says which input was the last.
        try:
            ended = run(partial(_batch, seed, kind, place, work, canary), work)
            said = [] if ended.code == 0 else [f"ended with {ended.code}: {ended.said[-500:]}"]
        except TimeoutError as error:
            said = [f"{error}"]
        row: Row = {"problems": []}
        if (work / FOUND).exists():
            row = json.loads((work / FOUND).read_text())
        left = sorted(path.name for path in canary.path.parent.iterdir())
        problems = [*row.pop("problems"), *said, *(f"wrote {name}" for name in left)]
        shutil.rmtree(work)
        return {"seed": seed, "kind": kind, **row, "problems": problems[:10]}

    def _place(self, kind: str) -> Path:
        if kind not in self.whole:
            place = self.root / kind.replace(" ", "-")
            place.mkdir()
            WRITERS[kind](place)
            for reader in readers(kind).values():
                reader(place)  # all of it is read as it is
            self.whole[kind] = place
        return self.whole[kind]


def _batch(seed: int, kind: str, whole: Path, work: Path, canary: Canary) -> None:
    """Read a batch of harmed inputs, and write what came of them."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    held = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_RESERVED, held + MOST_RESERVED))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    for each in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(each, _too_long)
    files = {p.relative_to(whole): p.read_bytes() for p in sorted(whole.rglob("*")) if p.is_file()}
    before, ends, slowest, problems = _memory("VmRSS"), Counter[str](), 0.0, list[str]()
    for number in range(BATCH):
        found, took = one(BATCH * seed + number, kind, files, work, canary)
        ends.update(found.ends)
        problems += found.problems
        slowest = max(slowest, took)
        grown = _memory("VmHWM") - before
        if grown > MOST_GROWTH and not any("memory" in p for p in problems):
            problems.append(f"{found.said}: memory has grown by {grown / 2**20:.0f} MiB")
        told = {
            "cases": number + 1,
            "read": ends["read"],
            "refused": ends["refused"],
            "slowest_s": round(slowest, 2),
            "growth_mib": round(grown / 2**20),
            "problems": problems,
            "last": found.said,
        }
        if number % 20 == 19 or problems:
            (work / FOUND).write_text(json.dumps(told))


@dataclass
class Ended:
    """What came of an input, by each of its readers."""

    said: str
    ends: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def one(
    number: int, kind: str, files: Mapping[Path, bytes], work: Path, canary: Canary
) -> tuple[Ended, float]:
    """Harm one copy of a kind's files, and read it; also say how long that took."""
    draw = Draw(number, canary)
    folder = work / "input"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    own = readers(kind)
    # One part is harmed, the one that is read then.
    asked = draw.choice(list(own))
    part = folder / asked.rstrip("/")
    harmed = part if part.is_dir() else _alone(part)
    found = Ended(f"input {number}: {asked}: {harm(harmed, draw)}")
    if harmed != part and not part.exists() and not part.is_symlink():
        found.said += " (gone)"
    began = time.process_time()
    _read(own[asked], folder, found)
    took = time.process_time() - began
    if canary.is_there:
        found.problems.append(f"{found.said}: was executed")
        canary.path.unlink()
    shutil.rmtree(folder)
    return found, took


def _alone(part: Path) -> Path:
    """A folder with one file alone, for which another is no substitute; a link leads back."""
    for other in part.parent.iterdir():
        if other != part:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return part.parent


def _read(reader: Callable[[Path], object], folder: Path, found: Ended) -> None:
    try:
        with _for_at_most(LONGEST_S):
            reader(folder)
        found.ends.append("read")
    except InputError as error:
        found.ends.append("refused")
        if not 0 < len(str(error)) < LONGEST_SENTENCE:
            found.problems.append(f"{found.said}: a sentence of {len(str(error))} characters")
    except TooLongError:
        found.problems.append(f"{found.said}: took more than {LONGEST_S:g} s, or waited")
    except Exception as error:  # anything else is the finding
        found.problems.append(f"{found.said}: {type(error).__name__}: {error!s:.300}")


@contextmanager
def _for_at_most(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _too_long(_number: int, _frame: object) -> None:
    raise TooLongError


def _memory(name: str) -> int:
    """Bytes of this process, by a name of the kernel's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def summary(rows: Sequence[Row]) -> Row:
    """What the record holds of the campaign."""
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in WRITERS}
    for row in rows:
        own = by_kind[row["kind"]]
        own.update({name: row.get(name, 0) for name in ("cases", "read", "refused")})
    return {
        "inputs": sum(own["cases"] for own in by_kind.values()),
        "by_kind": {kind: dict(own) for kind, own in by_kind.items()},
        "slowest_s": max((row.get("slowest_s", 0.0) for row in rows), default=0.0),
        "most_growth_mib": max((row.get("growth_mib", 0) for row in rows), default=0),
    }
