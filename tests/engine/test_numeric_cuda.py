"""The same with compiling and capture on; skipped, and said so, without a GPU.

One program holds all masks, so that no place needs steps of its own.
"""

import gc
from collections.abc import Iterator

import pytest
import torch

from poison import (
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
from schemabank.engine.cohort import Cohort, RunStep
from schemabank.engine.execute import DEPTH

pytestmark = [
    pytest.mark.gpu,
    # The compiler and its libraries warn of their own deprecations.
    pytest.mark.filterwarnings("ignore"),
]

IN_TURN = in_turn(PASSING)
Trained = tuple[Cohort, dict[str, list[RunStep]]]


@pytest.fixture(autouse=True)
def _no_graph_is_left() -> Iterator[None]:
    """Free a test's captured graphs: freed while another is traced, they can end the process."""
    yield
    gc.collect()


def trained(poison: Poison, schedule: dict[tuple[str, int], Place], **train: object) -> Trained:
    """A cohort on the GPU, which must not fall back to anything, and what its runs reported."""
    made = new_cohort(run_configs(**train), dtype=torch.bfloat16, device="cuda")
    poison.follow(made, schedule)
    found = reports(made)
    made.stack.remove()
    return made, found


@pytest.mark.timeout(300)
def test_a_fault_leaves_out_one_step_of_one_run_and_one_that_stays_fails_its_run_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison = Poison(monkeypatch, len(NAMES), "cuda")
    spoilt, found = trained(poison, IN_TURN, max_skipped_ratio=1.0)
    clean, expected = trained(poison, dict.fromkeys(IN_TURN, "skip"), max_skipped_ratio=1.0)
    for slot in spoilt.slots:
        name = slot.run.name
        faults = [step for run, step in IN_TURN if run == name]
        assert (slot.failure, slot.skipped, len(faults)) == (None, faults, len(PASSING))
        assert not any(each.skipped for each in expected[name])
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
        assert_same_end(spoilt, clean, name)

    untouched, expected = trained(poison, {})
    victims: dict[str, Place] = {
        **dict(zip(("schemabank", "swap", "molf", "muon"), PASSING, strict=True)),
        "experts": "weight",
    }
    lasting = {(n, step): place for n, place in victims.items() for step in range(5, NUM_STEPS)}
    failing, found = trained(poison, lasting)
    for slot in failing.slots:
        name = slot.run.name
        if name not in victims:
            assert slot.failure is None
            assert found[name] == expected[name]
            assert_same_end(failing, untouched, name)
            continue
        assert slot.failure is not None
        assert slot.failure.kind == "diverged"
        said = "weights that are not finite at step 5" if name == "experts" else "not finite in 2 "
        assert said in slot.failure.message
        # The host knows of it some steps late, and takes none after that.
        assert len(found[name]) == (6 if name == "experts" else 7)
        assert slot.step <= len(found[name]) + DEPTH
        assert_same_steps(found[name], expected[name], lambda each: not each.skipped)
