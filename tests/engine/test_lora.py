"""Stacked LoRA against a naive reference with the very same mask, and against PEFT."""

import math
from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from cohorts import BANK, LORA, cohort, data, lora_run, train, with_banks
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine import lora
from schemabank.engine.dropout import SlotDropout, dropout_keys
from schemabank.engine.flat import seeded_generator
from schemabank.engine.lora import SharedInput, StackedLora, install_lora, remove_lora
from schemabank.engine.stack import AdapterStack
from tiny import tiny_model

# PEFT asks transformers for a property of an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

IN, OUT, BATCH, TOKENS = 6, 5, 2, 3
CPU = torch.device("cpu")
# Scales of 2, 0.5 and 3, ranks 2, 4 and 1, three rates of dropout.
SETTINGS = (
    LoraSettings(r=2, lora_alpha=4, lora_dropout=0.5),
    LoraSettings(r=4, lora_alpha=2, lora_dropout=0.25),
    LoraSettings(r=1, lora_alpha=3, lora_dropout=0),
)
RUNS = [(1, 0), (2, 0), (3, 0)]


def keys_of(runs: Sequence[tuple[int, int]]) -> Tensor:
    """Keys of runs, given by seed and step."""
    return torch.tensor(dropout_keys(runs), dtype=torch.int32)


KEYS = keys_of(RUNS)


def new_dropout(rates: Sequence[float] = (0.5, 0.25, 0.0)) -> SlotDropout:
    return SlotDropout(rates, device=CPU)


def randoms(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def new_layer(dropout: SlotDropout, *, seed: int = 0) -> StackedLora:
    """A layer whose A and B both matter, each slot padded with zeros beyond its rank."""
    base = nn.Linear(IN, OUT)
    base.weight.data, base.bias.data = randoms(OUT, IN, seed=90), randoms(OUT, seed=91)
    base.requires_grad_(False)
    layer = StackedLora(base, layer=7, settings=SETTINGS, dropout=dropout).double()
    for slot, settings in enumerate(SETTINGS):
        layer.A.data[slot, :, : settings.r] = randoms(IN, settings.r, seed=seed + 10 + slot)
        layer.B.data[slot, : settings.r] = randoms(settings.r, OUT, seed=seed + 20 + slot)
    return layer


def mask_of(layer: StackedLora) -> Tensor:
    """The mask that the layer's next forward pass multiplies its input by."""
    ones = torch.ones(len(SETTINGS), BATCH, TOKENS, IN, dtype=torch.float64)
    return scaled(layer.dropout, ones, layer.layer_key).view(-1, TOKENS, IN)


def scaled(dropout: SlotDropout, inputs: Tensor, layer_key: Tensor) -> Tensor:
    """What dropout keeps, scaled as dropout commonly is."""
    kept, factor = dropout(inputs, layer_key)
    return kept if factor is None else kept * factor[:, None, None, None]


def naive(layer: StackedLora, inputs: Tensor, mask: Tensor) -> Tensor:
    """``y = W x + b + (lora_alpha / r) B A (mask * x)``, row by row."""
    rows = []
    for row, tokens in enumerate(inputs):
        slot = row // BATCH
        settings = SETTINGS[slot]
        down, up = layer.A[slot, :, : settings.r].T, layer.B[slot, : settings.r].T
        for token, x in enumerate(tokens):
            delta = up @ (down @ (mask[row, token] * x))
            scale = settings.lora_alpha / settings.r
            rows.append(layer.base.weight @ x + layer.base.bias + scale * delta)
    return torch.stack(rows).view(*inputs.shape[:2], OUT)


# The layer.


@pytest.mark.parametrize("training", [True, False])
def test_output_and_gradients_are_those_of_the_definition(training: bool) -> None:
    dropout = new_dropout()
    layer = new_layer(dropout)
    dropout.begin_step(KEYS if training else None)
    mask = mask_of(layer)
    assert (mask == 0).any() == training
    inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=1).requires_grad_()
    upstream = randoms(len(SETTINGS) * BATCH, TOKENS, OUT, seed=2)
    leaves = (layer.A, layer.B, inputs)
    output, expected = layer(inputs), naive(layer, inputs, mask)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(o, leaves, upstream) for o in (output, expected))
    for found, reference in zip(ours, theirs, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(found, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fits", [False, True])
def test_kernels_draw_the_masks_in_training_where_they_can_be_had(
    monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    calls: list[Tensor] = []

    def low(_shared: SharedInput, layer: StackedLora, inputs: Tensor, keys: Tensor) -> Tensor:
        calls.append(keys)
        return layer._low(inputs)

    monkeypatch.setattr(lora, "_fits_a_kernel", lambda _adapter: fits)
    monkeypatch.setattr(SharedInput, "low", low)
    layer = new_layer(new_dropout())
    SharedInput([layer])
    inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=3)
    layer(inputs)
    assert not calls, "evaluation has no masks"
    layer.dropout.begin_step(KEYS)
    layer(inputs)
    assert len(calls) == fits


def test_gradients_pass_gradcheck() -> None:
    dropout = new_dropout()
    layer = new_layer(dropout)
    dropout.begin_step(KEYS)

    def output(inputs: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"A": down, "B": up}, (inputs,))

    inputs = randoms(len(SETTINGS) * BATCH, 2, IN, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(output, (inputs, layer.A, layer.B))


def test_padded_ranks_stay_exactly_zero_in_training() -> None:
    dropout = new_dropout()
    layer = new_layer(dropout)
    optimizer = torch.optim.AdamW([layer.A, layer.B], lr=0.1, weight_decay=0.1)
    start = layer.A.detach().clone()
    for step in range(4):
        dropout.begin_step(keys_of([(seed, step) for seed, _ in RUNS]))
        inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=step)
        optimizer.zero_grad()
        layer(inputs).square().sum().backward()
        optimizer.step()
    for slot, settings in enumerate(SETTINGS):
        assert not layer.A[slot, :, settings.r :].any()
        assert not layer.B[slot, settings.r :].any()
        assert (layer.A[slot, :, : settings.r] != start[slot, :, : settings.r]).all()


def test_slots_do_not_mix() -> None:
    dropout = new_dropout()
    layer = new_layer(dropout)
    inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=1)
    dropout.begin_step(KEYS)
    before = layer(inputs)
    layer.A.data[1:] = torch.nan
    changed = inputs.clone()
    changed[BATCH:] = 1e9
    dropout.begin_step(keys_of([RUNS[0], (77, 5), (78, 6)]))
    assert torch.equal(layer(changed)[:BATCH], before[:BATCH])


@pytest.mark.parametrize("training", [True, False])
def test_without_adapters_the_layer_is_its_base_bit_for_bit(training: bool) -> None:
    dropout = new_dropout()
    layer = new_layer(dropout)
    inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=1)
    dropout.begin_step(KEYS if training else None)
    adapted = layer(inputs)
    dropout.adapters = False
    assert torch.equal(layer(inputs), layer.base(inputs))
    dropout.adapters = True
    assert torch.equal(layer(inputs), adapted)
    assert not torch.equal(adapted, layer.base(inputs))


def test_a_configured_slot_is_one_made_with_those_settings() -> None:
    dropout = new_dropout()
    layer, other = new_layer(dropout), LoraSettings(r=3, lora_alpha=12, lora_dropout=0.1)
    inputs = randoms(len(SETTINGS) * BATCH, TOKENS, IN, seed=1)
    before = layer(inputs)
    layer.configure(0, other)
    fresh = StackedLora(layer.base, layer=7, settings=(other, *SETTINGS[1:]), dropout=dropout)
    assert layer.ranks == fresh.ranks
    fresh.double().load_state_dict(layer.state_dict())
    assert torch.equal(layer(inputs), fresh(inputs))
    assert torch.equal(layer(inputs)[BATCH:], before[BATCH:])
    assert not torch.equal(layer(inputs)[:BATCH], before[:BATCH])
    drawn = [
        each.initial_a(each.ranks[0], torch.Generator().manual_seed(1)) for each in (layer, fresh)
    ]
    assert torch.equal(*drawn)
    assert drawn[0][:, :3].all()


def test_bfloat16_adds_no_bias_to_the_scale_of_what_is_kept() -> None:
    """1 / 0.95 times a bfloat16 entry, rounded to bfloat16, would be too much by 0.2 %."""
    width, tokens = 512, 256
    dropout = new_dropout([0.05])
    settings = [LoraSettings(r=8, lora_alpha=8, lora_dropout=0.05)]
    layer = StackedLora(
        nn.Linear(width, 64, bias=False), layer=0, settings=settings, dropout=dropout
    )
    layer.base.weight.data.zero_()
    layer.A.data[0] = randoms(width, 8, seed=0).abs().bfloat16()
    layer.B.data[0] = randoms(8, 64, seed=1).abs().bfloat16()
    dropout.begin_step(keys_of([(1, 0)]))
    inputs = randoms(1, tokens, width, seed=2).abs().bfloat16()
    with torch.no_grad():
        exact = layer(inputs.float())
        found = layer.bfloat16()(inputs).float()
    # Single results round by up to 2⁻⁹, either way.
    assert ((found - exact) / exact).mean().abs() < 2e-4


# The start.


def test_a_starts_as_in_peft_and_b_at_zero() -> None:
    model = nn.Sequential(nn.Linear(48, 32, bias=False))
    theirs = get_peft_model(model, LoraConfig(r=64, target_modules=["0"])).base_model.model[0]
    settings = LoraSettings(r=64, target_modules=("0",))
    layer = StackedLora(nn.Linear(48, 32), layer=0, settings=[settings], dropout=new_dropout([0.0]))
    drawn = layer.initial_a(layer.ranks[0], torch.Generator().manual_seed(0))
    assert drawn.shape == theirs.lora_A["default"].weight.T.shape
    bound = 1 / math.sqrt(48)
    for weight in (drawn, theirs.lora_A["default"].weight.detach()):
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert weight.mean().abs() < 4 * bound / math.sqrt(3 * weight.numel())
    assert not layer.B.any()
    assert not theirs.lora_B["default"].weight.any()


def test_the_start_depends_on_the_generator_and_the_slots_own_rank() -> None:
    layer = new_layer(new_dropout()).float()
    torch.manual_seed(1)
    first = layer.initial_a(layer.ranks[0], torch.Generator().manual_seed(5))
    alone = StackedLora(layer.base, layer=3, settings=SETTINGS[:1], dropout=new_dropout([0.0]))
    torch.manual_seed(2)
    again = alone.initial_a(alone.ranks[0], torch.Generator().manual_seed(5))
    assert first.shape == (IN, 4)
    assert torch.equal(first[:, :2], again)
    assert not first[:, 2:].any()
    assert not torch.equal(again, alone.initial_a(alone.ranks[0], torch.Generator().manual_seed(6)))


def test_a_stack_starts_one_slot_and_leaves_the_others() -> None:
    settings = [LoraSettings(r=4), LoraSettings(r=2), LoraSettings(r=1)]
    stack = AdapterStack(tiny_model("llama"), lora=settings, attach=with_banks(BANK))
    group = stack.groups["lora"]
    group.weights.fill_(3)
    stack.initialise(1, 5)
    assert (group.weights[[0, 2]] == 3).all()
    generator = seeded_generator(5, "lora")
    for path, layer in stack.lora.layers.items():
        a, b = group.master[f"{path}.A"], group.master[f"{path}.B"]
        assert torch.equal(a[1], layer.initial_a(layer.ranks[1], generator))
        assert torch.equal(layer.A, a), "the model computes with these"
        assert a[1, :, :2].all()
        assert not a[1, :, 2:].any()
        assert not b[1].any()
    assert not stack.groups["router"].weights[[0, 2]].any()
    assert stack.groups["router"].weights[1].any()


# Dropout.


def layer_key(layer: int) -> Tensor:
    """The key of an adapter layer."""
    return StackedLora(
        nn.Linear(1, 1), layer=layer, settings=[LoraSettings(r=1)], dropout=new_dropout([0.0])
    ).layer_key


def masks(
    keys: Tensor,
    *,
    rates: Sequence[float] = (0.5, 0.25, 0.0),
    layer: int = 0,
    shape: tuple[int, int, int] = (2, 11, 13),
) -> Tensor:
    dropout = new_dropout(rates)
    dropout.begin_step(keys)
    return scaled(dropout, torch.ones(len(rates), *shape), layer_key(layer))


def test_the_same_key_gives_the_same_mask() -> None:
    first = masks(KEYS)
    torch.manual_seed(3)
    assert torch.equal(masks(KEYS), first)


def test_keys_depend_on_their_own_run_and_step() -> None:
    steps = [(seed, step) for seed in range(40) for step in range(250)]
    keys = dropout_keys(steps)
    assert len(set(keys)) == len(keys)
    assert all(-(2**31) <= key < 2**31 for key in keys)
    assert min(keys) < -(2**30)
    assert max(keys) > 2**30
    assert dropout_keys(steps[7:9]) == keys[7:9]


def test_seed_step_and_layer_each_change_the_mask() -> None:
    first = masks(KEYS)[0]
    others = [
        masks(keys_of([(9, 0), *RUNS[1:]])),
        masks(keys_of([(1, 1), *RUNS[1:]])),
        masks(KEYS, layer=1),
    ]
    for other in others:
        agreement = (other[0] == first).float().mean()
        assert abs(agreement - 0.5) < 4 * 0.5 / math.sqrt(first.numel())


def test_other_slots_their_rates_and_their_number_do_not_matter() -> None:
    first = masks(KEYS)
    assert torch.equal(masks(keys_of([RUNS[0], (8, 8), (9, 9)]))[0], first[0])
    assert torch.equal(masks(KEYS, rates=(0.5, 0.9, 0.1))[0], first[0])
    assert torch.equal(masks(KEYS[:1], rates=(0.5,))[0], first[0])
    swapped = masks(KEYS[[1, 0, 2]], rates=(0.25, 0.5, 0.0))
    assert torch.equal(swapped[[1, 0, 2]], first)


@pytest.mark.parametrize("shape", [(2, 11, 13), (4, 11, 13), (2, 24, 13), (7, 300, 13)])
def test_padded_width_and_number_of_rows_do_not_matter(shape: tuple[int, int, int]) -> None:
    wide = masks(KEYS, shape=shape)
    assert torch.equal(wide[:, :2, :11], masks(KEYS))


def test_a_changed_rate_is_that_of_a_new_dropout() -> None:
    dropout = new_dropout((0.1, 0.25, 0.0))
    dropout.set_rate(0, 0.5)
    dropout.begin_step(KEYS)
    assert dropout.rates == [0.5, 0.25, 0.0]
    assert torch.equal(scaled(dropout, torch.ones(3, 2, 11, 13), layer_key(0)), masks(KEYS))
    dropout.set_rate(1, 0.0)
    found = scaled(dropout, torch.ones(3, 2, 11, 13), layer_key(0))
    assert torch.equal(found[0], masks(KEYS)[0])
    assert (found[1:] == 1).all()


def test_calls_before_do_not_matter() -> None:
    dropout, ones = new_dropout(), torch.ones(3, 2, 11, 13)
    dropout.begin_step(KEYS)
    dropout(ones, layer_key(5))
    dropout(ones, layer_key(6))
    assert torch.equal(scaled(dropout, ones, layer_key(0)), masks(KEYS))


@given(rate=st.floats(0.01, 0.95), seed=st.integers(0, 2**31), step=st.integers(0, 10**6))
def test_entries_are_kept_at_the_rate_and_their_expectation_is_preserved(
    rate: float, seed: int, step: int
) -> None:
    mask = masks(keys_of([(seed, step)]), rates=[rate], shape=(2, 11, 909))
    kept = (mask > 0).double().mean().item()
    # Hypothesis tries a hundred keys, so one of them may well lie beyond four deviations.
    assert abs(kept - (1 - rate)) < 6 * math.sqrt(rate * (1 - rate) / mask.numel())
    (scale,) = mask[mask > 0].unique().tolist()
    assert scale * (1 - rate) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_the_keep_rate_over_many_steps_is_within_four_deviations(rate: float) -> None:
    shape, num_steps = (2, 32, 33), 100
    kept = sum(
        (masks(keys_of([(1, s)]), rates=[rate], shape=shape) > 0).sum() for s in range(num_steps)
    )
    count = num_steps * math.prod(shape)
    assert abs(kept / count - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / count)


def test_every_place_is_dropped_equally_often() -> None:
    """Over steps, no row, token or feature is favoured."""
    num_steps, shape = 2000, (2, 3, 8)
    dropped = sum(
        (masks(keys_of([(1, s)]), rates=[0.3], shape=shape) == 0) for s in range(num_steps)
    )
    deviation = math.sqrt(0.3 * 0.7 / num_steps)
    assert ((dropped / num_steps - 0.3).abs() < 4.5 * deviation).all()


def standardised(one: Tensor, other: Tensor, *, rate: float) -> Tensor:
    """Correlations of kept places over the last axis, in standard deviations."""
    kept, num = 1 - rate, one.shape[-1]
    return ((one - kept) * (other - kept)).sum(-1).flatten() / (kept * rate * math.sqrt(num))


def assert_uncorrelated(found: Tensor) -> None:
    """Many correlations have the mean, the spread and the tails of independent masks.

    With n pairs: a mean within 5 / sqrt(n) of 0, a variance within 6 sqrt(2 / n) of 1, and none
    beyond 7 deviations. (Products of rare events have longer tails than a normal distribution.)
    """
    assert found.mean().abs() < 5 / math.sqrt(len(found))
    assert (found.var() - 1).abs() < 6 * math.sqrt(2 / len(found))
    assert found.abs().max() < 7


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_masks_of_neighbours_are_uncorrelated(rate: float) -> None:
    def kept(*, seed: int = 1, step: int = 0, layer: int = 0) -> Tensor:
        shape = (4, 64, 1024)
        return (
            masks(keys_of([(seed, step)]), rates=[rate], layer=layer, shape=shape)[0] > 0
        ).double()

    mask = kept()
    features = mask.flatten(0, 1).T
    for distance in (1, 2, 8, 32):
        before, after = mask[:, :-distance], mask[:, distance:]
        assert_uncorrelated(standardised(before, after, rate=rate))
        before, after = features[:-distance], features[distance:]
        assert_uncorrelated(standardised(before, after, rate=rate))
    assert_uncorrelated(standardised(mask[:-1], mask[1:], rate=rate))  # rows of the batch
    for others in (
        [kept(layer=layer) for layer in range(5)],
        [kept(step=step) for step in range(5)],
        [kept(seed=seed) for seed in range(5)],
    ):
        pairs = [standardised(a, b, rate=rate) for a, b in combinations(others, 2)]
        assert_uncorrelated(torch.cat(pairs))


def test_evaluation_and_rate_zero_draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("a mask was drawn")

    monkeypatch.setattr("schemabank.engine.dropout.hashed", refuse)
    inputs = torch.ones(3, 2, 4, 5)
    dropout = new_dropout()
    dropout.begin_step(None)
    kept, factor = dropout(inputs, layer_key(0))
    assert kept is inputs
    assert factor is None
    dropout.begin_step(KEYS)
    with pytest.raises(AssertionError, match="a mask was drawn"):
        dropout(inputs, layer_key(0))
    still = LORA.model_copy(update={"lora_dropout": 0.0})
    train(cohort([lora_run(1, max_steps=2), lora_run(2, max_steps=1)], data(), lora=still))
    with pytest.raises(AssertionError, match="a mask was drawn"):
        train(cohort([lora_run(1, max_steps=2)], data()))


def test_a_slot_of_rate_zero_beside_others_is_untouched() -> None:
    inputs = randoms(3, 2, 4, 5, seed=0)
    dropout = new_dropout()
    dropout.begin_step(KEYS)
    kept, factor = dropout(inputs, layer_key(0))
    assert factor is not None
    assert torch.equal(kept[2], inputs[2])
    assert factor[2] == 1


# On a model.


def settings_for(*targets: str) -> list[LoraSettings]:
    return [LoraSettings(r=2, target_modules=targets), LoraSettings(r=3, target_modules=targets)]


def test_install_and_remove_restore_the_model_bit_for_bit() -> None:
    model = tiny_model("llama")
    tokens = torch.arange(2, 12)[None].expand(2, -1)
    modules, state = dict(model.named_modules()), model.state_dict()
    with torch.no_grad():
        before = model(tokens).logits
        layers = install_lora(
            model, settings_for("q_proj", "down_proj"), dropout=new_dropout([0.0, 0.0])
        )
        assert torch.equal(model(tokens).logits, before), "B is zero, so nothing changes yet"
        for layer in layers.values():
            layer.A.fill_(0.1)
            layer.B[1].fill_(0.1)
        attached = model(tokens).logits
        assert torch.equal(attached[0], before[0])
        assert not torch.equal(attached[1], before[1])
        remove_lora(model, layers)
        assert torch.equal(model(tokens).logits, before)
    after = dict(model.named_modules())
    assert list(after) == list(modules)
    assert all(after[path] is module for path, module in modules.items())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layers_are_numbered_in_the_models_order_whatever_the_order_of_targets() -> None:
    numbers = []
    for targets in (("q_proj", "o_proj"), ("o_proj", "q_proj")):
        layers = install_lora(
            tiny_model("llama"), settings_for(*targets), dropout=new_dropout([0.0, 0.0])
        )
        numbers.append({path: layer.layer_key.item() for path, layer in layers.items()})
    assert numbers[0] == numbers[1]
    assert list(numbers[0].values()) == [layer_key(index).item() for index in range(6)]
    assert len(set(numbers[0].values())) == 6


TARGETS = [
    ("q_proj",),
    ("proj",),
    ("q_proj", "v_proj", "down_proj"),
    ("self_attn.q_proj",),
    ("layers.1.mlp.up_proj", "k_proj"),
    ("model.layers.0.self_attn.o_proj",),
    ("1.self_attn.q_proj",),
]


@pytest.mark.parametrize("targets", TARGETS, ids="+".join)
def test_targets_match_as_in_peft(targets: tuple[str, ...]) -> None:
    config = LoraConfig(target_modules=list(targets))
    expected = {
        path
        for path, module in tiny_model("llama").named_modules()
        if isinstance(module, nn.Linear) and check_target_module_exists(config, path)
    }
    try:
        found = install_lora(
            tiny_model("llama"), settings_for(*targets), dropout=new_dropout([0.0, 0.0])
        )
    except InputError:
        found = {}
    assert set(found) == expected
    assert bool(found) == (targets != ("proj",))


def test_the_chosen_layers_are_those_of_a_peft_model() -> None:
    targets = ("q_proj", "mlp.up_proj")
    found = install_lora(
        tiny_model("qwen2"), settings_for(*targets), dropout=new_dropout([0.0, 0.0])
    )
    theirs = get_peft_model(tiny_model("qwen2"), LoraConfig(target_modules=list(targets)))
    chosen = {p for p, m in theirs.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert set(found) == chosen


@pytest.mark.parametrize(
    ("target", "other"),
    [
        ("qproj", ""),
        ("proj", ""),
        ("self_attn", "model.layers.0.self_attn (LlamaAttention) and "),
        ("embed_tokens", "model.embed_tokens (Embedding) and "),
        ("layers", "model.layers (ModuleList) and "),
        ("norm.weight", "model.norm.weight (a weight, 32) and "),
    ],
)
def test_a_target_that_matches_no_linear_layer_is_refused(target: str, other: str) -> None:
    model = tiny_model("llama")
    before = dict(model.named_modules())
    with pytest.raises(InputError) as error:
        install_lora(model, settings_for("q_proj", target), dropout=new_dropout([0.0, 0.0]))
    assert str(error.value) == (
        f"lora.target_modules names {target!r}, which matches {other}no linear layer: allowed are "
        "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, name some of those, such "
        "as the attention's [q_proj, k_proj, v_proj, o_proj], or write all-linear"
    )
    assert dict(model.named_modules()) == before


def test_the_output_layer_takes_no_adapter() -> None:
    """The engine applies it by itself, so an adapter there would silently train nothing."""
    with pytest.raises(InputError, match="lm_head"):
        install_lora(tiny_model("llama"), settings_for("lm_head"), dropout=new_dropout([0.0, 0.0]))
