"""Muon's updates against a plain loop over matrices, and beside AdamW in one cohort."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cohorts import LORA, bank_run, cohort, data, lora_run, train
from schemabank.engine.cohort import Cohort
from schemabank.engine.flat import FlatGroup
from schemabank.engine.muon import EPSILON, Muon, orthogonalised
from schemabank.engine.optim import AdamWSettings, SlotAdamW
from schemabank.engine.run import Run
from schemabank.engine.stack import AdapterStack
from tiny import tiny_model

SLOTS, RANK, MAPS, WIDE, NARROW = 3, 4, 2, 10, 3
RANKS = (4, 2, 4)
CHOSEN = (True, True, False)
BETA1 = (0.9, 0.5, 0.8)
BETA2, ADAM_EPSILON = 0.99, 1e-8
DECAY = (0.1, 0.0, 0.3)
RATIO = (4.0, 1.0, 2.0)
RATES = (1e-2, 3e-2, 1e-2)
# Two layers of one shape, and one whose output is narrower than the rank.
SHAPES = {
    "one.A": (WIDE, RANK),
    "one.B": (MAPS * RANK, WIDE),
    "one.router": (WIDE, MAPS),
    "two.A": (WIDE, RANK),
    "two.B": (MAPS * RANK, WIDE),
    "narrow.A": (WIDE, RANK),
    "narrow.B": (MAPS * RANK, NARROW),
}
# Newton-Schulz stretches the rounding of small singular values.
TOLERANCE = 1e-4


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None]


def randoms(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Set to zero what lies beyond each slot's rank."""
    for name, values in rows.items():
        for slot, rank in enumerate(RANKS):
            if name.endswith(".A"):
                values[slot, :, rank:] = 0
            elif name.endswith(".B"):
                values[slot].view(MAPS, RANK, -1)[:, rank:] = 0
    return rows


def new_group(dtype: torch.dtype = torch.float32) -> FlatGroup:
    parameters = {n: nn.Parameter(torch.zeros(SLOTS, *shape)) for n, shape in SHAPES.items()}
    of_b = [name for name in SHAPES if name.endswith(".B")]
    group = FlatGroup(parameters, num_slots=SLOTS, dtype=dtype, own_rate=of_b)
    group.weights.copy_(randoms(SLOTS, group.size, seed=0))
    padded(group.master)
    return group


def new_optimizer(group: FlatGroup, *, chosen: tuple[bool, ...] | None = CHOSEN) -> SlotAdamW:
    muon = None
    if chosen is not None:
        muon = Muon(group, num_maps=MAPS)
        for slot, (rank, own) in enumerate(zip(RANKS, chosen, strict=True)):
            muon.seat(slot, rank=rank, chosen=own)
    columns = (BETA1, (BETA2,) * SLOTS, (ADAM_EPSILON,) * SLOTS, DECAY, RATIO)
    settings = AdamWSettings(*map(column, columns))
    return SlotAdamW(group.weights, settings, rounded=group.rounded, faster=group.faster, muon=muon)


def grad_of(group: FlatGroup, step: int) -> Tensor:
    grad = randoms(SLOTS, group.size, seed=step + 1) * 10.0 ** (step % 3 - 2)
    padded(group.views(grad))
    return grad


def newton_schulz(matrix: Tensor) -> Tensor:
    """As Jordan writes it, for one matrix, in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x


class PlainMuon:
    """One run's Muon, matrix by matrix, each without padding and as ``(rank, other)``."""

    def __init__(self, start: Mapping[str, Tensor], slot: int) -> None:
        self.slot = slot
        self.weights = {key: m.double().clone() for key, m in self.matrices(start).items()}
        self.momenta = {key: torch.zeros_like(m) for key, m in self.weights.items()}

    def matrices(self, rows: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
        found, rank = {}, RANKS[self.slot]
        for name, values in rows.items():
            own = values[self.slot]
            if name.endswith(".A"):
                found[name, 0] = own[:, :rank].T
            elif name.endswith(".B"):
                maps = own.view(MAPS, RANK, -1)
                found |= {(name, i): each[:rank] for i, each in enumerate(maps)}
        return found

    def step(self, grads: Mapping[str, Tensor], rate: float, factor: float) -> None:
        beta, decay = BETA1[self.slot], DECAY[self.slot]
        for key, grad in self.matrices(grads).items():
            scaled = grad.double() * factor
            self.momenta[key] = beta * self.momenta[key] + (1 - beta) * scaled
            update = newton_schulz(beta * self.momenta[key] + (1 - beta) * scaled)
            own_rate = rate * (RATIO[self.slot] if key[0].endswith(".B") else 1)
            scale = 0.2 * math.sqrt(max(update.shape))
            self.weights[key] *= 1 - own_rate * decay
            self.weights[key] -= own_rate * scale * update


@pytest.mark.parametrize("shape", [(5, 4, 10), (5, 10, 4), (3, 6, 6)], ids=str)
def test_every_matrix_is_orthogonalised_by_itself(shape: tuple[int, ...]) -> None:
    matrices = randoms(*shape, seed=3) * column((1e-3, 1, 1e3, 5, 7)[: shape[0]])[..., None]
    found = orthogonalised(matrices)
    expected = torch.stack([newton_schulz(matrix) for matrix in matrices])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)
    if shape[1] != shape[2]:
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_zeros_stay_zero() -> None:
    matrices = randoms(3, 4, 10, seed=3)
    matrices[0] = 0
    matrices[1, 2:] = 0
    matrices[2, :, 5:] = 0
    for given in (matrices, matrices.mT):
        found = orthogonalised(given)
        assert torch.equal(found == 0, given == 0)
        assert found.isfinite().all()
    assert EPSILON > 0


def test_muon_is_a_plain_loop_over_unpadded_matrices() -> None:
    """Ranks, rates, decays, factors, active and fresh steps differ by slot."""
    group = new_group()
    ours = new_optimizer(group)
    theirs = {slot: PlainMuon(group.master, slot) for slot in (0, 1)}
    start = group.weights.clone()
    for step in range(12):
        grad, factor = grad_of(group, step), column((0.5, 1.0, 1.0))
        rates = tuple(rate * (1 - step / 12) for rate in RATES)
        active = torch.tensor([[True], [step % 3 > 0], [True]])
        fresh = torch.tensor([[step == 6], [False], [False]])
        ours.update(grad, factor=factor, learning_rate=column(rates), active=active, fresh=fresh)
        if step == 6:
            theirs[0].momenta = {k: torch.zeros_like(m) for k, m in theirs[0].momenta.items()}
        for slot, plain in theirs.items():
            if active[slot]:
                plain.step(group.views(grad), rates[slot], factor[slot].item())
    for plain in theirs.values():
        begun = plain.matrices(group.views(start))
        for key, found in plain.matrices(group.master).items():
            assert (found - begun[key]).abs().max() > 100 * TOLERANCE
            torch.testing.assert_close(found.double(), plain.weights[key], rtol=0, atol=TOLERANCE)
    for values, name in ((v, n) for n, v in group.master.items() if not n.endswith("router")):
        beyond = values[1, :, 2:] if name.endswith(".A") else values[1].view(MAPS, RANK, -1)[:, 2:]
        assert not beyond.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_updates_the_other_rows_and_routers_bit_for_bit(dtype: torch.dtype) -> None:
    group, plain = new_group(dtype), new_group(dtype)
    ours, adamw = new_optimizer(group), new_optimizer(plain, chosen=None)
    for step in range(5):
        for optimizer in (ours, adamw):
            optimizer.update(grad_of(group, step), learning_rate=column(RATES), active=EVERYONE)
    assert torch.equal(group.weights[2], plain.weights[2])
    assert torch.equal(group.master["one.router"], plain.master["one.router"])
    for state, other in zip(ours.state[1:], adamw.state[1:], strict=True):
        assert torch.equal(state, other)
    for name, values in group.master.items():
        if not name.endswith("router"):
            assert not torch.isclose(values[0], plain.master[name][0]).all(), name
    if group.rounded is not None:
        assert torch.equal(group.rounded, group.weights.to(dtype))


EVERYONE = torch.ones(SLOTS, 1, dtype=torch.bool)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_is_not_active_keeps_its_bits_and_harms_no_other(broken: float) -> None:
    group, plain = new_group(), new_group()
    before = group.weights.clone()
    for own, value in ((group, broken), (plain, 1.0)):
        grad = grad_of(own, 0)
        grad[1] = value
        active = torch.tensor([[True], [False], [True]])
        new_optimizer(own).update(grad, learning_rate=column(RATES), active=active)
    assert torch.equal(group.weights[1], before[1])
    assert torch.equal(group.weights, plain.weights)
    assert not torch.equal(group.weights[0], before[0])


# In a cohort.

MUON = lora_run(1, optimizer="muon", weight_decay=0.1)


def finished(runs: list[Run], name: str, *, dtype: torch.dtype = torch.float32) -> Tensor:
    trained = cohort(runs, data(), dtype=dtype)
    train(trained)
    return trained.finished[name]["lora"]


@pytest.mark.parametrize(
    ("run", "dtype"),
    [
        (lora_run(5), torch.float32),
        (bank_run(5), torch.float32),
        (lora_run(5), torch.bfloat16),
    ],
)
def test_adamw_beside_muon_has_the_bits_of_adamw_beside_adamw(run: Run, dtype: torch.dtype) -> None:
    """Muon's group is the adapter's, which both kinds of run have: one of them in bfloat16."""
    found = [
        finished([run, other], run.name, dtype=dtype)
        for other in (bank_run(1), replace(MUON, name="other"), bank_run(2, optimizer="muon"))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neighbour_changes_no_bit_of_muon(dtype: torch.dtype) -> None:
    others = (bank_run(2), lora_run(3), lora_run(4, optimizer="muon", num_train_epochs=1))
    found = [finished([MUON, other], MUON.name, dtype=dtype) for other in others]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_muon_lowers_the_loss_at_adamws_learning_rate() -> None:
    for optimizer in ("adamw", "muon"):
        run = lora_run(1, num_train_epochs=12, optimizer=optimizer)
        trained = cohort([run], data())
        losses = [report.loss for (report,) in train(trained)]
        assert sum(losses[-6:]) < 0.98 * sum(losses[:6])


def test_muon_leaves_a_bank_to_adamw() -> None:
    """A bank's groups have no Muon, so that only the adapter's update is another."""
    made = cohort([bank_run(1, optimizer="muon"), bank_run(2)], data())
    muons = {name: optimizer.muon is not None for name, optimizer in made.optimizers.items()}
    assert muons == {"router": False, "schemas": False, "lora": True}
    assert not any(o.muon for o in cohort([bank_run(2)], data()).optimizers.values())


def test_a_slot_has_the_optimizer_and_the_rank_of_the_run_that_holds_it() -> None:
    small = replace(lora_run(3, max_steps=2), lora=LORA.model_copy(update={"r": 2}))
    made = cohort(
        [replace(MUON, train=MUON.train.model_copy(update={"max_steps": 9})), small],
        data(),
        slots=1,
    )
    muon = made.optimizers["lora"].muon
    assert muon is not None
    found = []
    for (report,) in made.steps():
        found.append((report.run, muon.rows.item(), muon.ranks.item()))
    assert set(found) == {(MUON.name, True, 4), (small.name, False, 2)}


def in_slots(num_slots: int, rank: int) -> AdapterStack:
    wide = LORA.model_copy(update={"r": rank})
    return AdapterStack(tiny_model("llama"), lora=[wide] * num_slots)


def tensors(trained: Cohort) -> dict[str, tuple[Tensor, Tensor]]:
    trained.seat([MUON.name])
    return trained.stack.lora.tensors(0)


def assert_near(ours: Cohort, theirs: Cohort) -> None:
    expected = tensors(theirs)
    for path, found in tensors(ours).items():
        for own, other in zip(found, expected[path], strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=5e-4)


def test_a_padded_rank_is_an_unpadded_one_within_rounding() -> None:
    """Beyond the narrowest output, too, where the products are taken over the other side."""
    small = replace(MUON, lora=LORA.model_copy(update={"lora_dropout": 0.0}))
    cohorts = [Cohort(in_slots(1, rank), [small], data()) for rank in (4, 7, 48)]
    for trained in cohorts:
        train(trained)
    for other in cohorts[1:]:
        assert_near(other, cohorts[0])
        for layer in other.stack.lora.layers.values():
            assert not layer.A[0, :, 4:].any()
            assert not layer.B[0, 4:].any()


@pytest.mark.parametrize("num_slots", [1, 2])
def test_a_halted_cohort_goes_on_with_muons_momentum(num_slots: int) -> None:
    """Bit for bit in as many slots, within rounding in fewer."""
    runs = [MUON, lora_run(2)]
    undisturbed = Cohort(in_slots(2, 4), runs, data())
    train(undisturbed)
    first = Cohort(in_slots(2, 4), runs, data())
    steps = first.steps()
    for _ in range(5):
        next(steps)
    steps.close()
    model, halted = first.stack.model, first.halt()
    stack = AdapterStack(model, lora=[LORA] * num_slots)
    second = Cohort(stack, [slot.run for slot in halted.slots], first.data, halted=halted)
    train(second)
    if num_slots == 2:
        for run in runs:
            own, other = second.finished[run.name], undisturbed.finished[run.name]
            assert torch.equal(own["lora"], other["lora"])
    assert_near(second, undisturbed)
