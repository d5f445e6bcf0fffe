"""Logs of Inspect, as JSON and as a zip: what is read, and what is refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluations import inspect_log, write_inspect
from schemabank.common import archives
from schemabank.common.errors import InputError
from schemabank.report.reading.inspectlogs import as_number, read_log
from schemabank.report.reading.itemresults import TaskRun
from schemabank.report.reading.places import ResultFile

VALUES = ["C", "I", "P", "N", 1, 0.25, True, "yes", "no", "0.5"]
NUMBERS = [1.0, 0.0, 0.5, 0.0, 1.0, 0.25, 1.0, 1.0, 0.0, 0.5]
Json = dict[str, Any]


def read(path: Path, metric: str | None = None, cluster_by: str | None = None) -> TaskRun:
    return read_log(ResultFile(path, None, None), metric, cluster_by)


@pytest.fixture(params=["log.json", "log.eval"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    log = inspect_log(VALUES, model="hf/lora-seed3")
    plain, packed = (read(write_inspect(tmp_path / name, log)) for name in ("log.json", "log.eval"))
    assert (plain.arm, plain.seed, plain.task, plain.metric) == (
        "hf/lora", "3", "arithmetic", "match",
    )  # fmt: skip
    assert [item.score for item in plain.items.values()] == NUMBERS
    assert dict(plain.items) == dict(packed.items)
    assert plain.conditions == packed.conditions == {
        "task_version": "0", "config": '{"epochs": 1}',
    }  # fmt: skip


def test_epochs_are_answers_to_one_item(path: Path) -> None:
    log = inspect_log(["C", "I"], epochs=4)
    log["samples"][0]["scores"]["match"]["value"] = "I"
    found = read(write_inspect(path, log))
    assert [item.score for item in found.items.values()] == [0.75, 0.0]


def test_scorers_and_parts_of_their_values(path: Path) -> None:
    log = inspect_log(["C", "I"])
    for sample in log["samples"]:
        sample["scores"]["judge"] = {"value": {"style": 0.5, "facts": "C"}}
    write_inspect(path, log)
    assert read(path).mean == 0.5
    assert read(path, "judge.facts").mean == 1.0
    for name in ("judge", "judge.x", "other"):
        with pytest.raises(InputError, match=rf"has no score '{name}' \(its scores are match, jud"):
            read(path, name)


def test_clusters_by_a_field_of_the_metadata(path: Path) -> None:
    write_inspect(path, inspect_log(["C"] * 4))
    found = read(path, cluster_by="topic")
    assert [item.cluster for item in found.items.values()] == ["t0", "t0", "t1", "t1"]
    with pytest.raises(InputError, match="has None as its 'source'"):
        read(path, cluster_by="source")


@pytest.mark.parametrize("value", ["X", "", "1.5", "nan", 2, -1, float("nan"), float("inf")])
def test_values_that_are_no_share(value: object) -> None:
    with pytest.raises(InputError, match=r"sample 1 has the score .* allowed are numbers from 0"):
        as_number(value, "sample 1")


def unscored(log: Json) -> None:
    log["samples"][1]["scores"] = None
    log["samples"][1]["error"] = {"message": "timeout"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda log: log.update(status="error"), "has the status 'error', allowed is 'success'"),
        (lambda log: log.update(status="started"), "has the status 'started'"),
        (lambda log: log["eval"].pop("task"), "has no object 'eval' that names a task"),
        (lambda log: log.pop("results"), "names no score in its results"),
        (lambda log: log["results"].update(scores=[]), "names no score in its results"),
        (unscored, r"has no score 'match' \(its scores are none, as a sample that failed\)"),
        (lambda log: log["results"].update(total_samples=3), "has 3 samples, but holds 2"),
        (lambda log: log["samples"][1].update(epoch="x"), "has no id or no epoch"),
        (lambda log: log["samples"][1]["scores"]["match"].update(value=[1]), "has no score"),
        (
            lambda log: log["samples"][1]["scores"]["match"].update(value=float("nan")),
            "has the score nan",
        ),
    ],
)
def test_wrong_logs(path: Path, change: Callable[[Json], object], words: str) -> None:
    log = inspect_log(["C", "I"])
    change(log)
    write_inspect(path, log)
    with pytest.raises(InputError, match=words) as error:
        read(path)
    assert path.name in str(error.value)


def test_a_sample_is_scored_once_an_epoch(path: Path) -> None:
    log = inspect_log(["C", "I"], epochs=2)
    log["samples"][3] |= {"id": "3", "epoch": 2}
    assert len(read(write_inspect(path, log)).items) == 3, "a text is another id than a number"
    log = inspect_log(["C", "I"])
    del log["samples"][0]["id"]
    plain = path.with_suffix(".json")
    with pytest.raises(InputError, match="sample 1 has no id or no epoch"):
        read(write_inspect(plain, log))
    log["samples"][0]["id"] = 2
    with pytest.raises(InputError, match="sample 2 has the id 2 and epoch 1 a second time"):
        read(write_inspect(plain, log))


def test_zips_that_are_torn_or_foreign(tmp_path: Path) -> None:
    path = write_inspect(tmp_path / "log.eval", inspect_log(["C", "I"]))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read .*log\.eval.*restore it"):
        read(path)
    spoiled = bytearray(whole)
    spoiled[len(whole) // 4] ^= 255
    path.write_bytes(bytes(spoiled))
    with pytest.raises(InputError, match="log"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples/1_epoch_1.json", "{}")
    with pytest.raises(InputError, match=r"has no header\.json: allowed is a finished log"):
        read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", "[]")
    with pytest.raises(InputError, match=r"header\.json holds no JSON object"):
        read(path)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_inspect(tmp_path / "log.eval", inspect_log(["C", "I"]))
    monkeypatch.setattr(archives, "LARGEST_JSON", 100)
    with pytest.raises(InputError, match="has more than 100 bytes"):
        read(path)
    monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 100)
    with pytest.raises(InputError, match="unpacks to more than"):
        read(path)


def test_the_first_score_of_a_scorer_with_several_values(path: Path) -> None:
    """Inspect names such a score by its part alone, and its scorer beside it."""
    log = inspect_log([{"quality": 0.25, "style": "C"}, {"quality": 0.5, "style": "I"}])
    log["results"]["scores"] = [
        {"name": name, "scorer": "match", "metrics": {}} for name in ("quality", "style")
    ]
    found = read(write_inspect(path, log))
    assert found.metric == "match.quality"
    assert [item.score for item in found.items.values()] == [0.25, 0.5]
    assert read(path, "match.style").mean == 0.5


def test_how_answers_were_sampled_is_a_condition_and_its_seed_is_none(path: Path) -> None:
    log = inspect_log(["C", "I"])
    log["eval"] |= {"solver": "cot", "model_generate_config": {"temperature": 0.7, "seed": 3}}
    found = read(write_inspect(path, log)).conditions
    assert found["model_generate_config"] == '{"temperature": 0.7}'
    assert found["solver"] == '"cot"'
