"""How the code is laid out: who imports whom, who asks for a method, and what is done where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from schemabank.config import METHODS
from tools import BENCHMARKS, load_tool

structure = load_tool(BENCHMARKS / "structure.py")
MODULES = structure.modules()
IMPORTS = structure.imports(MODULES)
READ_SUITE = """
from pathlib import Path
from schemabank.suitefile import read_suite_file
assert read_suite_file(Path("configs/sound/suite.yaml")).runs
"""
MADE_UP = {
    "errors.py": "",
    "engine/__init__.py": "",
    "engine/stack.py": "from schemabank.errors import InputError\n",
    "engine/step.py": "from typing import TYPE_CHECKING\n",
    "training.py": "from schemabank.engine import stack\n",
}


def made_up(folder: Path, **changes: str) -> dict[str, Path]:
    """A small package; ``engine__step="..."`` is what ``engine/step.py`` says."""
    files = MADE_UP | {f"{n.replace('__', '/')}.py": text for n, text in changes.items()}
    for name, text in files.items():
        path = folder / "schemabank" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "schemabank" / "__init__.py").touch()
    found: dict[str, Path] = structure.modules(folder)
    return found


def test_no_modules_import_each_other() -> None:
    assert structure.circles(IMPORTS) == []


def test_a_made_up_house_is_measured(tmp_path: Path) -> None:
    found = structure.imports(made_up(tmp_path))
    assert structure.circles(found) == []
    assert structure.floors(found) == {"errors": 0, "engine": 1, "training": 2}


@pytest.mark.parametrize(
    "back",
    [
        "from schemabank.engine import stack",
        "import schemabank.engine.stack",
        "def f():\n    from schemabank.engine.stack import x",
    ],
)
def test_a_circle_is_found(back: str, tmp_path: Path) -> None:
    changes = {"engine__step": back, "engine__stack": "from schemabank.engine.step import y"}
    found = structure.imports(made_up(tmp_path, **changes))
    assert structure.circles(found) == [["schemabank.engine.stack", "schemabank.engine.step"]]


def test_what_only_type_checkers_import_makes_no_circle(tmp_path: Path) -> None:
    back = "if TYPE_CHECKING:\n    from schemabank.engine.stack import x"
    changes = {"engine__step": back, "engine__stack": "from schemabank.engine.step import y"}
    assert structure.circles(structure.imports(made_up(tmp_path, **changes))) == []


@pytest.mark.parametrize("load", ["import schemabank", "import schemabank.configfile", READ_SUITE])
def test_nothing_loads_torch_before_it_is_needed(load: str) -> None:
    asked = f"{load}\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=BENCHMARKS.parent,
    )
    assert done.stdout.strip() == "False"


def names_asked(tree: ast.AST) -> list[str]:
    """Comparisons of an arm with a method's name."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        and "arm" in ast.unparse(node)
        and any(isinstance(x, ast.Constant) and x.value in METHODS for x in ast.walk(node))
    ]


def test_nobody_asks_for_a_method_by_its_name() -> None:
    found = {
        module: asked
        for module, path in MODULES.items()
        if (asked := names_asked(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_a_question_for_a_name_is_found() -> None:
    asked = ["run.arm == 'base'", "row['arm'] != 'lora'", "run.arm in {'lora', 'schemabank'}"]
    assert names_asked(ast.parse("\n".join([*asked, "x = 'base'", "'lora' in stage.train"]))) == (
        asked
    )


# Calls that have one place, by the names of the modules where they may stand. The sandbox reads the
# kernel's files, and no user's.
ONE_OF_EACH = {
    "load_dataset": {"sources"},
    "fsync": {"writing"},
    "DictReader": {"files"},
    "open": {
        "files",
        "writing",
        "rundir",  # locks
        "training",  # logs of runs, in folders that are not there yet for others
        "ggufmodels",  # joins the parts of a model
    },
    "read_bytes": {"ggufmodels"},
    "read_text": {"modeldigests", "html"},  # our own cache, and files of the package
    "safe_open": {"tensorfiles", "itemscores"},  # for torch, and for numpy
}


def calls_of(tree: ast.AST) -> set[str]:
    """Names of the methods and functions of other libraries that are called."""
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {func.attr for func in called if isinstance(func, ast.Attribute)}
    # A bare name is a function of ours, as files.read_text, but for these two.
    bare = {func.id for func in called if isinstance(func, ast.Name)}
    return names | (bare & {"open", "safe_open"})


@pytest.mark.parametrize("call", ONE_OF_EACH)
def test_what_has_one_place_is_done_nowhere_else(call: str) -> None:
    places = {
        module.rpartition(".")[2]
        for module, path in MODULES.items()
        if ".sandbox" not in module
        and call in calls_of(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert places == ONE_OF_EACH[call]


def test_a_call_in_another_place_is_found() -> None:
    done = "open('x')\npath.open()\nsafe_open(path)\nread_text(path)\ndatasets.load_dataset('x')"
    assert calls_of(ast.parse(done)) == {"open", "safe_open", "load_dataset"}
