"""Experts: which is used when, what that computes, and that their mean is what remains."""

from functools import partial

import numpy as np
import pytest
import torch

import cohorts
from cohorts import LORA, LORA_STAGE, lora_run, step_input
from schemabank.config.methods import ExpertsSettings
from schemabank.engine.cohort import Cohort
from schemabank.engine.loralayers import MIX
from schemabank.engine.part import StepInput
from schemabank.engine.run import OnCourse, Run
from schemabank.engine.stack import AdapterStack
from schemabank.methods.experts import ExpertsCourse
from tiny import tiny_model

DATA = cohorts.data()
NUM_EXPERTS = 3
TOKENS = torch.arange(2, 2 + 2 * 2 * 6).view(2, 2, 6)


def run(seed: int, stack: AdapterStack, routing: str = "random") -> Run:
    settings = ExpertsSettings.model_validate({"num_experts": NUM_EXPERTS, "routing": routing})
    return Run(
        name=f"experts-{seed}",
        seed=seed,
        stages=(LORA_STAGE,),
        train=lora_run(seed).train,
        lora=LORA,
        method=OnCourse(
            partial(
                ExpertsCourse,
                experts=settings,
                num_layers=len(stack.lora.layers),
                room=stack.lora.most_maps,
            ),
            {"maps": NUM_EXPERTS},
        ),
    )


def new_stack(num_maps: int = NUM_EXPERTS) -> AdapterStack:
    plain = LORA.model_copy(update={"lora_dropout": 0.0})
    return AdapterStack(tiny_model("llama"), lora=[plain] * 2, num_maps=num_maps)


def chosen(made: Run, number: int) -> np.ndarray:
    """The expert of every row and layer in a step, ``(batch, layer)``."""
    course = made.method.course(made, DATA)
    assert isinstance(course, ExpertsCourse)
    at = course.step(number)
    mix = np.asarray(course.values(at, course.rows(at, [0, 1, 2, 0]))[MIX])
    assert ((mix == 0) | (mix == 1)).all()
    assert (mix.sum(-1) == 1).all()
    return mix.argmax(-1)


def test_drawn_experts_are_those_of_a_step_and_layer() -> None:
    made = run(1, new_stack())
    first = chosen(made, 0)
    assert (first == first[0]).all(), "the same for all rows"
    assert len(np.unique(first[0])) == NUM_EXPERTS
    assert not np.array_equal(first, chosen(made, 1))
    assert np.array_equal(first, chosen(made, 0))
    assert not np.array_equal(first, chosen(run(2, new_stack()), 0))


def test_hashed_experts_are_those_of_an_example_whatever_run_and_step() -> None:
    made = run(1, new_stack(), "hash")
    first = chosen(made, 0)
    assert np.array_equal(first[0], first[3])
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, chosen(made, 5))
    assert np.array_equal(first, chosen(run(2, new_stack(), "hash"), 0))


def test_experts_are_drawn_evenly() -> None:
    made = run(1, new_stack())
    drawn = np.concatenate([chosen(made, step)[0] for step in range(12)])
    counts = np.bincount(drawn, minlength=NUM_EXPERTS)
    assert counts.min() > len(drawn) / NUM_EXPERTS - 4 * np.sqrt(len(drawn))


@torch.no_grad()
def test_a_row_uses_the_map_that_it_is_given_and_evaluation_the_mean() -> None:
    """Against plain stacks whose B is that map, or the mean of all."""
    stack, plain = new_stack(), new_stack(num_maps=1)
    generator = torch.Generator().manual_seed(0)
    for slot in range(2):
        stack.configure(slot, stack.lora.settings[slot], {"maps": NUM_EXPERTS})
    group = stack.groups["lora"]
    group.weights.copy_(torch.randn(group.weights.shape, generator=generator) * 0.1)
    group.publish()
    num_layers = len(stack.lora.layers)

    def with_map(number: int | None) -> torch.Tensor:
        for slot in range(2):
            tensors = {
                path: (a, b if number is None else stack.lora._maps(path, slot)[number].T)
                for path, (a, b) in stack.lora.tensors(slot).items()
            }
            plain.lora.load(slot, tensors)
        with plain.evaluating("off"):
            return plain.hidden(TOKENS)

    given = step_input([(1, 0), (2, 0)])
    rows = torch.tensor([[0, 1], [2, 0]])  # the map of every row
    mix = torch.nn.functional.one_hot(rows, NUM_EXPERTS)[:, :, None].expand(-1, -1, num_layers, -1)
    fields = {**given.fields, MIX: mix.float(), "adapter_strength": torch.ones(2, 3)}
    stack.begin_step(StepInput(given.batch, fields))
    found = stack.hidden(TOKENS).unflatten(0, (2, 2))
    maps = [with_map(number).unflatten(0, (2, 2)) for number in range(NUM_EXPERTS)]
    for slot, row in np.ndindex(2, 2):
        expected = maps[rows[slot, row]][slot, row]
        torch.testing.assert_close(found[slot, row], expected, rtol=1e-4, atol=1e-5)
    stack.rest()
    with stack.evaluating("off"):
        mean = stack.hidden(TOKENS)
    torch.testing.assert_close(mean, with_map(None), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mean.unflatten(0, (2, 2)), found, rtol=1e-2)


def test_the_maps_drift_apart_until_they_are_folded_and_a_neighbour_has_but_one() -> None:
    stack = new_stack()
    cohort = Cohort(stack, [run(1, stack), lora_run(2)], DATA)
    steps = cohort.steps()
    for _ in range(8):
        next(steps)
    path = next(iter(stack.lora.layers))
    maps = stack.lora._maps(path, 0)
    assert len(maps) == NUM_EXPERTS
    assert not torch.allclose(maps[0], maps[1])
    list(steps)
    cohort.seat(["experts-1", "lora-2"])
    for slot in range(2):
        assert not any(stack.lora._all_maps(path, slot)[1:].any() for path in stack.lora.layers)
    assert stack.lora.tensors(0)[path][1].abs().max() > 0


def test_a_fold_puts_the_mean_in_the_place_of_the_maps() -> None:
    stack = new_stack()
    stack.configure(0, stack.lora.settings[0], {"maps": NUM_EXPERTS})
    weights = stack.groups["lora"].weights
    weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    before = {path: stack.lora._maps(path, 0).clone() for path in stack.lora.layers}
    firsts = {path: a for path, (a, _) in stack.lora.tensors(0).items()}
    kept, folded = weights[0].clone(), stack.lora.folded(weights[0], NUM_EXPERTS)
    assert torch.equal(weights[0], kept)
    weights[0] = folded
    stack.lora.use_maps(0, 1)
    for path, (a, b) in stack.lora.tensors(0).items():
        assert torch.equal(a, firsts[path])
        assert torch.equal(b, before[path].mean(0).T)
        assert not stack.lora._all_maps(path, 0)[1:].any()
    assert torch.equal(stack.lora.folded(kept, 1), kept)


def test_a_run_ends_as_the_mean_of_its_maps() -> None:
    """What is seated to be evaluated and saved, against the maps after the last step."""
    stack = new_stack()
    cohort = Cohort(stack, [run(1, stack), lora_run(2)], DATA)
    for _ in cohort.steps():
        last = {path: stack.lora._maps(path, 0).clone() for path in stack.lora.layers}
    cohort.seat(["experts-1", "lora-2"])
    for path, (_, b) in stack.lora.tensors(0).items():
        assert torch.equal(b, last[path].mean(0).T)


def test_the_weights_of_all_maps_are_counted() -> None:
    stack = new_stack()
    more = (NUM_EXPERTS - 1) * sum(b.numel() for _, b in stack.lora.tensors(0).values())
    plain = stack.num_weights("lora", LORA, {})
    assert stack.num_weights("lora", LORA, {"maps": NUM_EXPERTS}) == plain + more


def test_one_expert_is_no_mixture() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ExpertsSettings(num_experts=1)
