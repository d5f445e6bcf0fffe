"""The benchmark of checkpoints: which steps it compares, and that it measures real ones."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from schemabank.runs.inmemory import held_base
from tiny import tiny_model, tiny_tokenizer
from tools import BENCHMARKS, load_tool

costs: Any = load_tool(BENCHMARKS / "checkpoints.py")
RECORD = BENCHMARKS.parent / "results" / "checkpoints.json"
PAIRS = [(f"{number} + 1 = ", f"{number + 1}") for number in range(8)]


def test_a_checkpoint_costs_what_its_block_takes_beyond_as_many_steps_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now)
    blocks = costs.Blocks(4, 2)
    writing = 0
    for index in itertools.count():
        try:
            due = blocks.is_due(is_writing=writing > 0)
        except costs.Measured:
            break
        # The first four steps warm up. Writing lasts for six steps, and slows each down.
        now += 9.0 if index < 4 else 1.0 + 0.25 * (writing > 0)
        writing = max(0, writing - 1)
        if due:
            now += 3.0
            writing = 6
            blocks.paused_s.append(3.0)
            blocks.write_s.append(6.0)
            blocks.num_bytes.append(100)
    assert [steps for steps, _ in blocks.times[True]] == [7, 7]
    assert [steps for steps, _ in blocks.times[False]] == [4, 4]
    row = blocks.row()
    assert (row["ms_per_step"], row["lost_s"]) == (1000.0, 4.5)
    assert (row["paused_s"], row["write_s"], row["bytes"]) == (3.0, 6.0, 100)
    assert (row["checkpoints"], row["steps"]) == (2, 22)


def test_checkpoints_that_were_not_written_give_no_row() -> None:
    with pytest.raises(SystemExit, match="a checkpoint was not written"):
        costs.Blocks(4, 2).row()


def test_real_checkpoints_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = held_base(tiny_model("llama"), tiny_tokenizer())
    monkeypatch.setattr(costs, "_examples", lambda: PAIRS)
    before = costs.programsaves.Checkpoints
    row = costs.measured(base, "tiny", 2, costs.Blocks(2, 1), tmp_path)
    assert costs.programsaves.Checkpoints is before
    num_weights = 16 * sum(
        layer.in_features + layer.out_features
        for block in base.model.model.layers
        for name, layer in block.self_attn.named_children()
    )
    assert row["slots"] == 2
    assert row["checkpoints"] == 1
    of_weights = 2 * 12 * num_weights  # two runs: weights and both moments in float32
    assert of_weights < row["bytes"] < of_weights + 2 * 5000
    assert 0 < row["share_ratio"] < 1
    assert row["minutes"] == 5
    (head, _, line) = costs.table([row])
    assert head.count("|") == line.count("|")


def test_the_record_holds_what_was_promised_and_the_page_shows_it() -> None:
    rows = costs.read_rows(RECORD)
    page = (BENCHMARKS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    shown = "\n".join(costs.table(rows))
    assert page.partition("<!-- checkpoints.py: results/checkpoints.json -->\n")[2].startswith(
        f"{shown}\n"
    )
    assert [row["slots"] for row in rows] == [1, 20, 40]
    assert all("NVIDIA" in row["device"] and row["minutes"] == 5 for row in rows)
    assert all(row["share_ratio"] <= 0.02 for row in rows)
