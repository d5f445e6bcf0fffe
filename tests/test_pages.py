"""Every block of code and every command in the pages runs, or a list says why it does not."""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from docblocks import FILE, LIST, ROOT, Block, blocks, pages
from schemabank.cli import app
from schemabank.config.file import load_experiment
from schemabank.models import files as model_files
from schemabank.models.files import Located
from schemabank.suites.file import read_suite_file
from tinyruns import write_model

# PEFT asks a model of transformers 5 for what is called otherwise there.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

LISTED: dict[str, dict[str, str]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))
NOT_RUN, UNPROVED = "not run: ", "nothing here proves it"
SMOLLM2, QWEN2 = "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2-0.5B"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
COMMANDS = get_command(app)
STEPS = 2


def commands() -> Iterator[tuple[str, list[str]]]:
    """The program's own commands in all pages, as their arguments."""
    for page in pages():
        for block in blocks(page):
            for one in block.commands:
                words = [word for word in shlex.split(one) if not re.match(r"[A-Z_]+=", word)]
                # Its input may be another program's output: printf ... | schemabank ...
                words = words[words.index("|") + 1 :] if "|" in words else words
                if words[0] == "schemabank":
                    yield page, words[1:]


@pytest.mark.parametrize("page", pages())
def test_every_example_is_in_the_list_and_nothing_else_is(page: str) -> None:
    found = {item for block in blocks(page) for item in block.items}
    listed = LISTED.get(page, {}).keys()
    assert found - listed == set(), f"add these to {LIST.name}: the test that runs it, or why not"
    assert listed - found == set(), f"take these out of {LIST.name}"


def test_the_list_has_no_page_that_is_gone() -> None:
    assert LISTED.keys() <= set(pages())


@pytest.mark.parametrize("page", LISTED)
def test_what_runs_an_example_is_there_and_a_reason_is_one(page: str) -> None:
    for item, how in LISTED[page].items():
        tests, records = proofs(how)
        if how.startswith(NOT_RUN):
            assert tests or records or UNPROVED in how, (
                f"{item}: name a test, a record or say {UNPROVED!r}"
            )
        else:
            assert [f"{file}::{name}" for file, name in tests] == [how]
        for file, name in tests:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), f"{item}: {file}::{name}"
        assert [record for record in records if not (ROOT / record).exists()] == [], item


def proofs(how: str) -> tuple[list[tuple[str, str]], list[str]]:
    """The tests that are named, as file and function, and the records."""
    words = [word.strip(",;") for word in how.split()]
    tests = [word for word in words if word.startswith("tests/")]
    pairs = [(file, name) for file, _, name in (word.partition("::") for word in tests)]
    return pairs, [word for word in words if word.startswith("results/")]


def test_a_proof_that_is_none_is_seen() -> None:
    assert proofs("not run: minutes; tests/test_x.py does it") == ([("tests/test_x.py", "")], [])
    two = "not run: hours; tests/a.py::b, and results/c.json; nothing"
    assert proofs(two) == ([("tests/a.py", "b")], ["results/c.json"])


def test_tables_of_the_page_on_reports_are_rows_of_the_published_ones() -> None:
    tables = [
        block.body.splitlines() for block in blocks("docs/report.md") if block.language == "csv"
    ]
    files = ("gsm8k.csv", "gsm8k.claims.csv")
    for (head, *rows), name in zip(tables, files, strict=True):
        text = (ROOT / "results" / "published" / name).read_text(encoding="utf-8")
        first, *published = text.splitlines()
        assert head == first
        assert rows
        assert [row for row in rows if row not in published] == [], name


def test_the_program_knows_every_command_and_option_of_the_pages() -> None:
    seen = list(commands())
    assert len(seen) > 40
    for page, (name, *arguments) in seen:
        command = COMMANDS.commands[name]  # type: ignore[attr-defined]
        with command.make_context(name, arguments, resilient_parsing=False):
            pass
        assert page


def test_make_and_the_programs_know_what_the_pages_call() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    typed = [shlex.split(c) for page in pages() for block in blocks(page) for c in block.commands]
    targets = {words[1] for words in typed if words[0] == "make"}
    programs = {words[1] for words in typed if words[0] == "python"}
    own = {name for name in programs if name.startswith("benchmarks/")}
    assert len(targets) > 3 < len(own)
    assert [name for name in targets if f"\n{name}:" not in makefile] == []
    assert [name for name in own if not (ROOT / name).is_file()] == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run a page in, whose models are tiny ones."""
    for name in (SMOLLM2, QWEN2):
        write_model(tmp_path / name, "llama")
    embedded = Located(str(tmp_path / SMOLLM2), SMOLLM2, "a tiny one")
    monkeypatch.setattr(model_files, "_locate_embedded", lambda _: embedded)
    monkeypatch.setattr(sys, "argv", ["python"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(page: str, *, only: str = "") -> dict[str, Any]:
    """Run a page's blocks in order, as a reader would, or those of its commands named ``only``."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.mark.startswith(FILE):
            Path(block.mark.removeprefix(FILE)).write_text(block.body, encoding="utf-8")
        elif block.language == "python" and not only:
            exec(block.body, names)  # noqa: S102 -- our own page
        for command in block.commands:
            run_command(command, only=only)
    return names


def run_command(command: str, *, only: str = "") -> None:
    """Run one of the program's commands, or a file of Python; RUN is the run of LoRA.

    Training takes a few steps: what the page says next needs an adapter, not a good one.
    """
    words = shlex.split(command.replace("RUN", run_of_lora().name))
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    if only not in {"", words[0]}:
        return
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "schemabank"
    if words[1] == "train":
        words += ["--set", f"train.max_steps={STEPS}"]
    ended = CliRunner().invoke(app, words[1:])
    assert ended.exit_code == 0, f"{command}: {ended.output}{ended.exception!r}"


def run_of_lora() -> Path:
    """The one that was made first; a page makes another with a model of its own."""
    made = Path("runs/config").glob("lora-*")
    return min(made, key=lambda run: (run / "config.yaml").stat().st_mtime_ns, default=Path("RUN"))


def test_the_five_minutes_and_what_follows_them(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page("docs/start.md")
    assert len(list((place / "runs" / "four").glob("*-*"))) == 8
    exports = {
        c for p in ("vllm", "llama-cpp") for b in blocks(f"docs/howto/{p}.md") for c in b.commands
    }
    (export,) = (command for command in exports if command.startswith("schemabank"))
    run_command(export)
    assert (place / "merged" / "model.safetensors").is_file()
    write_model(place / "qwen", "qwen2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_page("docs/howto/hub.md", only="schemabank")
    assert f"base_model: {SMOLLM2}" in (run_of_lora() / "adapter" / "README.md").read_text()
    (place / "runs" / "quickstart").mkdir()
    (place / "runs" / "quickstart" / "RUN").symlink_to(run_of_lora().absolute())
    (block,) = (b for b in blocks("README.md") if b.body.startswith("from peft"))
    exec(block.body, {})  # noqa: S102 -- our own page
    assert "Is 137 even or odd?" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_coming_from_peft_both_loops_end_with_an_adapter(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_page("docs/from-peft.md")
    assert capsys.readouterr().out.splitlines()[-2:] == ["by-peft 8", "by-schemabank 8"]


@pytest.mark.usefixtures("place")
def test_coming_from_trl_its_columns_train_a_cohort() -> None:
    names = run_page("docs/from-trl.md")
    assert {result.failure for result in names["results"].values()} == {None}
    assert Path("best", "adapter_model.safetensors").is_file()


def test_the_commands_of_the_command_line_run(place: Path) -> None:
    (place / "my.jsonl").write_text('{"question": "2 + 2", "answer": "4"}\n')
    for block in blocks("docs/command-line.md"):
        for command in block.commands:
            run_command(command, only="schemabank")
            (place / "config.yaml").unlink(missing_ok=True)


def test_the_sandboxs_example_runs() -> None:
    (block,) = (block for block in blocks("docs/sandbox.md") if block.language == "python")
    names = {
        "source": "def add(a, b):\n    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "prompt": 'def add(a, b):\n    """The sum."""\n',
    }
    code = re.sub(
        r"^(check_\w+|run_program)\((.*)\)(.*)$", r"results.append(\1(\2))", block.body, flags=re.M
    )
    results: list[Any] = []
    exec(code, {**names, "results": results})  # noqa: S102 -- our own page
    assert [result.reason for result in results] == ["passed"] * 3


def yaml_blocks() -> list[tuple[str, Block]]:
    """Blocks of configurations; those of other tools have a mark that names their file."""
    return [
        (page, block)
        for page in pages()
        for block in blocks(page)
        if block.language == "yaml" and not block.mark.endswith(".sky.yaml")
    ]


@pytest.mark.parametrize(
    ("page", "block"), yaml_blocks(), ids=[f"{p}-{n}" for n, (p, _) in enumerate(yaml_blocks())]
)
def test_every_configuration_in_the_pages_is_read(page: str, block: Block, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(block.body, encoding="utf-8")
    if page != "docs/suites.md":
        assert load_experiment(path).runs()
        return
    first = next(b for b in blocks(page) if b.language == "yaml").body
    (tmp_path / "suite.yaml").write_text(first, encoding="utf-8")
    if "arms:" not in block.body:  # a part of a suite
        path.write_text(f"extends: suite.yaml\n{block.body}", encoding="utf-8")
    assert read_suite_file(path).runs


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_has_no_outputs(
    path: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    names: dict[str, Any] = {}
    for cell in code:
        exec("".join(cell["source"]), names)  # noqa: S102 -- our own notebook
    assert (place / "my-adapter" / "adapter_model.safetensors").is_file()
    assert len(re.findall(r"^rate .*: [\d.]+$", capsys.readouterr().out, re.MULTILINE)) == 4


def test_the_notebook_is_in_the_navigation() -> None:
    hooks = (ROOT / "docs" / "sitehooks.py").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if path.name not in hooks] == []
