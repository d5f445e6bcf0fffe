"""Soft targets: the loss and its gradient against plain PyTorch, and runs that learn them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import cohorts
from cohorts import LORA, SOLO_TOLERANCE, lora_run
from schemabank.engine.batches import collate
from schemabank.engine.cohort import Cohort
from schemabank.engine.loss import (
    CHUNK_ROWS,
    _soft_losses,
    labelled_losses,
    labelled_soft_losses,
)
from schemabank.engine.run import Run
from schemabank.engine.softtargets import SoftTargets, label_starts
from schemabank.engine.stack import AdapterStack
from tiny import tiny_model

GPU = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
DATA = cohorts.data()
VOCABULARY, HIDDEN, K = 50, 8, 4


def targets_of(*, k: int = K, seed: int = 0, hard: bool = False) -> SoftTargets:
    """Drawn targets for every label; with ``hard`` the label has all of the share."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([e.array[e.labelled] for e in DATA.encoded])
    vocabulary = tiny_model("llama").config.vocab_size
    tokens = np.empty((len(labels), k), dtype=np.int32)
    for row, label in enumerate(labels):
        others = rng.permutation(np.delete(np.arange(vocabulary), label))[: k - 1]
        tokens[row] = [label, *others]
    shares = rng.dirichlet(np.ones(k), len(labels)).astype(np.float32)
    if hard:
        shares[:] = np.eye(k, dtype=np.float32)[0]
    return SoftTargets(tokens, shares, label_starts([e.num_labels for e in DATA.encoded]))


def soft_run(seed: int, soft: SoftTargets, **train: object) -> Run:
    return replace(lora_run(seed, **train), name=f"soft-{seed}", soft=soft)


def trained(
    runs: Sequence[Run], *, device: str = "cpu", slots: int | None = None
) -> dict[str, dict[str, Tensor]]:
    """The weights that each run ends with."""
    stack = AdapterStack(tiny_model("llama").to(device), lora=[LORA] * (slots or len(runs)))
    made = Cohort(stack, runs, DATA, explain=lambda _: None)
    for _ in made.steps():
        pass
    stack.remove()
    return cohorts.ended(made)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loss_and_gradient_are_those_of_plain_pytorch(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype, device=device)
    head.requires_grad_(False)
    examples = DATA.encoded[:6]
    batch = collate([examples[:3], examples[3:]], width=96, num_labels=40).to(torch.device(device))
    batch = replace(batch, labels=batch.labels % VOCABULARY)
    others = (batch.labels[..., None] + torch.arange(1, K, device=device)) % VOCABULARY
    tokens = torch.cat([batch.labels[..., None], others], -1).int()
    shares = torch.rand(*tokens.shape, device=device).softmax(-1)
    hidden = torch.randn(6, 96, HIDDEN, dtype=dtype, device=device, requires_grad=True)
    kept = batch.weights.flatten() > 0

    soft, hard = labelled_soft_losses(hidden, batch, tokens, shares, head)
    (grad,) = torch.autograd.grad(soft[kept].sum(), hidden)

    logits = head(hidden)[:, :-1]
    picked = logits.gather(
        1, batch.positions.flatten(0, 1)[..., None].expand(-1, -1, VOCABULARY)
    ).flatten(0, 1)[kept]
    wanted = torch.zeros_like(picked).scatter(
        1, tokens.flatten(0, 2).long()[kept], shares.flatten(0, 2)[kept].to(dtype)
    )
    expected = cross_entropy(picked, wanted, reduction="none")
    (expected_grad,) = torch.autograd.grad(expected.sum(), hidden)
    torch.testing.assert_close(soft[kept], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-5)
    assert not hard.requires_grad
    assert torch.equal(hard[kept], labelled_losses(hidden, batch, head).detach()[kept])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_a_narrow_type_more_rows_than_a_chunk_keep_the_digits_of_plain_pytorch(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    rows = CHUNK_ROWS + 477  # the last chunk repeats some
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(rows, HIDDEN, dtype=dtype)
    tokens = torch.rand(rows, VOCABULARY).argsort(1)[:, :K]
    shares = torch.rand(rows, K).softmax(-1)
    wanted = torch.zeros(rows, VOCABULARY).scatter(1, tokens, shares)

    def error_of(losses: Callable[[Tensor], Tensor]) -> float:
        """Of the gradient, relative to that in double precision."""
        narrow, wide = (x.clone().requires_grad_() for x in (hidden, hidden.double()))
        (grad,) = torch.autograd.grad(losses(narrow).sum(), narrow)
        exact = cross_entropy(wide @ head.weight.double().T, wanted.double(), reduction="sum")
        (expected,) = torch.autograd.grad(exact, wide)
        return float((grad - expected).norm() / expected.norm())

    ours = error_of(lambda x: _soft_losses(x, tokens, shares, head)[:, 0])
    plain = error_of(lambda x: cross_entropy(head(x).float(), wanted, reduction="none"))
    assert ours < 1.1 * plain


def test_a_token_that_the_head_rules_out_has_no_share_and_makes_no_nan() -> None:
    bias = torch.zeros(VOCABULARY)
    bias[-1] = -torch.inf
    hidden = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2, VOCABULARY - 1]] * 2)
    shares = torch.tensor([[0.75, 0.25, 0.0]] * 2)
    hidden.requires_grad_()
    soft = _soft_losses(hidden, tokens, shares, lambda x: x + bias)[:, 0]
    (grad,) = torch.autograd.grad(soft.sum(), hidden)
    assert soft.isfinite().all()
    assert grad.isfinite().all()
    assert (grad[:, -1] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
def test_shares_of_labels_alone_are_plain_lora(device: str) -> None:
    plain = trained([lora_run(1)], device=device)["lora-1"]
    soft = trained([soft_run(1, targets_of(hard=True))], device=device)["soft-1"]
    for name, weights in plain.items():
        torch.testing.assert_close(soft[name], weights, atol=SOLO_TOLERANCE, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_neighbours_change_no_bit_in_either_direction(device: str) -> None:
    one, other = targets_of(seed=1), targets_of(seed=2)
    together = [soft_run(1, one), lora_run(2), soft_run(3, other), lora_run(4)]
    apart = [
        [soft_run(1, one), lora_run(5), lora_run(6), lora_run(7)],
        [soft_run(8, other), lora_run(2), soft_run(9, one), soft_run(10, other)],
    ]
    found = trained(together, device=device)
    for group, name in zip(apart, ("soft-1", "lora-2"), strict=True):
        again = trained(group, device=device)[name]
        assert all(torch.equal(again[key], row) for key, row in found[name].items())


def test_targets_decide_what_is_learned_and_each_run_has_its_own() -> None:
    one, other = targets_of(seed=1), targets_of(seed=2)
    found = trained([soft_run(1, one), replace(soft_run(1, other), name="other")])
    assert any(not torch.equal(found["other"][key], row) for key, row in found["soft-1"].items())


def test_a_run_with_targets_goes_on_where_it_was_halted() -> None:
    runs = [soft_run(1, targets_of(seed=1)), soft_run(2, targets_of(seed=2), num_train_epochs=1)]
    whole = trained(runs)
    model = tiny_model("llama")
    first = Cohort(AdapterStack(model, lora=[LORA] * 2), runs, DATA, explain=lambda _: None)
    for number, _ in enumerate(first.steps()):
        if number == 2:
            break
    halted = first.halt()
    stack = AdapterStack(model, lora=[LORA] * 2)
    rest = Cohort(stack, runs, DATA, explain=lambda _: None, halted=halted)
    for _ in rest.steps():
        pass
    stack.remove()
    for name, weights in whole.items():
        assert all(torch.equal(rest.finished[name][key], row) for key, row in weights.items())


def test_the_reported_loss_is_that_of_the_labels() -> None:
    """The first step's loss is measured before anything was learned: it is LoRA's."""
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 2)
    made = Cohort(stack, [lora_run(1), soft_run(1, targets_of())], DATA, explain=lambda _: None)
    steps = made.steps()
    plain, soft = next(steps)
    steps.close()
    stack.remove()
    assert soft.loss == pytest.approx(plain.loss, rel=1e-6)
    assert soft.total_loss > soft.loss
