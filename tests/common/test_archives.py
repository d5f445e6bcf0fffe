"""Archives that are torn, hostile or too large."""

import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from schemabank.common import archives
from schemabank.common.archives import unpack_tar, zip_names, zip_texts
from schemabank.common.errors import InputError

CONTENT = random.Random(0)  # which no archive makes smaller


def tar(path: Path, *names: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            entry.size = size if kind == tarfile.REGTYPE else 0
            archive.addfile(entry, io.BytesIO(CONTENT.randbytes(entry.size)))
    return path


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class TestTar:
    def test_files_are_unpacked(self, tmp_path: Path) -> None:
        place = tmp_path / "place"
        place.mkdir()
        unpack_tar(tar(tmp_path / "a.tar.xz", "runs/x", "runs/y/z"), place)
        assert len((place / "runs" / "y" / "z").read_bytes()) == 3

    @pytest.mark.parametrize("name", ["../outside", "runs/../../outside"])
    def test_nothing_leaves_the_place(self, tmp_path: Path, name: str) -> None:
        place = tmp_path / "place"
        place.mkdir()
        with pytest.raises(InputError, match="cannot read"):
            unpack_tar(tar(tmp_path / "a.tar.xz", name), place)
        assert not (tmp_path / "outside").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
    def test_what_is_no_file(self, tmp_path: Path, kind: bytes) -> None:
        with pytest.raises(InputError, match="holds 'x', which is no file"):
            unpack_tar(tar(tmp_path / "a.tar.xz", "x", kind=kind), tmp_path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.tar.xz")
        with pytest.raises(InputError, match=r"a\.tar\.xz' is not a regular file"):
            unpack_tar(tmp_path / "a.tar.xz", tmp_path)

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tar(tmp_path / "a.tar.xz", "x", "y", size=100)
        monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 150)
        with pytest.raises(InputError, match="unpacks to more than"):
            unpack_tar(path, tmp_path)
        assert not (tmp_path / "y").exists()
        monkeypatch.setattr(archives, "MOST_FILES", 0)
        with pytest.raises(InputError, match="unpacks to more than 0 files"):
            unpack_tar(path, tmp_path)

    def test_torn(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "a.tar.xz", "x", size=200_000)
        whole = path.read_bytes()
        assert len(whole) > 20_000
        for content in (whole[: len(whole) // 2], b"", b"no archive"):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"cannot read .*a\.tar\.xz"):
                unpack_tar(path, tmp_path)


class TestZip:
    def test_members_are_read_in_any_order(self, tmp_path: Path) -> None:
        path = zipped(tmp_path / "a.zip", b=b"2", a="ä".encode())
        assert zip_names(path) == ["a", "b"]
        assert list(zip_texts(path, ["b", "a"])) == [(f"{path} b", "2"), (f"{path} a", "ä")]

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = zipped(tmp_path / "a.zip", a=bytes(1000))
        monkeypatch.setattr(archives, "LARGEST_JSON", 999)
        with pytest.raises(InputError, match="a has more than 999 bytes"):
            list(zip_texts(path, ["a"]))
        monkeypatch.setattr(archives, "LARGEST_ARCHIVE", 999)
        with pytest.raises(InputError, match="unpacks to more than"):
            zip_names(path)

    def test_what_is_no_zip_and_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        path.write_bytes(b"PK no zip")
        with pytest.raises(InputError, match=r"cannot read .*a\.zip"):
            zip_names(path)
        with pytest.raises(InputError, match="is not a regular file"):
            zip_names(tmp_path)
        zipped(path, a=b"\xff\xfe")
        with pytest.raises(InputError, match="a is not UTF-8"):
            list(zip_texts(path, ["a"]))

    def test_harmed_members_that_are_packed_with_zstandard(self, tmp_path: Path) -> None:
        (whole,) = (Path(__file__).parents[1] / "fixtures" / "inspect_mockllm").glob("*.eval")
        names = zip_names(whole)
        assert all(text for _, text in zip_texts(whole, names))
        content = bytearray(whole.read_bytes())
        path = tmp_path / "harmed.eval"
        with zipfile.ZipFile(whole) as archive:
            member = archive.getinfo("header.json")
        assert member.compress_type == archives.ZSTD
        for place in range(20, member.compress_size, 40):
            harmed = content.copy()
            harmed[member.header_offset + 30 + len(member.filename) + place] ^= 0xFF
            path.write_bytes(harmed)
            with pytest.raises(InputError, match=r"cannot read .*harmed\.eval"):
                list(zip_texts(path, ["header.json"]))

    def test_no_more_of_zstandard_is_unpacked_than_is_allowed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (path,) = (Path(__file__).parents[1] / "fixtures" / "inspect_mockllm").glob("*.eval")
        monkeypatch.setattr(archives, "LARGEST_JSON", 99)
        with pytest.raises(InputError, match=r"header\.json has more than 99 bytes"):
            list(zip_texts(path, ["header.json"]))
