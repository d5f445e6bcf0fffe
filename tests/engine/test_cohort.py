import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import combinations, count

import pytest
import torch

from cohorts import (
    BANK,
    FAST_STAGES,
    LORA_STAGE,
    PREFIX_ROOM,
    SOLO_TOLERANCE,
    bank_of,
    bank_run,
    cohort,
    data,
    ended,
    lora_run,
    train,
    weights,
    with_banks,
)
from schemabank.common.failure import Failure
from schemabank.config.settings import LoraSettings, Stage
from schemabank.engine.batches import Batch, collate, fill_rows
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.execute import Fetch
from schemabank.engine.loss import labelled_losses, mean_per_slot
from schemabank.engine.programs import Programs, Working
from schemabank.engine.run import Run, TrainingData
from schemabank.engine.slots import Kind as StepKind
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from tiny import Kind, tiny_model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_every_architecture_attaches_trains_and_detaches(kind: Kind) -> None:
    trained = cohort([bank_run(1)], data(), kind=kind)
    model, tokens = trained.stack.model, torch.arange(3, 40)[None]
    trained.stack.remove()
    before = model(tokens).logits
    trained = cohort([bank_run(1)], data(), kind=kind)
    steps = train(trained)
    assert all(math.isfinite(step.loss) for (step,) in steps)
    for layer in trained.stack.lora.layers.values():
        assert layer.B.detach().abs().max() > 0, "B starts at zero and moves by its gradient alone"
    trained.stack.remove()
    assert torch.equal(trained.stack.model(tokens).logits, before)


def test_training_lowers_the_loss() -> None:
    steps = train(
        cohort([lora_run(1, num_train_epochs=6), bank_run(1, num_train_epochs=6)], data())
    )
    for name in ("lora-1", "bank-1"):
        losses = [report.loss for report in reports_of(steps, name)]
        assert sum(losses[-6:]) < 0.98 * sum(losses[:6])


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("orthonormality", [0.0, 0.01])
def test_two_runs_together_equal_the_same_runs_alone(prefix: bool, orthonormality: float) -> None:
    training = data(completion_only=not prefix)
    bank = BANK.model_copy(update={"orthonormality_weight": orthonormality})
    runs = [
        bank_run(3, bank=bank, prefix=prefix),
        bank_run(4, bank=bank, prefix=prefix, num_train_epochs=1),
    ]
    together = cohort(runs, training)
    reports = train(together)
    assert any(r.grad_norm > 0.5 for step in reports for r in step), "clipping is on"
    for run in runs:
        alone = cohort([run], training)
        solo = train(alone)
        losses = [r.loss for step in reports for r in step if r.run == run.name]
        assert losses == pytest.approx([step[0].loss for step in solo], abs=SOLO_TOLERANCE)
        for name, values in alone.finished[run.name].items():
            torch.testing.assert_close(
                together.finished[run.name][name], values, rtol=0, atol=SOLO_TOLERANCE
            )


def test_lora_beside_a_banked_run_equals_lora_alone() -> None:
    together, alone = cohort([lora_run(3), bank_run(3)], data()), cohort([lora_run(3)], data())
    train(together)
    train(alone)
    torch.testing.assert_close(
        together.finished["lora-3"]["lora"],
        alone.finished["lora-3"]["lora"],
        rtol=0,
        atol=SOLO_TOLERANCE,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neighbours_seed_changes_no_bit(dtype: torch.dtype) -> None:
    one = cohort([bank_run(5), bank_run(6)], data(), dtype=dtype)
    other = cohort([bank_run(5), bank_run(7)], data(), dtype=dtype)
    losses_one = [step[0] for step in train(one)]
    losses_other = [step[0] for step in train(other)]
    assert losses_one == losses_other
    for name, values in weights(one, 0).items():
        assert torch.equal(values, weights(other, 0)[name])
        assert not torch.equal(weights(one, 1)[name], weights(other, 1)[name])


def test_a_neighbours_settings_change_no_bit() -> None:
    neighbours = [
        lora_run(9),
        bank_run(9, max_grad_norm=1e-3, weight_decay=0.5, num_train_epochs=1),
    ]
    states = []
    for neighbour in neighbours:
        trained = cohort([bank_run(5), neighbour], data())
        train(trained)
        states.append(trained.finished["bank-5"])
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name])


def test_the_same_cohort_twice_gives_the_same_bits() -> None:
    first, second = cohort([bank_run(5)], data()), cohort([bank_run(5)], data())
    assert train(first) == train(second)
    for name, values in weights(first, 0).items():
        assert torch.equal(values, weights(second, 0)[name])


def test_lora_starts_the_same_in_every_arm() -> None:
    trained = cohort([lora_run(8), bank_run(8), lora_run(9)], data())
    for slot, run in enumerate([8, 8, 9]):
        trained.stack.initialise(slot, run)
    a = trained.stack.groups["lora"].weights
    assert torch.equal(a[0], a[1])
    assert not torch.equal(a[0], a[2])


def test_frozen_groups_never_move_in_any_stage() -> None:
    trained = cohort([bank_run(5)], data())
    adapters = {id(p) for g in trained.stack.groups.values() for p in g.parameters.values()}
    base = {
        n: p.clone() for n, p in trained.stack.model.named_parameters() if id(p) not in adapters
    }
    assert any("embed" in name for name in base)
    stages = {stage.name: set(stage.train) for stage in FAST_STAGES}
    trained.stack.initialise(0, 5)
    before = weights(trained, 0)
    for (step,) in trained.steps():
        for name, values in weights(trained, 0).items():
            moved = not torch.equal(values, before[name])
            assert moved == (name in stages[step.stage]), (step.stage, step.step, name)
        before = weights(trained, 0)
    for name, parameter in trained.stack.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_the_bare_tail_and_bare_steps_move_lora_alone() -> None:
    stages = (
        Stage(
            name="hand over",
            ratio=1.0,
            train=("router", "schemas", "lora"),
            learning_rate=1e-2,
            bank_scale=(1.0, 0.2),
            bank_probability=(0.5, 0.5),
            bare_tail_ratio=0.25,
        ),
    )
    trained = cohort([bank_run(5, stages=stages, num_train_epochs=4)], data())
    before = None
    bare = []
    for (step,) in trained.steps():
        now = weights(trained, 0)
        if before is not None:
            for name in ("router", "schemas"):
                assert torch.equal(now[name], before[name]) == (step.logged["bank_scale"] == 0)
            assert step.learning_rate == 0 or not torch.equal(now["lora"], before["lora"])
        before = now
        bare.append(step.logged["bank_scale"] == 0)
    assert all(bare[-6:])
    assert 0 < sum(bare[:18]) < 18


def test_every_stage_starts_with_a_fresh_optimizer() -> None:
    trained = cohort([bank_run(5)], data())
    seen = set()
    for (step,) in trained.steps():
        if step.stage not in seen:
            seen.add(step.stage)
            groups = next(s.train for s in FAST_STAGES if s.name == step.stage)
            assert all(trained.optimizers[name].step.item() == 1 for name in groups)


def test_a_single_banked_expert_trains_its_router() -> None:
    bank = BANK.model_copy(update={"top_k": 1, "load_balance_weight": 0.0})
    stage = Stage(name="router", ratio=1.0, train=("router",), learning_rate=1e-2)
    # Without weight decay, only a gradient can move it.
    trained = cohort([bank_run(5, bank=bank, stages=(stage,), weight_decay=0.0)], data())
    trained.stack.initialise(0, 5)
    before = weights(trained, 0)["router"]
    train(trained)
    assert not torch.equal(weights(trained, 0)["router"], before)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    trained = cohort([bank_run(5), bank_run(6)], data())
    steps = trained.steps()
    next(steps)
    with torch.no_grad():
        banks_of(trained.stack).banks[2].router[0, 0, 0] = float("nan")
    before = weights(trained, 0)
    report = next(steps)
    assert [r.skipped for r in report] == [True, False]
    for name, values in weights(trained, 0).items():
        assert torch.equal(values.nan_to_num(), before[name].nan_to_num())
    assert all(torch.isfinite(v).all() for v in weights(trained, 1).values())


def test_a_run_without_finite_gradients_fails_and_leaves_its_neighbour_alone() -> None:
    trained = cohort([bank_run(5, num_train_epochs=6), bank_run(6, num_train_epochs=6)], data())
    reports: list[RunStep] = []
    for reports in trained.steps():  # noqa: B007 -- the last ones are looked at below
        with torch.no_grad():
            banks_of(trained.stack).banks[2].router[0, 0, 0] = float("nan")
    assert [r.run for r in reports] == ["bank-6"]
    failed, fine = trained.slots
    assert failed.failure is not None
    assert failed.failure.kind == "diverged"
    assert failed.failure.message.startswith("weights that are not finite at step 1 (1 of ")
    assert fine.failure is None
    assert fine.skipped == []


def test_runs_of_different_lengths_share_a_cohort() -> None:
    trained = cohort([lora_run(1, num_train_epochs=1), lora_run(2, num_train_epochs=3)], data())
    reports = train(trained)
    per_epoch = trained.data.schedule.steps_per_epoch
    counts = {name: sum(r.run == name for s in reports for r in s) for name in ("lora-1", "lora-2")}
    assert counts == {"lora-1": per_epoch, "lora-2": 3 * per_epoch}


def test_stage_one_sends_no_gradient_into_the_trunk() -> None:
    trained = cohort([bank_run(5)], data())
    states = []
    first_block = trained.stack.model.get_decoder().layers[0]
    handle = first_block.register_forward_hook(lambda _m, _i, out: states.append(out))
    (report,) = next(trained.steps())
    handle.remove()
    assert report.stage == "router"
    output = states[0] if isinstance(states[0], torch.Tensor) else states[0][0]
    assert not output.requires_grad


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_a_padded_position_never_changes_a_loss(kind: Kind) -> None:
    training = data()
    trained = cohort([bank_run(1)], training, kind=kind)
    trained.stack.initialise(0, 1)
    rows = training.encoded[:4]
    longest = max(len(e.tokens) for e in rows)
    labels = max(e.num_labels for e in rows)

    def losses(width: int, padding: int) -> torch.Tensor:
        batch = collate([rows], width=width, num_labels=labels, padding=padding)
        with trained.stack.evaluating("on"):
            return _task_loss(trained, batch)

    reference = losses(longest + 8, 0)
    for padding in (1, 77, 299):
        assert torch.equal(losses(longest + 8, padding), reference)
    torch.testing.assert_close(losses(longest, 0), reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses(longest + 40, 0), reference, rtol=1e-5, atol=1e-6)


def test_what_stands_in_padding_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for padding in (0, 123):
        monkeypatch.setattr(
            "schemabank.engine.programs.fill_rows", partial(fill_rows, padding=padding)
        )
        trained = cohort([bank_run(5)], data())
        train(trained)
        states.append(weights(trained, 0))
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name])


def test_gradients_of_the_whole_step_equal_plain_autograd_in_float64() -> None:
    """The engine's loss and gradients against the model's own logits and cross entropy."""
    training = data()
    runs = [bank_run(1), bank_run(2)]
    trained = cohort(runs, training, dtype=torch.float64, lora=LoraSettings(r=4, lora_dropout=0.0))
    stack = trained.stack
    for module in [*stack.lora.layers.values(), *banks_of(stack).banks.values()]:
        module.double()
    for slot in range(2):
        stack.initialise(slot, slot)
    for layer in stack.lora.layers.values():
        torch.nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(0))
    banks_of(stack).routing = "on"
    rows = [training.encoded[:4], training.encoded[4:8]]
    width = max(len(e.tokens) for row in rows for e in row)
    labels = max(e.num_labels for row in rows for e in row)
    batch = collate(rows, width=width, num_labels=labels)
    parameters = [
        p.requires_grad_()
        for m in [*stack.lora.layers.values(), *banks_of(stack).banks.values()]
        for n, p in m.named_parameters()
        if not n.startswith("base.")
    ]
    ours = torch.autograd.grad(_task_loss(trained, batch).sum(), parameters)
    logits = stack.model(input_ids=batch.tokens.flatten(0, 1), use_cache=False).logits
    naive = torch.zeros((), dtype=torch.float64)
    for slot, row in enumerate(rows):
        losses = [
            torch.nn.functional.cross_entropy(
                logits[4 * slot + i, e.label_start - 1 : len(e.tokens) - 1].double(),
                torch.tensor(e.tokens[e.label_start :]),
                reduction="none",
            )
            for i, e in enumerate(row)
        ]
        naive = naive + torch.cat(losses).mean()
    for mine, theirs in zip(ours, torch.autograd.grad(naive, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)


def test_a_stage_plan_needs_no_bank() -> None:
    trained = cohort([lora_run(1)], data())
    assert set(trained.stack.groups) == {"lora"}
    (report,) = next(trained.steps())
    assert report.stage == LORA_STAGE.name
    assert report.logged.get("bank_scale", 0) == 0


def _task_loss(trained: Cohort, batch: Batch) -> torch.Tensor:
    losses = labelled_losses(trained.stack.hidden(batch.tokens), batch, trained.stack.head)
    return mean_per_slot(losses, batch.weights)


# Slots that are refilled.

WIDE = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.2)
SMALL = LoraSettings(r=2, lora_alpha=7, lora_dropout=0.5)
STILL = LoraSettings(r=3, lora_alpha=1, lora_dropout=0.0)


SMALL_BANK = BANK.model_copy(update={"rank": 2, "top_k": 1, "init_std": 0.1})


def mixed_runs() -> list[Run]:
    """Four runs of different lengths, arms, ranks, alphas, dropouts, banks and optimizers."""
    return [
        replace(lora_run(1, max_steps=4), lora=WIDE),
        bank_run(2, lora=WIDE, num_train_epochs=2),
        bank_run(
            3,
            lora=SMALL,
            bank=SMALL_BANK,
            num_train_epochs=3,
            adam_beta1=0.8,
            weight_decay=0.3,
            max_grad_norm=0.1,
        ),
        replace(lora_run(4, max_steps=7, adam_beta2=0.9, adam_epsilon=1e-3), lora=STILL),
    ]


Trained = tuple[Cohort, list[list[RunStep]]]


def two_slots(
    runs: Sequence[Run], training: TrainingData, *, dtype: torch.dtype = torch.float32
) -> Cohort:
    """A cohort in two slots with banks and room for rank 4, whatever its runs."""
    model = tiny_model("llama").to(dtype)
    return Cohort(AdapterStack(model, lora=[WIDE, WIDE], attach=with_banks(BANK)), runs, training)


def reports_of(steps: list[list[RunStep]], name: str) -> list[RunStep]:
    return [report for step in steps for report in step if report.run == name]


def assert_same_run(name: str, one: Cohort, other: Cohort) -> None:
    """Every weight of the finished run is the same, bit for bit."""
    assert list(one.finished[name]) == ["router", "schemas", "lora"]
    for group, row in one.finished[name].items():
        assert torch.equal(row, other.finished[name][group]), group


@cache
def trained_in_two_slots(*names: str, dtype: torch.dtype = torch.float32) -> Trained:
    """Some of the mixed runs at their end; a test may seat them, but must not train any further."""
    by_name = {run.name: run for run in mixed_runs()}
    trained = two_slots([by_name[name] for name in names], data(), dtype=dtype)
    return trained, train(trained)


MIXED = tuple(run.name for run in mixed_runs())
# Each run in both slots, beside one of the other arm; the last two have neighbours of their own.
PAIRS = [("lora-1", "bank-3"), ("bank-3", "lora-1"), ("lora-4", "bank-2"), ("bank-2", "lora-4")]
OF_ONE_ARM = [("lora-1", "lora-4"), ("bank-2", "bank-3")]


# In bfloat16, which takes this test twice as long, beside the other arm alone.
@pytest.mark.parametrize(
    ("pairs", "dtype"), [([*PAIRS, *OF_ONE_ARM], torch.float32), (PAIRS, torch.bfloat16)]
)
def test_a_refilled_slot_gives_the_bits_of_a_fresh_cohort(
    pairs: list[tuple[str, str]], dtype: torch.dtype
) -> None:
    refilled, steps = trained_in_two_slots(*MIXED, dtype=dtype)
    assert ended(refilled).keys() == set(MIXED)
    for pair in pairs:
        fresh, own = trained_in_two_slots(*pair, dtype=dtype)
        for slot, name in enumerate(pair):
            alone = reports_of(own, name)
            assert reports_of(steps, name) == alone
            assert_same_run(name, refilled, fresh)
            assert len(alone) == fresh.slots[slot].num_steps
    lora = [refilled.finished[name]["lora"] for name in MIXED]
    assert not any(torch.equal(a, b) for a, b in combinations(lora, 2))


def test_the_order_of_runs_changes_no_bit() -> None:
    runs = mixed_runs()
    one, steps_one = trained_in_two_slots(*MIXED)
    other, steps_other = trained_in_two_slots(*MIXED[::-1])
    for run in runs:
        assert reports_of(steps_one, run.name) == reports_of(steps_other, run.name)
        assert_same_run(run.name, one, other)


def test_smaller_ranks_stay_padded_with_zeros_after_larger_ones() -> None:
    trained, _ = trained_in_two_slots(*MIXED)
    trained.seat(["bank-3", "lora-4"])
    for layer in trained.stack.lora.layers.values():
        for slot, rank in enumerate((2, 3)):
            assert not layer.A[slot, :, rank:].any()
            assert not layer.B[slot, rank:].any()
            assert layer.B[slot, :rank].any()


def test_nothing_of_a_failed_run_reaches_the_next_one_in_its_slot() -> None:
    runs = [
        bank_run(1, num_train_epochs=6, lora=WIDE),
        bank_run(2, lora=WIDE),
        bank_run(3, lora=WIDE),
    ]
    trained = two_slots(runs, data(num_orders=1))
    names: list[str] = []
    for reports in trained.steps():
        names += [r.run for r in reports]
        if trained.slots[0].failure is None:
            for group in trained.stack.groups.values():
                group.weights[0] = torch.nan
                group.publish()
    assert trained.slots[0].failure is not None
    assert [slot.failure for slot in trained.slots[1:]] == [None, None]
    assert [names.count(run.name) for run in runs] == [2, 12, 12], "the first step was fine"
    for run in runs[1:]:
        fresh = two_slots([run, lora_run(9)], data(num_orders=1))
        train(fresh)
        assert_same_run(run.name, trained, fresh)


LENGTHS = [(4,), (4, 3), (4, 3, 12), (6, 6, 6), (13, 1, 2, 3, 5), (2, 30, 7, 7), (1, 1, 1, 1, 1)]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_number_of_steps_is_known_before(lengths: tuple[int, ...]) -> None:
    runs = [lora_run(seed, max_steps=length) for seed, length in enumerate(lengths)]
    trained = two_slots([replace(run, lora=WIDE) for run in runs], data())
    expected = trained.num_steps
    steps = train(trained)
    assert len(steps) == expected
    assert trained.num_steps == 0
    assert all(steps)
    for run, length in zip(runs, lengths, strict=True):
        assert [report.step for report in reports_of(steps, run.name)] == list(range(length))


def test_a_run_starts_where_an_epoch_does_and_slots_wait_for_it() -> None:
    runs = [lora_run(seed, max_steps=length) for seed, length in ((1, 4), (2, 3), (3, 7))]
    trained = two_slots([replace(run, lora=WIDE) for run in runs], data(num_orders=1))
    assert trained.data.schedule.steps_per_epoch == 6
    running = [[report.run for report in step] for step in trained.steps()]
    longest = ["lora-3"]
    assert running == [
        *[["lora-3", "lora-1"]] * 4,
        *[longest] * 2,
        ["lora-3", "lora-2"],
        *[["lora-2"]] * 2,
    ]


def test_a_run_starts_where_the_orders_of_batch_lengths_begin_anew() -> None:
    """Else its batches would have other lengths than alone: two orders of six steps take turns."""
    runs = [lora_run(seed, max_steps=length) for seed, length in ((1, 14), (2, 5), (3, 9))]
    training = data(num_orders=2)
    assert training.schedule.orders[0] != training.schedule.orders[1]
    trained = two_slots([replace(run, lora=WIDE) for run in runs], training)
    steps = train(trained)
    running = [[report.run for report in step] for step in steps]
    both = ["lora-1", "lora-3"]
    assert running == [
        *[both] * 9,
        *[["lora-1"]] * 3,
        *[["lora-1", "lora-2"]] * 2,
        *[["lora-2"]] * 3,
    ]
    for run in runs:
        alone = two_slots([replace(run, lora=WIDE), replace(lora_run(8), lora=WIDE)], training)
        assert reports_of(steps, run.name) == reports_of(train(alone), run.name)
        assert_same_run(run.name, trained, alone)


def test_runs_wait_until_all_are_through_the_steps_with_the_base_models_trunk() -> None:
    runs = [lora_run(1, max_steps=4), bank_run(2, max_steps=20), bank_run(3, max_steps=10)]
    trained = in_slots(3, [replace(run, lora=WIDE) for run in runs], data(num_orders=1))
    running = [{report.run: report.stage for report in step} for step in train(trained)]
    alone = {"bank-2": "router"}
    assert running[:6] == [*[{**alone, "bank-3": "router"}] * 3, *[alone] * 3]
    assert running[6] == {"bank-2": "schemas", "lora-1": "lora"}
    assert running[9] == {"bank-2": "schemas", "bank-3": "schemas", "lora-1": "lora"}
    assert len(running) == 20, "the longest never waits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_seat_restores_finished_runs(dtype: torch.dtype) -> None:
    by_name = {run.name: run for run in mixed_runs()}
    trained, _ = trained_in_two_slots(*MIXED, dtype=dtype)
    tokens = torch.arange(3, 40)[None, None].expand(2, 1, -1)

    def states(stack: AdapterStack, routing: Routing) -> torch.Tensor:
        with stack.evaluating(routing):
            return stack.hidden(tokens)

    for names in (("lora-1", "bank-3"), ("lora-4", "bank-2"), ("bank-3", "lora-1")):
        trained.seat(names)
        chosen = [by_name[name] for name in names]
        fresh, _ = trained_in_two_slots(*names, dtype=dtype)
        fresh.seat(names)
        assert trained.stack.lora.settings == [run.lora for run in chosen]
        assert banks_of(trained.stack).of_slots == [bank_of(run) for run in chosen]
        for slot, name in enumerate(names):
            for group, row in trained.finished[name].items():
                assert torch.equal(trained.stack.groups[group].weights[slot], row)
            ours, theirs = trained.stack.lora.tensors(slot), fresh.stack.lora.tensors(slot)
            assert list(ours) == list(theirs)
            assert all(all(map(torch.equal, ours[path], theirs[path])) for path in ours)
        found = {routing: states(trained.stack, routing) for routing in ("off", "on", "dense")}
        for routing, output in found.items():
            assert torch.equal(output, states(fresh.stack, routing))
        for slot, run in enumerate(chosen):
            routed = not torch.equal(found["on"][slot], found["off"][slot])
            assert routed == (bank_of(run) is not None)


# Kinds of steps.


@pytest.mark.parametrize(
    ("prefix", "dtype"),
    [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)],
)
def test_the_trunk_cache_changes_no_bit_whatever_its_limit(
    prefix: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, trunk = data(completion_only=not prefix, num_orders=1), AdapterStack.trunk
    num_epochs = 6 if prefix else 4  # until a batch comes again with the same prefixes
    stages = (
        FAST_STAGES[0].model_copy(update={"ratio": 0.7, "tag_keep": (1.0, 0.5)}),
        FAST_STAGES[2].model_copy(update={"ratio": 0.3}),
    )
    runs = [
        bank_run(seed, stages=stages, prefix=prefix, lora=WIDE, num_train_epochs=num_epochs)
        for seed in (5, 6)
    ]
    states, calls = [], []
    row_bytes = 64 * tiny_model("llama").config.hidden_size * dtype.itemsize
    for limit in (0, 5 * row_bytes, 2**40):
        calls.append(0)

        def counted(stack: AdapterStack, tokens: torch.Tensor) -> torch.Tensor:
            calls[-1] += 1
            return trunk(stack, tokens)

        monkeypatch.setattr(AdapterStack, "trunk", counted)
        monkeypatch.setattr("schemabank.engine.cohort._cache_limit", lambda _, n=limit: n)
        trained = two_slots(runs, training, dtype=dtype)
        states.append((trained, train(trained)))
    num_cached = sum(step[0].stage == "router" for step in states[0][1])
    assert num_cached > 12, "every example is seen twice"
    assert calls[0] >= num_cached
    assert calls[2] < calls[1] <= calls[0]
    for trained, steps in states[1:]:
        assert steps == states[0][1]
        for run in runs:
            assert_same_run(run.name, trained, states[0][0])


def test_the_trunk_is_cached_only_while_lora_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router's stage after LoRA's has other states below the banks at every step."""
    calls, trunk = [], AdapterStack.trunk
    monkeypatch.setattr(AdapterStack, "trunk", lambda *args: calls.append(1) or trunk(*args))
    router, _, joint = (stage.model_copy(update={"ratio": 1 / 3}) for stage in FAST_STAGES)
    again = router.model_copy(update={"name": "router again"})
    run = bank_run(5, stages=(router, joint, again), num_train_epochs=3)
    trained = cohort([run], data())
    calls.clear()  # a stack tries once whether its blocks can be left out
    stages = [step.stage for (step,) in train(trained)]
    assert stages == ["router"] * 6 + ["joint"] * 6 + ["router again"] * 6
    assert len(calls) == 6, "one epoch, in which every batch is new"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_neighbours_stage_changes_no_bit(dtype: torch.dtype) -> None:
    """A run in its first stage beside plain LoRA, beside a short curriculum and beside its like."""
    run, training = bank_run(5, lora=WIDE, num_train_epochs=2), data()
    neighbours = [
        replace(lora_run(9, num_train_epochs=2), lora=SMALL),
        bank_run(9, lora=SMALL, num_train_epochs=1),
        bank_run(9, lora=WIDE, num_train_epochs=2),
        bank_run(9, lora=WIDE, prefix=True, num_train_epochs=2),
    ]
    found = []
    for neighbour in neighbours:
        trained = two_slots([run, neighbour], training, dtype=dtype)
        found.append((trained, train(trained)))
    running = [[{r.run: r.stage for r in step} for step in steps] for _, steps in found]
    assert running[0][0] == {"bank-5": "router"}
    assert {"bank-5": "joint", "lora-9": "lora"} in running[0]
    assert {"bank-5": "router", "bank-9": "router"} in running[2]
    for trained, steps in found[1:]:
        assert reports_of(steps, run.name) == reports_of(found[0][1], run.name)
        assert_same_run(run.name, trained, found[0][0])


@pytest.mark.parametrize("completion_only", [True, False])
def test_only_steps_with_tag_prefixes_have_room_for_them(
    completion_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[tuple[dict[str, float], StepKind, tuple[int, int]]] = []
    launch = Programs.launch

    def watched(
        programs: Programs, kind: StepKind, shape: tuple[int, int], working: Working
    ) -> Fetch:
        keep = {
            slot.run.name: getattr(settings, "tag_keep", 0) for slot, settings in working.values()
        }
        launched.append((keep, kind, shape))
        return launch(programs, kind, shape, working)

    monkeypatch.setattr(Programs, "launch", watched)
    training = data(completion_only=completion_only)
    prefixed = bank_run(1, prefix=True, lora=WIDE, num_train_epochs=3)
    plain = replace(lora_run(2, num_train_epochs=3), lora=WIDE)
    steps = train(two_slots([prefixed, plain], training))
    schedule = training.schedule
    buckets = [schedule.bucket(step) for step in range(18)]
    tagged = [s.stage == "router" for s in reports_of(steps, "bank-1")]
    assert 0 < sum(tagged) < len(tagged)
    for name in ("bank-1", "lora-2"):
        entries = [entry for entry in launched if name in entry[0]]
        for bucket, shows, (keep, kind, shape) in zip(buckets, tagged, entries, strict=True):
            if name == "bank-1":
                assert (keep[name] > 0) == shows
                assert len(keep) == 1 or not shows
            room = PREFIX_ROOM if name == "bank-1" and shows else 0
            assert kind.room == room
            extra = 0 if completion_only else room
            assert shape == (bucket.width + room, bucket.num_labels + extra)
        assert any(len(entry[0]) == 2 for entry in entries), "untagged steps share a program"


RISING = {
    "bank scale": {"bank_scale": (0.0, 1.0)},
    "bank probability": {"bank_probability": (0.0, 1.0)},
    "tags": {"tag_keep": (0.0, 1.0)},
}


@pytest.mark.parametrize("changes", RISING.values(), ids=RISING)
def test_terms_that_start_later_in_a_stage_count_whatever_the_neighbour(
    changes: dict[str, object],
) -> None:
    stage = Stage(
        name="all",
        ratio=1.0,
        train=("router", "schemas", "lora"),
        learning_rate=1e-2,
        **{"tag_keep": (1.0,), **changes},
    )
    run = bank_run(5, stages=(stage,), lora=WIDE, num_train_epochs=4)
    found = []
    for neighbour in (lora_run(9), bank_run(9)):
        trained = two_slots([run, replace(neighbour, lora=WIDE)], data())
        found.append((trained, reports_of(train(trained), run.name)))
    weight = BANK.load_balance_weight
    for trained, reports in found:
        for report in reports:
            extra = report.total_loss - report.loss
            assert (extra > 0.5 * weight) == (report.logged.get("bank_scale", 0) > 0)
        last = reports[-1].total_loss - reports[-1].loss
        assert last > 1, "the tags' term counts too"
        assert reports == found[0][1]
        assert_same_run(run.name, trained, found[0][0])


def test_what_only_the_base_models_trunk_needs_is_given_back() -> None:
    trained = two_slots([bank_run(1, lora=WIDE), bank_run(2, lora=WIDE)], data())
    kept = []
    for step in trained.steps():
        kinds = {kind.cached for kind, _ in trained._programs._programs}
        kept.append((step[0].stage, trained._programs._trunk is not None, kinds))
    assert kept[0] == ("router", True, {True})
    assert kept[-1] == ("joint", False, {False})
    assert all((stage == "router") == has_trunk for stage, has_trunk, _ in kept)


def test_the_shapes_to_come_are_those_of_the_steps_that_are_left() -> None:
    training = data()
    trained = two_slots([bank_run(1, lora=WIDE, max_steps=4)], training)
    next(trained.steps())
    shapes = {step: training.shape(step, 0) for step in range(4)}
    for cached, steps in ((True, {0}), (False, {0, 1, 2, 3})):
        kind = StepKind(trained=("router",), cached=cached, room=0)
        trained.slots[0].step = 0
        trained._seating.tick = 0
        expected = sorted({shapes[step] for step in steps}, reverse=True)
        assert trained._shapes_to_come(kind) == expected


# Slots that do not fit into memory.


def in_slots(num_slots: int, runs: Sequence[Run], training: TrainingData) -> Cohort:
    """A cohort with banks and room for rank 4, whatever its runs."""
    return Cohort(
        AdapterStack(tiny_model("llama"), lora=[WIDE] * num_slots, attach=with_banks(BANK)),
        runs,
        training,
    )


def six_runs() -> list[Run]:
    """More runs than four slots, of both arms, with and without prefixes."""
    return [
        *mixed_runs(),
        bank_run(5, lora=SMALL, prefix=True, num_train_epochs=3),
        replace(lora_run(6, num_train_epochs=2), lora=STILL),
    ]


@pytest.fixture(scope="module")
def six() -> Trained:
    """The six runs in four slots, undisturbed."""
    torch.set_num_threads(1)
    trained = in_slots(4, six_runs(), data())
    return trained, train(trained)


LONG_AND_SHORT = (6, 3, 3)


@cache
def banked_runs(num_slots: int, lengths: tuple[int, ...]) -> Trained:
    """Runs with banks of so many epochs each, undisturbed."""
    runs = [bank_run(s, lora=WIDE, num_train_epochs=n) for s, n in enumerate(lengths, 1)]
    trained = in_slots(num_slots, runs, data())
    return trained, train(trained)


def exhausted(
    trained: Cohort,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[[StepKind, int], bool],
    *,
    method: str = "prepare",
) -> list[list[RunStep]]:
    """Train until memory runs out: where a kind of step after so many ticks says so."""
    steps: list[list[RunStep]] = []
    wrapped = getattr(Programs, method)

    def full(programs: Programs, kind: StepKind, *args: object) -> object:
        if when(kind, len(steps)):
            raise torch.OutOfMemoryError("no room")
        return wrapped(programs, kind, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Programs, method, full)
        with pytest.raises(torch.OutOfMemoryError, match="no room"):
            steps.extend(trained.steps())
    return steps


def moved(trained: Cohort, num_slots: int) -> Cohort:
    """Go on with other slots on the same model, as the runner does."""
    model, halted = trained.stack.model, trained.halt()
    stack = AdapterStack(model, lora=[WIDE] * num_slots, attach=with_banks(BANK))
    runs = [slot.run for slot in halted.slots]
    return Cohort(stack, runs, trained.data, halted=halted)


def assert_each_step_once(steps: list[list[RunStep]], trained: Cohort) -> None:
    assert len(ended(trained)) == len(trained.slots)
    for slot in trained.slots:
        reports = reports_of(steps, slot.run.name)
        assert [each.step for each in reports] == list(range(slot.num_steps)), slot.run.name
        assert [each.is_last for each in reports] == [*[False] * (slot.num_steps - 1), True]


def assert_within_rounding(
    steps: list[list[RunStep]], trained: Cohort, expected: list[list[RunStep]], undisturbed: Cohort
) -> None:
    for name, groups in ended(undisturbed).items():
        for ours, theirs in zip(reports_of(steps, name), reports_of(expected, name), strict=True):
            assert ours.loss == pytest.approx(theirs.loss, abs=SOLO_TOLERANCE)
            assert ours.stage == theirs.stage
            assert ours.learning_rate == theirs.learning_rate
        for group, row in groups.items():
            torch.testing.assert_close(
                trained.finished[name][group], row, rtol=0, atol=SOLO_TOLERANCE
            )


# Before the first step; in stage 1; while a free slot waits for the epoch's end; after refills.
# Each of these with as many slots, where all bits are compared; fewer and more at two of them each.
@pytest.mark.parametrize(
    ("num_slots", "tick"),
    [*((4, tick) for tick in (0, 2, 5, 9, 13)), (1, 2), (1, 9), (2, 5), (2, 13), (6, 0), (6, 13)],
)
def test_a_moved_cohort_goes_on_where_memory_ran_out(
    tick: int, num_slots: int, six: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, training = six_runs(), data()
    undisturbed, expected = six
    first = in_slots(4, runs, training)
    steps = exhausted(first, monkeypatch, lambda _, done: done == tick)
    assert steps == expected[:tick]
    second = moved(first, num_slots)
    steps += train(second)
    assert all(steps), "nothing waits for all"
    assert_each_step_once(steps, second)
    assert_within_rounding(steps, second, expected, undisturbed)
    if num_slots == 4:
        for run in runs:
            assert reports_of(steps, run.name) == reports_of(expected, run.name)
            assert_same_run(run.name, second, undisturbed)


@pytest.mark.parametrize("num_slots", [2, 4])
def test_memory_that_runs_out_at_a_new_stages_program_loses_no_neighbours_step(
    num_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some runs wait in the step in which the first one needs stage 2's program."""
    undisturbed, expected = banked_runs(4, (4, 1, 2, 4, 2))
    runs = [slot.run for slot in undisturbed.slots]
    first = in_slots(4, runs, data())
    steps = exhausted(first, monkeypatch, lambda kind, _: not kind.cached, method="_make")
    assert {r.stage for step in steps for r in step} == {"router"}
    assert {r.run: r.stage for r in expected[len(steps)]} == {
        "bank-1": "schemas",
        "bank-4": "schemas",
    }
    assert steps == expected[: len(steps)]
    second = moved(first, num_slots)
    steps += train(second)
    assert_each_step_once(steps, second)
    assert_within_rounding(steps, second, expected, undisturbed)
    if num_slots == 4:
        for run in runs:
            assert reports_of(steps, run.name) == reports_of(expected, run.name)
            assert_same_run(run.name, second, undisturbed)


def test_memory_that_runs_out_at_a_new_width_loses_no_neighbours_step(
    six: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a step's programs are made before the first of them is launched."""
    runs, training = six_runs(), data()
    undisturbed, expected = six
    first = in_slots(4, runs, training)
    steps = exhausted(
        first, monkeypatch, lambda kind, done: kind.room > 0 and done > 0, method="_make"
    )
    assert {"bank-2", "bank-5"} <= {report.run for report in expected[len(steps)]}
    second = moved(first, 4)
    steps += train(second)
    assert steps == expected
    for run in runs:
        assert_same_run(run.name, second, undisturbed)


@pytest.mark.parametrize("ticks", [(3, 0), (3, 2), (9, 4)], ids=str)
def test_a_cohort_that_is_moved_twice_loses_nothing(
    ticks: tuple[int, int], six: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that had begun and wait for one of fewer slots keep their weights and moments."""
    runs, training = six_runs(), data()
    undisturbed, expected = six
    trained, steps = in_slots(4, runs, training), []
    for tick, num_slots in zip(ticks, (2, 1), strict=True):
        steps += exhausted(trained, monkeypatch, lambda _, done, at=tick: done == at)
        trained = moved(trained, num_slots)
    steps += train(trained)
    assert_each_step_once(steps, trained)
    assert_within_rounding(steps, trained, expected, undisturbed)


@pytest.mark.parametrize("tick", [0, 2, 3])
def test_memory_that_runs_out_between_two_programs_of_a_step_loses_no_report(
    tick: int, six: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of stage 1 are kept while a step is launched; a run may just have ended in it."""
    runs, training = six_runs(), data()
    undisturbed, expected = six
    first = in_slots(4, runs, training)
    steps = exhausted(
        first, monkeypatch, lambda kind, done: done == tick and kind.cached, method="launch"
    )
    second = moved(first, 2)
    steps += train(second)
    assert_each_step_once(steps, second)
    assert_within_rounding(steps, second, expected, undisturbed)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_memory_that_runs_out_while_runs_take_their_slots_loses_nothing(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first runs, those that go on after stage 1, and one in a slot that came free."""
    undisturbed, expected = banked_runs(2, LONG_AND_SHORT)
    first = in_slots(2, [slot.run for slot in undisturbed.slots], data())
    initialise, calls = first.stack.initialise, count(1)

    def full(slot: int, seed: int) -> None:
        if next(calls) == fails_at:
            raise torch.OutOfMemoryError("no room")
        initialise(slot, seed)

    monkeypatch.setattr(first.stack, "initialise", full)
    steps: list[list[RunStep]] = []
    with pytest.raises(torch.OutOfMemoryError):
        steps.extend(first.steps())
    second = moved(first, 2)
    steps += train(second)
    assert_each_step_once(steps, second)
    assert_within_rounding(steps, second, expected, undisturbed)


def test_a_run_that_is_given_up_while_it_waits_is_kept() -> None:
    """On a GPU a step's report comes late: the run may have left its slot meanwhile."""
    runs = [bank_run(s, lora=WIDE, num_train_epochs=n) for s, n in ((1, 4), (2, 2))]
    trained = two_slots(runs, data())
    given_up, late = trained.slots[1], Failure("diverged", "late")
    for _ in trained.steps():
        waits = given_up not in trained._seating.seated.values()
        if waits and 0 < given_up.step < given_up.num_steps:
            given_up.failure = late
    assert given_up.failure is late
    assert given_up.step == given_up.num_cached
    assert ended(trained).keys() == {"bank-1", "bank-2"}
    trained.seat(["bank-1", "bank-2"])


# Runs of different ranks.


def test_runs_with_banks_of_other_ranks_and_top_k_equal_those_alone() -> None:
    runs = [bank_run(1, lora=WIDE), bank_run(2, lora=WIDE, bank=SMALL_BANK)]
    together = two_slots(runs, data())
    steps = train(together)
    for run in runs:
        stack = AdapterStack(tiny_model("llama"), lora=[WIDE], attach=with_banks(bank_of(run)))
        alone = Cohort(stack, [run], data())
        pairs = zip(reports_of(steps, run.name), reports_of(train(alone), run.name), strict=True)
        assert max(abs(a.loss - b.loss) for a, b in pairs) < SOLO_TOLERANCE
        alone.seat([run.name])
        together.seat([run.name])
        expected = banks_of(alone.stack).tensors(0)
        found = banks_of(together.stack).tensors(0)
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=SOLO_TOLERANCE)


def test_weights_are_counted_without_what_pads_a_smaller_rank() -> None:
    runs = [
        replace(lora_run(1, max_steps=1), lora=WIDE),
        bank_run(2, lora=SMALL, bank=SMALL_BANK, max_steps=1),
    ]
    trained = two_slots(runs, data())
    train(trained)
    stack = trained.stack
    trained.seat([run.name for run in runs])
    counts = []
    for slot, run in enumerate(runs):
        tensors = [t for pair in stack.lora.tensors(slot).values() for t in pair]
        counts.append(sum(t.numel() for t in tensors))
        assert stack.num_weights("lora", run.lora, run.method.settings) == counts[slot]
    assert counts[0] == 2 * counts[1], "ranks 4 and 2"
    bank = banks_of(stack).tensors(1)
    for group, in_group in (("router", True), ("schemas", False)):
        found = sum(t.numel() for n, t in bank.items() if n.endswith(".router") == in_group)
        assert stack.num_weights(group, SMALL, {"bank": SMALL_BANK}) == found
