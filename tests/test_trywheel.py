"""The check of the wheel: what it takes from the README, and what it says of a failure."""

import json
import platform
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tools import BENCHMARKS, load_tool

trywheel: Any = load_tool(BENCHMARKS / "trywheel.py")


def test_it_tries_what_the_readme_says() -> None:
    model, examples, start, training = trywheel._tries(Path("venv/bin/python"))
    assert trywheel.HUB_MODEL in model[-1]
    assert "tuner.detach()" in examples[-1]
    assert "sb.train_cohort(" in examples[-1]
    compile(examples[-1], "README.md", "exec")
    assert start[0] == training[0] == "venv/bin/schemabank"
    assert training[1:3] == ["train", start[-1]]


def test_a_command_that_fails_ends_the_check_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)it ended with 1: .*KeyError: 'nothing'"):
        trywheel._try([sys.executable, "-c", "{}['nothing']"], tmp_path)


@pytest.mark.parametrize(
    ("code", "is_told"),
    [
        ("import warnings; warnings.warn('`a` is deprecated', FutureWarning)", True),
        ("import warnings; warnings.warn('`a` is old', DeprecationWarning)", True),
        ("import sys; print('`a` will be removed in 6.0', file=sys.stderr)", True),
        ("print('all is well')", False),
    ],
)
def test_what_is_deprecated_is_told(
    code: str, is_told: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["trywheel.py", "--python", sys.executable])
    monkeypatch.setattr(trywheel, "build", lambda _: (tmp_path / "none.whl", None))
    monkeypatch.setattr(trywheel, "_tries", lambda python: [[str(python), "-c", code]])
    if is_told:
        with pytest.raises(SystemExit, match=r"^deprecated:\n"):
            trywheel.main()
    else:
        trywheel.main()


def test_it_writes_a_row_in_the_place_of_one_with_the_same_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = tmp_path / "wheel.json"
    code = "import warnings; warnings.warn('`a` is odd', UserWarning)"
    monkeypatch.setattr(trywheel, "build", lambda _: (tmp_path / "none.whl", None))
    for own in (code, "print('all is well')", code):
        python = ["--python", sys.executable, "--write", str(record)]
        monkeypatch.setattr(sys, "argv", ["trywheel.py", *python])
        monkeypatch.setattr(trywheel, "_tries", lambda python, own=own: [[str(python), "-c", own]])
        trywheel.main()
    (row,) = json.loads(record.read_text())["rows"]
    assert row["warnings"] == ["UserWarning: `a` is odd"]
    assert row["python"] == platform.python_version()
    assert row["date"] == datetime.now(UTC).date().isoformat()
    assert re.fullmatch("[0-9a-f]{8}", row["source"])


def test_the_source_is_told_by_the_modules_wherever_they_are_installed(tmp_path: Path) -> None:
    package = BENCHMARKS.parent / "src" / "schemabank"
    copy = shutil.copytree(package, tmp_path / "schemabank")
    assert trywheel.source_digest(copy) == trywheel.source_digest()
    (copy / "__init__.py").write_text("")
    assert trywheel.source_digest(copy) != trywheel.source_digest()


def row_of(torch: str, transformers: str, **more: str) -> dict[str, Any]:
    own = {"torch": torch, "transformers": transformers, "peft": "0.21", "datasets": "5", **more}
    return {**own, "warnings": []}


def test_rows_are_sorted_by_version_and_replaced_by_the_minor_version_of_python(
    tmp_path: Path,
) -> None:
    record = tmp_path / "wheel.json"
    for versions, python in [
        (("2.11.0", "5.17.0"), "3.11.7"),
        (("2.9.1+cpu", "5.17.0"), "3.11.7"),
        (("2.11.0", "5.9.0"), "3.11.7"),
        (("2.11.0", "5.17.0"), "3.13.0"),
        (("2.11.0", "5.17.0"), "3.11.9"),
    ]:
        trywheel._write(record, row_of(*versions, python=python))
    rows = json.loads(record.read_text())["rows"]
    assert [(r["torch"], r["transformers"], r["python"]) for r in rows] == [
        ("2.9.1+cpu", "5.17.0", "3.11.7"),
        ("2.11.0", "5.9.0", "3.11.7"),
        ("2.11.0", "5.17.0", "3.11.9"),
        ("2.11.0", "5.17.0", "3.13.0"),
    ]


def test_a_row_without_a_python_is_shown_until_its_versions_run_again(tmp_path: Path) -> None:
    record = tmp_path / "wheel.json"
    older = [row_of("2.11.0", "5.17.0"), row_of("2.13.0", "5.17.0")]
    record.write_text(json.dumps({"python": "3.11.7", "rows": older}))
    assert trywheel.table(json.loads(record.read_text()))[-1].startswith("|  | 2.13.0 |")
    trywheel._write(record, row_of("2.11.0", "5.17.0", python="3.11.7"))
    rows = json.loads(record.read_text())["rows"]
    assert [(r["torch"], r.get("python")) for r in rows] == [("2.11.0", "3.11.7"), ("2.13.0", None)]


def test_the_table_of_the_docs_is_that_of_its_record() -> None:
    root = BENCHMARKS.parent
    shown = "\n".join(trywheel.table(json.loads((root / "results" / "wheel.json").read_text())))
    page = (root / "docs" / "releases.md").read_text(encoding="utf-8")
    assert page.partition("<!-- trywheel.py: results/wheel.json -->\n")[2].startswith(shown)
