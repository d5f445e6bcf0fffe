"""Weights of runs that have ended, held or put away."""

import pytest
import torch

from schemabank.engine.finished import Finished, Weights


def weights(value: float) -> Weights:
    return {"lora": torch.full((3,), value)}


class Kept:
    """Where weights lie that were put away; counts how often they are read."""

    def __init__(self, value: float) -> None:
        self.value, self.num_read = value, 0

    def read(self) -> Weights:
        self.num_read += 1
        return weights(self.value)


@pytest.fixture
def kept() -> Kept:
    return Kept(2)


@pytest.fixture
def finished(kept: Kept) -> Finished:
    """One run whose weights are held, and one whose weights are put away."""
    found = Finished()
    found["held"], found["away"] = weights(1), weights(2)
    found.put_away("away", kept.read)
    return found


def value(found: Weights) -> float:
    return found["lora"][0].item()


def test_what_was_put_away_is_read_when_it_is_asked_for(finished: Finished, kept: Kept) -> None:
    assert [name in finished for name in ("held", "away", "neither")] == [True, True, False]
    assert set(finished.held) == {"held"}
    assert kept.num_read == 0
    assert [value(finished[name]) for name in ("held", "away", "away")] == [1, 2, 2]
    assert kept.num_read == 2
    with pytest.raises(KeyError):
        finished["neither"]


def test_what_was_fetched_is_read_once_and_held_until_it_is_let_go(
    finished: Finished, kept: Kept
) -> None:
    for name in ("held", "away", "away"):
        finished.fetch(name)
    assert value(finished["away"]) == 2
    assert (set(finished.held), kept.num_read) == ({"held", "away"}, 1)
    for name in ("held", "away"):
        finished.let_go(name)
    assert set(finished.held) == {"held"}, "which is nowhere else"


@pytest.mark.parametrize("is_fetched", [False, True])
def test_a_change_is_one_of_what_is_held_and_of_what_is_read(
    is_fetched: bool, finished: Finished
) -> None:
    if is_fetched:
        finished.fetch("away")
    for name in ("held", "away"):
        for factor in (3.0, 5.0):
            finished.change(name, lambda own, by=factor: {"lora": own["lora"] * by})  # type: ignore[misc]
    assert [value(finished[name]) for name in ("held", "away")] == [15, 30]
    finished.let_go("away")
    assert value(finished["away"]) == 30


def test_new_weights_take_the_place_of_others_wherever_they_are(
    finished: Finished, kept: Kept
) -> None:
    finished["away"] = weights(7)
    finished.let_go("away")
    assert value(finished["away"]) == 7
    assert kept.num_read == 0


def test_what_cannot_be_read_is_said_and_changes_nothing(finished: Finished) -> None:
    def broken() -> Weights:
        raise OSError("broken")

    finished.put_away("away", broken)
    with pytest.raises(OSError, match="broken"):
        finished.fetch("away")
    assert set(finished.held) == {"held"}
    assert "away" in finished
