"""What a run has come to, on disk: whole and its own, or not taken."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from damage import flip, lead_out, replace_by_folder, tear
from schemabank.common import folders
from schemabank.common.cores import processor_name
from schemabank.common.errors import InputError
from schemabank.common.files import read_json, sha256
from schemabank.common.writing import write_json
from schemabank.config.file import to_yaml
from schemabank.config.methods import CoToSettings
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.runs import trained
from schemabank.runs.folder import CONFIG, METRICS, STAGES, TRAINED
from schemabank.runs.kept import PROCESSOR, made_with, other_processor
from schemabank.runs.trained import (
    AGAIN,
    DIGESTS,
    STATE,
    WEIGHTS,
    StoredWeights,
    TrainedState,
    read_trained,
    write_trained,
)

RUN = RunConfig(arm="lora", seed=1)
MADE = made_with({"model": "a@1", "data": "sha256:0"}, [RUN], torch.device("cpu"))
ROWS = {"lora": torch.randn(50, generator=torch.Generator().manual_seed(0)), "bank": torch.ones(3)}
FOUND = TrainedState(ROWS, 18, [4], Counter(lora=17, bank=3), training_s=2.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / STAGES / "1-router").mkdir(parents=True)
    (tmp_path / STAGES / "1-router" / "weights").write_text("some")
    (tmp_path / CONFIG).write_text(to_yaml(RUN))
    (tmp_path / METRICS).write_text("{}\n")
    write_trained(tmp_path, FOUND, MADE)
    return tmp_path


def test_it_comes_back_as_it_was_to_the_bit(folder: Path) -> None:
    found = read_trained(folder, RUN, MADE)
    assert list(found.weights) == sorted(ROWS)
    for name, row in ROWS.items():
        assert found.weights[name].dtype == torch.float32
        assert torch.equal(found.weights[name], row)
    assert (found.num_steps, found.skipped, found.training_s) == (18, [4], 2.5)
    assert found.num_updates == {"lora": 17, "bank": 3}
    assert {path.name for path in (folder / TRAINED).iterdir()} == {WEIGHTS, STATE, DIGESTS}


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, replace_by_folder, lead_out])
@pytest.mark.parametrize(
    "name",
    [
        CONFIG,
        METRICS,
        f"{STAGES}/1-router/weights",
        f"{TRAINED}/{WEIGHTS}",
        f"{TRAINED}/{STATE}",
        f"{TRAINED}/{DIGESTS}",
    ],
)
def test_a_torn_folder_is_not_taken(
    name: str, damage: Callable[[Path], object], folder: Path
) -> None:
    damage(folder / name)
    with pytest.raises(InputError):
        read_trained(folder, RUN, MADE)


@pytest.mark.parametrize("name", [STAGES, f"{STAGES}/1-router"])
def test_a_stage_that_lies_elsewhere_is_not_taken(name: str, folder: Path) -> None:
    elsewhere = (folder / name).rename(folder / "elsewhere")
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match="not a regular file"):
        read_trained(folder, RUN, MADE)


def test_what_is_added_to_the_training_is_seen(folder: Path) -> None:
    (folder / STAGES / "2-more").write_text("more")
    with pytest.raises(InputError, match=r"is not what was written.*it is trained again"):
        read_trained(folder, RUN, MADE)


@pytest.mark.parametrize("missing", [[TRAINED], [CONFIG, METRICS]])
def test_an_empty_folder_is_not_taken(missing: list[str], folder: Path) -> None:
    for name in missing:
        (folder / name).rename(folder / f"no-{name}")
    with pytest.raises(InputError, match="is missing, allowed are whole files"):
        read_trained(folder, RUN, MADE)


def test_another_runs_folder_is_not_taken(folder: Path) -> None:
    other = RUN.model_copy(update={"seed": 2})
    said = r"config\.yaml' has other settings.*the same: settings\.seed was 1, now it is 2: it is"
    with pytest.raises(InputError, match=said):
        read_trained(folder, other, MADE)


WATCHED = {
    "trackers": ("tensorboard",),
    "tracker_project": "mine",
    "slots": 3,
    "checkpoint_minutes": None,
    "checkpoint_steps": 3,
}


def test_sections_of_other_methods_decide_nothing(folder: Path) -> None:
    """Though a run has them from a file for several arms, its own file leaves them out."""
    assert not RUN.uses("coto")
    other = RUN.model_copy(update={"coto": CoToSettings(rising_ratio=0.5)})
    assert read_trained(folder, other, MADE).num_steps == 18


def in_engine(run: RunConfig, **engine: object) -> RunConfig:
    return run.model_copy(update={"engine": run.engine.model_copy(update=engine)})


def test_settings_of_the_engine_that_decide_nothing_may_be_others(folder: Path) -> None:
    for other in ({name: value} for name, value in WATCHED.items()):
        assert read_trained(folder, in_engine(RUN, **other), MADE).num_steps == 18
    assert {*WATCHED, "device", "keep_stages"} == set(EngineSettings.model_fields), (
        "decide of new ones"
    )
    with pytest.raises(InputError, match="other settings"):
        read_trained(folder, in_engine(RUN, device="cuda"), MADE)
    with pytest.raises(InputError, match="other settings"):
        read_trained(folder, in_engine(RUN.model_copy(update={"seed": 2}), **WATCHED), MADE)


@pytest.mark.parametrize(("arm", "needed"), [("lora", False), ("schemabank", True)])
def test_stages_that_were_not_kept_are_trained_again_where_they_are_wanted(
    arm: str, needed: bool, tmp_path: Path
) -> None:
    kept = RunConfig(arm=arm, seed=1)
    without = in_engine(kept, keep_stages=False)
    for name, before, now in (("more", kept, without), ("fewer", without, kept)):
        place = tmp_path / name
        place.mkdir()
        (place / CONFIG).write_text(to_yaml(before))
        (place / METRICS).write_text("{}\n")
        write_trained(place, FOUND, MADE)
        if needed and name == "fewer":
            with pytest.raises(InputError, match="other settings"):
                read_trained(place, now, MADE)
        else:
            assert read_trained(place, now, MADE).num_steps == 18


@pytest.mark.parametrize("name", sorted(MADE.keys() - {PROCESSOR}))
def test_it_is_not_taken_where_it_would_be_another_today(name: str, folder: Path) -> None:
    with pytest.raises(
        InputError, match=f"allowed is the same: {name} was .*, now it is 'another'"
    ):
        read_trained(folder, RUN, {**MADE, name: "another"})
    assert name in {"inputs", "versions", "device", "room"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"versions": {**MADE["versions"], "peft": "0"}},
            r"versions.peft was '\d.*, now it is '0': ",
        ),
        ({"inputs": {"model": "a@1"}}, "inputs had more: "),
        ({"room": {**MADE["room"], "rank": 32}}, "room.rank was 16, now it is 32: "),
        (
            {"room": {**MADE["room"], "parts": {"mine": ["a", "b"]}}},
            r"room.parts.mine was None, now it is \['a', 'b'\]: ",
        ),
    ],
)
def test_the_very_difference_is_named(changes: dict[str, object], said: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"{said}it is trained again"):
        read_trained(folder, RUN, {**MADE, **changes})


def test_what_decides_the_bits_is_told_apart() -> None:
    cpu = torch.device("cpu")
    other = RUN.model_copy(update={"seed": 2})
    assert made_with({}, [RUN, other], cpu) == made_with({}, [other, RUN], cpu)
    assert made_with({}, [RUN], cpu) == made_with({}, [RUN, other], cpu)
    wider = RUN.model_copy(update={"lora": RUN.lora.model_copy(update={"r": 32})})
    assert made_with({}, [RUN], cpu) != made_with({}, [RUN, wider], cpu)
    assert MADE["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("changes", [{"num_steps": "18"}, {"skipped": 4}, {"made_with": None}])
def test_a_state_of_another_shape_is_refused_though_its_digest_fits(
    changes: dict[str, object], folder: Path
) -> None:
    place = folder / TRAINED
    digests = read_json(place / DIGESTS)
    write_json(place / STATE, {**read_json(place / STATE), **changes})
    write_json(place / DIGESTS, {**digests, STATE: sha256(place / STATE)})
    with pytest.raises(InputError, match=r"state\.json' is not what was written"):
        read_trained(folder, RUN, MADE)


def test_a_time_that_is_no_number_is_refused_though_its_digest_fits(folder: Path) -> None:
    place = folder / TRAINED
    digests = read_json(place / DIGESTS)
    write_json(place / STATE, {**read_json(place / STATE), "training_s": float("nan")})
    write_json(place / DIGESTS, {**digests, STATE: sha256(place / STATE)})
    with pytest.raises(InputError, match="no finite number in 'training_s'"):
        read_trained(folder, RUN, MADE)


def test_weights_that_are_not_finite_cannot_be_evaluated() -> None:
    assert FOUND.is_finite
    lost = {**ROWS, "bank": torch.tensor([1.0, torch.nan, 0.0])}
    assert not TrainedState(lost, 18, [], {}, training_s=0).is_finite


def test_nothing_is_overwritten(folder: Path) -> None:
    with pytest.raises(InputError, match="exists and is not overwritten"):
        write_trained(folder, FOUND, MADE)


def test_another_processor_is_told_and_not_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert other_processor(MADE, MADE) == other_processor({}, MADE) == ""
    assert PROCESSOR not in made_with({}, [RUN], torch.device("meta"))
    now = {**MADE, PROCESSOR: {"name": "Abacus", "threads": 7}}
    assert read_trained(folder, RUN, now).num_steps == 18
    said = other_processor(MADE, now)
    assert said.startswith(f"it began on {processor_name()} with ")
    assert " threads and goes on on Abacus with 7 threads, so that its last bits may " in said
    assert other_processor({PROCESSOR: [1]}, now).startswith("it began on [1] and goes on")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert made_with({}, [RUN], torch.device("cpu"))[PROCESSOR]["threads"] == 1


def test_what_its_digests_are_of_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss it would be refused otherwise, and no checkpoint is left beside it."""
    done: list[str] = []
    settle = folders.settle

    def noted(partial: Path, final: Path) -> None:
        done.append("named")
        settle(partial, final)

    monkeypatch.setattr(folders, "settle", noted)
    monkeypatch.setattr(trained, "sync_to_disk", lambda path: done.append(path.name))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).write_text(to_yaml(RUN))
    (tmp_path / "run" / METRICS).write_text("{}\n")
    write_trained(tmp_path / "run", FOUND, MADE)
    assert sorted(done[: done.index("named")]) == sorted([METRICS, CONFIG, "run", tmp_path.name])


@pytest.fixture
def stored(folder: Path) -> StoredWeights:
    found = read_trained(folder, RUN, MADE).stored
    assert found is not None
    return found


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, replace_by_folder, replace_by_pipe])
def test_weights_that_nobody_holds_are_read_as_they_were_written_or_not_at_all(
    damage: Callable[[Path], object], stored: StoredWeights
) -> None:
    found = stored.read()
    assert all(torch.equal(found[name], row) for name, row in ROWS.items())
    damage(stored.path)
    with pytest.raises(InputError, match=rf"{TRAINED}/{WEIGHTS}' .*{AGAIN}$"):
        stored.read()
    assert not stored.holds(ROWS)
    assert torch.equal(found["lora"], ROWS["lora"]), "it is no view of the file"


def test_what_was_written_is_compared_with_what_was_held(
    folder: Path, stored: StoredWeights, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert stored.holds(ROWS)
    for name, other in (("bank", torch.zeros(3)), ("lora", ROWS["lora"].bfloat16())):
        assert not stored.holds({**ROWS, name: other})
    assert not stored.holds({"lora": ROWS["lora"]})
    elsewhere = tmp_path_factory.mktemp("zeros")
    for name in (CONFIG, METRICS):
        (elsewhere / name).write_bytes((folder / name).read_bytes())
    zeros = write_trained(elsewhere, replace(FOUND, weights={"bank": torch.zeros(3)}), MADE)
    assert zeros.holds({"bank": torch.zeros(3)})
    assert not zeros.holds({"bank": -torch.zeros(3)}), "the sign is a bit, too"


def test_writing_tells_what_reading_does(folder: Path, stored: StoredWeights) -> None:
    (folder / TRAINED).rename(folder.parent / "before")
    assert write_trained(folder, FOUND, MADE) == stored
    assert stored.shapes == {"lora": (50,), "bank": (3,)}
    assert replace(FOUND, stored=stored).without_weights().weights == {}
