import gzip
import json
import os
from pathlib import Path

import pytest

from schemabank.common import files
from schemabank.common.errors import InputError
from schemabank.common.files import (
    csv_rows,
    inside,
    json_lines,
    json_rows,
    parse_json,
    read_json,
    read_lines,
    read_text,
    read_unpacked,
)


def test_json_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(InputError, match=r"holds a list, allowed is a JSON object: restore it"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read '.*x\.json' \(.*No such file.*\): name a readable file"),
        (b"", r"x\.json is not valid JSON at column 1"),
        (b"{", r"x\.json is not valid JSON at column 2"),
        (b"\xff", r"cannot read .*: save it as UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"is not valid JSON \(Exceeds the limit"),
        (
            b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
            r"is not valid JSON|is nested more than 60 deep",
        ),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", r"is nested more than 60 deep"),
    ],
)
def test_unreadable_json_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "x.json")


def test_a_byte_order_mark_and_depth_within_bounds_are_read(tmp_path: Path) -> None:
    value = {"a": [{}] * 100, "b": [[[[1]]]]}
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_does_not_have_are_refused_where_finite_ones_are_asked(
    number: str,
) -> None:
    text = f'{{"a": "NaN", "b": {{"c": [1, {number}]}}}}'
    with pytest.raises(InputError, match=r"^a line 3 holds no finite number in 'b\.c\.1', though"):
        parse_json(text, "a line 3", finite=True)
    assert parse_json(text, "a line 3") is not None


def test_texts_that_look_like_such_numbers_are_texts() -> None:
    value = {"a": "NaN", "Infinity": "1e999", "b": 1e200, "c": 10**320}
    assert parse_json(json.dumps(value), "x", finite=True) == value


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "x.json"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match="is not a regular file"):
        read_json(path)
    with pytest.raises(InputError, match="is not a regular file"):
        list(read_lines(path))
    with pytest.raises(InputError, match="is not a regular file"):
        read_unpacked(path)
    with pytest.raises(InputError, match="is not a regular file"):
        list(csv_rows(path))


def test_an_endless_file_is_read_up_to_the_bound() -> None:
    with pytest.raises(InputError, match="has more than 1048576 bytes"):
        read_text(Path("/dev/zero"))


def test_a_name_with_a_zero_byte_is_no_file() -> None:
    for read in (read_text, read_json, lambda path: list(read_lines(path))):
        with pytest.raises(InputError, match=r"cannot (be )?read"):
            read(Path("a\0b"))


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 100)
    (tmp_path / "x.jsonl").write_text("{}\n" + " " * 100 + "{}")
    with pytest.raises(InputError, match=r"x\.jsonl line 2 has more than 100 characters"):
        list(json_lines(tmp_path / "x.jsonl"))


def test_a_packed_file_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 100_000))
    assert sum(1 for _ in json_lines(path)) == 100_000
    monkeypatch.setattr(files, "FREE_EXPANSION", 1000)
    with pytest.raises(InputError, match=r"unpacks to more than 200 times its size"):
        list(json_lines(path))


def test_lines_that_are_no_objects_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n\n[1]\n")
    with pytest.raises(InputError, match=r"x\.jsonl line 3 must be an object with named columns"):
        list(json_lines(tmp_path / "x.jsonl"))


def test_links_inside_a_folder_are_followed_and_others_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "inner").mkdir(parents=True)
    for place in (folder / "own", folder / "inner" / "deep", tmp_path / "other"):
        place.write_text("x")
    (folder / "good").symlink_to("own")
    (folder / "bad").symlink_to("../other")
    (folder / "dots").symlink_to(tmp_path / "a" / ".." / "other")
    assert inside(folder, "good").read_text() == "x"
    for name in ("bad", "dots", "../other"):
        with pytest.raises(InputError, match="outside its folder"):
            inside(folder, name)


def test_cells_of_a_csv_come_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n1,"two\r\nlines, one cell"\r\n2,b\r\n')
    assert list(csv_rows(path)) == [
        (f"{path} line 3", {"id": "1", "text": "two\r\nlines, one cell"}),
        (f"{path} line 4", {"id": "2", "text": "b"}),
    ]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,text\n1," + "x" * 200_000 + "\n")
    ((_, row),) = csv_rows(path)
    assert len(row["text"]) == 200_000


def test_what_is_no_csv_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv"
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    path.write_text("id,text\n1," + "x" * 2000 + "\n")
    with pytest.raises(InputError, match=r"x\.csv line 2 has more than 1000 characters"):
        list(csv_rows(path))
    path.write_text('id,text\n1,"' + "x\n" * 800 + '"\n')
    with pytest.raises(InputError, match=r"x\.csv cannot be read after line \d+ .*field larger"):
        list(csv_rows(path))


@pytest.mark.parametrize("cell", ['"b', '"b"x', '"b"x"'])
def test_a_quote_that_nothing_closes_takes_no_rows_away(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"id,text\n1,{cell}\n2,c\n3,d\n")
    with pytest.raises(InputError, match="a cell that begins with a quote ends with one"):
        list(csv_rows(path, strict=True))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("id;text", r"its first line has ';' \('id;text'\): write it with ','"),
        ("id\ttext", r"its first line has '\\t'"),
        (",id,text", r"a first column without a name, as pandas writes its index"),
        ("id,,text", "distinct names, name every column"),
        ("id,id", "distinct names, name every column"),
    ],
)
def test_a_head_that_names_no_columns_is_refused(tmp_path: Path, head: str, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{head}\n1;2\n")
    with pytest.raises(InputError, match=said):
        list(csv_rows(path, strict=True))


def test_a_json_file_may_be_one_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 50)
    path = tmp_path / "x.json"
    rows = [{"text": "{" * 60}, {"text": "b"}]
    path.write_text(json.dumps(rows))
    assert [row for _, row in json_rows(path)] == rows
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="is not valid JSON"):
        list(json_rows(path))


def test_the_rows_of_a_json_object_are_its_list_of_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"tags": ["a"], "empty": [], "data": [{"text": "b"}]}))
    assert [row for _, row in json_rows(path)] == [{"text": "b"}]


def test_a_torn_packed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(b"a book" * 1000)[:-20])
    with pytest.raises(InputError, match=r"cannot read '.*book\.txt\.gz' \(Compressed file ended"):
        read_unpacked(path)
    path.write_bytes(gzip.compress(b"a book"))
    assert read_unpacked(path) == "a book"
    with pytest.raises(InputError, match="has more than 3 bytes"):
        read_unpacked(path, at_most=3)
