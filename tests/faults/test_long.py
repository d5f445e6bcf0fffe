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


def finished(*mib: float, files: int = 9) -> list[dict[str, object]]:
    return [{**sampled(each, files), "finished": "a"} for each in mib]


def test_growth_is_told_from_run_to_run_after_the_first_third() -> None:
    loading = [sampled(n, 40) for n in range(100)]
    flat = long.growth([*loading, *[sampled(100, 9)] * 198, *finished(100, 100)], 30)
    assert (flat["kib_a_run"], flat["files_a_run"], flat["files"]) == (0, 0, [9, 9])
    steps = [sampled(100 + n, 9 + n // 100) for n in range(198)]
    rising = long.growth([*loading, *steps, *finished(298, 299, files=10)], 30)
    assert rising["kib_a_run"] == pytest.approx(10 * 1024, rel=0.02)
    assert (rising["first_mib"], rising["last_mib"], rising["files"]) == (100, 299, [9, 10])


def test_growth_at_last_is_that_of_the_last_third_of_the_finished_runs() -> None:
    early = finished(*range(50, 90, 5), *[90] * 4)
    ended = long.growth([sampled(9, 9), *early], 12)
    assert ended["kib_a_run_at_last"] == 0
    going_on = long.growth([sampled(9, 9), *finished(*[50] * 8, 50, 51, 52, 53)], 12)
    assert going_on["kib_a_run_at_last"] > 512


def test_a_single_rise_is_no_growth_and_is_told_apart() -> None:
    at_once = long.growth([*[sampled(50, 9)] * 20, *finished(*[50] * 20, *[54] * 20)], 40)
    assert (at_once["kib_a_run"], at_once["kib_a_run_at_last"]) == (0, 0)
    assert at_once["jump_mib"] == 4
    back = long.growth(finished(*[50, 60] * 20), 40)  # what is given back is no growth either
    assert (back["kib_a_run"], back["jump_mib"]) == (0, 0)


def test_what_is_not_flat_is_a_problem() -> None:
    flat = {"kib_a_run": 44.0, "kib_a_run_at_last": 5.0, "jump_mib": 3.4, "files_a_run": -0.6}
    assert [*long.grown(flat, 1)] == []
    more = {"kib_a_run": 65.0, "kib_a_run_at_last": 17.0, "jump_mib": 9, "files_a_run": 1}
    assert [*long.grown({**flat, "kib_a_run": 20.0}, 4)] == []
    held = ["an undisturbed call grows: kib_a_run is 44, allowed is 30"]
    assert [*long.grown(flat, 4)] == held, "as the weights of waiting runs would make it"
    assert [*long.grown(more, 1)] == [
        "an undisturbed call grows: kib_a_run is 65, allowed is 60",
        "an undisturbed call grows: kib_a_run_at_last is 17, allowed is 16",
        "an undisturbed call grows: jump_mib is 9, allowed is 8",
        "an undisturbed call grows: files_a_run is 1, allowed is 0.1",
    ]


def test_answers_that_another_process_gave_are_counted() -> None:
    before = [{"a": ["whole completion 1", "whole completion 2", "whole losses 1"]}, {"b": ["x 1"]}]
    now = {"a": ["whole completion 2", "whole completion 3", "whole losses 1"], "b": ["x 2"]}
    assert dict(ledgers.answered_again(before, now)) == {
        "a whole completion": 1,
        "a whole losses": 1,
    }


@pytest.mark.parametrize(
    ("begun", "before", "kept", "said"),
    [
        ([2, 4, 6], 0, 6, []),
        ([2, 4, 6], 0, 4, []),
        ([2, 4, 6], 0, 2, ["a is kept at step 2, and was at 4"]),
        ([2, 4, 6], 0, -1, []),
        ([4], 2, 2, []),
        ([4], 2, 0, ["a is kept at step 0, and was at 2"]),
        ([4], 0, 0, []),
    ],
)
def test_all_checkpoints_but_the_newest_are_kept(
    tmp_path: Path, begun: list[int], before: int, kept: int, said: list[str]
) -> None:
    path = tmp_path / "ledger"
    path.write_text("".join(f'{{"run": "a", "begun": {step}}}\n' for step in begun))
    found = ledgers.gone_back(ledgers.begun_in(path), {"a": before}, {"a": kept})
    assert list(found) == said
