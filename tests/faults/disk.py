"""What a disk may hold after a power loss, computed from a log of file operations.

A file system writes what it is told in any order, unless a program waits by ``fsync``. So every
operation that was not waited for may be on the disk or not, whole or in part, whatever came before
it. This is how ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018) try
programs, here with one rule for files and one for names:

- A sync of a file keeps its contents so far, and of a folder the names in it so far.
- A rename is on the disk for both names or for none.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from faults.shim import Event

TOP = 0  # number of the watched folder, which is there
Order = Literal["all", "names in order", "any"]
ORDERS: Sequence[Order] = ("all", "names in order", "any")


@dataclass
class Change:
    """A change to the disk.

    Attributes:
        number: of the event.
        names: what each name in a folder means then, by folder and name; ``None``: nothing.
        file: whose contents change; ``None`` for a change of names.
        offset: where, or the new length without content.
        content: what is written there; ``None``: the file is cut or filled to this length.
        synced: the number of the event that waited for it; ``None``: none did.
    """

    number: int
    names: dict[tuple[int, str], int | None] = field(default_factory=dict)
    file: int | None = None
    offset: int = 0
    content: bytes | None = None
    synced: int | None = None

    def is_kept(self, at: int) -> bool:
        """Whether it is on the disk for sure after so many events."""
        return self.synced is not None and self.synced <= at


@dataclass
class Recorded:
    """The changes of a program to the disk.

    Attributes:
        changes: in their order.
        folders: numbers of the folders among all files and folders.
        versions: all contents under a name that a rename has put there.
    """

    changes: list[Change] = field(default_factory=list)
    folders: set[int] = field(default_factory=lambda: {TOP})
    versions: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)


def recorded(events: Sequence[Event], top: Path) -> Recorded:
    """Return the changes that a log tells of."""
    found, now = Recorded(), {str(top): TOP}
    for event in events:
        _change(event, found, now)
        if event.what == "rename":
            name = str(Path(event.other).relative_to(top))
            content = _tree(found.changes, now[event.other], found.folders)
            found.versions.setdefault(name, []).append(content)
    return found


def left_after(
    record: Recorded, at: int, order: Order, draw: random.Random
) -> dict[str, bytes | None]:
    """Return what the disk may hold if the power goes after so many events.

    Args:
        record: of the program.
        at: the number of the last event.
        order: what of all that was not waited for may be there: all of it; names up to one moment
            and contents in any order; or everything in any order.
        draw: which of it is.

    Returns:
        Contents of the files by their paths; ``None`` for a folder.
    """
    past = [change for change in record.changes if change.number <= at]
    if order == "names in order":
        of_names = [change for change in past if change.names]
        least = max((i + 1 for i, c in enumerate(of_names) if c.is_kept(at)), default=0)
        gone = {id(change) for change in of_names[draw.randint(least, len(of_names)) :]}
    elif order == "any":
        share = draw.choice((0.1, 0.5, 0.9))
        pending = [change for change in past if change.names and not change.is_kept(at)]
        gone = {id(change) for change in pending if draw.random() < share}
    else:
        gone = set()
    kept = [change for change in past if id(change) not in gone]
    if order != "all":
        kept = [torn for change in kept for torn in _torn(change, at, draw)]
    return _all_below(kept, TOP, record.folders)


def put(state: dict[str, bytes | None], place: Path) -> None:
    """Make a disk's contents real in a folder."""
    for name, content in sorted(state.items()):
        path = place / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def _change(event: Event, found: Recorded, now: dict[str, int]) -> None:
    """Note an event, and keep up what is where while the program runs."""
    above, name = str(Path(event.path).parent), Path(event.path).name
    new = Change(event.number)
    if event.what in ("create", "mkdir"):
        number = max(now.values(), default=TOP) + 1 + len(found.changes)
        now[event.path] = number
        new.names[now[above], name] = number
        if event.what == "mkdir":
            found.folders.add(number)
    elif event.what in ("unlink", "rmdir"):
        del now[event.path]
        new.names[now[above], name] = None
    elif event.what == "rename":
        number = now[event.path]
        for path in [p for p in now if p == event.path or p.startswith(f"{event.path}/")]:
            now[event.other + path.removeprefix(event.path)] = now.pop(path)
        new.names[now[above], name] = None
        new.names[now[str(Path(event.other).parent)], Path(event.other).name] = number
    elif event.what in ("write", "truncate", "cut"):
        new.file = now[event.path]
        new.offset = 0 if event.what == "cut" else event.offset
        new.content = event.content if event.what == "write" else None
    elif event.what == "fsync":
        _sync(found.changes, now[event.path], event.number)
        return
    else:
        return
    found.changes.append(new)


def _sync(changes: Sequence[Change], number: int, at: int) -> None:
    for change in changes:
        is_its_own = change.file == number or any(folder == number for folder, _ in change.names)
        if is_its_own and change.synced is None:
            change.synced = at


def _torn(change: Change, at: int, draw: random.Random) -> Iterator[Change]:
    """Give a change of contents whole, in part, as zeros, or not at all, if none waited for it."""
    if change.file is None or change.is_kept(at):
        yield change
        return
    content = change.content
    kind = draw.choice(("whole", "whole", "part", "zeros", "none"))
    if kind == "whole" or (content is None and kind != "none"):
        yield change
    elif kind == "part" and content:
        part = content[: draw.randrange(len(content))]
        yield Change(change.number, file=change.file, offset=change.offset, content=part)
    elif kind == "zeros" and content:
        yield Change(
            change.number, file=change.file, offset=change.offset, content=bytes(len(content))
        )


def _all_below(changes: Sequence[Change], top: int, folders: set[int]) -> dict[str, bytes | None]:
    """Everything below a folder as changes leave it."""
    names: dict[tuple[int, str], int | None] = {}
    files: dict[int, bytearray] = {}
    for change in changes:
        names |= change.names
        if change.file is not None:
            _write(files.setdefault(change.file, bytearray()), change)
    found: dict[str, bytes | None] = {}
    todo = [(top, "")]
    while todo:
        folder, path = todo.pop()
        for (above, name), number in names.items():
            if above != folder or number is None:
                continue
            if number in folders:
                found[f"{path}{name}"] = None
                todo.append((number, f"{path}{name}/"))
            else:
                found[f"{path}{name}"] = bytes(files.get(number, b""))
    return found


def _write(content: bytearray, change: Change) -> None:
    end = change.offset + len(change.content or b"")
    if change.content is None:
        del content[change.offset :]
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    if change.content is not None:
        content[change.offset : end] = change.content


def _tree(changes: Sequence[Change], number: int, folders: set[int]) -> dict[str, bytes]:
    """A file's contents under the empty name, or those of all files of a folder."""
    if number not in folders:
        content = bytearray()
        for change in changes:
            if change.file == number:
                _write(content, change)
        return {"": bytes(content)}
    below = _all_below(changes, number, folders)
    return {name: content for name, content in below.items() if content is not None}
