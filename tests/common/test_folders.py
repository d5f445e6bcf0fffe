"""New folders appear whole or not at all, and never in place of another."""

import os
from pathlib import Path

import pytest

from schemabank.common import folders
from schemabank.common.errors import InputError
from schemabank.common.folders import (
    check_local,
    check_new,
    check_writable,
    make_folder,
    missing_parents,
    new_folder,
    remove_empty,
    writing_in,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_taken_name_is_seen_beforehand(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not overwritten: choose another --out"):
        check_new(tmp_path / "link")


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "adapter"
    with new_folder(target) as partial:
        (partial / "weights").write_text("1")
        assert not target.exists()
    assert names(target.parent) == {"adapter"}
    assert names(target) == {"weights"}


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_new_folder_never_overwrites(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "a"
    if kind == "folder":
        target.mkdir()
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = os.lstat(target)
    with pytest.raises(InputError, match="not overwritten: choose another --out"):
        new_folder(target).__enter__()
    assert os.path.samestat(os.lstat(target), before)
    assert names(tmp_path) == {"a"}


def test_a_new_folder_does_not_overwrite_what_appears_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "a"

    def attempt() -> None:
        with new_folder(target) as partial:
            (partial / "weights").write_text("1")
            target.mkdir()

    with pytest.raises(InputError, match="not overwritten"):
        attempt()
    assert names(tmp_path) == {"a"}
    assert names(target) == set()


def test_a_failed_new_folder_leaves_nothing(tmp_path: Path) -> None:
    def attempt() -> None:
        with new_folder(tmp_path / "deep" / "deeper" / "a") as partial:
            (partial / "inner").mkdir()
            (partial / "inner" / "weights").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_does_not_block_a_new_folder(tmp_path: Path) -> None:
    """In a container every process may have the same id."""
    unfinished = new_folder(tmp_path / "a")
    left = unfinished.__enter__()
    (left / "half").write_text("1")
    with new_folder(tmp_path / "a") as partial:
        assert names(partial) == set()
    assert names(tmp_path) == {"a", left.name}


@pytest.mark.parametrize("make", ["new", "plain"])
def test_the_names_of_new_parents_outlive_a_power_cut(
    make: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(folders, "sync_to_disk", synced.append)
    target = tmp_path / "runs" / "deep" / "a"
    if make == "plain":
        make_folder(target)
    else:
        with new_folder(target):
            pass
    assert target.is_dir()
    assert {tmp_path, tmp_path / "runs"} <= set(synced)
    synced.clear()
    make_folder(target)
    assert synced == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://bucket/runs", "'s3://bucket/runs' is an address, not a folder: allowed is a folder"),
        ("memory://", "'memory://' is an address"),
        ("simplecache::gs://bucket/a", "'simplecache::gs://bucket/a' is an address"),
    ],
)
def test_an_address_is_no_folder(
    given: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for a path, it is a folder 's3:' here, and nothing would reach the bucket."""
    monkeypatch.chdir(tmp_path)
    path = Path(given)
    for check in (check_local, check_new, check_writable):
        with pytest.raises(
            InputError, match=f"^{said}.* as with rclone$" if "s3" in said else said
        ):
            check(path)
    with pytest.raises(InputError, match=said), new_folder(path):
        pytest.fail("it was made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["runs", "a:b/runs", "runs/s3:/a", "/s3:/a", "."])
def test_other_names_with_colons_are_folders(given: str) -> None:
    check_local(Path(given))


def test_folders_that_were_made_go_though_the_innermost_was_not(tmp_path: Path) -> None:
    """As on a file system that has room for two more folders, and not for the third."""
    missing = missing_parents(tmp_path / "a" / "b" / "c" / "run")
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_empty(missing)
    assert names(tmp_path) == set()
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    remove_empty(missing)
    assert names(tmp_path / "a") == {"file"}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device"),
            r"\(No space left on device\): free some space, or",
        ),
        (OSError("no number"), r"\(no number\): "),
    ],
)
def test_whatever_keeps_a_folder_from_being_written_to_is_told(
    error: OSError, said: str, tmp_path: Path
) -> None:
    said = rf"cannot write to '{tmp_path}' {said} ?choose another\Z"
    with (
        pytest.raises(InputError, match=said),
        writing_in(tmp_path, mend="choose another"),
    ):
        raise error
