"""The audit of pinned packages: what it makes of the answers of a source of advisories."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tools import BENCHMARKS, load_tool

audit: Any = load_tool(BENCHMARKS / "audit.py")
FAULTS = [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["5.4", "6.0"]}]
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
FAULTY = {"name": "pyyaml", "version": "5.3", "vulns": FAULTS}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI"}
Source = Callable[..., tuple[int, str]]


@pytest.fixture
def source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Source:
    """An audit with answers of pip-audit: about the faulty version, and about the pins."""
    pins = tmp_path / "pins.txt"

    def ended(faulty: object, pinned: object, *options: str) -> tuple[int, str]:
        def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
            answer = pinned if str(pins) in command else faulty
            if isinstance(answer, str):
                return subprocess.CompletedProcess(command, 1, "", answer)
            stdout = json.dumps({"dependencies": answer, "fixes": []})
            return subprocess.CompletedProcess(command, 0, stdout, "")

        monkeypatch.setattr(audit.subprocess, "run", run)
        monkeypatch.setattr(sys, "argv", ["audit.py", "--pins", str(pins), *options])
        with pytest.raises(SystemExit) as end:
            audit.main()
        return int(str(end.value.code)), capsys.readouterr().out

    return ended


def test_packages_without_known_faults_pass(source: Source) -> None:
    assert source([FAULTY], [CLEAN]) == (0, "1 packages: 0 known faults, 0 not audited\n")


def test_a_known_fault_is_named_with_its_mend(source: Source) -> None:
    code, said = source([FAULTY], [CLEAN, FAULTY])
    assert code == 1
    assert said.startswith("pyyaml 5.3: PYSEC-1, CVE-1, mended in 5.4, 6.0\n")


def test_a_fault_without_a_mend_says_so(source: Source) -> None:
    unmended = {**FAULTY, "vulns": [{"id": "PYSEC-2", "aliases": [], "fix_versions": []}]}
    assert "pyyaml 5.3: PYSEC-2, mended in no version yet\n" in source([FAULTY], [unmended])[1]


def test_a_package_that_the_source_does_not_know_is_no_good_news(source: Source) -> None:
    code, said = source([FAULTY], [SKIPPED])
    assert code == 2
    assert said.startswith("numpy: not audited, Dependency not found on PyPI\n")
    assert source([FAULTY], [SKIPPED, FAULTY])[0] == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([SKIPPED], "not audited: 'pypi' has no advisories, it knows no fault of pyyaml==5.3. Run"),
        ([CLEAN], "not audited: 'pypi' has no advisories, it knows no fault of pyyaml==5.3. Run"),
        ("Traceback\nno route\n", "not audited: 'pypi' gave no answer (no route). Run it where"),
    ],
)
def test_a_source_without_advisories_is_found_out_before_the_pins_are_asked_about(
    answer: object, said: str, source: Source
) -> None:
    code, printed = source(answer, [CLEAN])
    assert (code, printed.startswith(said)) == (2, True), printed
    assert "https://pypi.org can be reached, or choose --service: allowed are pypi, osv" in printed
    assert source(answer, [CLEAN], "--if-reachable") == (0, printed)


def test_an_answer_that_breaks_off_is_not_taken_for_one(source: Source) -> None:
    code, said = source([FAULTY], "no route")
    assert (code, said.startswith("not audited: 'pypi' gave no answer (no route)")) == (2, True)


def test_it_asks_about_the_pins_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, '{"dependencies": []}', "")

    monkeypatch.setattr(audit.subprocess, "run", run)
    assert audit.asked(audit.PINS, "osv", ignore=["CVE-1", "CVE-2"]) == []
    (command,) = asked
    assert command[1:5] == ["-m", "pip_audit", "--requirement", str(audit.PINS)]
    assert {"--no-deps", "--disable-pip", "--ignore-vuln=CVE-1", "--ignore-vuln=CVE-2"} <= {
        *command
    }
    assert command[command.index("--vulnerability-service") + 1] == "osv"
