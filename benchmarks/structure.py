"""The layout of the package, measured from its imports.

    python benchmarks/structure.py
    python benchmarks/structure.py --write

The first command prints figures. The second draws docs/rooms.svg, the picture of the rooms, and
makes their table in docs/architecture.md again. Rooms are the top entries of ``src/schemabank``. A
room's floor is the longest path down from it by imports. Imports for type checkers alone do not
count as circles; all other imports do, even inside functions.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import layers

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "schemabank"
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
PICTURE = PAGE.with_name("rooms.svg")
BEGIN, END = "<!-- rooms: benchmarks/structure.py -->\n", "<!-- end of rooms -->\n"
# From the bottom. Rooms of one floor do not import each other. The package's own front has none.
FLOORS = (
    ("common",),
    ("config", "models", "sandbox", "stats"),
    ("tasks",),
    ("engine",),
    ("adapters", "methods"),
    ("runs",),
    ("launch", "report", "trainer"),
    ("suites",),
    ("cli",),
)

# From the command line to the training step: each calls the next.
WAY = (*("cli.training", "runs.experiment", "runs.training", "engine.cohort", "engine.step"),)
# The files to read to understand the step: what it computes, from what, on which weights.
STEP = (
    *("engine.step", "engine.part", "engine.slots", "engine.run", "engine.stack"),
    *("engine.loralayers", "engine.lora", "engine.optim"),
)


@dataclass(frozen=True)
class Import:
    """A module that imports a name, or everything, from another one.

    Attributes:
        by: the module that imports, dotted.
        source: the module that is imported from.
        name: what is taken; empty where the module itself is.
        typing: whether only type checkers see it.
    """

    by: str
    source: str
    name: str
    typing: bool


def modules(source: Path = SOURCE) -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for path in sorted((source / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(source).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(paths: Mapping[str, Path]) -> list[Import]:
    """All imports of the package's modules among each other."""
    return [found for by, path in paths.items() for found in _imports(by, path, paths)]


def room(module: str) -> str:
    """The room of a module; empty for the package's own front, and for what ``-m`` runs."""
    return module.partition(".")[2].partition(".")[0].removeprefix("__main__")


def circles(found: list[Import]) -> list[list[str]]:
    """Modules that import each other, directly or indirectly; each circle once."""
    below: dict[str, set[str]] = {}
    for one in found:
        if not one.typing and not one.source.startswith(f"{one.by}."):
            below.setdefault(one.by, set()).add(one.source)
    reach = {module: _reachable(module, below) for module in below}
    groups = {
        tuple(sorted(m for m in reach if m in reach[module] and module in reach[m]))
        for module in reach
        if module in reach[module]
    }
    return [list(group) for group in sorted(groups)]


def floors(found: list[Import]) -> dict[str, int]:
    """The floor of each room: the longest path down by imports."""
    below: dict[str, set[str]] = {}
    for one in found:
        if room(one.by) != room(one.source) and room(one.by):
            below.setdefault(room(one.by), set()).add(room(one.source))
    below = {name: others - {""} for name, others in below.items()}

    def depth(name: str) -> int:
        return 1 + max(map(depth, below.get(name, ())), default=-1)

    return {
        name: depth(name) for name in sorted({room(m.source) for m in found} | set(below)) if name
    }


def arrows_up(found: list[Import]) -> list[Import]:
    """Imports that do not point to a lower floor."""
    level = {name: height for height, names in enumerate(FLOORS) for name in names}
    return [
        one
        for one in found
        if room(one.by)
        and room(one.source) not in {"", room(one.by)}
        and level[room(one.source)] >= level[room(one.by)]
    ]


def past_the_front(found: list[Import], fronts: Mapping[str, set[str]]) -> list[Import]:
    """Imports of what the other room's front does not offer."""
    return [
        one
        for one in found
        if room(one.by) != room(one.source)
        and room(one.by)
        and room(one.source)
        and (one.name or one.source.count(".") > 1)  # else the whole room
        and [*one.source.split("."), one.name][2] not in fronts[room(one.source)]
    ]


def fronts(paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """What each room's ``__all__`` offers: names, and modules by their first part."""
    return {
        room(module): set(_all(ast.parse(path.read_text(encoding="utf-8"))))
        for module, path in paths.items()
        if module.count(".") == 1 and room(module)
    }


def drawn(page: str) -> str:
    """The page of the architecture, with the table of rooms made from the code."""
    paths = modules()
    words = "; ".join(f"{name}: {', '.join(below)}" for name, below in arrows(paths).items())
    shown = f"![Which rooms each room imports: {words}]({PICTURE.name})\n"
    block = f"{BEGIN}{shown}\n{_table(paths)}{END}"
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, page, flags=re.DOTALL)


def picture(paths: Mapping[str, Path]) -> str:
    """Rooms and their imports as SVG."""
    return layers.drawn(FLOORS[::-1], arrows(paths), title="Rooms, and which others each imports")


def arrows(paths: Mapping[str, Path]) -> dict[str, list[str]]:
    """What each room imports, from the top, without what follows from other arrows."""
    below: dict[str, set[str]] = {}
    for one in imports(paths):
        if room(one.by) != room(one.source) and room(one.by) and room(one.source):
            below.setdefault(room(one.by), set()).add(room(one.source))
    found = {}
    for name in (name for names in reversed(FLOORS) for name in names if name in below):
        indirect = set().union(*(_reachable(other, below) for other in below[name]))
        found[name] = sorted(below[name] - indirect)
    return found


def code_lines(paths: Mapping[str, Path]) -> int:
    """Lines that are neither empty nor comments nor docstrings."""
    return sum(_code_lines(path.read_text(encoding="utf-8")) for path in paths.values())


def _table(paths: Mapping[str, Path]) -> str:
    """Rooms from the top, each with the first paragraph of its docstring."""
    rows = ["| floor | room | what is in it |", "|---:|---|---|"]
    for height in range(len(FLOORS) - 1, -1, -1):
        for name in FLOORS[height]:
            path = paths[f"{PACKAGE}.{name}"]
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            first = " ".join(doc.split("\n\n")[0].split())
            link = path.parent if path.name == "__init__.py" else path
            place = f"../{link.relative_to(SOURCE.parent).as_posix()}"
            rows.append(f"| {height} | [{name}]({place}) | {first} |")
    return "\n".join(rows) + "\n"


def _imports(by: str, path: Path, paths: Mapping[str, Path]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (given := _absolute(node, by, path)):
            for alias in node.names:
                module = f"{given}.{alias.name}"
                whole = module in paths
                source = module if whole else given
                yield Import(by, source, "" if whole else alias.name, id(node) in typing)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in paths:
                    yield Import(by, alias.name, "", id(node) in typing)


def _absolute(node: ast.ImportFrom, by: str, path: Path) -> str:
    """The module that is imported from, if it belongs to the package."""
    package = by if path.name == "__init__.py" else by.rpartition(".")[0]
    above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
    given = ".".join([*above, *filter(None, [node.module])])
    return given if given.split(".")[0] == PACKAGE else ""


def _reachable(module: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [*below.get(module, ())]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += below.get(name, ())
    return found


def _all(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _code_lines(text: str) -> int:
    tree = ast.parse(text)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(
        1 for at, line in lines if at not in skipped and line.strip() and line.strip()[0] != "#"
    )


def _length(names: Sequence[str], paths: Mapping[str, Path]) -> int:
    texts = (paths[f"{PACKAGE}.{name}"].read_text(encoding="utf-8") for name in names)
    return sum(len(text.splitlines()) for text in texts)


def _figures() -> str:
    paths = modules()
    found = imports(paths)
    depths = floors(found)
    heights = range(max(depths.values()), -1, -1)
    ways = (("from the command line to the step", WAY), ("to understand the step", STEP))
    lines = [
        f"rooms {len(depths)}, floors {len(heights)}, files {len(paths)}",
        f"circles {len(circles(found))}, arrows up {len(arrows_up(found))}",
        f"past a front {len(past_the_front(found, fronts(paths)))}",
        f"code lines {code_lines(paths):,}",
        *(f"{name}: {len(way)} files, {_length(way, paths):,} lines" for name, way in ways),
        *(f"{h}: {', '.join(n for n, depth in depths.items() if depth == h)}" for h in heights),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the figures, or draw the page again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="make picture and table anew")
    if parser.parse_args().write:
        PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        PICTURE.write_text(picture(modules()), encoding="utf-8")
    else:
        sys.stdout.write(_figures())


if __name__ == "__main__":
    main()
