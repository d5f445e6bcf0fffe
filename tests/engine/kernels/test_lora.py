"""CUDA kernels against plain PyTorch; skipped, and said so, where there is no GPU."""

import pytest
import torch
from torch import Tensor

from schemabank.engine.dropout import SlotDropout, dropout_keys

pytestmark = pytest.mark.gpu

SHAPES = [(3, 4, 72, 896, 16), (2, 3, 37, 100, 4), (1, 4, 200, 576, 64), (1, 4, 90, 576, 128)]


def masked(inputs: Tensor, dropout: SlotDropout, layers: Tensor) -> list[Tensor]:
    return [dropout(inputs, layer)[0].flatten(1, 2) for layer in layers]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_adapters", [1, 2, 3])
def test_masked_down_equals_masks_and_matrix_products(
    shape: tuple[int, ...], dtype: torch.dtype, num_adapters: int
) -> None:
    from schemabank.engine.kernels.lora import fits, masked_down

    slots, batch, tokens, width, rank = shape
    if not fits(torch.device("cuda"), rank=rank, itemsize=dtype.itemsize):
        pytest.skip("too large for the kernels")
    generator = torch.Generator("cuda").manual_seed(1)
    randn = lambda *s: torch.randn(*s, generator=generator, device="cuda").to(dtype)  # noqa: E731
    inputs = randn(slots, batch, tokens, width).requires_grad_()
    # As in a flat row, slots do not lie one after another.
    rows = randn(slots, num_adapters, width + 5, rank)
    weights = [rows[:, i, :width].requires_grad_() for i in range(num_adapters)]
    dropout = SlotDropout([0.3, 0.05, 0.0][:slots], device=torch.device("cuda"))
    keys = dropout_keys([(i, 7) for i in range(slots)])
    dropout.begin_step(torch.tensor(keys, dtype=torch.int32, device="cuda"))
    layers = torch.arange(num_adapters, dtype=torch.int32, device="cuda") * 77777 + 5
    scale = torch.linspace(0.5, 2, slots, device="cuda")
    low = masked_down(
        inputs, weights, keys=dropout.keys, layers=layers, least=dropout.least, scale=scale
    )
    wide = inputs.detach().double().requires_grad_()
    wider = [w.detach().double().requires_grad_() for w in weights]
    expected = torch.stack(
        [
            x @ w * scale[:, None, None]
            for x, w in zip(masked(wide, dropout, layers), wider, strict=True)
        ]
    )
    upstream = torch.randn(low.shape, generator=generator, device="cuda").to(dtype)
    grads = torch.autograd.grad(low, [inputs, *weights], upstream)
    references = torch.autograd.grad(expected, [wide, *wider], upstream.double())
    limit = 1e-5 if dtype == torch.float32 else 8e-3
    for ours, theirs in zip([low, *grads], [expected, *references], strict=True):
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [100, 8192, 49152, 151936])
def test_cross_entropy_and_its_gradient(dtype: torch.dtype, vocabulary: int) -> None:
    from schemabank.engine.kernels.cross_entropy import cross_entropy

    generator = torch.Generator("cuda").manual_seed(3)
    logits = 4 * torch.randn(37, vocabulary, generator=generator, device="cuda").to(dtype)
    targets = torch.randint(vocabulary, (37,), generator=generator, device="cuda")
    logits[0, : vocabulary // 2] = -torch.inf
    targets[0] = vocabulary - 1
    logits[1, targets[1]] = 90
    losses, gradient = cross_entropy(logits, targets)
    wide = logits.double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=2e-5)
    assert gradient.dtype == dtype
    limit = 2e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(gradient.double(), wide.grad, rtol=0, atol=limit)


def test_adapters_of_large_ranks_are_left_to_plain_products() -> None:
    from schemabank.engine.kernels.lora import fits

    if torch.cuda.get_device_capability() == (9, 0):
        assert fits(torch.device("cuda"), rank=64, itemsize=4)
        assert fits(torch.device("cuda"), rank=128, itemsize=2)
    assert not fits(torch.device("cuda"), rank=256, itemsize=4)
