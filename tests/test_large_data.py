"""The benchmark on a file that is larger than memory: what it writes and what it measures."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tools import BENCHMARKS, load_tool

large: Any = load_tool(BENCHMARKS / "large_data.py")
ROOT = BENCHMARKS.parent
RECORD = ROOT / "results" / "large_data.json"
HOLDS = """
import os, tempfile, time
held = bytearray(b"x" * 2**26)
with tempfile.TemporaryFile() as file:
    file.write(held[: 2**24])
    file.flush()
    os.fsync(file.fileno())
    time.sleep(2)
"""


def test_rows_are_distinct_and_as_many_as_fill_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    count = large.write_rows(path, 10**6)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert path.stat().st_size >= 10**6
    assert len(rows) == len({row["question"] for row in rows}) == count
    assert {tuple(row) for row in rows} == {("question", "answer")}


def test_the_tokenizer_gives_texts_back(tmp_path: Path) -> None:
    large._write_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    large.write_rows(tmp_path / "rows.jsonl", 1)
    row = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = f"{row['question']}\n{row['answer']}"
    tokens = tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < len(text) / 4


def test_memory_and_files_without_a_name_are_measured() -> None:
    taken = large._timed(["-c", HOLDS], dict(os.environ))
    assert 0.06 <= taken["unmapped_gib"] <= taken["memory_gib"] < 1
    assert taken["temporary_gib"] == 0.02  # 16 MiB
    assert taken["wall_s"] >= 2


def test_the_record_holds_what_was_promised_and_the_page_shows_it() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    shown = "\n".join(large.table(rows))
    assert page.partition("<!-- large_data.py: results/large_data.json -->\n")[2].startswith(
        f"{shown}\n"
    )
    assert {row["by"] for row in rows if row["file_gb"] >= 5} >= {"schemabank train"}
    assert all(row["memory_gib"] <= 2 for row in rows if row["by"] == "schemabank train")


def test_what_the_page_says_of_a_row_is_what_the_record_says() -> None:
    small, big = json.loads(RECORD.read_text(encoding="utf-8"))
    page = " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    a_row = (big["memory_gib"] - small["memory_gib"]) * 2**30 / (big["rows"] - small["rows"])
    fit = (2 - small["memory_gib"]) * 2**30 / a_row
    assert f"between these two files by {a_row:.0f} bytes a row" in page
    assert f"by which {fit / 1e6:.1f} million rows would fit into 2 GiB" in page
    assert f"{big['file_gb'] * 1e6 / big['rows']:.0f} kilobytes, {big['steps']} steps" in page
