"""What the program says, and when, where packages of its extras are not installed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from schemabank.cli import main
from schemabank.common.errors import InputError
from schemabank.common.extras import EXTRAS
from tinyruns import SETTINGS, Finished, snapshot
from tinysuites import tiny

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "results" / "published" / "gsm8k.csv"
OPTIONAL = [name for names in EXTRAS.values() for name in names]
# As a process starts: nothing is imported yet, and none of these ever can be.
HIDE = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n"
IMPORT_ALL = """
import importlib, pkgutil, schemabank
for module in pkgutil.walk_packages(schemabank.__path__, "schemabank."):
    # It ends a process that imports it; and kernels are for a GPU.
    if not module.name.startswith(("schemabank.__main__", "schemabank.engine.kernels.")):
        importlib.import_module(module.name)
assert "schemabank.report.sections.forest" in sys.modules
print("all are imported")
"""
RUN_ALL = """
import json
from schemabank.cli import main
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
# How a refusal begins, the package that it names, and the extra.
GSM_SYMBOLIC = ("the task gsm_symbolic", "reasoning_gym", "gsm-symbolic")
ROUGE_L = ("the metric 'rouge_l' of the task gsm8k", "nltk", "scores")
Program = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hide(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let no package of an extra be there."""

    def hidden(extra: str) -> None:
        for name in EXTRAS[extra]:
            monkeypatch.setitem(sys.modules, name, None)

    return hidden


@pytest.fixture
def program(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Program:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["schemabank", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    monkeypatch.chdir(tmp_path)
    return run


def refused(ended: tuple[int, str, str], beginning: str, package: str, extra: str) -> None:
    """One sentence, which is the last line; anything before it is a note."""
    code, out, err = ended
    assert (code, out) == (2, "")
    sentence = err.splitlines()[-1]
    assert sentence.startswith(f"schemabank: {beginning}"), sentence
    assert f"needs the package {package!r}, which cannot be imported" in sentence
    assert f": run `pip install 'schemabank[{extra}]'`" in sentence


def config(finished: Finished, path: Path, **changes: object) -> Path:
    tree = {**SETTINGS, "model": {"name": str(finished.model), "dtype": "float32"}, **changes}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def bare(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory
) -> subprocess.CompletedProcess[str]:
    """A process that trains as a new user does, and then imports all that is left."""
    settings = ["task.conditional.train_size=16", "task.conditional.validation_size=4"]
    settings += ["lora.r=2", "eval.max_new_tokens=4", "task.max_length=256"]
    given = [word for setting in settings for word in ("--set", setting)]
    commands = [["init", "--model", str(finished.model), "-o", "c.yaml"]]
    commands += [["train", "c.yaml", *given]]
    return subprocess.run(
        [sys.executable, "-c", HIDE + RUN_ALL + IMPORT_ALL, json.dumps(commands)],
        cwd=tmp_path_factory.mktemp("bare"),
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )


def test_no_module_needs_an_extra_to_be_imported(bare: subprocess.CompletedProcess[str]) -> None:
    assert bare.returncode == 0, bare.stderr
    assert bare.stdout.endswith("all are imported\n")


def test_a_first_training_needs_no_extra(bare: subprocess.CompletedProcess[str]) -> None:
    """As a new user: a configuration, its training and its table, and a look at the machine."""
    assert bare.returncode == 0, bare.stderr
    assert re.search(r"lora +42 +4 all +0\.0%", bare.stdout), bare.stdout
    assert "adapter: runs/c/lora-" in bare.stdout


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"name": "gsm_symbolic"}, GSM_SYMBOLIC),
        ({"name": "gsm8k", "metric": "rouge_l"}, ROUGE_L),
        ({"name": "narrativeqa"}, ("the metric 'reading' of the task narrativeqa", *ROUGE_L[1:])),
    ],
)
@pytest.mark.parametrize("command", ["train", "suite", "tuned suite"])
def test_training_and_suites_are_refused_at_their_start(
    command: str,
    task: dict[str, str],
    said: tuple[str, str, str],
    *,
    finished: Finished,
    hide: Callable[[str], None],
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What would be needed at the end is asked for before the model is loaded."""
    hide(said[2])
    monkeypatch.setattr("schemabank.runs.experiment.loaded_base", pytest.fail)
    if command == "train":
        ended = program("train", config(finished, Path("c.yaml"), task=task))
    else:
        tune = {"tune": {"factors": [0.5, 1]}} if command == "tuned suite" else {}
        ended = program("suite", tiny(finished, Path("s.yaml"), defaults={"task": task}, **tune))
    refused(ended, *said)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("gsm8k")
def test_a_plan_says_what_its_runs_need(
    finished: Finished, hide: Callable[[str], None], program: Program
) -> None:
    hide("scores")
    task = {"name": "gsm8k", "metric": "rouge_l"}
    code, out, err = program(
        "suite", tiny(finished, Path("s.yaml"), defaults={"task": task}), "--dry-run"
    )
    assert (code, "8 runs" in out) == (2, True)
    refused((code, "", err), *ROUGE_L)


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("setting", "said"),
    [("task.name=gsm_symbolic", GSM_SYMBOLIC), ("task.metric=rouge_l", ROUGE_L)],
)
def test_an_evaluation_is_refused_before_the_model_is_loaded(
    setting: str,
    said: tuple[str, str, str],
    *,
    finished: Finished,
    hide: Callable[[str], None],
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide(said[2])
    monkeypatch.setattr("schemabank.runs.saved.loaded_base", pytest.fail)
    ended = program("eval", finished.lora.folder, "--set", setting, "--out", "new")
    refused(ended, *said)
    assert not Path("new").exists()


@pytest.mark.usefixtures("gsm8k")
def test_finished_runs_are_shown_without_what_scored_them(
    finished: Finished, hide: Callable[[str], None], program: Program
) -> None:
    task = {"name": "gsm8k", "metric": "rouge_l", "max_length": 96}
    own = config(finished, Path("c.yaml"), task=task, arm="base")
    code, first, _ = program("train", own)
    assert (code, "rouge_l" in first) == (0, True)
    hide("scores")
    assert program("train", own)[:2] == (0, first)


def test_a_report_on_a_terminal_needs_no_charts(
    hide: Callable[[str], None], program: Program
) -> None:
    shown, as_json = program("report", TABLE), program("report", TABLE, "--json")
    hide("report")
    assert program("report", TABLE) == shown
    assert program("report", TABLE, "--json") == as_json
    assert (shown[0], "verdict: " in shown[1]) == (0, True)
    assert json.loads(as_json[1])["treatment"] == "schemabank"


def test_a_report_that_is_written_is_refused_before_anything_is_read(
    hide: Callable[[str], None], program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide("report")
    monkeypatch.setattr("schemabank.report.command.read_results", pytest.fail)
    ended = program("report", TABLE, "--out", "report")
    refused(ended, "--out 'report': a page with charts", "altair", "report")
    assert ended[2].endswith("or leave --out out, which prints the verdict and the tables\n")
    assert not Path("report").exists()


@pytest.mark.usefixtures("gsm8k")
def test_an_analysis_of_routing_is_refused_before_it_is_computed(
    finished: Finished,
    hide: Callable[[str], None],
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hide("report")
    before = snapshot(finished.schemabank.folder)
    monkeypatch.setattr("schemabank.report.routing.command.analyse", pytest.fail)
    ended = program("routing", finished.schemabank.folder, "--split", "train")
    refused(ended, "schemabank routing draws heat maps and", "altair", "report")
    assert snapshot(finished.schemabank.folder) == before


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_ends_with_the_report_that_can_be_had(
    finished: Finished, hide: Callable[[str], None], program: Program
) -> None:
    file = tiny(finished, Path("s.yaml"), arms={"base": {}}, seeds=[1], grid={})
    assert program("suite", file)[1].endswith(
        "next: schemabank report runs/s --out runs/s/report\n"
    )
    hide("report")
    said = "next: schemabank report runs/s (for a page with charts: pip install "
    assert program("suite", file)[1].endswith(f"{said}'schemabank[report]')\n")


def test_problems_that_are_generated_say_so_in_python_too(hide: Callable[[str], None]) -> None:
    from schemabank.config.task import TaskSettings
    from schemabank.tasks.catalog import load_task

    hide("gsm-symbolic")
    with pytest.raises(InputError, match=r"^the task gsm_symbolic needs .* or take another one$"):
        load_task(TaskSettings(name="gsm_symbolic"))
