"""The benchmark of two GPUs: what it computes from the costs of runs, and what its page shows."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools import BENCHMARKS, load_tool

workers: Any = load_tool(BENCHMARKS / "workers.py")
ROOT = BENCHMARKS.parent
RECORD = ROOT / "results" / "workers.json"


def test_a_row_tells_how_many_runs_a_whole_call_finishes_in_an_hour(tmp_path: Path) -> None:
    for seed in range(6):
        folder = tmp_path / f"lora-seed{seed}"
        folder.mkdir()
        (folder / "cost.json").write_text(json.dumps({"slots": 2}))
    one, two = workers.row(tmp_path, 1, 108.0), workers.row(tmp_path, 2, 60.0)
    assert one == {"workers": 1, "runs": 6, "slots": 2, "wall_s": 108.0, "runs_per_hour": 200.0}
    *_, last = workers.table([one, two])
    assert last == "| 2 | 6 | 60.0 | 360 | 1.80 |"


@pytest.mark.parametrize("harm", ["other", "missing"])
def test_files_that_differ_or_are_missing_are_named(tmp_path: Path, harm: str) -> None:
    name = "lora-seed1/predictions.jsonl.gz"
    for folder, content in (("one", b"1"), ("two", b"2" if harm == "other" else None)):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True)
        if content is not None:
            path.write_bytes(content)
    one, two = tmp_path / "one", tmp_path / "two"
    assert workers.differences(one, two) == [name]
    assert workers.differences(one, one) == []


def test_calls_at_once_have_gpus_and_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: {*range(8, 16)})
    one, two = (workers.own_places()[count] for count in (1, 2))
    assert one.environment == {"CUDA_VISIBLE_DEVICES": "0"}
    assert two.environment == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert [*one.prefix, *two.prefix] == [
        *("taskset", "-c", "8,9"),
        *("taskset", "-c", "10,11,12,13"),
    ]
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SystemExit, match="takes 3 GPUs, and there are 2"):
        workers.own_places()


def test_the_page_shows_the_record() -> None:
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
    shown = "\n".join(workers.table(rows))
    assert page.partition("<!-- workers.py: results/workers.json -->\n")[2].startswith(shown)
    assert [row["workers"] for row in rows] == [1, 2]
    assert all(row["different_files"] == [] for row in rows)
