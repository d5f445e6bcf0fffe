"""Arms and seeds from names of folders, and from --arm."""

import os
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.report.reading import places
from schemabank.report.reading.places import (
    Place,
    ResultFile,
    arm_and_seed,
    read_places,
    result_files,
)


@pytest.mark.parametrize(
    ("parts", "arm", "seed"),
    [
        (["lora-seed1", "org__model"], "lora", "1"),
        (["lora_seed_02"], "lora", "2"),
        (["lora", "seed-3"], "lora", "3"),
        (["seed3", "lora"], "lora", "3"),
        (["Lora.Seed=4.final"], "Lora.final", "4"),
        (["lora"], "lora", None),
        (["seedling-7b"], "seedling-7b", None),
        (["linseed12"], "linseed12", None),
        (["seed9"], None, "9"),
        ([], None, None),
    ],
)
def test_names_of_folders(parts: list[str], arm: str | None, seed: str | None) -> None:
    assert arm_and_seed(parts) == (arm, seed)


def test_arms_as_they_are_named() -> None:
    found = read_places(None, ["lora=a", "new arm:03=b/c=d", "qwen:7b=x"])
    assert found == [
        Place(Path("a"), "lora", None),
        Place(Path("b/c=d"), "new arm", "3"),
        Place(Path("x"), "qwen:7b", None),
    ]
    assert read_places(Path("a"), []) == [Place(Path("a"))]


@pytest.mark.parametrize("text", ["lora", "=a", "lora=", " =a", "a\nb=c"])
def test_what_names_no_arm(text: str) -> None:
    with pytest.raises(InputError, match="allowed is NAME=PATH or NAME:SEED=PATH"):
        read_places(None, [text])


def test_a_path_or_arms() -> None:
    with pytest.raises(InputError, match="and both were given"):
        read_places(Path("a"), ["lora=a"])
    with pytest.raises(InputError, match="and neither was given"):
        read_places(None, [])


def test_what_is_named_overrides_folders_and_these_the_model(tmp_path: Path) -> None:
    path = tmp_path / "lora-seed1" / "x" / "r.json"
    path.parent.mkdir(parents=True)
    path.touch()
    (tmp_path / "lora-seed1" / ".hidden.json").touch()
    (tmp_path / "lora-seed1" / "other.txt").touch()
    own = (".json",)
    assert list(result_files(Place(tmp_path), suffixes=own)) == [ResultFile(path, "lora", "1")]
    named = Place(tmp_path, "new", "5")
    assert list(result_files(named, suffixes=own)) == [ResultFile(path, "new", "5")]
    assert list(result_files(Place(path), suffixes=own)) == [ResultFile(path, None, None)]
    assert ResultFile(path, None, None).named("org/m-seed4") == ("org/m", "4")
    assert ResultFile(path, None, None).named("org/m") == ("org/m", None)
    assert ResultFile(path, "lora", None).named("org/m-seed4") == ("lora", None)


def test_links_are_not_followed_and_files_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    for name in ("a.json", "b.json"):
        (tmp_path / name).touch()
    assert len(list(result_files(Place(tmp_path), suffixes=(".json",)))) == 2
    monkeypatch.setattr(places, "MOST_FILES", 1)
    with pytest.raises(InputError, match="holds more than 1 files"):
        list(result_files(Place(tmp_path), suffixes=(".json",)))
    with pytest.raises(InputError, match="does not exist: name a folder"):
        list(result_files(Place(tmp_path / "no"), suffixes=(".json",)))


def test_a_pipe_among_results_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match="is not a regular file"):
        list(result_files(Place(tmp_path), suffixes=(".json",)))
