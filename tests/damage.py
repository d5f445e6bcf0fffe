"""Folders with one damaged file, for tests that nothing but an ``InputError`` comes of them."""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e20,
    1e308,
    -1e308,
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "x",
    "2024-01-01",
    "\ud83d",
    "../../etc/passwd",
    "a" * 5000,
    [],
    [1],
    [0.1, None],
    ["x"],
    {},
    {"a": 1},
    [[]],
)
RAW = (
    b"",
    b"\x00",
    b"{",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 2000 + b"1" + b"}" * 2000,
    b"a: &a [*a]",
    b"a: !!python/object/apply:os.system [true]",
    b"\xff\xfe\x00",
    b"9" * 6000,
    b"\n\n\n",
)


def damage(folder: Path, draw: random.Random, *, only: Sequence[str] = ()) -> str:
    """Damage one file of a folder and say how; of files of these names alone, one value."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and (not only or p.name in only))
    path = draw.choice(files)
    if only:
        return f"{path.relative_to(folder)}: {_values(path, draw)}"
    kinds: list[Callable[[Path, random.Random], str]] = [_bytes, _bytes, _place]
    if path.suffix in {".json", ".jsonl", ".yaml"}:
        kinds += [_values] * 5
    return f"{path.relative_to(folder)}: {draw.choice(kinds)(path, draw)}"


def copies(
    folder: Path, place: Path, count: int, *, seed: int, only: Sequence[str] = ()
) -> Iterator[tuple[Path, str]]:
    """Give copies of a folder, one after another, each damaged in its own way."""
    draw = random.Random(seed)
    for number in range(count):
        copy = place / str(number)
        shutil.copytree(folder, copy, symlinks=True)
        yield copy, f"{seed}/{number} {damage(copy, draw, only=only)}"
        shutil.rmtree(copy)


def each_changed(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Give JSON with one value changed or left out, at every place; and say which."""
    for inside, key in list(_places(tree)):
        kept = inside[key]
        for value in VALUES:
            inside[key] = value
            yield json.dumps(tree), f"{key!r} = {value!r:.40}"
        if isinstance(inside, dict):
            del inside[key]
            yield json.dumps(tree), f"{key!r} deleted"
        inside[key] = kept


def _bytes(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    kind = draw.choice(["truncated", "flipped", "replaced", "doubled", "utf-16"])
    if kind == "truncated":
        del content[draw.randrange(len(content) + 1) :]
    elif kind == "flipped":
        for _ in range(draw.choice([1, 1, 8])):
            if content:
                content[draw.randrange(min(len(content), draw.choice([16, 400, 10**9])))] ^= (
                    1 << draw.randrange(8)
                )
    elif kind == "replaced":
        content = bytearray(draw.choice(RAW))
    elif kind == "doubled":
        content = content + content
    else:
        content = bytearray(bytes(content).decode("latin-1").encode("utf-16"))
    path.write_bytes(content)
    return kind


def _place(path: Path, draw: random.Random) -> str:
    kind = draw.choice(["deleted", "a folder", "a dangling link", "a circle", "a device"])
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind != "deleted":
        targets = {"a dangling link": "nothing", "a circle": path.name, "a device": "/dev/zero"}
        path.symlink_to(targets[kind])
    return kind


def _values(path: Path, draw: random.Random) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".yaml":
        return _yaml_line(path, text, draw)
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = draw.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[number])
    except (ValueError, IndexError):
        return "left as it was"
    said = _changed(tree, draw)
    lines[number] = json.dumps(tree)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said


def _changed(tree: object, draw: random.Random) -> str:
    """Change or delete one value somewhere in JSON."""
    places = list(_places(tree))
    if not places:
        return "left as it was"
    inside, key = draw.choice(places)
    if draw.random() < 0.3:
        del inside[key]
        return f"{key!r} deleted"
    if draw.random() < 0.1:
        for _ in range(500):
            inside[key] = [inside[key]]
        return f"{key!r} nested"
    inside[key] = draw.choice(VALUES)
    return f"{key!r} = {inside[key]!r:.40}"


def _places(tree: object) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in list(items):
            yield tree, key
            yield from _places(value)


def _yaml_line(path: Path, text: str, draw: random.Random) -> str:
    lines = text.splitlines()
    number = draw.randrange(max(1, len(lines)))
    if not lines:
        return "left as it was"
    key, colon, _ = lines[number].partition(":")
    ends = ["", " 2024-01-01", " !!binary aGk=", " 1.0e+20", " true", " [[[]]]", " *a", " {a: 1}"]
    ends += [" .nan", " 'x", " 12:30", " -1", " " + "9" * 5000, ":" * 20, " ~"]
    if draw.random() < 0.25:
        said = lines.pop(number)
        path.write_text("\n".join(lines), encoding="utf-8")
        return f"without {said!r:.40}"
    end = draw.choice(ends)
    lines[number] = key + (colon or "") + end
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"{lines[number]!r:.60}"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def tear(path: Path) -> None:
    """Leave the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def replace_by_folder(path: Path) -> None:
    """Put a folder in a file's place."""
    path.unlink()
    path.mkdir()


def lead_out(path: Path) -> None:
    """Move a file out of its folder, and put a link in its place."""
    elsewhere = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(elsewhere)
