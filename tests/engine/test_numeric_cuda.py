"""The same with compiling and capture on; skipped, and said so, without a GPU.

One program holds all masks, so that no place needs steps of its own.
"""

import gc
from collections.abc import Iterator

import pytest
import torch

import cohorts
from poison import (
    LASTING,
    NAMES,
    NUM_STEPS,
    PASSING,
    Place,
    Poison,
    assert_same_end,
    assert_same_steps,
    in_turn,
    new_cohort,
    reports,
    run_configs,
)
from schemabank.engine import idle
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.execute import DEPTH

pytestmark = [
    pytest.mark.gpu,
    # The compiler and its libraries warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

IN_TURN = in_turn(PASSING)
DATA = cohorts.data(max_buckets=1)  # each further length takes programs of its own
BEGIN = 5
Trained = tuple[Cohort, dict[str, list[RunStep]]]


@pytest.fixture(autouse=True)
def _no_graph_is_left() -> Iterator[None]:
    """Free a test's captured graphs: freed while another is traced, they can end the process."""
    yield
    gc.collect()


def trained(poison: Poison, schedule: dict[tuple[str, int], Place], **train: object) -> Trained:
    """A cohort on the GPU, which must not fall back to anything, and what its runs reported."""
    made = new_cohort(run_configs(**train), DATA, dtype=torch.bfloat16, device="cuda")
    poison.follow(made, schedule)
    found = reports(made)
    made.stack.remove()
    return made, found


@pytest.mark.timeout(300)
def test_a_fault_costs_its_run_a_step_and_one_that_stays_fails_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = Poison(monkeypatch, len(NAMES), "cuda")
    clean, expected = trained(poison, dict.fromkeys(IN_TURN, "skip"), max_skipped_ratio=1.0)
    monkeypatch.setattr(idle, "EVERY", 4)  # the others are looked at, too, between their steps
    spoilt, found = trained(poison, IN_TURN, max_skipped_ratio=1.0)
    for slot in spoilt.slots:
        name = slot.run.name
        faults = [step for run, step in IN_TURN if run == name]
        assert (slot.failure, slot.skipped, len(faults)) == (None, faults, len(PASSING))
        assert not any(each.skipped for each in expected[name])
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        assert_same_end(spoilt, clean, name)
    _check_lasting(poison, clean, expected)


def _check_lasting(poison: Poison, clean: Cohort, expected: dict[str, list[RunStep]]) -> None:
    """Faults that stay, beside neighbours that leave out the steps of the clean cohort."""
    schedule: dict[tuple[str, int], Place] = {
        (name, step): "skip" for name, step in IN_TURN if name not in LASTING or step < BEGIN
    }
    for name, place in LASTING.items():
        schedule |= {(name, step): place for step in range(BEGIN, NUM_STEPS)}
    failing, found = trained(poison, schedule)
    for slot in failing.slots:
        name = slot.run.name
        if name not in LASTING:
            assert slot.failure is None
            assert found[name] == expected[name]
            assert_same_end(failing, clean, name)
            continue
        assert slot.failure is not None
        assert slot.failure.kind == "diverged"
        of_weights = LASTING[name] == "weight"
        said = f"weights that are not finite at step {BEGIN}" if of_weights else "not finite in 2 "
        assert said in slot.failure.message
        # The host knows of it some steps late, and then launches none.
        assert [each.step for each in found[name]] == [*range(BEGIN + (1 if of_weights else 2))]
        assert slot.step <= len(found[name]) + DEPTH
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
