"""The method of docs/methods.md, as another package brings it in by the entry point."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from programs import printed_by
from schemabank.config.methods import METHODS, RESERVED
from schemabank.config.settings import ExperimentConfig
from schemabank.suites.file import SuiteConfig
from tinyruns import write_config, write_gsm8k, write_model

PAGE = Path(__file__).parent.parent.parent / "docs" / "methods.md"
COMMAND = "from schemabank.cli import main; main()"
# Twice in one process: it takes longer to import than to train.
AGAIN = """
from schemabank.cli import main
try:
    main()
except SystemExit as end:
    if end.code:
        raise
print("and again")
main()
"""


def example(name: str) -> str:
    """A block of code of the page."""
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it after the package was installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "descent").mkdir()
    for name in ("descent/__init__.py", "descent/method.py"):
        (folder / name).write_text(example(name))
    told = re.fullmatch(
        r'\[project.entry-points."(.+)"\]\n(\w+) = "(.+)"\n', example("entry point")
    )
    assert told is not None
    info = folder / "descent-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: descent\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{told[1]}]\n{told[2]} = {told[3]}\n")
    return folder


def schemabank(
    package: Path, cwd: Path, *arguments: object, code: str = COMMAND
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def ran(
    package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Of the page's method and of plain LoRA, called twice."""
    folder = tmp_path_factory.mktemp("trained")
    data, model = write_gsm8k(folder / "data"), write_model(folder / "model")
    arms = ["lora", "descent"]
    config = write_config(folder / "run.yaml", model, arm=arms, descent={"ratio": 0.4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(data))
        done = schemabank(package, folder, "train", config, "--out", "runs", code=AGAIN)
    assert done.returncode == 0, done.stderr
    return folder / "runs", done


@pytest.fixture(scope="module")
def runs(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return ran[0]


def test_the_method_of_the_page_trains_beside_lora_and_its_adapter_is_checked(runs: Path) -> None:
    (folder,) = runs.glob("descent-*")
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    acting = [step["acting_blocks"] for step in steps]
    assert acting == sorted(acting)
    assert acting[0] == pytest.approx(1 / 3)
    assert acting[-1] == 1
    result = json.loads((folder / "result.json").read_text())
    assert result["arm"] == "descent"
    assert result["training"]["failure"] is None
    assert result["peft_check"]["difference"] <= result["peft_check"]["allowed"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_its_runs_are_reused(ran: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    runs, done = ran
    first, again = done.stdout.split("and again\n")
    assert first == again
    for folder in runs.iterdir():
        assert done.stderr.count(f"reused: {Path('runs') / folder.name} ") == 1


def test_its_settings_are_checked_like_all_others(package: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", tmp_path, arm="descent", descent={"ration": 0.4})
    done = schemabank(package, tmp_path, "train", config)
    assert done.returncode == 2
    assert "unknown key 'descent.ration', did you mean 'descent.ratio'?" in done.stderr
    without = schemabank(tmp_path, tmp_path, "train", config)
    assert without.returncode == 2
    assert "descent" in without.stderr


def test_runs_of_other_methods_can_be_read_without_the_package(runs: Path, tmp_path: Path) -> None:
    (folder,) = runs.glob("lora-*")
    assert "descent" not in (folder / "config.yaml").read_text()
    printed_by(["export", str(folder), "--out", str(tmp_path / "exported")])


def test_no_method_has_the_name_of_another_setting() -> None:
    taken = {*ExperimentConfig.model_fields, *SuiteConfig.model_fields} - METHODS.keys()
    assert taken <= RESERVED


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("lora", "descent:ENTRY", "is taken"),
        ("other", "descent:DescentSettings", "names a "),
        ("train", "descent:ENTRY", "has the name of another setting"),
        ("slope", "descent:ENTRY", "has sections"),
        ("missing", "descent:Nothing", "cannot be loaded (AttributeError"),
    ],
)
def test_an_entry_point_that_is_no_new_method_is_refused(
    name: str, value: str, problem: str, package: Path, tmp_path: Path
) -> None:
    shutil.copytree(package / "descent", tmp_path / "descent")
    info = tmp_path / "wrong-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[schemabank.methods]\n{name} = {value}\n")
    done = schemabank(tmp_path, tmp_path, "config-schema")
    assert done.returncode == 2
    assert f"the entry point {name!r} of schemabank.methods ({value}) {problem}" in done.stderr
