"""How runs end: a full disk, a folder that is gone, an adapter in doubt, and the call after it."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from schemabank.adapters.peftcheck import FIELD, PeftCheck
from schemabank.cli import app, main
from schemabank.common.errors import FailedRunsError
from schemabank.common.failure import Failure
from schemabank.config.file import load_experiment
from schemabank.engine.cohort import RunStep
from schemabank.runs import members
from schemabank.runs.experiment import run_experiment
from schemabank.runs.members import Outcome
from schemabank.suites.execution import run_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, snapshot
from tinysuites import tiny

pytestmark = pytest.mark.usefixtures("gsm8k")

TWO = ("arm=lora", "seed=[1, 2]", "engine.slots=2", "train.num_train_epochs=1")
TUNE = {"factors": [1, 2], "seeds": [1001], "extend": 0}
WRITERS = (
    "schemabank.runs.members.save_adapter",
    "schemabank.runs.finish.write_lines",
    "schemabank.runs.finish.save_item_scores",
    "schemabank.runs.finish.write_json",
)


def run(config: Path, out: Path, *settings: str, notes: Notes | None = None) -> list[Outcome]:
    return run_experiment(load_experiment(config, [*TWO, *settings]), out, notes or Notes())


def full_for(monkeypatch: pytest.MonkeyPatch, where: str, spoiled: Callable[[str], bool]) -> None:
    """Let a function that writes find the disk full, where the path says so."""
    module, _, name = where.rpartition(".")
    write = getattr(__import__(module, fromlist=[name]), name)

    def full(path: Path, *rest: Any, **named: Any) -> object:  # noqa: ANN401 -- of many functions
        if spoiled(str(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *rest, **named)

    monkeypatch.setattr(where, full)


def records(folder: Path) -> dict[str, object]:
    """What a run's folder holds, but for what it cost."""
    found = {name: value[1] for name, value in snapshot(folder).items()}
    return {name: value for name, value in found.items() if name != "cost.json"}


@pytest.fixture(scope="module")
def undisturbed(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_DATA", str(finished.data))
        return run(finished.config, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("where", WRITERS)
def test_a_full_disk_costs_the_run_that_it_meets_and_no_other(
    where: str,
    finished: Finished,
    undisturbed: list[Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        full_for(patch, where, lambda path: "seed2" in path)
        good, bad = run(finished.config, tmp_path)
    assert good.failure is None
    assert records(good.folder) == records(undisturbed[0].folder)
    assert bad.result is None
    assert bad.failure is not None
    assert bad.failure.kind == "disk"
    assert "No space left on device" in bad.failure.message
    assert bad.failure.message.endswith("; free some space")
    assert bad.folder.name.endswith(".partial")
    assert json.loads((bad.folder / "failure.json").read_text()) == bad.failure.row()
    notes = Notes()
    again = run(finished.config, tmp_path, notes=notes)
    assert [(o.reused, o.failure) for o in again] == [(True, None), (False, None)]
    assert (
        f"trained already: {again[1].folder} (same configuration), to be evaluated" in notes.lines
    )
    assert not notes.stepped
    assert records(again[1].folder).keys() == records(undisturbed[1].folder).keys()


@pytest.mark.parametrize(
    "where", ["experiment.claimed_members", "experiment.train_runs", "finish.evaluate_forms"]
)
def test_a_file_without_a_name_that_cannot_be_written_is_told_with_its_run(
    where: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"schemabank.runs.{where}", full)
    for outcome in run(finished.config, tmp_path):
        assert outcome.failure is not None
        assert outcome.failure.kind == "disk"
        assert re.fullmatch(
            rf"\[Errno 28\] No space left on device \(of the run in '{tmp_path}/.*'\); "
            "free some space",
            outcome.failure.message,
        )


def test_a_log_that_cannot_be_written_costs_its_run_and_no_other(
    finished: Finished,
    undisturbed: list[Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real full device: what is written shows as late as a file's buffer is full or closed."""
    write = members.Member.write

    def with_full_log(member: members.Member, action: Callable[[Path], None]) -> None:
        log = member.claim.path / "metrics.jsonl"
        if member.run.seed == 2 and not os.path.lexists(log):
            log.symlink_to("/dev/full")
        write(member, action)

    monkeypatch.setattr(members.Member, "write", with_full_log)
    good, bad = run(finished.config, tmp_path)
    assert records(good.folder) == records(undisturbed[0].folder)
    assert bad.failure is not None
    assert bad.failure.kind == "disk"
    assert re.search(r"No space left.*; free some space\Z", bad.failure.message)
    assert (bad.folder / "adapter" / "adapter_model.safetensors").is_file(), (
        "what was trained stays"
    )


class Removing(Notes):
    """Removes a folder as soon as a run is in some state, or has taken its first step."""

    def __init__(self, out: Path, moment: str) -> None:
        super().__init__()
        self._out, self._moment = out, moment

    def run_steps(self, steps: Sequence[RunStep]) -> None:
        super().run_steps(steps)
        self._at("training")

    def run_state(self, run: str, state: Any, detail: str = "") -> None:  # noqa: ANN401
        super().run_state(run, state, detail)
        self._at(state)

    def _at(self, moment: str) -> None:
        if moment == self._moment:
            self._moment = ""
            shutil.rmtree(self._out)


@pytest.mark.parametrize(
    ("moment", "slots"), [("training", 1), ("training", 2), ("evaluating", 2), ("finished", 1)]
)
def test_output_that_vanishes_is_a_failure(
    moment: str, slots: int, finished: Finished, tmp_path: Path
) -> None:
    """With one slot the runs come one after the other, and the second finds a new folder."""
    out = tmp_path / "runs"
    first, second = run(finished.config, out, f"engine.slots={slots}", notes=Removing(out, moment))
    assert first.failure is not None
    assert first.failure.kind == "disk"
    assert "was removed" in first.failure.message
    assert (second.failure is None) == (slots == 1)
    again = run(finished.config, out)
    assert [o.failure for o in again] == [None, None]
    assert all((o.folder / "config.yaml").is_file() for o in again)


def test_the_command_says_so_and_fails(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    evaluate = __import__("schemabank.runs.finish", fromlist=["x"]).evaluate_forms

    def removing(*args: Any, **named: Any) -> object:  # noqa: ANN401 -- as it is called
        shutil.rmtree(out)
        return evaluate(*args, **named)

    monkeypatch.setattr("schemabank.runs.finish.evaluate_forms", removing)
    settings = [part for setting in TWO for part in ("--set", setting)]
    ended = CliRunner().invoke(app, ["train", str(finished.config), "--out", str(out), *settings])
    assert ended.exit_code == 1
    assert "was removed while it was being written" in ended.stderr
    assert "the same command again tries what failed" in ended.stderr


# The next call of a suite.


def tuned(finished: Finished, path: Path, **changes: object) -> Path:
    train = {"num_train_epochs": 1, "learning_rate": 1e-2}
    some = {"arms": {"lora": {}}, "seeds": [1], "grid": {}, "tune": TUNE}
    return tiny(finished, path, **{**some, "defaults": {"train": train}, **changes})


def suite(path: Path, out: Path, *options: str) -> Any:  # noqa: ANN401 -- typer's result
    return CliRunner().invoke(app, ["suite", str(path), "--out", str(out), *options])


@pytest.mark.parametrize("where", [WRITERS[0], WRITERS[3]])
def test_a_full_disk_in_one_call_of_a_tuned_suite_leaves_nothing_behind(
    where: str,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tuned(finished, tmp_path / "s.yaml"), tmp_path / "runs"
    with monkeypatch.context() as patch:
        full_for(patch, where, lambda _: True)
        patch.setattr(sys, "argv", ["schemabank", "suite", str(path), "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 3
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "schemabank: " in line]
    assert "2 of 2 tuning runs failed, the first of them" in said
    assert "No space left on device" in said
    assert json.loads((out / "suite.json").read_text())["tuning"]["failed"] == []
    again = suite(path, out)
    assert again.exit_code == 0, again.stderr
    listed = json.loads((out / "suite.json").read_text())
    assert len(listed["tuning"]["chosen"]) == 1
    assert all((out / row["run_id"] / "result.json").is_file() for row in listed["runs"])


def test_failures_that_an_earlier_version_kept_are_tried_again(
    finished: Finished, tmp_path: Path
) -> None:
    """It kept a sentence alone, also of full disks, and took every one for settled."""
    path, out = tuned(finished, tmp_path / "s.yaml"), tmp_path / "runs"
    assert suite(path, out).exit_code == 0
    listed = json.loads((out / "suite.json").read_text())
    (lost, kept) = (row["run_id"] for row in listed["tuning"]["runs"])
    shutil.rmtree(out / lost)
    said = "no finite gradient in 20 steps in a row, up to step 30"
    listed["tuning"]["failed"] = [{"run_id": lost, "failure": said}]
    (out / "suite.json").write_text(json.dumps(listed))
    ended = run_suite(load_suite(path), out, Notes())
    assert [o.folder.name for o in ended.trials] == [lost, kept]
    assert [(o.reused, o.failure) for o in ended.trials] == [(False, None), (True, None)]


def test_a_final_run_that_failed_ends_the_suite_with_3_and_is_tried_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tuned(finished, tmp_path / "s.yaml", seeds=[1, 2]), tmp_path / "runs"
    with monkeypatch.context() as patch:
        full_for(patch, WRITERS[1], lambda written: "seed2" in written)
        ended = suite(path, out, "--json")
    assert ended.exit_code == 3
    failures = {row["seed"]: row["failure"] for row in json.loads(ended.stdout)}
    assert failures[1] is None
    assert failures[2]["kind"] == "disk"
    assert suite(path, out).exit_code == 0


# An adapter that stock PEFT computes otherwise.


def test_a_run_whose_adapter_is_in_doubt_stays_and_is_told_of(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"
    check = __import__("schemabank.runs.finish", fromlist=["x"]).check_with_peft

    def doubtful(folder: Path, *rest: Any) -> PeftCheck:  # noqa: ANN401 -- as it is called
        found: PeftCheck = check(folder, *rest)
        return PeftCheck(3e-4, found.allowed) if "seed2" in str(folder) else found

    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.finish.check_with_peft", doubtful)
        settings = [part for setting in TWO for part in ("--set", setting)]
        command = ["train", str(finished.config), "--out", str(out), *settings]
        ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 3
    assert "WARNING: adapters that are not as trained" in " ".join(ended.stdout.split())
    assert "3.0e-04" in ended.stdout
    assert "gives other logits in stock PEFT than in its run: the largest" in ended.stderr
    results = {
        result["seed"]: result
        for result in (json.loads(p.read_text()) for p in out.glob("*/result.json"))
    }
    assert set(results) == {1, 2}, "both are finished, evaluated and named"
    assert results[2][FIELD]["difference"] == 3e-4
    assert results[1][FIELD]["difference"] <= results[1][FIELD]["allowed"] < 1e-9
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 3, "as long as that run is among them"


def test_a_search_does_not_stop_for_an_adapter_in_doubt(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tuned(finished, tmp_path / "s.yaml"), tmp_path / "runs"
    monkeypatch.setattr("schemabank.adapters.export.SAFETY", 0)
    ended = suite(path, out)
    assert ended.exit_code == 3
    assert "WARNING: adapters that are not as trained" in " ".join(ended.stdout.split())
    listed = json.loads((out / "suite.json").read_text())
    assert len(listed["tuning"]["chosen"]) == 1
    assert all((out / row["run_id"] / "result.json").is_file() for row in listed["runs"])


def test_only_the_kind_of_a_failure_stops_a_search(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine's failure in the words of divergence stops it; divergence in any words does not."""
    path = tuned(finished, tmp_path / "s.yaml")
    said = "no finite gradient in 20 steps in a row"

    def fails(runs: Sequence[Any], out: Path, *_args: object, **_options: object) -> list[Outcome]:
        return [Outcome(out / "x", None, failure=Failure("error", said)) for _ in runs]

    monkeypatch.setattr("schemabank.suites.execution.run_all", fails)
    with pytest.raises(FailedRunsError, match="2 of 2 tuning runs failed"):
        run_suite(load_suite(path), tmp_path / "runs", Notes())
