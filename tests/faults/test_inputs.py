"""A few harmed inputs; and that the campaign sees what it looks for."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import inputs
from faults.canary import Canary
from faults.inputs import CYCLE, Inputs
from faults.kinds import WRITERS

KINDS = ("configurations", "adapters", "tables")  # whose readers are fast


@pytest.mark.parametrize("kind", KINDS)
def test_harmed_inputs_are_read_or_refused(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BATCH", 20)
    row = Inputs(tmp_path).tried(CYCLE.index(kind))
    assert row["problems"] == []
    assert (row["kind"], row["cases"]) == (kind, 20)
    assert 0 < row["refused"] <= 20 == row["read"] + row["refused"]


def test_every_kind_has_its_share_of_a_hundred_thousand_inputs() -> None:
    batches = [CYCLE[seed % len(CYCLE)] for seed in range(inputs.NUMBER)]
    found = {kind: inputs.BATCH * batches.count(kind) for kind in WRITERS}
    assert min(found.values()) >= 10_000
    assert sum(found.values()) >= 100_000


def test_the_canary_shows_what_is_executed(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    assert not canary.is_there
    pickle.loads(canary.pickle)  # noqa: S301 -- ours
    assert canary.is_there
    canary.path.unlink()
    exec(canary.python, {})  # noqa: S102 -- ours
    assert canary.is_there


def _executed(folder: Path) -> None:
    (folder.parent / "outside" / "canary").touch()


def _elsewhere(folder: Path) -> None:
    (folder.parent / "outside" / "other").touch()


def _crashed(_: Path) -> None:
    os.abort()


def _endless(_: Path) -> None:
    while True:
        pass


def _careless(_: Path) -> None:
    {}["missing"]


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (_executed, "was executed"),
        (_elsewhere, "wrote other"),
        (_crashed, "ended with -6"),
        (_endless, "took more than 0.05 s"),
        (_careless, "KeyError: 'missing'"),
    ],
)
def test_what_a_reader_must_not_do_is_a_problem(
    reader: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BATCH", 1)
    monkeypatch.setattr(inputs, "LONGEST_S", 0.05)
    tries = Inputs(tmp_path)
    tries._place("tables")
    monkeypatch.setattr(inputs, "readers", lambda _: {"scores.csv": reader})
    assert any(said in problem for problem in tries.tried(CYCLE.index("tables"))["problems"])
