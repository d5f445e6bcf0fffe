"""How the program starts and what it refuses before it imports what takes long."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from schemabank import __version__
from schemabank.cli import app
from schemabank.cli.program import COMMANDS

REFUSAL = """
import sys
from schemabank.cli import main
sys.argv[0] = "schemabank"
try:
    main()
finally:
    print("imported:", *sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""
# Every command in a process of its own, which has imported the program and its settings.
REFUSALS = f"""
import json, os, sys
import schemabank.config.file
from schemabank.cli import main
codes = []
for number, command in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(f"{{number}}.{{stream}}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv[1:] = command.split()
        exec({REFUSAL!r})
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
BAD_FILES = {
    "text.yaml": "arm: [lora\n",
    "list.yaml": "- arm\n",
    "unknown.yaml": "arm: lora\ntrain: {lr: 1}\n",
    "value.yaml": "arm: lora\nlora: {r: 0}\n",
    "suite.yaml": "arms: {lora: {}}\ngrid: {lora.rank: [1]}\n",
    "tuned.yaml": "arms: {lora: {}}\ntune: {}\n",
    "table.csv": "arm,epochs,seed,score\nlora,1,1,none\n",
    "run/config.yaml": "arm: lora\nlora: {r: 0}\n",
    "run/result.json": "{}",
    "adapter/adapter_config.json": "{",
    "runs/lora-seed1-0/result.json": "{",
}


def python(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, without colours."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=cwd,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"},
    )


@dataclass(frozen=True)
class Refusal:
    """How a command ended."""

    code: int
    out: str
    err: str


REFUSED = {
    "train missing.yaml": "cannot read 'missing.yaml'",
    "train text.yaml": "text.yaml is not valid YAML",
    "train list.yaml": "list.yaml holds a list",
    "train unknown.yaml": "did you mean 'train.learning_rate'?",
    "train value.yaml": "value.yaml:2: lora.r is 0",
    "train suite.yaml": "suites have it, which the command suite takes",
    "train unknown.yaml --set train.lr=": "the value is empty",
    "suite missing.yaml": "cannot read 'missing.yaml'",
    "suite text.yaml --dry-run": "text.yaml is not valid YAML",
    "suite value.yaml": "the command train takes configurations",
    "suite suite.yaml": "did you mean 'lora.r'?",
    "suite tuned.yaml --tune-only": "on which tune chooses the learning rates",
    "eval missing": "'missing' is neither a finished run",
    "eval run": "run/config.yaml:2: lora.r is 0",
    "eval run --set train.learning_rate=1": "a setting of training, which is over",
    "eval adapter": "adapter_config.json is not valid JSON",
    "chat missing": "'missing' is neither a finished run",
    "routing missing": "'missing' is neither a finished run",
    "export missing --out new": "'missing' is neither a finished run",
    "report missing.csv": "cannot read 'missing.csv'",
    "report table.csv": "table.csv line 2",
    "report runs": "result.json is not valid JSON",
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Refusal]:
    """How commands on bad files ended."""
    folder = tmp_path_factory.mktemp("bad")
    for name, text in BAD_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    ended = python("-c", REFUSALS, json.dumps([*REFUSED]), cwd=folder)
    assert ended.returncode == 0, ended.stderr
    codes = json.loads(ended.stdout)
    said = [
        [(folder / f"{n}.{stream}").read_text() for stream in (1, 2)] for n in range(len(codes))
    ]
    found = [Refusal(code, *texts) for code, texts in zip(codes, said, strict=True)]
    return dict(zip(REFUSED, found, strict=True))


@pytest.mark.parametrize("command", REFUSED)
def test_bad_files_are_refused_before_torch_is_imported(
    command: str, refusals: Mapping[str, Refusal]
) -> None:
    ended = refusals[command]
    assert ended.code == 2
    assert REFUSED[command] in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == "imported:\n"


def test_the_check_of_imports_finds_torch(tmp_path: Path) -> None:
    ended = python("-c", f"import torch\n{REFUSAL}", "train", "missing.yaml", cwd=tmp_path)
    assert "imported: torch" in ended.stdout


def test_the_package_is_a_program_under_the_same_name(tmp_path: Path) -> None:
    version = python("-m", "schemabank", "--version", cwd=tmp_path)
    assert (version.returncode, version.stdout) == (0, f"schemabank {__version__}\n")
    usage = python("-m", "schemabank", "train", "-h", cwd=tmp_path)
    assert "Usage: schemabank train [OPTIONS] " in usage.stdout
    refused = python("-m", "schemabank", "train", "missing.yaml", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("schemabank: cannot read 'missing.yaml'")


def test_names_from_files_do_not_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text('arm: lora\n"\\e[2Jx": 1\n')
    refused = python("-m", "schemabank", "train", "c.yaml", "--set", "\x1b[31m.r=1", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("schemabank: ")
    assert refused.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["", *(name for names in COMMANDS.values() for name in names)])
def test_every_command_has_a_short_option_for_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for option in ("-h", "--help"):
        with pytest.raises(SystemExit) as ended:
            app([*filter(None, [name]), option], prog_name="schemabank")
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert f"Usage: schemabank {name}".rstrip() in shown[0]


def test_the_help_lists_every_command_once() -> None:
    listed = [name for names in COMMANDS.values() for name in names]
    assert set(listed) == set(get_command(app).commands)  # type: ignore[attr-defined]
    assert len(set(listed)) == len(listed)


def test_a_shell_can_complete_commands_without_torch(tmp_path: Path) -> None:
    script = python("-m", "schemabank", "--show-completion", "bash", cwd=tmp_path)
    assert "complete -o default -F _schemabank_completion schemabank" in script.stdout
    asked = {
        "_SCHEMABANK_COMPLETE": "complete_bash",
        "COMP_WORDS": "schemabank e",
        "COMP_CWORD": "1",
    }
    start = f"import os\nos.environ.update({asked})\n{REFUSAL}"
    completed = python("-c", start, cwd=tmp_path)
    assert completed.stdout.split() == ["eval", "export", "imported:"]
