"""The layout of the package, measured from its imports.

    python benchmarks/structure.py
Rooms are the entries at the top of ``src/schemabank``. A floor is the longest way down from a room
by imports. Imports for type checkers alone do not count as circles, all others do, also those
inside functions.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "schemabank"


@dataclass(frozen=True)
class Import:
    """A module that takes a name, or all, from another one.

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
    """The room of a module; empty for the package's own front."""
    return module.partition(".")[2].partition(".")[0]


def circles(found: list[Import]) -> list[list[str]]:
    """Modules that import each other, by whatever way, each circle once."""
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
    """How high each room stands: the longest way down by imports."""
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


def code_lines(paths: Mapping[str, Path]) -> int:
    """Lines that are neither empty nor comments nor docstrings."""
    return sum(_code_lines(path.read_text(encoding="utf-8")) for path in paths.values())


def _imports(by: str, path: Path, paths: Mapping[str, Path]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                whole = module in paths
                source = module if whole else str(node.module)
                yield Import(by, source, "" if whole else alias.name, id(node) in typing)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in paths:
                    yield Import(by, alias.name, "", id(node) in typing)


def _reachable(module: str, below: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [*below.get(module, ())]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += below.get(name, ())
    return found


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


def main() -> None:
    """Print the figures."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    paths = modules()
    found = imports(paths)
    depths = floors(found)
    heights = range(max(depths.values()), -1, -1)
    lines = [
        f"rooms {len(depths)}, floors {len(heights)}, files {len(paths)}",
        f"circles {len(circles(found))}, code lines {code_lines(paths):,}",
        *(f"{h}: {', '.join(n for n, depth in depths.items() if depth == h)}" for h in heights),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
