"""Two processes come to what one comes to with the batches of both."""

import pytest
import torch
from torch import Tensor

from trainerprocess import CONSISTENT, GOES_ON, METHODS, going_on, together, trained, wide
from trainers import BATCH, OF_PROCESSES

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    return together(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return together(tmp_path_factory.mktemp("gone_on"), main=going_on)[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    with wide():
        methods = {**METHODS, **CONSISTENT}
        return trained(tmp_path_factory.mktemp("alone"), rows=BATCH, parts=1, methods=methods)


@pytest.mark.parametrize(
    ("name", "parts"), [*((name, parts) for name in METHODS for parts in (1, 2)), ("consistent", 2)]
)
def test_two_processes_come_to_the_weights_of_one(
    name: str, parts: int, both: list[dict[str, Tensor]], alone: dict[str, Tensor]
) -> None:
    expected = {k: w for k, w in alone.items() if k.startswith(f"1 parts, {name}, ")}
    assert expected
    assert not both[0][f"{parts} parts, {name}: split"].any()
    for key, weight in expected.items():
        found = both[0][key.replace("1 parts", f"{parts} parts")]
        assert (found - weight).abs().max() < OF_PROCESSES


def test_processes_agree_to_the_bit(both: list[dict[str, Tensor]]) -> None:
    first, second = both
    assert first.keys() == second.keys()
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())


@pytest.mark.parametrize(("name", "step"), GOES_ON)
def test_two_processes_go_on_from_a_checkpoint(
    name: str, step: int, gone_on: dict[str, Tensor]
) -> None:
    whole = {k: w for k, w in gone_on.items() if k.startswith(f"{name}, whole, ")}
    assert whole
    for key, weight in whole.items():
        assert torch.equal(weight, gone_on[key.replace("whole", f"from {step}")])
