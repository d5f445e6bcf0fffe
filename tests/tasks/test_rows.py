"""Files of every common format: the same rows, read as they were written, or refused in words."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from schemabank.common.errors import InputError
from schemabank.common.files import json_rows
from schemabank.config.task import RecordsSettings
from schemabank.tasks.conversations import holds_chat
from schemabank.tasks.records import data_digest, load
from schemabank.tasks.rows import READERS, ending_of, read_splits

TEXT_ROWS: list[dict[str, object]] = [
    {"q": "2020-01-01", "a": "007"},
    {"q": 'one,\ntwo\t"three"', "a": "NA"},
    {"q": "ü", "a": "null"},
]
NESTED: list[dict[str, object]] = [
    {**row, "n": i, "x": i / 3, "meta": {"id": str(i), "tags": ["a", "b"]}}
    for i, row in enumerate(TEXT_ROWS)
]


def delimited(path: Path, rows: list[dict[str, object]], delimiter: str) -> None:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = [['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in lines]
    path.write_text("".join(delimiter.join(line) + "\r\n" for line in quoted), newline="")


def table(path: Path, rows: list[dict[str, object]]) -> None:
    """An Arrow file, as datasets has it in its cache."""
    folder = path.with_suffix(".saved")
    Dataset.from_list(rows).save_to_disk(folder)
    (folder / "data-00000-of-00001.arrow").rename(path)


WRITERS: dict[str, Callable[[Path, list[dict[str, object]]], object]] = {
    ".jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    ".ndjson": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    ".json": lambda path, rows: path.write_text(json.dumps(rows, indent=1)),
    ".csv": lambda path, rows: delimited(path, rows, ","),
    ".tsv": lambda path, rows: delimited(path, rows, "\t"),
    ".parquet": lambda path, rows: Dataset.from_list(rows).to_parquet(path),
    ".arrow": table,
}


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    ending = ending_of(path)
    assert ending is not None
    if ending.endswith(".gz"):
        write(path.with_suffix(""), rows)
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
        path.with_suffix("").unlink()
    else:
        WRITERS[ending](path, rows)
    return path


def read(path: Path, **changes: object) -> dict[str, list[dict[str, object]]]:
    splits = read_splits(RecordsSettings.model_validate({"path": str(path), **changes}))
    return {split: [dict(row) for _, row in rows] for split, rows in splits.items()}


@pytest.mark.parametrize("ending", READERS)
def test_every_format_gives_the_same_texts_again_and_again(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"Rows{ending}", TEXT_ROWS)
    (rows,) = read_splits(RecordsSettings(path=str(path))).values()
    assert [dict(row) for _, row in rows] == TEXT_ROWS
    assert [dict(row) for _, row in rows] == TEXT_ROWS, "rows can be read again"
    first = write(tmp_path / "same.jsonl", TEXT_ROWS)
    digests = {data_digest(RecordsSettings(path=str(p))) for p in (path, first)}
    assert len(digests) == 1, "the rows count, not how they are written"


@pytest.mark.parametrize("ending", [e for e in READERS if "sv" not in e])
def test_objects_and_numbers_stay_what_they_are(tmp_path: Path, ending: str) -> None:
    assert read(write(tmp_path / f"r{ending}", NESTED)) == {"train": NESTED}


def test_a_name_in_capitals_says_the_format_too(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", TEXT_ROWS).rename(tmp_path / "R.CSV")
    assert read(tmp_path / "R.CSV") == {"train": TEXT_ROWS}


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.xlsx", "rows.parquet.gz"])
def test_a_name_that_says_no_format_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"does not say the file's format: allowed .*\.parquet"):
        read(tmp_path / name)


def test_a_file_that_is_not_there_is_not_sought_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv', but there is no such file"):
        read(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"q": "a"}\n\n{"q" 1}', r"a\.jsonl line 3 is not valid JSON at column 6"),
        ("a.json", '[{"q": "a"},\n {"q" 1}]', r"a\.json is not valid JSON .*line 2 column 7"),
        ("a.json", '[{"q": "a"}, 1]', r"a\.json row 1 must be an object .*, not 1"),
        ("a.json", '{"q": "a"}', "holds no list of rows: allowed are a list of objects"),
        ("a.json", '{"q": [], "r": []}', "holds no list of rows"),
        ("a.json", '[{"q": NaN}]', "holds no finite number in '0.q'"),
        ("a.csv", "q,a\n1,2\n1\n", r"a\.csv line 3 has 1 cells, but the head names 2 columns"),
        ("a.csv", "q,a\n1,2,3,4\n", r"a\.csv line 2 has 4 cells, but the head names 2 columns"),
        ("a.csv", "", r"a\.csv is empty: its first line must name the columns"),
        ("a.csv", "q,q\n1,2\n", "names its columns 'q', 'q' .*: allowed are distinct names"),
        ("a.tsv", "q\t\n1\t2\n", "names its columns 'q', '' .*: allowed are distinct names"),
        ("a.csv", "q\n\udcff\n", r"a\.csv cannot be read after line \d .*UTF-8"),
        ("a.parquet", "PAR1 it is not", r"a\.parquet' cannot be read as Parquet \(.*\): mend it"),
        ("a.arrow", "it is not", r"a\.arrow' cannot be read as Arrow \(.*\): mend it"),
    ],
)
def test_a_broken_file_is_named_with_its_place(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=said):
        read(tmp_path / name)


def test_a_chat_that_is_the_whole_file_is_one_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    shared = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    path = tmp_path / "r.json"
    rows: list[dict[str, object]] = [
        {"messages": turns},
        {"id": "7", "conversations": shared},
        {"prompt": turns[:1], "completion": turns[1:]},
    ]
    for row in rows:
        path.write_text(json.dumps(row, indent=1))
        assert read(path) == {"train": [row]}
    path.write_text(json.dumps({"data": rows}))
    assert read(path) == {"train": rows}


DATED: list[dict[str, object]] = [
    {
        "day": date(2024, 7, 26),
        "at": datetime(2024, 7, 26, 9, 30),  # noqa: DTZ001 -- a table may have no zone
        "utc": datetime(2024, 7, 26, 9, 30, 0, 500, tzinfo=UTC),
        "time": time(9, 30),
        "price": Decimal("1.50"),
        "list": [date(2024, 1, 2), None],
        "within": {"day": date(2024, 1, 2), "n": 1},
    }
]
SPELT = {
    "day": "2024-07-26",
    "at": "2024-07-26 09:30:00",
    "utc": "2024-07-26 09:30:00.000500+00:00",
    "time": "09:30:00",
    "price": "1.50",
    "list": ["2024-01-02", None],
    "within": {"day": "2024-01-02", "n": 1},
}


def test_dates_times_and_decimals_of_tables_are_their_text(tmp_path: Path) -> None:
    made = pa.Table.from_pylist([{**DATED[0], "picture": b"png"}])
    pq.write_table(made, tmp_path / "r.parquet")
    with pa.ipc.new_stream(tmp_path / "r.arrow", made.schema) as file:
        file.write_table(made)
    for ending in ("parquet", "arrow"):
        assert read(tmp_path / f"r.{ending}") == {"train": [SPELT]}
    settings = RecordsSettings(path=str(tmp_path / "r.parquet"), target="{price} on {day}")
    (example,) = load(settings, prompt="{at}").train
    assert (example.question, example.solution) == (SPELT["at"], "1.50 on 2024-07-26")
    Dataset(made).save_to_disk(tmp_path / "saved")
    (saved,) = read(tmp_path / "saved")["train"]
    assert {**saved, "within": None} == {**SPELT, "within.day": "2024-01-02", "within.n": 1} | {
        "within": None
    }


def test_rows_with_columns_of_a_turns_names_are_no_chat(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = [{"from": "eins", "value": "one"}, {"from": "zwei", "value": "two"}]
    path.write_text(json.dumps({"data": rows}))
    assert [row for _, row in json_rows(path, is_row=holds_chat)] == rows


def test_json_may_have_its_rows_in_an_object_or_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"version": 1, "data": TEXT_ROWS}))
    assert read(path) == {"train": TEXT_ROWS}
    path.write_text("\n".join(map(json.dumps, TEXT_ROWS)))
    assert read(path) == {"train": TEXT_ROWS}
    path.write_text('{"q": "a"}\n{"q": \n')
    with pytest.raises(InputError, match=r"r\.json line 2 is not valid JSON"):
        read(path)


def test_a_folder_may_mix_formats_and_have_a_split_in_parts(tmp_path: Path) -> None:
    for i, row in enumerate(TEXT_ROWS):
        write(tmp_path / f"train-0000{i}-of-00003.parquet", [row])
    write(tmp_path / "validation.csv", TEXT_ROWS[:1])
    write(tmp_path / "dev.tsv.gz", TEXT_ROWS[1:])
    (tmp_path / "README.md").write_text("no data")
    assert read(tmp_path) == {"train": TEXT_ROWS, "validation": TEXT_ROWS[:1]}
    assert read(tmp_path, test_split="dev")["test"] == TEXT_ROWS[1:]
    with pytest.raises(InputError, match=r"no eval\.jsonl .*\(dev\.tsv\.gz, train-00000-of-00003"):
        read(tmp_path, test_split="eval")


def test_files_of_other_names_are_parts_of_the_training_rows(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", TEXT_ROWS[1:])
    write(tmp_path / "a.jsonl", TEXT_ROWS[:1])
    assert read(tmp_path) == {"train": TEXT_ROWS}
    with pytest.raises(InputError, match=r"holds no test\.jsonl"):
        read(tmp_path, test_split="test")
    write(tmp_path / "test.csv", TEXT_ROWS)
    with pytest.raises(InputError, match=r"holds no train\.jsonl"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["dev", "val-00000-of-00001"])
def test_rows_that_are_held_out_by_their_name_are_not_trained_on(tmp_path: Path, name: str) -> None:
    for stem in ("rows", name):
        (tmp_path / f"{stem}.jsonl").write_text('{"q": "a", "a": "b"}\n')
    with pytest.raises(InputError, match=f"'{name[:3]}', which is not to be trained on"):
        read_splits(RecordsSettings(path=str(tmp_path)))
    own = RecordsSettings(path=str(tmp_path), train_split="rows", validation_split=name)
    assert set(read_splits(own)) == {"train", "validation"}


def test_two_files_of_one_split_are_refused_but_for_a_packed_one(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", TEXT_ROWS)
    write(tmp_path / "train.jsonl.gz", NESTED)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, TEXT_ROWS)))
    assert read(tmp_path) == {"train": TEXT_ROWS}
    write(tmp_path / "train.csv", TEXT_ROWS)
    with pytest.raises(InputError, match=r"several files for the split 'train' \(train\.csv, tr"):
        read(tmp_path)


def test_what_save_to_disk_wrote_is_read_back(tmp_path: Path) -> None:
    Dataset.from_list(NESTED).save_to_disk(tmp_path / "one")
    flat = [
        {**row, "meta.id": str(i), "meta.tags": ["a", "b"], "n": i, "x": i / 3}
        for i, row in enumerate(TEXT_ROWS)
    ]
    assert read(tmp_path / "one") == {"train": flat}
    with pytest.raises(InputError, match=r"validation_split is 'dev', but .* has 'train'"):
        read(tmp_path / "one", validation_split="dev")
    splits = {name: Dataset.from_list(TEXT_ROWS) for name in ("train", "dev", "test")}
    DatasetDict(splits).with_format("numpy").save_to_disk(tmp_path / "all")
    assert read(tmp_path / "all") == {"train": TEXT_ROWS, "test": TEXT_ROWS}
    assert set(read(tmp_path / "all", validation_split="dev")) == {"train", "validation", "test"}
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match="looks like a folder that save_to_disk made, but it"):
        read(tmp_path / "one")


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_tables_leave_the_cache_and_the_hub_alone(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cache that cannot be written is no matter, since nothing is put there."""

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", blocked / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.load.get_session", connect)
    monkeypatch.setattr("socket.socket.connect", connect)
    path = write(tmp_path / f"[1] *{ending}", TEXT_ROWS)
    capsys.readouterr()
    assert read(path) == {"train": TEXT_ROWS}
    assert capsys.readouterr() == ("", "")
