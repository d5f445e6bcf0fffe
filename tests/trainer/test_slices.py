"""The slices of ``molf`` in a trainer: what is kept before a step, and where."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from schemabank.trainer.adapter import PeftAdapter
from schemabank.trainer.slices import MovedSlices


def test_every_step_keeps_its_own_weights_in_the_same_memory() -> None:
    a, b = torch.zeros(4, 3), torch.zeros(5, 4)
    adapter = cast(PeftAdapter, SimpleNamespace(a=[a], b=[b]))
    slices = MovedSlices(adapter, count=2, epsilon=1e-8)
    square = torch.ones(4, 1)
    # The second slice should save more, so that the first one is put back.
    mean = torch.tensor([[1.0], [1.0], [2.0], [2.0]])
    state: dict[torch.Tensor, dict[str, Any]] = {
        a: {"exp_avg": mean.expand(4, 3), "exp_avg_sq": square.expand(4, 3)},
        b: {"exp_avg": mean.T.expand(5, 4), "exp_avg_sq": square.T.expand(5, 4)},
    }
    places = []
    for number in (1.0, 2.0):
        slices.keep()
        places.append([tensor.data_ptr() for pair in slices._before for tensor in pair])
        a.fill_(number)
        b.fill_(number)
        slices.undo_others(state)
        assert a[:, 0].tolist() == [0, 0, number, number]
        assert b[0].tolist() == [0, 0, number, number]
    assert places[0] == places[1]


def test_a_step_that_was_left_out_is_not_undone() -> None:
    a, b = torch.ones(2, 3), torch.ones(5, 2)
    adapter = cast(PeftAdapter, SimpleNamespace(a=[a], b=[b]))
    slices = MovedSlices(adapter, count=2, epsilon=1e-8)
    slices.keep()
    a.fill_(2)
    slices.undo_others({})
    assert a.tolist() == [[2] * 3] * 2


def test_a_model_that_was_cast_keeps_every_bit() -> None:
    """A place for the weights in bfloat16 would round those in float32."""
    adapter = SimpleNamespace(a=[torch.ones(2, 3).bfloat16()], b=[torch.ones(5, 2).bfloat16()])
    slices = MovedSlices(cast(PeftAdapter, adapter), count=2, epsilon=1e-8)
    slices.keep()
    adapter.b = [torch.full((5, 2), 1 / 3)]
    slices.keep()
    assert torch.equal(slices._before[0][1], adapter.b[0])


@pytest.mark.gpu
def test_a_model_that_was_moved_keeps_its_weights_where_it_is() -> None:
    adapter = SimpleNamespace(a=[torch.ones(2, 3)], b=[torch.ones(5, 2)])
    slices = MovedSlices(cast(PeftAdapter, adapter), count=2, epsilon=1e-8)
    slices.keep()
    adapter.a, adapter.b = [adapter.a[0].cuda()], [adapter.b[0].cuda()]
    slices.keep()
    assert slices._before[0][0].is_cuda
