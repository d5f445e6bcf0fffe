import math
from functools import partialmethod

import pytest
import torch

from cohorts import (
    BANK,
    FAST_STAGES,
    LORA_STAGE,
    bank_run,
    cohort,
    data,
    lora_run,
    train,
    weights,
)
from schemabank.cohort.batches import Batch, collate
from schemabank.cohort.engine import Cohort, RunStep
from schemabank.cohort.loss import gather_labelled, mean_per_slot, token_losses
from schemabank.config import LoraSettings, Stage
from tiny import Kind

# Rounding alone: other shapes give the matrix products another order of summation, and Adam's
# square root stretches it where gradients are tiny.
SOLO_TOLERANCE = 2e-4


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_every_architecture_attaches_trains_and_detaches(kind: Kind) -> None:
    trained = cohort([bank_run(1)], data(), kind=kind)
    model, tokens = trained.stack.model, torch.arange(3, 40)[None]
    trained.stack.remove()
    before = model(tokens).logits
    trained = cohort([bank_run(1)], data(), kind=kind)
    steps = train(trained)
    assert all(math.isfinite(step.loss) for (step,) in steps)
    for layer in trained.stack.lora.values():
        assert layer.B.detach().abs().max() > 0, "B starts at zero and moves by its gradient alone"
    trained.stack.remove()
    assert torch.equal(trained.stack.model(tokens).logits, before)


def test_training_lowers_the_loss() -> None:
    steps = train(
        cohort([lora_run(1, num_train_epochs=12), bank_run(1, num_train_epochs=12)], data())
    )
    for slot in range(2):
        losses = [step[slot].loss for step in steps]
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
    for slot, run in enumerate(runs):
        alone = cohort([run], training)
        solo = train(alone)
        losses = [r.loss for step in reports for r in step if r.run == run.name]
        assert losses == pytest.approx([step[0].loss for step in solo], abs=SOLO_TOLERANCE)
        for name, values in weights(alone, 0).items():
            torch.testing.assert_close(
                together.stack.groups[name].weights[slot], values, rtol=0, atol=SOLO_TOLERANCE
            )


def test_lora_beside_a_banked_run_equals_lora_alone() -> None:
    together, alone = cohort([lora_run(3), bank_run(3)], data()), cohort([lora_run(3)], data())
    train(together)
    train(alone)
    torch.testing.assert_close(
        together.stack.groups["lora"].weights[0],
        alone.stack.groups["lora"].weights[0],
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
        states.append(weights(trained, 0))
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
                assert torch.equal(now[name], before[name]) == (step.bank_scale == 0)
            assert step.learning_rate == 0 or not torch.equal(now["lora"], before["lora"])
        before = now
        bare.append(step.bank_scale == 0)
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
        trained.stack.banks.banks[2].router[0, 0, 0] = float("nan")
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
            trained.stack.banks.banks[2].router[0, 0, 0] = float("nan")
    assert [r.run for r in reports] == ["bank-6"]
    failed, fine = trained.slots
    assert failed.failure is not None
    assert "20 steps" in failed.failure
    assert fine.failure is None
    assert fine.num_skipped == 0


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
    states, fill = [], Batch.fill
    for padding in (0, 123):
        monkeypatch.setattr(Batch, "fill", partialmethod(fill, padding=padding))
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
    for module in [*stack.lora.values(), *stack.banks.banks.values()]:
        module.double()
    for slot in range(2):
        stack.initialise(slot, slot)
    for layer in stack.lora.values():
        torch.nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(0))
    stack.banks.routing = "on"
    rows = [training.encoded[:4], training.encoded[4:8]]
    width = max(len(e.tokens) for row in rows for e in row)
    labels = max(e.num_labels for row in rows for e in row)
    batch = collate(rows, width=width, num_labels=labels)
    parameters = [
        p.requires_grad_()
        for m in [*stack.lora.values(), *stack.banks.banks.values()]
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
    assert report.bank_scale == 0


def _task_loss(trained: Cohort, batch: Batch) -> torch.Tensor:
    picked = gather_labelled(trained.stack.hidden(batch.tokens), batch.positions)
    losses = token_losses(picked, batch.labels.flatten(), trained.stack.head)
    return mean_per_slot(losses, batch.weights)
