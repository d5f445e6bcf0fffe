"""Files and folders that are there whole or not at all; what is killed is a real process."""

import errno
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fulldisk import longest_file
from schemabank.adapters import files as adapters
from schemabank.common import writing
from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.common.folders import new_folder
from schemabank.common.writing import (
    extend_file,
    how_to_mend,
    mend_or,
    refusal_of,
    settle,
    temporary,
    whole_file,
    write_json,
    write_lines,
    writing_tensors,
)
from schemabank.config.settings import LoraSettings

SIZE, FILES = 200_000, 3
WRITER = """
import itertools, sys
from pathlib import Path
from schemabank.common.folders import new_folder
from schemabank.common.writing import whole_file

out = Path(sys.argv[1])
for n in itertools.count():
    text = str(n % 10) * int(sys.argv[2])
    with whole_file(out / "suite.json") as partial:
        partial.write_text(text)
    with new_folder(out / f"run-{n}-{sys.argv[3]}") as partial:
        for i in range(int(sys.argv[4])):
            (partial / str(i)).write_text(text)
    if n == 0:
        print("first one written", flush=True)
"""


KILLED = """
import sys
from pathlib import Path
from schemabank.common.folders import new_folder
from schemabank.common.writing import whole_file
kind = {"file": whole_file, "folder": new_folder}[sys.argv[1]]
with kind(Path(sys.argv[2])) as partial:
    (partial / "half" if partial.is_dir() else partial).write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Syncs and renames from here on: what was done, to which name."""
    done: list[tuple[str, str]] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(handle: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        sync(handle)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append(("rename", target.name))
        return replace(path, target)

    monkeypatch.setattr(writing.os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    done = calls(monkeypatch)
    with whole_file(tmp_path / "a") as partial:
        partial.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert done == [("sync", partial.name), ("rename", "a"), ("sync", tmp_path.name)]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = temporary(tmp_path / "a")
    (partial / "adapter").mkdir(parents=True)
    (partial / "adapter" / "weights").write_text("1")
    done = calls(monkeypatch)
    settle(partial, tmp_path / "a")
    assert sorted(done[:3]) == [("sync", n) for n in sorted([partial.name, "adapter", "weights"])]
    assert done[3:] == [("rename", "a"), ("sync", tmp_path.name)]


def test_a_kill_at_any_moment_leaves_nothing_torn_under_its_name(tmp_path: Path) -> None:
    rng = random.Random(0)
    for kill in range(6):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(SIZE), str(kill), str(FILES)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"first one written\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 0.2))
            process.kill()
    whole = {str(n) * SIZE for n in range(10)}
    assert (tmp_path / "suite.json").read_text() in whole
    folders = list(tmp_path.glob("run-*"))
    assert len(folders) >= 6
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [str(i) for i in range(FILES)]
        assert all(path.read_text() in whole for path in folder.iterdir()), folder


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(OSError, match="File too large") as failed,
        longest_file(1000),
        whole_file(tmp_path / "a") as partial,
    ):
        partial.write_text("x" * 2000)
    assert failed.value.errno == errno.EFBIG
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_file_grows_behind_the_bytes_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("of others")
    path.symlink_to(other)
    extend_file(path, 0, b"head")
    assert not path.is_symlink()
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]
    path.write_bytes(b"head torn")
    extend_file(path, 4, b" more")
    assert path.read_bytes() == b"head more"
    extend_file(path, 0, b"new")
    assert path.read_bytes() == b"new"
    assert other.read_text() == "of others"
    path.unlink()
    with pytest.raises(FileNotFoundError):
        extend_file(path, 3, b"x")


def test_a_disk_that_fails_to_sync_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writing.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"), new_folder(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_only_a_folder_may_refuse_to_be_synced(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that know no sync of folders."""
    sync = os.fsync

    def refused(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir() == (kind == "folder"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(writing.os, "fsync", refused)
    partial = temporary(tmp_path / "a")
    partial.write_text("1")
    if kind == "folder":
        settle(partial, tmp_path / "a")
        assert (tmp_path / "a").read_text() == "1"
    else:
        with pytest.raises(OSError, match="Invalid argument"):
            settle(partial, tmp_path / "a")
        assert not (tmp_path / "a").exists()


def test_an_adapter_that_cannot_be_written_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(adapters, "save_file", full)
    tensors = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 4), torch.ones(4, 2))}
    with pytest.raises(OSError, match="No space left"):
        adapters.save_adapter(
            tmp_path / "deep" / "a", tensors, LoraSettings(r=2), base_name="tiny", card="a card"
        )
    assert not list(tmp_path.iterdir())


MENDS = [
    (errno.ENOSPC, "free some space"),
    (errno.EDQUOT, "free some space"),
    (errno.EACCES, "make the folder writable"),
    (errno.EPERM, "make the folder writable"),
    (errno.EROFS, ""),
    (errno.EIO, ""),
    (errno.EFBIG, ""),
]


@pytest.mark.parametrize(("number", "mend"), MENDS)
def test_what_is_to_be_done_fits_the_error(number: int, mend: str, tmp_path: Path) -> None:
    reason = os.strerror(number)
    assert how_to_mend(OSError(number, reason)) == (mend and f"; {mend}")
    said = f"{reason} (os error {number})): {mend and f'{mend}, or '}write elsewhere"
    with pytest.raises(OSError, match=rf"{re.escape(said)}\Z"), writing_tensors(tmp_path):
        raise SafetensorError(f"Error while serializing: I/O error: {reason} (os error {number})")


@pytest.mark.parametrize(("number", "mend"), MENDS)
def test_advice_that_always_helps_stands_last(number: int, mend: str) -> None:
    said = f"{mend and f'{mend}, or '}choose another folder"
    assert mend_or(OSError(number, os.strerror(number)), "choose another folder") == said


@pytest.mark.parametrize("is_caused", [False, True])
def test_a_place_that_takes_no_file_is_told_from_other_errors(
    is_caused: bool, tmp_path: Path
) -> None:
    cache, link = tmp_path / "cache", tmp_path / "link"
    link.symlink_to(cache)

    def is_refused(number: int, *name: str) -> bool:
        """Whether the cache refuses it, as an error or as the cause of another one."""
        error = OSError(number, os.strerror(number), *name)
        outer = RuntimeError("it cannot be loaded") if is_caused else error
        if is_caused:
            outer.__cause__ = error
        found = refusal_of(outer, [cache])
        assert found in {None, error}
        return found is not None

    closed = {errno.EACCES, errno.EPERM}
    numbers = {number for number, _ in MENDS} - {errno.EIO}
    for name in (str(cache / "a"), str(link / "b" / "a"), str(cache)):
        assert {number for number, _ in MENDS if is_refused(number, name)} == numbers
    assert {number for number, _ in MENDS if is_refused(number)} == numbers - closed
    for name in (str(tmp_path / "model" / "config.json"), f"{cache}2"):
        assert {number for number, _ in MENDS if is_refused(number, name)} == numbers - closed
    assert refusal_of(RuntimeError("No space left on device"), [cache]) is None


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), InputError("mend it")])
def test_nothing_is_to_be_done_about_the_place_for_errors_of_other_kinds(error: Exception) -> None:
    assert how_to_mend(error) == ""
    assert mend_or(error, "choose another folder") == "choose another folder"
    with (
        pytest.raises(OSError, match=r"\(no number\): write elsewhere\Z"),
        writing_tensors(Path("a")),
    ):
        raise SafetensorError("no number")


def test_json_keeps_the_order_of_keys_and_any_text(tmp_path: Path) -> None:
    value = {"zebra": 1.5, "apfel": "süß → 7", "list": [1, None]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["zebra", "apfel", "list"]
    assert "süß" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_json_lines_are_one_object_a_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", [{"a": "two\nlines"}, {"a": "ß"}])
    text = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": "two\\nlines"}\n{"a": "ß"}\n'


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_goes_when_the_same_is_written_again(
    kind: str, tmp_path: Path
) -> None:
    """While a process still writes it, it stays."""
    path, other = tmp_path / "a", tmp_path / ".ab.01234567.partial"
    other.write_text("another name's")
    write = {"file": whole_file, "folder": new_folder}[kind]
    command = [sys.executable, "-c", KILLED, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(KeyboardInterrupt), write(path):
            raise KeyboardInterrupt
        assert len(list(tmp_path.glob(".a.*.partial"))) == 1
        process.kill()
    with write(path) as partial:
        assert list(tmp_path.glob(".a.*.partial")) == [partial]
    assert {each.name for each in tmp_path.iterdir()} == {"a", other.name}


def test_a_temporary_name_that_another_process_took_for_abandoned_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come between making and holding it."""
    hold, made = writing.fcntl.flock, list[Path]()

    def too_late(handle: int, operation: int) -> None:
        (partial,) = tmp_path.glob(".a.*.partial")
        if not made:
            partial.unlink()
        made.append(partial)
        hold(handle, operation)

    monkeypatch.setattr(writing.fcntl, "flock", too_late)
    with whole_file(tmp_path / "a") as partial:
        partial.write_text("1")
    assert len(set(made)) == 2
    assert (tmp_path / "a").read_text() == "1"
