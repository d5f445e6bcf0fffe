"""Which blocks' adapters act in a step, and that the others rest."""

from functools import partial

import numpy as np
import pytest

import cohorts
from cohorts import LORA, LORA_STAGE, lora_run
from schemabank.common.errors import InputError
from schemabank.config.methods import CoToSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.run import OnCourse, Run
from schemabank.engine.stack import AdapterStack
from schemabank.methods.coto import CoTo, CoToCourse
from schemabank.methods.method import Setup
from tiny import tiny_model

NUM_BLOCKS = 3
DATA = cohorts.data()


def run(seed: int = 1, *, num_blocks: int = NUM_BLOCKS, max_steps: int = 40, **coto: float) -> Run:
    return Run(
        name=f"coto-{seed}",
        seed=seed,
        stages=(LORA_STAGE,),
        train=lora_run(seed, max_steps=max_steps).train,
        lora=LORA,
        method=OnCourse(partial(CoToCourse, coto=CoToSettings(**coto), num_blocks=num_blocks)),
    )


def course(**changes: float) -> CoToCourse:
    found = run(**changes).method.course(run(**changes), DATA)  # type: ignore[arg-type]
    assert isinstance(found, CoToCourse)
    return found


def test_the_probability_rises_linearly_and_stays_at_one() -> None:
    made = course(max_steps=400, initial_probability=0.2, rising_ratio=0.5)
    found = [made.probability(step) for step in (0, 100, 199, 200, 399)]
    assert found == pytest.approx([0.2, 0.6, 0.996, 1, 1])
    assert course(rising_ratio=0.0).probability(0) == 1


def test_blocks_act_as_often_as_that() -> None:
    made = course(num_blocks=50, max_steps=4000, initial_probability=0.1)
    acting = np.array([made.acting(step) for step in range(1000, 1200)])
    expected = np.mean([made.probability(step) for step in range(1000, 1200)])
    assert acting.mean() == pytest.approx(expected, abs=4 * np.sqrt(0.25 / acting.size))
    assert acting.mean(0).min() > 0.3, "no block is left out for good"


def test_one_block_acts_at_least() -> None:
    made = course(num_blocks=2, max_steps=4000, initial_probability=0.01)
    counts = [made.acting(step).sum() for step in range(200)]
    assert min(counts) == 1
    assert counts.count(1) > 150


def test_seed_and_step_alone_decide() -> None:
    def drawn(seed: int) -> list[list[bool]]:
        made = run(seed).method.course(run(seed), DATA)
        assert isinstance(made, CoToCourse)
        return [made.acting(step).tolist() for step in range(30)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_block_that_is_left_out_gets_no_gradient_and_changes_nothing() -> None:
    """In the first step, whose update is that of its gradient alone."""
    stack = AdapterStack(tiny_model("llama"), lora=[LORA])
    only = run(initial_probability=0.01, max_steps=4)
    cohort = Cohort(stack, [only], DATA)
    steps = cohort.steps()
    (first,) = next(steps)
    made = only.method.course(only, DATA)
    assert isinstance(made, CoToCourse)
    acting = made.acting(0)
    assert first.logged == {"acting_blocks": pytest.approx(acting.mean())}
    moved = [
        any(
            layer.B[0].abs().max() > 0
            for path, layer in stack.lora.layers.items()
            if path.startswith(f"model.layers.{block}.")
        )
        for block in range(NUM_BLOCKS)
    ]
    assert moved == acting.tolist()
    assert sum(moved) < NUM_BLOCKS


def test_blocks_count_among_those_with_adapters() -> None:
    lora = LORA.model_copy(update={"layers_to_transform": (0, 2)})
    stack = AdapterStack(tiny_model("llama"), lora=[lora])
    assert stack.lora.num_blocks == 2
    places = {path.split(".")[2]: int(layer.block) for path, layer in stack.lora.layers.items()}
    assert places == {"0": 0, "2": 1}
    with stack.evaluating("off"):
        assert stack.lora.dropout.strengths is None


def test_a_single_block_with_adapters_is_refused() -> None:
    one = LORA.model_copy(update={"layers_to_transform": (1,)})
    for lora, allowed in ((one, False), (LORA, True)):
        stack = AdapterStack(tiny_model("llama"), lora=[lora])
        setup = Setup((), stack, DATA.tokenizer)
        if allowed:
            CoTo().check(RunConfig(arm="coto"), setup)
            continue
        with pytest.raises(InputError, match="a single block has adapters"):
            CoTo().check(RunConfig(arm="coto"), setup)
