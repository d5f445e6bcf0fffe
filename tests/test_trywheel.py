"""The check of the wheel: what it takes from the README, and what it says of a failure."""

import json
import sys
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
    older = {**row, "transformers": "5.17.0", "warnings": []}
    trywheel._write(record, older)
    rows = json.loads(record.read_text())["rows"]
    assert [r["transformers"] for r in rows] == ["5.17.0", row["transformers"]]
    assert trywheel.table({"rows": rows})[-2].endswith("| 0 |")


def test_the_table_of_the_docs_is_that_of_its_record() -> None:
    root = BENCHMARKS.parent
    shown = "\n".join(trywheel.table(json.loads((root / "results" / "wheel.json").read_text())))
    page = (root / "docs" / "releases.md").read_text(encoding="utf-8")
    assert page.partition("<!-- trywheel.py: results/wheel.json -->\n")[2].startswith(shown)
