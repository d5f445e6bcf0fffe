"""How the code is laid out: who may import whom, who asks for a method, what is done where."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from schemabank.config.methods import METHODS
from tools import BENCHMARKS, load_tool

structure = load_tool(BENCHMARKS / "structure.py")
MODULES = structure.modules()
IMPORTS = structure.imports(MODULES)
READ_SUITE = """
from pathlib import Path
from schemabank.suites.file import read_suite_file
assert read_suite_file(Path("configs/sound/suite.yaml")).runs
"""
MOST_ROOMS, MOST_FLOORS = 16, 9
MADE_UP = {
    "common/__init__.py": '__all__ = ["errors"]\n',
    "common/errors.py": "",
    "common/hidden.py": "",
    "engine/__init__.py": '__all__ = ["stack"]\n',
    "engine/stack.py": "from schemabank.common.errors import InputError\n",
    "engine/step.py": "from typing import TYPE_CHECKING\n",
    "runs/__init__.py": "__all__ = []\n",
    "runs/training.py": "from schemabank.engine import stack\n",
}


def table_of_places() -> list[str]:
    """What is named in code style where the page says what is added where."""
    page = structure.PAGE.read_text(encoding="utf-8")
    table = page.partition("## Where something is added")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    return re.findall(r"`([^`]+)`", "\n".join(rows))


def test_the_places_that_the_page_names_are_there() -> None:
    named = table_of_places()
    root = structure.SOURCE / structure.PACKAGE
    files = [name for name in named if "/" in name and " " not in name]
    text = "".join(path.read_text(encoding="utf-8") for path in MODULES.values())
    names = {name for name in named if name.isidentifier()}
    assert len(files) > 10 < len(names)
    assert [name for name in files if not (root / name).exists()] == []
    assert [
        name for name in names if not re.search(rf"^ *(def |class )?{name}\b", text, re.M)
    ] == []


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


def test_the_page_of_the_architecture_is_up_to_date() -> None:
    page = structure.PAGE.read_text(encoding="utf-8")
    assert structure.drawn(page) == page
    assert structure.PICTURE.read_text(encoding="utf-8") == structure.picture(MODULES)


def test_what_the_page_links_to_is_there() -> None:
    page = structure.PAGE.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", page)
    assert len(links) > len(structure.FLOORS)
    assert [link for link in links if not (structure.PAGE.parent / link).exists()] == []


def test_imports_point_down() -> None:
    assert structure.arrows_up(IMPORTS) == []


def test_no_modules_import_each_other() -> None:
    assert structure.circles(IMPORTS) == []


def test_rooms_take_of_each_other_what_their_fronts_offer() -> None:
    assert structure.past_the_front(IMPORTS, structure.fronts(MODULES)) == []


def test_a_front_offers_nothing_that_nobody_takes() -> None:
    for room, offered in structure.fronts(MODULES).items():
        if room in {"sandbox", "stats", "trainer"}:  # libraries in themselves
            continue
        taken = {
            [*one.source.split("."), one.name][2]
            for one in IMPORTS
            if structure.room(one.source) == room != structure.room(one.by)
        }
        assert offered - taken == set(), room


def test_the_house_is_no_higher_and_no_wider() -> None:
    depths = structure.floors(IMPORTS)
    assert set(depths) == {name for names in structure.FLOORS for name in names}
    assert len(depths) <= MOST_ROOMS
    assert max(depths.values()) < MOST_FLOORS
    assert all(depths[n] == at for at, names in enumerate(structure.FLOORS) for n in names)


def test_the_way_to_the_step_is_that_of_the_imports() -> None:
    pairs = {(one.by, one.source) for one in IMPORTS}
    way = [f"schemabank.{name}" for name in structure.WAY]
    assert all(pair in pairs for pair in pairwise(way))
    assert {f"schemabank.{name}" for name in structure.STEP} <= MODULES.keys()
    assert len(structure.WAY) <= 7
    assert len(structure.STEP) <= 8


def test_a_made_up_house_is_sound(tmp_path: Path) -> None:
    paths = made_up(tmp_path)
    found = structure.imports(paths)
    assert structure.arrows_up(found) == structure.circles(found) == []
    assert structure.past_the_front(found, structure.fronts(paths)) == []
    assert structure.floors(found) == {"common": 0, "engine": 1, "runs": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        "from schemabank.runs import training\n",
        "from schemabank.runs.training import train\n",
        "import schemabank.runs.training\n",
        "def f():\n    from schemabank.runs.training import train\n",
        "from ..runs import training\n",
        "from ..runs.training import train\n",
    ],
)
def test_an_arrow_up_is_found(wrong: str, tmp_path: Path) -> None:
    found = structure.imports(made_up(tmp_path, engine__step=wrong))
    assert [one.by for one in structure.arrows_up(found)] == ["schemabank.engine.step"]


@pytest.mark.parametrize(
    "past", ["from schemabank.common.hidden import x", "from schemabank.common import hidden"]
)
def test_a_reach_past_a_front_is_found(past: str, tmp_path: Path) -> None:
    paths = made_up(tmp_path, runs__training=past)
    found = structure.past_the_front(structure.imports(paths), structure.fronts(paths))
    assert [one.source for one in found] == ["schemabank.common.hidden"]


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


@pytest.mark.parametrize("load", ["import schemabank", "import schemabank.config.file", READ_SUITE])
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


# Calls that have one place, by the modules where they may stand. The sandbox reads the kernel's
# files, and no user's.
ONE_OF_EACH = {
    "load_dataset": {"tasks.sources"},
    "fsync": {"common.writing"},
    "DictReader": {"common.files"},
    "open": {
        "common.archives",
        "common.files",
        "common.growing",
        "common.writing",
        "launch.crew",  # logs of worker processes
        "runs.locks",
        "runs.steplogs",  # logs of runs, in folders that are not there yet for others
        "models.gguf",  # joins the parts of a model
    },
    "read_bytes": {"models.gguf"},
    "read_text": {"models.digests", "report.page.html"},  # our own cache, and files of the package
    "safe_open": {"adapters.tensorfiles", "runs.itemscores"},  # for torch, and for numpy
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
        module.partition(".")[2]
        for module, path in MODULES.items()
        if ".sandbox" not in module
        and call in calls_of(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert places == ONE_OF_EACH[call]


def test_a_call_in_another_place_is_found() -> None:
    done = "open('x')\npath.open()\nsafe_open(path)\nread_text(path)\ndatasets.load_dataset('x')"
    assert calls_of(ast.parse(done)) == {"open", "safe_open", "load_dataset"}


def test_a_number_of_an_error_means_the_same_wherever_it_is_looked_at() -> None:
    """One module looks at each, so that no other has a list that is nearly the same."""
    places: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if ".sandbox" not in module:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "errno":
                    places.setdefault(node.attr, set()).add(module.partition(".")[2])
    assert {"ENOSPC", "EROFS", "ENOMEM"} <= places.keys()
    assert {name: own for name, own in places.items() if len(own) > 1} == {}


CLOCKS = {
    "time.time",
    "time.time_ns",
    "datetime.now",
    "datetime.today",
    "datetime.utcnow",
    "date.today",
}


def test_no_module_asks_what_time_it_is() -> None:
    """So a clock that is set back, or is another on another machine, changes nothing."""
    found = {
        (module, ast.unparse(node))
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in CLOCKS
    }
    assert found == set()


def test_what_is_no_code_is_installed_too() -> None:
    package = structure.SOURCE / structure.PACKAGE
    settings = tomllib.loads((BENCHMARKS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["schemabank"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {path for path in others if path.suffix != ".py"} == installed


MOST_LINES, MOST_LINES_OF_FUNCTION = 400, 50  # of a file; of a function without its docstring


def test_files_and_functions_are_short() -> None:
    texts = {module: path.read_text(encoding="utf-8") for module, path in MODULES.items()}
    assert [m for m, text in texts.items() if len(text.splitlines()) > MOST_LINES] == []
    long = [
        f"{module}.{node.name}"
        for module, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and function_lines(node) > MOST_LINES_OF_FUNCTION
    ]
    assert long == []


def function_lines(node: ast.FunctionDef) -> int:
    """Lines of a function with its signature, but without its docstring."""
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    left_out = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - left_out


def test_a_long_function_is_found() -> None:
    (found,) = ast.parse(
        'def f(\n    x,\n):\n    """Doc.\n\n    More."""\n    x += 1\n    return x'
    ).body
    assert isinstance(found, ast.FunctionDef)
    assert function_lines(found) == 5


def test_no_class_name_means_two_things() -> None:
    defined: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(module)
    assert {name: places for name, places in defined.items() if len(places) > 1} == {}
