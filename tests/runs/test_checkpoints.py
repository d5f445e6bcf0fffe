"""Where a run stands, on disk: whole and its own, or not taken."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cohorts import cohort, data, lora_run
from damage import flip, lead_out, replace_by_folder, tear
from schemabank.common.errors import InputError
from schemabank.common.files import read_json, sha256
from schemabank.common.growing import GrowingDigest
from schemabank.common.writing import write_json
from schemabank.config.file import to_yaml
from schemabank.config.methods import SWAPSettings
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.engine.keeping import Standing
from schemabank.engine.run import OnCourse
from schemabank.engine.slots import Slot, SlotState
from schemabank.methods.swap import SWAPCourse
from schemabank.runs.checkpoints import (
    DIGESTS,
    STATE,
    WEIGHTS,
    At,
    Begun,
    checkpoints_in,
    keep_only,
    num_slots_of,
    read_checkpoint,
    write_checkpoint,
)
from schemabank.runs.folder import CHECKPOINTS, CONFIG, METRICS, STAGES

RUN = RunConfig(arm="lora", seed=1)
MADE = {"device": "cpu", "inputs": {"model": "a@1"}}
LINES = "{}\n" * 20
SIZE = 12
FOLDER = Path("a")


def standing(step: int, **changes: Any) -> Standing:  # noqa: ANN401 -- of several fields
    draw = torch.Generator().manual_seed(step)
    sizes = (SIZE, SIZE, SIZE, 1)
    rows = {name: [torch.randn(n, generator=draw) for n in sizes] for name in ("lora", "router")}
    state = SlotState(step, 40, (1, 4), 1, {"lora": step - 2, "router": 3})
    return Standing(replace(state, **changes), rows, seat=2)


def at(**changes: Any) -> At:  # noqa: ANN401 -- of several fields
    return replace(At(7, 3, 500, 2.5, len(LINES), ("1-router",)), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder with a checkpoint, after which its training went on for a while."""
    found = tmp_path / "run"
    (found / STAGES / "1-router").mkdir(parents=True)
    (found / STAGES / "1-router" / "weights").write_text("some")
    (found / CONFIG).write_text(to_yaml(RUN))
    (found / METRICS).write_text(LINES)
    write_checkpoint(found, standing(9), at(), MADE)
    (found / METRICS).write_text(LINES + "{}\n")
    (found / STAGES / "2-schemas").mkdir()
    (found / STAGES / "2-schemas" / "weights").write_text("later")
    return found


def the_one(folder: Path) -> Path:
    (found,) = checkpoints_in(folder)
    return found


def change(place: Path, **numbers: object) -> None:
    """Write other numbers into a checkpoint, with digests that fit."""
    write_json(place / STATE, {**read_json(place / STATE), **numbers})
    seal(place)


def seal(place: Path) -> None:
    digests = {name: sha256(place / name) for name in (STATE, WEIGHTS)}
    write_json(place / DIGESTS, {**read_json(place / DIGESTS), **digests})


def test_it_comes_back_as_it_was_to_the_bit(folder: Path) -> None:
    found, expected = read_checkpoint(the_one(folder), RUN, MADE), standing(9)
    assert vars(found.standing.state) == vars(expected.state)
    assert (found.standing.seat, found.at) == (2, at())
    assert found.standing.rows.keys() == expected.rows.keys()
    for name, rows in expected.rows.items():
        assert all(map(torch.equal, found.standing.rows[name], rows))
    assert num_slots_of(folder, RUN, MADE) == 3


def test_weights_to_go_back_to_and_values_that_are_not_finite_come_back_too(folder: Path) -> None:
    origin = {"lora": torch.full((SIZE,), torch.inf), "router": torch.zeros(SIZE)}
    write_checkpoint(folder, standing(11, origin=origin), at(), MADE)
    found = read_checkpoint(checkpoints_in(folder)[0], RUN, MADE).standing.state.origin
    assert found is not None
    assert all(torch.equal(found[name], row) for name, row in origin.items())


@pytest.mark.parametrize("damage", [flip, tear, Path.unlink, replace_by_folder, lead_out])
@pytest.mark.parametrize(
    "name", [WEIGHTS, STATE, DIGESTS, CONFIG, METRICS, f"{STAGES}/1-router/weights"]
)
def test_a_damaged_one_is_not_taken(
    name: str, damage: Callable[[Path], object], folder: Path
) -> None:
    place = the_one(folder)
    damage((place if name in {WEIGHTS, STATE, DIGESTS} else folder) / name)
    with pytest.raises((InputError, OSError)):
        read_checkpoint(place, RUN, MADE)


def test_it_is_of_these_settings_but_for_when_it_is_made(folder: Path) -> None:
    """And but for who watches."""
    often = EngineSettings(
        checkpoint_minutes=None, checkpoint_steps=3, trackers=("tensorboard",), tracker_project="x"
    )
    read_checkpoint(the_one(folder), RUN.model_copy(update={"engine": often}), MADE)
    other = RUN.model_copy(update={"engine": EngineSettings(slots=2)})
    with pytest.raises(InputError, match="has other settings, allowed are the same"):
        read_checkpoint(the_one(folder), other, MADE)
    assert num_slots_of(folder, other, MADE) is None


def test_that_of_another_run_is_not_taken(folder: Path) -> None:
    other = RUN.model_copy(update={"seed": 2})
    (folder / CONFIG).write_text(to_yaml(other))
    with pytest.raises(InputError, match="is not what was written"):
        read_checkpoint(the_one(folder), other, MADE)


def test_it_is_of_these_inputs(folder: Path) -> None:
    other = {**MADE, "inputs": {"model": "a@2"}}
    with pytest.raises(InputError, match=r"inputs\.model was 'a@1', now it is 'a@2'"):
        read_checkpoint(the_one(folder), RUN, other)


def test_one_of_another_version_is_named(folder: Path) -> None:
    change(the_one(folder), version=2)
    with pytest.raises(InputError, match="has version 2 of checkpoints, allowed is 1"):
        read_checkpoint(the_one(folder), RUN, MADE)


@pytest.mark.parametrize(
    "numbers",
    [
        {"step": 41},
        {"step": 0},
        {"step": "9"},
        {"skipped": [4, 1]},
        {"skipped": [9]},
        {"skipped_in_row": 3},
        {"num_updates": {"lora": 10}},
        {"log_bytes": len(LINES) + 10},
        {"log_bytes": len(LINES) - 3},
        {"stages": ["../run"]},
        {"num_slots": 0},
        {"training_s": float("inf")},
    ],
    ids=str,
)
def test_numbers_that_no_run_comes_to_are_refused(numbers: dict[str, object], folder: Path) -> None:
    change(the_one(folder), **numbers)
    with pytest.raises(InputError):
        read_checkpoint(the_one(folder), RUN, MADE)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("lora", torch.zeros(SIZE)),
        ("code.lora", torch.zeros(SIZE)),
        ("weights.lora", torch.zeros(SIZE, dtype=torch.bfloat16)),
        ("weights.lora", torch.zeros(SIZE, dtype=torch.int32)),
    ],
    ids=str,
)
def test_tensors_that_no_run_has_are_refused(name: str, row: torch.Tensor, folder: Path) -> None:
    place = the_one(folder)
    save_file({**load_file(place / WEIGHTS), name: row}, place / WEIGHTS)
    seal(place)
    with pytest.raises(InputError, match="allowed are"):
        read_checkpoint(place, RUN, MADE)


@pytest.mark.parametrize("wrong", ["shape", "steps", "group", "mean", "origin"])
def test_one_that_does_not_fit_the_run_is_refused(wrong: str) -> None:
    made = cohort([lora_run(1)], data())
    steps = made.steps()
    for _ in range(3):
        next(steps)
    kept = made.standings()["lora-1"]
    rows, state = {n: list(each) for n, each in kept.rows.items()}, kept.state
    if wrong == "shape":
        rows["lora"][0] = rows["lora"][0][1:]
    elif wrong == "steps":
        state = replace(state, num_steps=state.num_steps + 1)
    elif wrong == "group":
        rows["router"] = rows["lora"]
    elif wrong == "mean":
        rows["lora"].append(rows["lora"][0])
    else:
        state = replace(state, origin={"lora": rows["lora"][0]})
    (slot,) = cohort([lora_run(1)], data()).slots
    Begun(kept, at()).tell(slot, made.stack, FOLDER)
    with pytest.raises(InputError, match=r"allowed are .* remove the folder 'a/checkpoints'"):
        Begun(Standing(state, rows, None), at()).tell(slot, made.stack, FOLDER)
    made.stack.remove()


def test_two_are_kept_and_nothing_half_written(folder: Path) -> None:
    (folder / CHECKPOINTS / ".step-12.00.partial").mkdir()
    write_checkpoint(folder, standing(10), at(), MADE)
    write_checkpoint(folder, standing(100), at(), MADE)
    assert [path.name for path in checkpoints_in(folder)] == ["step-100", "step-10"]
    assert len(list((folder / CHECKPOINTS).iterdir())) == 2
    keep_only(folder, ["step-10"])
    assert the_one(folder).name == "step-10"


def test_links_and_other_names_are_no_checkpoints(folder: Path, tmp_path: Path) -> None:
    place = the_one(folder)
    (folder / CHECKPOINTS / "step-12").symlink_to(place)
    (folder / CHECKPOINTS / "step-12\n").mkdir()
    (folder / CHECKPOINTS / "step-x").mkdir()
    assert the_one(folder) == place
    (folder / CHECKPOINTS).rename(tmp_path / "elsewhere")
    (folder / CHECKPOINTS).symlink_to(tmp_path / "elsewhere")
    assert checkpoints_in(folder) == []


@pytest.mark.parametrize("stages", [("1-router",), ()])
def test_stages_that_lie_elsewhere_are_refused(
    stages: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    write_checkpoint(folder, standing(10), at(stages=stages), MADE)
    (folder / STAGES).rename(tmp_path / "elsewhere")
    (folder / STAGES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError):
        read_checkpoint(checkpoints_in(folder)[0], RUN, MADE)


def test_one_that_cannot_be_written_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("schemabank.runs.checkpoints.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(folder, standing(10), at(), MADE)
    assert the_one(folder).name == "step-9"
    assert len(list((folder / CHECKPOINTS).iterdir())) == 1
    read_checkpoint(the_one(folder), RUN, MADE)


def test_a_run_whose_first_branch_had_no_memory_is_taken_where_it_begins() -> None:
    """What its branches start from is copied already, and it has not taken the step."""
    swap = SWAPSettings(num_branches=2, branch_ratio=0.5)
    run = replace(lora_run(1), method=OnCourse(partial(SWAPCourse, swap=swap)))
    made = cohort([run], data())
    (slot,) = made.slots
    first = slot.course.branch_starts[0]
    for _ in made.steps():
        if slot.step == first:
            break
    slot.origin = made.stack.lora.back_at(0, None)
    found = made.standings()[run.name]
    again = Slot(run, data())
    Begun(found, at()).tell(again, made.stack, FOLDER)
    assert again.origin is not None
    before = replace(found, state=replace(found.state, step=first - 1))
    with pytest.raises(InputError, match="steps and tensors in the checkpoint"):
        Begun(before, at()).tell(Slot(run, data()), made.stack, FOLDER)
    made.stack.remove()


def test_of_a_log_that_grows_each_checkpoint_reads_what_is_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, read = GrowingDigest(folder / METRICS), list[int]()
    for number, step in enumerate((10, 11, 12)):
        with (folder / METRICS).open("a") as file:
            file.write('{"step": 7}\n' * 100)
        size = (folder / METRICS).stat().st_size
        before = log._read
        write_checkpoint(folder, standing(step), at(log_bytes=size), MADE, log=log)
        read.append(log._read - before)
        assert read_checkpoint(checkpoints_in(folder)[0], RUN, MADE).at.log_bytes == size
        assert number == 0 or read[-1] == 1200
    monkeypatch.setattr("schemabank.common.growing.READ_AT_ONCE", 7)
    content = (folder / METRICS).read_bytes()
    for size in (5, 100, 90, len(content), len(content) + 9):
        assert log.of(size) == hashlib.sha256(content[:size]).hexdigest()
