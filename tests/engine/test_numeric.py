"""Losses, gradients and weights that are not finite: each costs its own run alone, and only that.

Every run is spoilt once in every place, each at a step of its own. The cohort beside it has no
number that is not finite, and the same steps are left out. So equal bits say that a fault spoils
neither a neighbour nor what comes after it in its own run.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from poison import (
    DATA,
    LASTING,
    NAMES,
    NUM_STEPS,
    PASSING,
    Poison,
    assert_same_end,
    assert_same_steps,
    in_turn,
    new_cohort,
    reports,
    run_configs,
)

IN_TURN = in_turn(PASSING)


def test_a_fault_leaves_out_one_step_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    poison, configs = Poison(monkeypatch, len(NAMES)), run_configs(max_skipped_ratio=1.0)
    spoilt, clean = new_cohort(configs), new_cohort(configs)
    poison.follow(spoilt, IN_TURN)
    found = reports(spoilt)
    poison.follow(clean, dict.fromkeys(IN_TURN, "skip"))
    expected = reports(clean)
    for slot in spoilt.slots:
        name = slot.run.name
        faults = [step for run, step in IN_TURN if run == name]
        assert (slot.failure, slot.skipped, len(faults)) == (None, faults, len(PASSING))
        assert [each.step for each in found[name] if each.skipped] == faults
        for each in found[name]:
            assert bool(each.examples) == each.skipped
        assert not any(each.skipped for each in expected[name])
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        assert_same_end(spoilt, clean, name)


def test_a_fault_that_stays_fails_its_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are those of the engine as it is, in which nothing puts such numbers."""
    before = new_cohort(run_configs())
    expected = reports(before)
    schedule = {(n, step): place for n, place in LASTING.items() for step in range(5, NUM_STEPS)}
    poison, trained = Poison(monkeypatch, len(NAMES)), new_cohort(run_configs())
    poison.follow(trained, schedule)
    found = reports(trained)
    for slot in trained.slots:
        name = slot.run.name
        if name not in LASTING:
            assert slot.failure is None
            assert found[name] == expected[name]
            assert_same_end(trained, before, name)
            continue
        assert slot.failure is not None
        assert slot.failure.kind == "diverged"
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        if LASTING[name] == "weight":
            assert [each.step for each in found[name]] == [*range(6)]
            assert slot.failure.message.startswith("weights that are not finite at step 5 (1 of ")
            continue
        assert slot.skipped == [5, 6]
        assert slot.failure.message.startswith("loss or gradient not finite in 2 of the ")
        named = dict.fromkeys(i for each in found[name][5:7] for i in each.examples)
        assert f"examples of the skipped steps ({', '.join(named)})" in slot.failure.message


def test_an_example_that_makes_a_loss_nan_is_named_each_time_a_run_meets_it() -> None:
    bad, token, encoded = 7, 5, list(DATA.encoded)
    assert not any(token in each.tokens for each in encoded)
    encoded[bad] = replace(encoded[bad], tokens=(token, *encoded[bad].tokens[1:]))
    configs = run_configs(max_skipped_ratio=1.0)
    named = {name: configs[name] for name in ("lora", "schemabank", "swap")}
    made = new_cohort(named, replace(DATA, encoded=encoded))

    def spoil(_module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return torch.where(args[0][..., None] == token, torch.nan, output)

    made.stack.model.get_input_embeddings().register_forward_hook(spoil)
    for steps in reports(made).values():
        skipped = [set(each.examples) for each in steps if each.skipped]
        assert len(skipped) in {5, 6}, "once an epoch of six steps"
        assert set.intersection(*skipped) == {DATA.examples[bad].id}
