"""Trackers: what is logged and how often, failures, and the real libraries where they are there."""

import importlib
import importlib.util
import json
import sqlite3
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment, run_id
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.engine.cohort import RunStep
from schemabank.runs import trackers
from schemabank.runs.experiment import run_experiment
from schemabank.runs.members import Outcome
from schemabank.runs.trackers import End, RunLog, Trackers, trackers_of
from tinyruns import Finished, Notes, snapshot


def installed(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: schemabank[{package}]")


@dataclass
class FakeRun:
    """Keeps what it is told; fails when asked to."""

    fails_at: str = ""
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    ends: list[tuple[End, dict[str, float], str]] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.fails_at == "log":
            raise ConnectionError("the network\nis gone")
        assert step not in self.steps
        self.steps[step] = dict(values)

    def close(self, end: End, scores: Mapping[str, float], why: str) -> None:
        if self.fails_at == "close":
            raise OSError("no space left")
        self.ends.append((end, dict(scores), why))


class Fake:
    """A library that keeps its runs."""

    place = "in memory"

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.runs: dict[str, FakeRun] = {}

    def follow(self, run: RunConfig) -> RunLog:
        if self.fails_at == "follow":
            raise RuntimeError("no login")
        return self.runs.setdefault(run_id(run), FakeRun(self.fails_at))


def fake(monkeypatch: pytest.MonkeyPatch, name: str, library: Fake) -> Fake:
    def ready(_out: Path, _engine: EngineSettings) -> Fake:
        return library

    monkeypatch.setattr(trackers, "LIBRARIES", {**trackers.LIBRARIES, name: ready})
    return library


def lora(seed: int = 1, *names: str) -> RunConfig:
    return RunConfig.model_validate(
        {"arm": "lora", "seed": seed, "engine": {"trackers": names or ("wandb",)}}
    )


def step(run: RunConfig, number: int, num_steps: int = 100, stage: str = "lora") -> RunStep:
    return RunStep(
        run=run_id(run),
        step=number,
        num_steps=num_steps,
        stage=stage,
        loss=float(number),
        total_loss=1.0,
        learning_rate=1e-3,
        grad_norm=2.0,
        num_tokens=10,
        skipped=False,
    )


def experiment(finished: Finished, out: Path, *overrides: str) -> tuple[list[Outcome], Notes]:
    notes = Notes()
    return run_experiment(load_experiment(finished.config, overrides), out, notes), notes


def test_a_run_logs_once_a_second_and_the_last_of_every_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("schemabank.runs.trackers.time.monotonic", lambda: now[0])
    library, bank = Fake(), RunConfig(arm="schemabank", engine=EngineSettings(trackers=("wandb",)))
    plain = lora(2)
    followed = Trackers({"wandb": library}, Notes())
    followed.begin([bank, plain])
    for number in range(100):
        now[0] = number / 30
        stage = ("router", "schemas", "joint")[number // 34]
        steps = [step(bank, number, stage=stage)]
        followed.steps([*steps, step(plain, number, 50)] if number < 50 else steps)
    logged = library.runs[run_id(bank)].steps
    assert list(logged) == [0, 30, 33, 60, 67, 90, 99]
    assert logged[33] == {
        "train/loss": 33.0,
        "train/learning_rate": 1e-3,
        "train/grad_norm": 2.0,
        "train/tokens": 340,
        "train/stage": 1,
    }
    assert [logged[n]["train/stage"] for n in (67, 99)] == [2, 3]
    assert list(library.runs[run_id(plain)].steps) == [0, 30, 49]


def test_stages_that_a_method_adds_have_numbers_too() -> None:
    library, run = Fake(), RunConfig(arm="swap", engine=EngineSettings(trackers=("wandb",)))
    followed = Trackers({"wandb": library}, Notes())
    followed.begin([run])
    for number, stage in enumerate(("lora", "branch 1", "branch 2")):
        followed.steps([step(run, number, 3, stage)])
    logged = library.runs[run_id(run)].steps
    assert [values["train/stage"] for values in logged.values()] == [1, 2, 3]


def test_the_last_step_before_a_failure_is_logged() -> None:
    library, run = Fake(), lora()
    followed = Trackers({"wandb": library}, Notes())
    followed.begin([run])
    for number in range(5):
        followed.steps([step(run, number)])
    followed.end(run_id(run), "failed", None, "no finite gradient")
    (one,) = library.runs.values()
    assert list(one.steps) == [0, 4]
    assert one.ends == [("failed", {}, "no finite gradient")]


@pytest.mark.usefixtures("gsm8k")
def test_runs_log_their_steps_and_scores_and_a_reused_one_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fake(monkeypatch, "wandb", Fake())
    asked = ["engine.trackers=[wandb]", "engine.slots=2", "arm=[base, lora, schemabank]"]
    outcomes, _ = experiment(finished, tmp_path, *asked)
    assert list(library.runs) == [o.folder.name for o in outcomes]
    for outcome, before in zip(
        outcomes, (finished.base, finished.lora, finished.schemabank), strict=True
    ):
        assert outcome.folder.name == before.folder.name, "trackers are no part of a run's id"
        assert outcome.result is not None
        groups: Any = outcome.result["groups"]
        ((end, scores, why),) = library.runs[outcome.folder.name].ends
        assert (end, why) == ("finished", "")
        assert scores["score/all/correct"] == groups["all"]["correct"]
        assert scores["score/all/gold_nll"] == groups["all"]["gold_nll"]
    metrics = (outcomes[2].folder / "metrics.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(json.loads, metrics)}
    steps = library.runs[outcomes[2].folder.name].steps
    assert {4, 10, 17} <= steps.keys(), "the last step of every stage"
    for number, values in steps.items():
        assert values["train/loss"] == rows[number]["loss"]
        told = sum(rows[n]["num_tokens"] for n in range(number + 1))
        assert values["train/tokens"] == told
    library.runs.clear()
    experiment(finished, tmp_path, *asked)
    assert library.runs == {}


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("place", ["follow", "log", "close"])
def test_a_tracker_that_fails_is_left_off_and_stops_no_run(
    place: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(monkeypatch, "wandb", Fake(place))
    other = fake(monkeypatch, "trackio", Fake())
    asked = ["engine.trackers=[wandb, trackio]", "arm=[base, lora]", "train.max_steps=3"]
    outcomes, notes = experiment(finished, tmp_path, *asked)
    assert [o.failure for o in outcomes] == [None, None]
    (line,) = [line for line in notes.lines if "is left off" in line]
    assert line.startswith("tracker wandb is left off from here on (")
    assert "\n" not in line
    assert [run.ends[0][0] for run in other.runs.values()] == ["finished", "finished"]


def test_the_other_runs_of_a_library_that_fails_are_closed() -> None:
    runs = [RunConfig(arm="lora", seed=seed) for seed in (1, 2)]
    runs = [r.model_copy(update={"engine": EngineSettings(trackers=("wandb",))}) for r in runs]
    library, notes = Fake(), Notes()
    followed = trackers.Trackers({"wandb": library}, notes)
    followed.begin(runs)
    broken, sound = (library.runs[run_id(run)] for run in runs)
    broken.fails_at = "close"
    followed.end(run_id(runs[0]), "finished", {"groups": {}, "scores": []})
    assert [(end, why) for end, _, why in sound.ends] == [("interrupted", "no space left")]
    followed.end(run_id(runs[1]), "finished", {"groups": {}, "scores": []})
    assert len(sound.ends) == 1


@pytest.mark.usefixtures("gsm8k")
def test_failed_and_interrupted_runs_are_marked(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["engine.trackers=[wandb]", "arm=lora", "train.max_steps=3"]
    for error, end in ((OSError("disk full"), "failed"), (KeyboardInterrupt(), "interrupted")):
        library = fake(monkeypatch, "wandb", Fake())

        def broken(*_: object, raised: BaseException = error, **__: object) -> None:
            raise raised

        with monkeypatch.context() as patch:
            patch.setattr("schemabank.runs.forms.evaluate", broken)
            try:
                experiment(finished, tmp_path / end, *asked)
            except KeyboardInterrupt:
                assert end == "interrupted"
        (run,) = library.runs.values()
        ((ended, _, why),) = run.ends
        assert ended == end
        assert why.startswith(str(error) or "interrupted")


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_library_that_is_missing_is_named_before_anything_is_computed(
    name: str, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=rf"names '{name}', .*pip install 'schemabank\[{name}\]'"):
        experiment(finished, tmp_path / "runs", f"engine.trackers=[{name}]")
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("gsm8k")
def test_a_library_that_cannot_be_made_ready_is_named_before_anything_is_computed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mends = {"wandb": "`wandb login`, set the variable WANDB_MODE=offline, or ", "trackio": ""}
    for name, mend in mends.items():

        def refused(_out: Path, _engine: EngineSettings) -> Fake:
            raise RuntimeError("API key verification failed\nfor reasons")

        monkeypatch.setattr(trackers, "LIBRARIES", {name: refused})
        said = r"names '{}', .*\(RuntimeError: API key verification failed\): .*{}leave it out"
        with pytest.raises(InputError, match=said.format(name, mend)):
            experiment(finished, tmp_path / "runs", f"engine.trackers=[{name}]")
        assert not (tmp_path / "runs").exists()


def test_nothing_is_tracked_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    notes = Notes()
    followed = trackers_of([RunConfig(arm="lora")], tmp_path, notes)
    followed.begin([RunConfig(arm="lora")])
    followed.steps([step(RunConfig(arm="lora"), 0)])
    followed.interrupt()
    assert notes.lines == []


NO_SPACE = "no space"

# The real libraries. A run that fails stands beside one that ends well.


def two_at_once(
    finished: Finished, out: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> tuple[Outcome, Outcome]:
    """Two runs in a cohort, of which the second's predictions cannot be written."""
    write = importlib.import_module("schemabank.runs.finish").write_lines

    def second_fails(path: Path, rows: object) -> None:
        if "seed2" in str(path):
            raise OSError(NO_SPACE)
        write(path, rows)

    monkeypatch.setattr("schemabank.runs.finish.write_lines", second_fails)
    asked = ["arm=lora", "seed=[1, 2]", "engine.slots=2", f"engine.trackers=[{tracker}]"]
    (good, bad), notes = experiment(finished, out, *asked)
    assert good.failure is None
    assert bad.failure is not None
    assert bad.failure.kind == "disk"
    assert bad.failure.message == NO_SPACE
    assert bad.kept
    assert not [line for line in notes.lines if "left off" in line]
    assert any(line.startswith(f"tracker {tracker}: ") for line in notes.lines)
    return good, bad


def name_of(failed: Outcome) -> str:
    """The id of a run whose training is kept."""
    return failed.folder.name.removeprefix(".").removesuffix(".partial")


@installed("tensorboard")
@pytest.mark.usefixtures("gsm8k")
def test_tensorboard_reads_what_was_logged(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    good, _ = two_at_once(finished, tmp_path / "runs", monkeypatch, "tensorboard")
    place = tmp_path / "runs" / "tensorboard"
    names = {p.name for p in place.iterdir()}
    assert len(names) == 2
    assert good.folder.name in names
    read = reading.EventAccumulator(str(place / good.folder.name))
    read.Reload()
    losses = read.Scalars("train/loss")
    rows = [json.loads(x) for x in (good.folder / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1].step == 17
    for event in losses:
        assert event.value == pytest.approx(rows[event.step]["loss"])
    assert good.result is not None
    groups: Any = good.result["groups"]
    (score,) = read.Scalars("score/all/gold_nll")
    assert score.value == pytest.approx(groups["all"]["gold_nll"])
    assert {"settings/text_summary", "end/text_summary"} <= set(read.Tags()["tensors"])
    (bad_name,) = names - {good.folder.name}
    other = reading.EventAccumulator(str(place / bad_name))
    other.Reload()
    (end,) = other.Tensors("end/text_summary")
    assert end.tensor_proto.string_val[0].decode() == f"failed: {NO_SPACE}"
    two_at_once(finished, tmp_path / "runs", monkeypatch, "tensorboard")
    assert {p.name for p in place.iterdir()} == names | {f"{bad_name}.earlier-1"}


def log_records(data: bytes) -> list[bytes]:
    """Records of a file in LevelDB's log format (its doc/log_format.md) behind a header.

    Blocks have 32 KiB; a piece is a checksum, its length, its type and its bytes.
    """
    whole, first, last = 1, 2, 4
    found, place = [b""], 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        piece = data[place + 7 : place + 7 + size]
        found[-1] = piece if kind in {whole, first} else found[-1] + piece
        if kind in {whole, last}:
            found.append(b"")
        place += 7 + size
    return found[:-1]


@installed("wandb")
@pytest.mark.usefixtures("gsm8k")
def test_weights_and_biases_keeps_runs_apart_offline(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    internal: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "one-for-all")
    good, bad = two_at_once(finished, tmp_path / "runs", monkeypatch, "wandb")
    wandb.teardown()
    found = {}
    for path in (tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"):
        records = [internal.Record.FromString(data) for data in log_records(path.read_bytes())]
        (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert (run.project, run.run_group) == ("mine", "runs")
        codes = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
        losses = [
            json.loads(item.value_json)
            for r in records
            for item in r.history.item
            if "train/loss" in {item.key, "/".join(item.nested_key)}
        ]
        found[run.display_name] = codes, losses
    assert found.keys() == {good.folder.name, name_of(bad)}
    codes, losses = found[good.folder.name]
    rows = [json.loads(x) for x in (good.folder / "metrics.jsonl").read_text().splitlines()]
    assert codes == [0]
    assert losses[-1] == rows[-1]["loss"]
    assert found[name_of(bad)][0] == [1]


@installed("wandb")
@pytest.mark.usefixtures("gsm8k")
def test_weights_and_biases_without_a_key_is_refused_before_anything_is_computed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()
    with pytest.raises(InputError, match=r"no API key: .*wandb login.*WANDB_MODE=offline"):
        experiment(finished, tmp_path / "runs", "engine.trackers=[wandb]")
    assert not (tmp_path / "runs").exists()
    wandb.teardown()


@installed("trackio")
@pytest.mark.usefixtures("gsm8k")
def test_trackio_keeps_runs_apart(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "trackio"
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", folder)
    good, bad = two_at_once(finished, tmp_path / "runs", monkeypatch, "trackio")
    assert capsys.readouterr().out == ""
    (database,) = folder.glob("*.db")
    with sqlite3.connect(database) as read:
        rows = read.execute("select run_name, step, metrics from metrics order by id").fetchall()
        settings = dict(read.execute("select run_name, config from configs").fetchall())
    read.close()
    name = name_of(bad)
    assert {row[0] for row in rows} == {good.folder.name, name} == settings.keys()
    last = {row[0]: json.loads(row[2]) for row in rows}
    assert last[name] == {"end": "failed", "failure": bad.failure.message}
    assert last[good.folder.name]["end"] == "finished"
    assert last[good.folder.name]["score/all/gold_nll"] > 0
    assert json.loads(settings[name])["train.learning_rate"] == 1e-2
