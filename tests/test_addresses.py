"""An address in place of a folder is refused wherever something is written, before any compute.

As a path, ``s3://bucket/runs`` is a folder ``s3:`` in the working directory.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import schemabank as sb
from schemabank.cli import app
from schemabank.config.file import load_experiment
from schemabank.runs import loading
from schemabank.runs.experiment import run_experiment
from schemabank.suites.execution import run_suite
from schemabank.suites.suite import load_suite
from tiny import tiny_model, tiny_tokenizer
from tinyruns import Finished, Notes
from tinysuites import PAPER, tiny

ADDRESS = "s3://bucket/runs"
REFUSED = "^'s3://bucket/runs' is an address, not a folder"
SUITE = ("suite", str(PAPER / "suite.yaml"))
PAIRS = [(f"{i}+{i}=", f"{2 * i}") for i in range(8)]
RUN = sb.RunConfig.model_validate({"arm": "lora", "train": {"max_steps": 2, "batch_size": 4}})


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No model is loaded, and what would be written lies in an empty folder."""

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(loading, "load_base_model", loaded)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def assert_nothing_is_written() -> None:
    assert list(Path().iterdir()) == []


def of_run(command: str, *options: str) -> Callable[[Finished], list[str]]:
    return lambda finished: [command, str(finished.schemabank.folder), *options]


COMMANDS: dict[str, Callable[[Finished], list[str]]] = {
    "train": lambda finished: ["train", str(finished.config)],
    "suite": lambda _: [*SUITE],
    "dry run": lambda _: [*SUITE, "--dry-run"],
    "dry run as JSON": lambda _: [*SUITE, "--dry-run", "--json"],
    "suite of workers": lambda _: [*SUITE, "--workers", "2"],
    "suite on GPUs": lambda _: [*SUITE, "--launch", "gpus"],
    "suite on a cluster": lambda _: [*SUITE, "--launch", "ray"],
    "eval": of_run("eval"),
    "eval with every routing": of_run("eval", "--routing", "all"),
    "export": of_run("export"),
    "export of a model": of_run("export", "--merge"),
    "routing": of_run("routing"),
    "report": lambda finished: ["report", str(finished.out)],
    "init": lambda _: ["init"],
}


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_refuses_it(command: str, finished: Finished) -> None:
    ended = CliRunner().invoke(app, [*COMMANDS[command](finished), "--out", ADDRESS])
    assert isinstance(ended.exception, sb.InputError), ended.output
    assert str(ended.exception).startswith(REFUSED[1:])
    assert_nothing_is_written()


@pytest.mark.usefixtures("gsm8k")
def test_runs_of_a_configuration_refuse_it(finished: Finished) -> None:
    with pytest.raises(sb.InputError, match="is an address"):
        run_experiment(load_experiment(finished.config), Path(ADDRESS), Notes())
    assert_nothing_is_written()


@pytest.mark.usefixtures("gsm8k")
def test_a_suite_refuses_it(finished: Finished, tmp_path: Path) -> None:
    suite = load_suite(tiny(finished, tmp_path / "suite.yaml"))
    with pytest.raises(sb.InputError, match="is an address"):
        run_suite(suite, Path(ADDRESS), Notes())
    assert_nothing_is_written()


def never(_step: sb.RunStep) -> None:
    pytest.fail("a step was taken")


def test_a_program_refuses_it_for_checkpoints_and_adapters() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(sb.InputError, match=REFUSED):
        sb.train_cohort(model, tokenizer, [RUN], PAIRS, checkpoints=ADDRESS, on_step=never)
    with sb.Tuner(model, tokenizer, RUN) as tuner:
        with pytest.raises(sb.InputError, match=REFUSED):
            tuner.train(PAIRS, checkpoints=ADDRESS, on_step=never)
        with pytest.raises(sb.InputError, match=REFUSED):
            tuner.save_pretrained(ADDRESS)
    (done,) = sb.train_cohort(model, tokenizer, [RUN], PAIRS, quiet=True).values()
    with pytest.raises(sb.InputError, match=REFUSED):
        done.save_pretrained(ADDRESS)
    assert_nothing_is_written()
