"""Tables of single items."""

from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.report.reading.itemtable import is_item_table, read_item_table


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_tasks_seeds_and_clusters(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        "arm,seed,task,item,score,cluster\nlora,1,a,x,1,k\nlora,1,a,y,0.25,\nlora,1,b,x,0,NA\n",
    )
    found = read_item_table(path)
    first, second = found.runs
    assert (first.arm, first.seed, first.task, second.task) == ("lora", "1", "a", "b")
    assert [item.score for item in first.items.values()] == [1.0, 0.25]
    assert [item.cluster for item in first.items.values()] == ["k", None]


def test_without_a_task_it_is_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path / "arc.csv", "arm,seed,item,score\nlora,,x,1\nnew,,x,0\n")
    assert read_item_table(path).tasks == ["arc"]


def test_the_head_tells_the_kind_of_table(tmp_path: Path) -> None:
    assert is_item_table(write(tmp_path / "a.csv", "item, arm,seed,score\n"))
    assert is_item_table(write(tmp_path / "d.csv", "\n,,,\nitem,arm,seed,score\n"))
    assert not is_item_table(write(tmp_path / "b.csv", "arm,epochs,seed,score\n"))
    assert not is_item_table(write(tmp_path / "c.csv", ""))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("lora,1,x,1\nlora,1,x,0", "line 3: arm 'lora', seed '1' .* have the item 'x' on another"),
        ("lora,1,x,1.5", "line 2: score 1.5 is above 1"),
        ("lora,1,x,yes", "line 2: score 'yes' is no share"),
        (",1,x,1", "line 2: arm is '' and item 'x', allowed are names"),
        ("lora,1,,1", "line 2: arm is 'lora' and item ''"),
        ("lora,1,x,1\nnew,1,y,1", "have other items"),
    ],
)
def test_wrong_lines(tmp_path: Path, row: str, words: str) -> None:
    path = write(tmp_path / "t.csv", f"arm,seed,item,score\n{row}\n")
    with pytest.raises(InputError, match=words):
        read_item_table(path)


def test_a_sentence_about_a_long_cell_is_short(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    for cell in ("x\x00" * 5000, "x" * 5000):
        path.write_text(f"arm,seed,item,score\nlora,1,q1,{cell}\n")
        with pytest.raises(InputError, match="line 2") as caught:
            read_item_table(path)
        assert len(str(caught.value)) < 400
