"""Attention for short rows against its definition, on a CPU and, where there is one, a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from schemabank.engine import execute
from schemabank.engine.kernels import attention
from schemabank.engine.kernels.attention import (
    LIBRARY_NAME,
    LONGEST,
    NAME,
    attention_name,
    causal_attention,
    library_attention,
    short_attention,
)
from tiny import Kind, tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# What a CPU leaves to the library, as it does with shorter rows and smaller heads.
LONG = pytest.param(700, marks=pytest.mark.gpu)
LARGE = pytest.param((4, 1, 256), marks=pytest.mark.gpu)
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def expected(states: list[Tensor], scale: float, window: int | None) -> Tensor:
    """What causal attention is, written out in float64: ``(row, token, head, dim)``."""
    query, key, value = states
    group, tokens = query.shape[1] // key.shape[1], query.shape[2]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    place = torch.arange(tokens, device=query.device)
    distance = place[:, None] - place[None, :]
    hidden = (distance < 0) | (distance >= (window or tokens))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("tokens", [1, 5, 72, 128, LONGEST, LONGEST + 1, LONG])
@pytest.mark.parametrize("sizes", [(14, 2, 64), (3, 3, 32), (4, 2, 24), LARGE])
@pytest.mark.parametrize("options", [{}, {"scaling": 0.1}, {"sliding_window": 40}])
@pytest.mark.parametrize("attend", [causal_attention, library_attention])
def test_output_and_gradients_are_those_of_causal_attention(
    *,
    attend: Callable[..., tuple[Tensor, None]],
    device: str,
    dtype: torch.dtype,
    tokens: int,
    sizes: tuple[int, int, int],
    options: dict[str, float],
) -> None:
    heads, kv_heads, dim = sizes
    generator = torch.Generator(device).manual_seed(2)

    def draw(num_heads: int) -> Tensor:
        shape = (3, tokens, num_heads, dim)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    ours = [draw(count).transpose(1, 2).requires_grad_() for count in (heads, kv_heads, kv_heads)]
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // kv_heads, True
    output, _ = attend(layer, *ours, None, **options)
    upstream = draw(heads)
    wide = [s.detach().double().requires_grad_() for s in ours]
    reference = expected(wide, options.get("scaling", dim**-0.5), options.get("sliding_window"))
    found = torch.autograd.grad(output, ours, upstream)
    references = torch.autograd.grad(reference, wide, upstream.double())
    for mine, theirs in zip([output, *found], [reference, *references], strict=True):
        assert mine.shape == theirs.shape
        # Of a single token the gradients are 0 but for rounding.
        size = max(theirs.norm(), upstream.double().norm())
        assert (mine.double() - theirs).norm() <= LIMITS[dtype] * size


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("sizes", [(9, 3, 64), (4, 2, 24), (4, 1, 256)])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 100}])
@pytest.mark.parametrize("attend", [causal_attention, library_attention])
def test_gradients_of_long_rows_have_the_same_bits_every_time(
    *,
    attend: Callable[..., tuple[Tensor, None]],
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    options: dict[str, int],
) -> None:
    """A library's sum by atomics differs within some tens of repetitions."""
    heads, kv_heads, dim = sizes
    generator = torch.Generator("cuda").manual_seed(4)
    shapes = [(64, count, 500, dim) for count in (heads, kv_heads, kv_heads)]
    states = [
        torch.randn(shape, generator=generator, device="cuda").to(dtype).requires_grad_()
        for shape in shapes
    ]
    upstream = torch.randn((64, 500, heads, dim), generator=generator, device="cuda").to(dtype)
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = heads // kv_heads, True
    first: list[Tensor] = []
    for _ in range(40):
        output, _ = attend(layer, *states, None, **options)
        found = [output, *torch.autograd.grad(output, states, upstream)]
        first = first or found
        assert all(map(torch.equal, found, first))


@pytest.mark.parametrize("device", DEVICES)
def test_values_may_have_another_size_than_keys(device: str) -> None:
    generator = torch.Generator(device).manual_seed(5)
    shapes = [(2, 4, 30, 24), (2, 2, 30, 24), (2, 2, 30, 16)]
    states = [
        torch.randn(shape, generator=generator, device=device).requires_grad_() for shape in shapes
    ]
    layer = torch.nn.Module()
    layer.num_key_value_groups, layer.is_causal = 2, True
    output, _ = causal_attention(layer, *states, None)
    wide = [state.detach().double().requires_grad_() for state in states]
    reference = expected(wide, 24**-0.5, None)
    upstream = torch.randn(output.shape, generator=generator, device=device)
    found = torch.autograd.grad(output, states, upstream)
    references = torch.autograd.grad(reference, wide, upstream.double())
    for mine, theirs in zip([output, *found], [reference, *references], strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [NAME, LIBRARY_NAME])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
@torch.no_grad()
def test_a_model_attends_as_with_the_librarys_and_keeps_its_setting(
    kind: Kind, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "attention_name", lambda _device: name)
    model = tiny_model(kind)
    tokens = torch.arange(2, 2 + 4 * 40).view(4, 40) % 90
    before = model(tokens).logits
    with short_attention(model):
        assert model.config.get_text_config()._attn_implementation == name
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-5)
    assert model.config.get_text_config()._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("device", "lack", "name"),
    [
        ("cpu", "no Triton", NAME),
        ("cuda", None, NAME),
        ("cuda", "no Triton", LIBRARY_NAME),
    ],
)
def test_a_gpu_without_its_kernels_attends_by_the_library(
    monkeypatch: pytest.MonkeyPatch, device: str, lack: str | None, name: str
) -> None:
    monkeypatch.setattr(execute, "_lack_of_triton", lambda: lack)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert attention_name(torch.device(device)) == name
