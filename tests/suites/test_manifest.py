"""Trials that have diverged are not tried again, as long as weights and data are the same."""

import errno
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.runs.inputs import recorded_in
from schemabank.runs.stored import read_suite
from schemabank.suites import manifest
from schemabank.suites.execution import run_suite
from schemabank.suites.file import Suite, read_suite_file
from schemabank.suites.manifest import check_manifest, write_manifest, written_manifest
from schemabank.suites.plan import plan_suite
from schemabank.suites.ratesearch import RateSearch
from schemabank.suites.suite import load_suite
from tinyruns import SETTINGS, Notes, write_gsm8k, write_model
from tinysuites import write

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@dataclass(frozen=True)
class Diverging:
    """A suite whose two trials diverge, with weights and data of its own."""

    model: Path
    data: Path
    file: Path
    out: Path

    def again(self) -> list[str]:
        """Search once more, in vain; return what is noted."""
        notes = Notes()
        with pytest.raises(InputError, match="diverged at all of the factors"):
            run_suite(load_suite(self.file), self.out, notes)
        return notes.lines

    @property
    def failed(self) -> dict[str, Any]:
        """What is known of the first trial."""
        rows: list[dict[str, Any]] = read_json(self.out / "suite.json")["tuning"]["failed"]
        assert len(rows) == 2
        return rows[0]

    @property
    def num_tries(self) -> float:
        """How often the two were trained."""
        return len(list(self.out.glob("*.unfinished-*"))) / 2


@pytest.fixture
def diverging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Diverging:
    model, data = write_model(tmp_path / "model"), write_gsm8k(tmp_path / "data", num_train=8)
    monkeypatch.setenv("SCHEMABANK_DATA", str(data))
    defaults = {
        **{key: value for key, value in SETTINGS.items() if key != "arm"},
        "model": {"name": str(model), "dtype": "float32"},
        "train": {"num_train_epochs": 1, "learning_rate": 1e-2},
    }
    tune = {"factors": [1e30, 1e31], "seeds": [1001], "extend": 0}
    file = write(tmp_path / "s.yaml", arms={"lora": {}}, seeds=[1], tune=tune, defaults=defaults)
    found = Diverging(model, data, file, tmp_path / "runs")
    found.again()
    return found


def reweighted(place: Diverging) -> None:
    file = place.model / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] += 0.5
    save_file(weights, file, metadata={"format": "pt"})


def relabelled(place: Diverging) -> None:
    file = place.data / "gsm8k" / "train.jsonl.gz"
    with gzip.open(file, "rt") as read:
        rows = read.read()
    with gzip.open(file, "wt") as written:
        written.write(rows.replace("add 3 and 3", "add two times 3"))


def test_a_divergence_is_settled_with_the_digests_of_weights_and_data(diverging: Diverging) -> None:
    inputs = recorded_in(diverging.failed)
    assert inputs.keys() == {"model", "tokenizer", "data"}
    assert all(digest.startswith("sha256:") for digest in inputs.values())
    assert not any("is tried again" in line for line in diverging.again())
    assert diverging.num_tries == 1


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [(reweighted, "model", "the base model"), (relabelled, "data", "the task's data")],
)
def test_on_other_weights_or_data_a_trial_that_diverged_is_tried_again(
    change: Callable[[Diverging], None], name: str, said: str, diverging: Diverging
) -> None:
    before = diverging.failed
    change(diverging)
    told = [line for line in diverging.again() if "is tried again" in line]
    assert diverging.num_tries == 2
    now = diverging.failed
    assert len(told) == 2
    assert (
        f"tuning run {now['run_id']}, which diverged, is tried again: {said} is not the one that "
        f"it was made with: it was {before['inputs'][name]:.19}…, now it is "
        f"{now['inputs'][name]:.19}…"
    ) in told
    assert {k for k in now["inputs"] if now["inputs"][k] != before["inputs"][k]} == {name}
    assert not any("is tried again" in line for line in diverging.again())
    assert diverging.num_tries == 2


def test_a_plan_counts_no_divergence_on_other_weights(diverging: Diverging) -> None:
    reweighted(diverging)
    notes = Notes()
    plan_suite(load_suite(diverging.file), diverging.out, notes)
    assert sum("is tried again: the base model is not the one" in line for line in notes.lines) == 2


def test_a_divergence_that_names_no_weights_and_data_is_tried_again(diverging: Diverging) -> None:
    listed = read_json(diverging.out / "suite.json")
    del listed["tuning"]["failed"][0]["inputs"]
    (diverging.out / "suite.json").write_text(json.dumps(listed))
    (told,) = [line for line in diverging.again() if "is tried again" in line]
    assert told.endswith(
        "it was made before the model and the data were recorded, so that both may be others now"
    )
    assert diverging.num_tries == 2
    assert recorded_in(diverging.failed)


def test_a_divergence_stands_where_the_weights_are_gone(diverging: Diverging) -> None:
    (diverging.model / "model.safetensors").rename(diverging.model / "elsewhere")
    (diverging.model / "config.json").rename(diverging.model / "config")
    assert not any("is tried again" in line for line in diverging.again())


@pytest.mark.parametrize("inputs", [3, ["model"], {"model": 3}])
def test_digests_that_are_no_texts_are_refused(inputs: object, diverging: Diverging) -> None:
    listed = read_json(diverging.out / "suite.json")
    listed["tuning"]["failed"][0]["inputs"] = inputs
    (diverging.out / "suite.json").write_text(json.dumps(listed))
    refusal = plan_suite(load_suite(diverging.file), diverging.out, Notes()).refusal
    with pytest.raises(InputError, match=r"tuning\.failed\.0\.inputs\S* \(it is "):
        raise refusal or AssertionError


def declared(folder: Path, **more: object) -> Suite:
    contrast = {"treatment": "lora", "control": "base", **more}
    file = write(folder / "s.yaml", arms={"lora": {}, "base": {}}, seeds=[1], contrast=contrast)
    return read_suite_file(file)


@pytest.mark.parametrize(("name", "value"), [("margin", 1.5), ("group", "seen")])
def test_a_margin_or_group_is_declared_with_the_contrast_and_stays(
    tmp_path: Path, name: str, value: object
) -> None:
    without, with_it = declared(tmp_path), declared(tmp_path, **{name: value})
    for suite, other, out in ((without, with_it, "a"), (with_it, without, "b")):
        write_manifest(tmp_path / out, suite, None)
        check_manifest(tmp_path / out, suite)
        with pytest.raises(InputError, match="allowed is what was declared before the runs"):
            check_manifest(tmp_path / out, other)
    assert name not in read_suite(tmp_path / "a" / "suite.json")["contrast"], "as before"
    assert read_suite(tmp_path / "b" / "suite.json")["contrast"][name] == value


@pytest.mark.parametrize("is_tuned", [False, True])
def test_a_folder_that_has_no_room_for_a_list_is_named_and_taken_back(
    is_tuned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    tune = {"factors": [1, 2], "seeds": [1001]} if is_tuned else None
    defaults = {"eval": {"split": "test"}}
    file = write(tmp_path / "s.yaml", arms={"lora": {}}, seeds=[1], tune=tune, defaults=defaults)
    suite = load_suite(file)
    out = tmp_path / "full" / "r"
    monkeypatch.setattr(manifest, "write_json", full)
    mend = "free some space, or choose another --out"
    said = rf"cannot write to '{out}' \(No space left on device\): {mend}\Z"
    with pytest.raises(InputError, match=said):
        write_manifest(out, suite, RateSearch() if is_tuned else None)
    with pytest.raises(InputError, match=said), written_manifest(out, suite, None):
        pytest.fail("it is written")
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), InputError("no such model")])
def test_a_list_of_runs_that_cannot_be_had_is_taken_back(error: Exception, tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "s.yaml", arms={"lora": {}}, seeds=[1]))
    out = tmp_path / "deep" / "r"
    with pytest.raises(type(error)) as raised, written_manifest(out, suite, None):
        raise error
    assert raised.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]
