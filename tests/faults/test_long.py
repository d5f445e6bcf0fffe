"""What a suite that is killed every few seconds is judged by; `make soak` runs such suites."""

import json
from pathlib import Path

import pytest

from faults import ledgers, long


def test_a_ledger_is_read_up_to_where_a_kill_has_cut_it_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert ledgers.steps_in(path) == {}
    rows = [{"run": "a", "step": 0}, {"run": "b", "step": 4}, {"run": "a", "step": 1}]
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"run": "a", "st')
    assert ledgers.steps_in(path) == {"a": [0, 1], "b": [4]}


def test_steps_that_are_not_kept_are_lost() -> None:
    steps = {"a": [0, 1, 2], "b": [4, 5], "c": [3]}
    assert ledgers.lost(steps, {"a": 2, "b": -1}) == {"a": 1, "b": 0, "c": 4}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ({"a": [2, 3], "new": [0]}, []),
        ({"a": [0, 1]}, ["a was kept at step 2 and went on at 0"]),
        ({"trained": [0]}, ["trained had trained and was trained again from step 0"]),
        ({"a": [2, 4]}, ["a took the steps [2, 4]"]),
    ],
)
def test_a_run_goes_on_from_where_it_was_kept(steps: ledgers.Steps, said: list[str]) -> None:
    assert list(ledgers.repeated(steps, {"a": 2, "trained": -1})) == said


def sampled(mib: float, files: int) -> dict[str, object]:
    return {"own": int(mib * 2**20), "files": files}


def test_growth_is_told_from_run_to_run_after_the_first_third() -> None:
    loading = [sampled(n, 40) for n in range(100)]
    ends = [{**sampled(mib, 9), "finished": "a"} for mib in (50, 70, 100, 100, 100, 100)]
    flat = long.growth([*loading, *[sampled(100, 9)] * 194, *ends], 30)
    assert flat["kib_a_run_at_last"] == 0
    flat = long.growth([*loading, *[sampled(100, 9)] * 198, *ends[-2:]], 30)
    assert [*long.grown(flat)] == []
    assert (flat["kib_a_run"], flat["files_a_run"], flat["files"]) == (0, 0, [9, 9])
    steps = [sampled(100 + n, 9 + n // 100) for n in range(200)]
    rising = long.growth([*loading, *steps[:-2], *({**s, "finished": "a"} for s in steps[-2:])], 30)
    assert rising["kib_a_run"] == 10 * 1024
    assert rising["kib_a_run_at_last"] == 1024
    assert (rising["first_mib"], rising["last_mib"], rising["files"]) == (100, 299, [9, 10])
    assert [*long.grown({**flat, "kib_a_run": rising["kib_a_run"], "files_a_run": 1})] == [
        "an undisturbed call grows: kib_a_run is 10240, allowed is 64",
        "an undisturbed call grows: files_a_run is 1, allowed is 0.1",
    ]


def test_answers_that_another_process_gave_are_counted() -> None:
    before = [{"a": ["whole completion 1", "whole completion 2", "whole losses 1"]}, {"b": ["x 1"]}]
    now = {"a": ["whole completion 2", "whole completion 3", "whole losses 1"], "b": ["x 2"]}
    assert dict(ledgers.answered_again(before, now)) == {
        "a whole completion": 1,
        "a whole losses": 1,
    }
