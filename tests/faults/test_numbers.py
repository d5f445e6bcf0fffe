"""One number that is not finite; the campaign has each place in each slot."""

import torch

from faults import numbers
from faults.numbers import CASES, NUMBER
from poison import NAMES


def test_a_spoilt_run_fails_and_its_neighbours_keep_their_bits() -> None:
    torch.set_num_threads(1)
    row = numbers.tried(CASES.index(("experts", "weight", True)))
    assert (row["ended"], row["neighbours"], row["problems"]) == ("failed", len(NAMES) - 1, [])


def test_every_kind_of_run_meets_every_place() -> None:
    assert len(set(CASES)) == NUMBER
    for stays in (False, True):
        places = {place for _, place, lasts in CASES if lasts is stays}
        assert len([case for case in CASES if case[2] is stays]) == len(NAMES) * len(places)
    assert {"data", "loss", "gradient", "weight"} <= {place for _, place, _ in CASES}
