"""The factorised bank against the method's definition, written out token by token in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from schemabank.config.settings import BankSettings
from schemabank.methods.schemabank.bank import Routed, SchemaBank, sigmoid
from schemabank.methods.schemabank.penalties import (
    PENALTIES,
    load_balance,
    orthonormality,
    router_entropy,
    tag_loss,
)

SLOTS, BATCH, TOKENS, HIDDEN = 2, 2, 3, 6
SCHEMAS, RANK, ATTRIBUTES = 4, 2, 3
SCALE = torch.tensor([1.0, 0.4], dtype=torch.float64)

SETTINGS = [(k, residual) for k in (1, 2, SCHEMAS) for residual in (True, False)]


def new_bank(
    *, top_k: int = 2, residual: bool = True, num_slots: int = SLOTS, seed: int = 0
) -> SchemaBank:
    """A bank of random weights, large enough for every term to matter, in float64."""
    bank = SchemaBank(
        num_slots=num_slots,
        hidden_size=HIDDEN,
        num_schemas=SCHEMAS,
        rank=RANK,
        top_k=top_k,
        attribute_dim=ATTRIBUTES,
        residual=residual,
    ).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in bank.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return bank


def random_hidden(*, num_slots: int = SLOTS, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_slots * BATCH, TOKENS, HIDDEN)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def naive_gates(probs: Tensor, *, top_k: int, renormalise: bool) -> Tensor:
    """Gates of one token, ``(schema,)``."""
    kept = probs.argsort(descending=True)[:top_k]
    total = probs[kept].sum() if renormalise else 1.0
    gates = [probs[s] / total if s in kept else torch.zeros_like(probs[s]) for s in range(SCHEMAS)]
    return torch.stack(gates)


def naive_token(
    bank: SchemaBank, n: int, h: Tensor, beta: Tensor, *, dense: bool, renormalise: bool
) -> Tensor:
    """Steps 1 to 5 of the method for one token ``h: (hidden,)`` of slot ``n``."""
    probs = torch.softmax(torch.stack([bank.router[n, s] @ h for s in range(SCHEMAS)]), 0)
    gates = naive_gates(probs, top_k=bank.top_k, renormalise=renormalise)
    if dense:
        gates = torch.full_like(gates, 1 / SCHEMAS)
    mixture, scale = torch.zeros_like(h), torch.tensor(0.9, dtype=h.dtype)
    for s in range(SCHEMAS):
        rows = slice(s * RANK, (s + 1) * RANK)
        mixture = mixture + gates[s] * ((h @ bank.U[n, :, rows]) @ bank.V[n, rows])
        weight = 1 / (1 + torch.exp(-(bank.attributes[n, s] @ bank.query[n])))
        scale = scale + 0.2 * gates[s] * weight
    if bank.residual:
        return h + beta * scale * mixture
    return (1 - beta) * h + beta * scale * mixture


def naive_forward(
    bank: SchemaBank,
    hidden: Tensor,
    *,
    scale: Tensor,
    dense: bool = False,
    renormalise: bool | None = None,
) -> Tensor:
    if renormalise is None:
        renormalise = bank.top_k > 1
    slots = [row * bank.num_slots // len(hidden) for row in range(len(hidden))]
    rows = [
        naive_token(bank, n, h, scale[n], dense=dense, renormalise=renormalise)
        for n, tokens in zip(slots, hidden, strict=True)
        for h in tokens
    ]
    return torch.stack(rows).view_as(hidden)


def all_gradients(bank: SchemaBank, hidden: Tensor, output: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed linear function of ``output``; zero where there is none."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
    named = {"hidden": hidden, **dict(bank.named_parameters())}
    grads = torch.autograd.grad(
        (output * weights).sum(), list(named.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, grads, strict=True))


@pytest.mark.parametrize(("top_k", "residual"), SETTINGS)
def test_output_and_all_gradients_are_those_of_the_definition(top_k: int, residual: bool) -> None:
    bank = new_bank(top_k=top_k, residual=residual)
    hidden = random_hidden().requires_grad_()
    output, _ = bank(hidden, scale=SCALE)
    expected = naive_forward(bank, hidden, scale=SCALE)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (all_gradients(bank, hidden, o) for o in (output, expected))
    assert set(ours) == {"hidden", "router", "U", "V", "attributes", "query"}
    for name, grad in theirs.items():
        assert grad.abs().max() > 1e-6, f"the test says nothing about {name}"
        torch.testing.assert_close(ours[name], grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("top_k", "residual"), SETTINGS)
def test_gradients_pass_gradcheck(top_k: int, residual: bool) -> None:
    bank = new_bank(top_k=top_k, residual=residual)
    names = [name for name, _ in bank.named_parameters()]

    def output(hidden: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return functional_call(bank, named, (hidden,), {"scale": SCALE})[0]

    inputs = (random_hidden()[::BATCH, :1], *(p.detach() for p in bank.parameters()))
    assert torch.autograd.gradcheck(output, tuple(i.requires_grad_() for i in inputs))


@pytest.mark.parametrize("residual", [True, False])
def test_dense_mode_is_the_mean_of_all_schemas_without_the_router(residual: bool) -> None:
    bank, hidden = new_bank(residual=residual), random_hidden()
    output, routed = bank(hidden, scale=SCALE, dense=True)
    expected = naive_forward(bank, hidden, scale=SCALE, dense=True)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(routed.gates, torch.full_like(routed.gates, 1 / SCHEMAS))
    bank.router.data.neg_()
    assert torch.equal(bank(hidden, scale=SCALE, dense=True)[0], output)
    assert not torch.equal(bank(hidden, scale=SCALE)[0], output)


def test_a_single_schema_trains_the_router_because_its_gate_is_not_renormalised() -> None:
    bank, hidden = new_bank(top_k=1), random_hidden().requires_grad_()
    output, routed = bank(hidden, scale=SCALE)
    assert all_gradients(bank, hidden, output)["router"].norm() > 0.01
    renormalised = naive_forward(bank, hidden, scale=SCALE, renormalise=True)
    assert not torch.allclose(output, renormalised)
    gradient = all_gradients(bank, hidden, renormalised)["router"]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    torch.testing.assert_close(routed.gates.amax(-1), routed.log_probs.exp().amax(-1))


@pytest.mark.parametrize("top_k", [1, 2, SCHEMAS])
def test_gates_are_zero_outside_the_top_k_and_sum_to_one(top_k: int) -> None:
    bank = new_bank(top_k=top_k)
    routed = bank(random_hidden(), scale=SCALE)[1]
    assert ((routed.gates > 0).sum(-1) == top_k).all()
    total = routed.gates.sum(-1)
    if top_k == 1:
        assert (total < 1).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    torch.testing.assert_close(routed.log_probs.exp().sum(-1), torch.ones_like(total))


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("dense", [True, False])
def test_bank_scale_zero_leaves_hidden_unchanged_bit_for_bit(residual: bool, dense: bool) -> None:
    bank, hidden = new_bank(residual=residual).float(), random_hidden().float()
    output, _ = bank(hidden, scale=torch.tensor([0.0, 1.0]), dense=dense)
    assert torch.equal(output[:BATCH], hidden[:BATCH])
    assert not torch.equal(output[BATCH:], hidden[BATCH:])


@pytest.mark.parametrize("residual", [True, False])
def test_bank_scale_moves_along_the_line_from_hidden_to_the_full_bank(residual: bool) -> None:
    bank, hidden = new_bank(residual=residual), random_hidden()
    full, _ = bank(hidden, scale=torch.ones(SLOTS, dtype=torch.float64))
    quarter, _ = bank(hidden, scale=torch.full((SLOTS,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(quarter, torch.lerp(hidden, full, 0.25))


def test_the_router_runs_in_float32_under_bfloat16_and_keeps_float64() -> None:
    bank, hidden = new_bank().float(), random_hidden().bfloat16()
    output, routed = bank(hidden, scale=SCALE)
    assert output.dtype == torch.bfloat16
    assert routed.log_probs.dtype == routed.gates.dtype == torch.float32
    exact = bank(hidden.float(), scale=SCALE)[1]
    assert torch.equal(routed.log_probs, exact.log_probs)
    assert bank.double()(hidden.double(), scale=SCALE)[1].log_probs.dtype == torch.float64


@pytest.mark.parametrize("dense", [True, False])
def test_slots_do_not_mix(dense: bool) -> None:
    bank, hidden = new_bank().float(), random_hidden().float()
    before, routed_before = bank(hidden, scale=SCALE, dense=dense)
    for parameter in bank.parameters():
        parameter.data[1] = torch.nan
    changed = torch.cat([hidden[:BATCH], torch.full_like(hidden[BATCH:], 1e9)])
    after, routed = bank(changed, scale=SCALE * torch.tensor([1.0, 7.0]), dense=dense)
    assert torch.equal(after[:BATCH], before[:BATCH])
    assert torch.equal(routed.log_probs[0], routed_before.log_probs[0])
    assert torch.equal(orthonormality(bank)[0], orthonormality(new_bank().float())[0])


@pytest.mark.parametrize("num_schemas", [1, 5, 8, 32])
def test_the_attribute_gate_has_the_same_bits_in_every_slot(num_schemas: int) -> None:
    """PyTorch's own sigmoid has not on a CPU, where a tensor ends within a vector."""
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        logits, weights = torch.randn(2, 3, num_schemas, generator=generator)
        found = []
        for turned in range(3):
            values = logits.roll(turned, 0).requires_grad_()
            gate = sigmoid(values)
            (grad,) = torch.autograd.grad(gate, values, weights.roll(turned, 0))
            found.append((gate.detach().roll(-turned, 0), grad.roll(-turned, 0)))
        torch.testing.assert_close(found[0][0], logits.sigmoid())
        assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_gates_are_finite_and_so_are_their_gradients_however_large_the_values() -> None:
    values = torch.tensor([-1e30, -90.0, 0.0, 90.0, 1e30], requires_grad=True)
    gate = sigmoid(values)
    gate.sum().backward()
    torch.testing.assert_close(gate.detach(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 0.0, 0.25, 0.0, 0.0]))


def test_a_slot_computes_what_a_bank_of_its_own_computes() -> None:
    bank, hidden = new_bank(), random_hidden()
    alone = new_bank(num_slots=1)
    for name, parameter in alone.named_parameters():
        parameter.data = bank.get_parameter(name).data[1:]
    output, _ = alone(hidden[BATCH:], scale=SCALE[1:])
    torch.testing.assert_close(output, bank(hidden, scale=SCALE)[0][BATCH:], rtol=1e-13, atol=1e-13)


def initialised(*, num_slots: int, slot: int, seed: int) -> SchemaBank:
    bank = new_bank(num_slots=num_slots, seed=seed).float()
    bank.initialise(slot, torch.Generator().manual_seed(11), init_std=0.02)
    return bank


def drawn(*, hidden_size: int, num_schemas: int, rank: int) -> SchemaBank:
    bank = SchemaBank(
        num_slots=1,
        hidden_size=hidden_size,
        num_schemas=num_schemas,
        rank=rank,
        top_k=2,
        attribute_dim=32,
        residual=True,
    )
    bank.initialise(0, torch.Generator().manual_seed(0), init_std=0.02)
    return bank


def test_initial_weights_of_a_large_bank_do_not_depend_on_the_number_of_threads() -> None:
    before, found = torch.get_num_threads(), list[dict[str, Tensor]]()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(drawn(hidden_size=2048, num_schemas=2, rank=64).tensors(0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for name, one in found[0].items():
        assert all(torch.equal(one, other[name]) for other in found[1:]), name


def test_initial_weights_depend_on_the_generator_alone() -> None:
    one = initialised(num_slots=1, slot=0, seed=3)
    torch.manual_seed(99)
    three = initialised(num_slots=3, slot=2, seed=4)
    untouched = new_bank(num_slots=3, seed=4).float()
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter[0], three.get_parameter(name)[2]), name
        assert torch.equal(three.get_parameter(name)[:2], untouched.get_parameter(name)[:2]), name
    other = new_bank(num_slots=1).float()
    other.initialise(0, torch.Generator().manual_seed(12), init_std=0.02)
    for name, parameter in one.named_parameters():
        assert not torch.equal(parameter, other.get_parameter(name)), name


def test_initial_rows_of_every_schema_are_orthonormal_and_differ() -> None:
    bank = initialised(num_slots=1, slot=0, seed=0)
    rows = bank.V[0].detach().unflatten(0, (SCHEMAS, RANK))
    for block in rows:
        torch.testing.assert_close(block @ block.T, torch.eye(RANK))
    assert not torch.allclose(rows[0], rows[1], atol=0.01)
    assert orthonormality(bank).abs().max() < 1e-10


def test_initial_spread() -> None:
    bank = drawn(hidden_size=64, num_schemas=32, rank=8)
    for name, std in (("router", 0.02), ("U", 0.02), ("attributes", 1.0)):
        values = bank.get_parameter(name)
        assert values.std().item() == pytest.approx(std, rel=0.1), name
        assert abs(values.mean().item()) < 5 * std / math.sqrt(values.numel()), name
    assert 0.005 < bank.query.std() < 0.04


# Regularisers.


def random_routed(*, top_k: int = 2, seed: int = 5) -> Routed:
    hidden = random_hidden(seed=seed)
    return new_bank(top_k=top_k).route(hidden.unflatten(0, (SLOTS, BATCH)))


def random_mask() -> Tensor:
    """Right-padded rows of different lengths."""
    lengths = torch.tensor([[3, 1], [2, 3]])
    return (torch.arange(TOKENS) < lengths[..., None]).double()


def test_orthonormality_is_the_mean_over_schemas() -> None:
    bank = new_bank()
    rows = bank.V.unflatten(1, (SCHEMAS, RANK))
    for n in range(SLOTS):
        total = torch.zeros((), dtype=torch.float64)
        for block in rows[n]:
            for i in range(RANK):
                for j in range(RANK):
                    total = total + (block[i] @ block[j] - float(i == j)) ** 2
        torch.testing.assert_close(orthonormality(bank)[n], total / SCHEMAS)


def test_router_entropy_against_a_loop() -> None:
    routed, mask = random_routed(), random_mask()
    for n in range(SLOTS):
        values = []
        for at in mask[n].nonzero().tolist():
            probs = routed.log_probs[n, at[0], at[1]].exp()
            values.append(-sum(p * p.log() for p in probs))
        expected = torch.stack(values).mean()
        torch.testing.assert_close(router_entropy(routed, mask)[n], expected)


def constant_routed(probs: list[float], *, top_k: int) -> Routed:
    """Every token has the same probabilities; ties go to the first schemas."""
    p = torch.tensor(probs, dtype=torch.float64)
    gates = torch.zeros_like(p)
    gates[p.argsort(descending=True, stable=True)[:top_k]] = 1 / top_k
    shape = (SLOTS, BATCH, TOKENS, len(probs))
    return Routed(log_probs=p.log().expand(shape), gates=gates.expand(shape))


def test_uniform_router_has_the_largest_entropy_and_balance_one() -> None:
    routed, mask = constant_routed([0.25] * 4, top_k=2), random_mask()
    ones = torch.ones(SLOTS, dtype=torch.float64)
    torch.testing.assert_close(router_entropy(routed, mask), ones * math.log(4))
    torch.testing.assert_close(load_balance(routed, mask), ones)


@pytest.mark.parametrize(("top_k", "expected"), [(1, 4.0), (2, 2.0), (4, 1.0)])
def test_collapsed_router_has_balance_num_schemas_over_top_k(top_k: int, expected: float) -> None:
    routed = constant_routed([1 - 3e-12, 1e-12, 1e-12, 1e-12], top_k=top_k)
    balance = load_balance(routed, random_mask())
    torch.testing.assert_close(balance, torch.full_like(balance, expected))


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_balance_is_equation_4_of_switch_transformers(top_k: int) -> None:
    routed, mask = random_routed(top_k=top_k), random_mask()
    for n in range(SLOTS):
        places = mask[n].nonzero().tolist()
        expected = torch.zeros((), dtype=torch.float64)
        for s in range(SCHEMAS):
            chosen = sum(float(routed.gates[n, b, t, s] > 0) for b, t in places)
            prob = sum(routed.log_probs[n, b, t, s].exp() for b, t in places) / len(places)
            expected = expected + SCHEMAS * chosen / (top_k * len(places)) * prob
        torch.testing.assert_close(load_balance(routed, mask)[n], expected)


def test_load_balance_sends_gradient_through_the_probabilities_alone() -> None:
    log_probs = random_routed().log_probs.detach().requires_grad_()
    gates = random_routed().gates.detach().requires_grad_()
    routed = Routed(log_probs=log_probs, gates=gates)
    to_probs, to_gates = torch.autograd.grad(
        load_balance(routed, random_mask()).sum(), (log_probs, gates), allow_unused=True
    )
    assert to_gates is None
    assert to_probs.abs().sum() > 0


TAGS = torch.tensor([[[0, 3], [1, 2]], [[2, 0], [3, 1]]])


@pytest.mark.parametrize("shown", [((1, 1), (1, 1)), ((1, 0), (0, 1)), ((0, 0), (0, 1))])
def test_tag_loss_against_a_loop(shown: tuple[tuple[int, int], ...]) -> None:
    """Summed over the tokens that are told of tags, divided by all real ones."""
    routed, mask = random_routed(), random_mask()
    log_probs = routed.log_probs.detach()
    found = tag_loss(routed, TAGS, mask, torch.tensor(shown, dtype=torch.float32)).detach()
    for n in range(SLOTS):
        places = mask[n].nonzero().tolist()
        total = sum(
            -float(log_probs[n, b, t, tag]) / len(TAGS[n, b])
            for b, t in places
            if shown[n][b]
            for tag in TAGS[n, b].tolist()
        )
        assert float(found[n]) == pytest.approx(total / len(places), rel=1e-12)


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.25])
def test_the_tag_losss_expected_strength_is_the_share_of_tags_that_are_kept(keep: float) -> None:
    """Exactly, by all 16 ways to keep the tags of four examples of different lengths."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(1, 4, 6, SCHEMAS, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 4, 3])
    mask = (torch.arange(6) < lengths[:, None]).double()[None]
    tags = torch.randint(SCHEMAS, (1, 4, 2), generator=generator)

    def gradient(shown: tuple[int, ...]) -> Tensor:
        leaf = scores.clone().requires_grad_()
        routed = Routed(log_probs=leaf.log_softmax(-1), gates=torch.zeros_like(leaf))
        loss = tag_loss(routed, tags, mask, torch.tensor([shown], dtype=torch.float64))
        return torch.autograd.grad(loss.sum(), leaf)[0]

    expected = sum(
        keep ** sum(shown) * (1 - keep) ** (4 - sum(shown)) * gradient(shown)
        for shown in itertools.product((0, 1), repeat=4)
    )
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(expected, keep * gradient((1, 1, 1, 1)), rtol=1e-12, atol=1e-15)


def test_rows_without_an_example_dilute_no_term() -> None:
    """The last batch of an epoch may have rows to spare."""
    routed, mask = random_routed(), random_mask()
    shown = torch.ones(SLOTS, BATCH)
    short = mask.clone()
    short[:, 1] = 0
    alone = Routed(log_probs=routed.log_probs[:, :1], gates=routed.gates[:, :1])
    for of in (router_entropy, load_balance):
        torch.testing.assert_close(of(routed, short), of(alone, mask[:, :1]))
    torch.testing.assert_close(
        tag_loss(routed, TAGS, short, shown),
        tag_loss(alone, TAGS[:, :1], mask[:, :1], shown[:, :1]),
    )


def penalties(routed: Routed, mask: Tensor) -> Tensor:
    told = tag_loss(routed, TAGS, mask, torch.ones(SLOTS, BATCH))
    return torch.stack([router_entropy(routed, mask), load_balance(routed, mask), told])


def test_padded_positions_change_nothing_bit_for_bit() -> None:
    bank, mask = new_bank().float(), random_mask().float()
    results = []
    for padding in (0.0, 1e4):
        hidden = torch.where(mask.flatten(0, 1)[..., None] > 0, random_hidden().float(), padding)
        hidden.requires_grad_()
        output, routed = bank(hidden, scale=SCALE)
        values = penalties(routed, mask)
        gradient = torch.autograd.grad(values.sum(), (hidden, bank.router))
        real = mask.flatten(0, 1) > 0
        assert not gradient[0][~real].any()
        results.append((output[real], values, *gradient))
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)


def test_padded_positions_may_even_be_undefined() -> None:
    routed, mask = random_routed(), random_mask()
    broken = routed.log_probs.masked_fill(mask[..., None] == 0, torch.nan)
    gates = routed.gates.masked_fill(mask[..., None] == 0, torch.nan)
    after = penalties(Routed(log_probs=broken, gates=gates), mask)
    assert torch.equal(after, penalties(routed, mask))


def test_a_slot_without_tokens_has_penalty_zero() -> None:
    mask = random_mask()
    mask[1] = 0
    values = penalties(random_routed(), mask)
    assert (values[:, 0] > 0).all()
    assert torch.equal(values[:, 1], torch.zeros(3, dtype=torch.float64))


# Slots of different ranks and top k.


def unequal(*, top_k: int, rank: int) -> tuple[SchemaBank, SchemaBank]:
    """A bank with room for more, whose second slot is the other bank's only one."""
    shared, own = (
        SchemaBank(
            num_slots=slots,
            hidden_size=HIDDEN,
            num_schemas=SCHEMAS,
            rank=most,
            top_k=k,
            attribute_dim=ATTRIBUTES,
            residual=True,
        ).double()
        for slots, most, k in ((2, 3, SCHEMAS), (1, rank, top_k))
    )
    shared.configure(1, rank=rank, top_k=top_k)
    for bank, slot in ((shared, 1), (own, 0)):
        bank.initialise(slot, torch.Generator().manual_seed(4), init_std=0.5)
    shared.initialise(0, torch.Generator().manual_seed(5), init_std=0.5)
    return shared, own


@pytest.mark.parametrize("top_k", [1, 2, 3, SCHEMAS])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_slot_of_smaller_rank_and_top_k_is_a_bank_of_its_own(top_k: int, rank: int) -> None:
    shared, own = unequal(top_k=top_k, rank=rank)
    hidden, scale = random_hidden(), torch.tensor([0.7, 0.4], dtype=torch.float64)
    outputs = []
    for bank, rows, slot in ((shared, hidden, 1), (own, hidden[BATCH:], 0)):
        moved, routed = bank(rows, scale=scale[1 - slot :] if bank is own else scale)
        real = torch.ones(bank.num_slots, BATCH, TOKENS, dtype=torch.float64)
        terms = [orthonormality(bank), load_balance(routed, real), router_entropy(routed, real)]
        loss = moved.square()[-BATCH:].sum() + sum(term[slot] for term in terms)
        loss.backward()
        grads = {name: weight.grad[slot] for name, weight in bank.named_parameters()}
        outputs.append((moved[-BATCH:], routed.gates[slot], *(t[slot] for t in terms), grads))
    for ours, theirs in zip(outputs[0][:-1], outputs[1][:-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    padding = torch.arange(3) >= rank
    grads = outputs[0][-1]
    for name, pad in (
        ("U", grads["U"].unflatten(1, (SCHEMAS, 3))[..., padding]),
        ("V", grads["V"].unflatten(0, (SCHEMAS, 3))[:, padding]),
    ):
        assert not pad.any(), name
    for name in ("router", "attributes", "query"):
        torch.testing.assert_close(grads[name], outputs[1][-1][name], rtol=1e-12, atol=1e-12)


def test_weights_leave_out_what_pads_them_and_come_back_to_their_places() -> None:
    shared, own = unequal(top_k=2, rank=2)
    found, expected = shared.tensors(1), own.tensors(0)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    before = {name: weight.clone() for name, weight in shared.named_parameters()}
    with torch.no_grad():
        for weight in shared.parameters():
            weight[1] = 7
    shared.load(1, found)
    for name, weight in shared.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_a_slot_that_gets_another_rank_starts_without_the_former_runs_maps() -> None:
    shared, own = unequal(top_k=2, rank=1)
    shared.configure(1, rank=3, top_k=SCHEMAS)
    shared.initialise(1, torch.Generator().manual_seed(9), init_std=0.5)
    shared.configure(1, rank=1, top_k=2)
    shared.initialise(1, torch.Generator().manual_seed(4), init_std=0.5)
    for name, tensor in shared.tensors(1).items():
        assert torch.equal(tensor, own.tensors(0)[name])
    assert not shared.U[1].unflatten(1, (SCHEMAS, 3))[..., 1:].any()
    assert not shared.V[1].unflatten(0, (SCHEMAS, 3))[:, 1:].any()


def test_every_weight_of_the_settings_is_that_of_a_penalty() -> None:
    weights = {name for name in BankSettings.model_fields if name.endswith("_weight")}
    assert {penalty.name for penalty in PENALTIES} == weights | {"tag_loss_weight"}
