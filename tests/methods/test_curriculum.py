"""The settings of every step, by hand and as properties over any number of steps."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemabank.config.settings import Stage
from schemabank.config.train import THREE_STAGES
from schemabank.engine.schedule import learning_rate, plan
from schemabank.methods.schemabank.curriculum import BankStep, step_settings, trained_groups

BARE_TAIL = Stage(
    name="hand-over",
    ratio=1.0,
    train=("router", "schemas", "lora"),
    learning_rate=1.0,
    warmup_ratio=0.1,
    bank_scale=(1.0, 0.0),
    bare_tail_ratio=0.25,
)


def stage(**settings: object) -> Stage:
    return Stage.model_validate(
        {"name": "only", "ratio": 1.0, "train": ("lora",), "learning_rate": 1.0, **settings}
    )


def all_settings(*stages: Stage, num_steps: int, seed: int = 0) -> list[BankStep]:
    plans = plan(stages, num_steps)
    return [step_settings(plans, step, seed=seed) for step in range(num_steps)]


@st.composite
def curricula(draw: st.DrawFn) -> tuple[Stage, ...]:
    """Stages of any shares, written with six digits, as people write a third."""
    parts = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    ratios = [round(part / sum(parts), 6) for part in parts]
    return tuple(stage(name=f"stage {i}", ratio=ratio) for i, ratio in enumerate(ratios))


# Where stages lie.


def test_the_default_is_the_methods_table() -> None:
    rows = [
        (s.name, s.ratio, frozenset(s.train), s.learning_rate, s.tag_keep) for s in THREE_STAGES
    ]
    assert rows == [
        ("router", 0.3, {"router"}, 1e-3, (1.0, 0.75, 0.5, 0.25)),
        ("schemas", 0.3, {"schemas", "lora"}, 1e-4, ()),
        ("joint", 0.4, {"router", "schemas", "lora"}, 5e-5, ()),
    ]
    for each in THREE_STAGES:
        assert (each.warmup_ratio, each.lr_scheduler_type) == (0.05, "linear")
        assert (each.bank_scale, each.bank_probability) == ((1.0, 1.0), (1.0, 1.0))
        assert each.bare_tail_ratio == 0


def test_the_default_on_100_steps() -> None:
    steps = all_settings(*THREE_STAGES, num_steps=100)
    assert [s.stage for s in steps] == [0] * 30 + [1] * 30 + [2] * 40
    assert [s.stage_name for s in steps[::30]] == ["router", "schemas", "joint", "joint"]
    assert [i for i, s in enumerate(steps) if s.first] == [0, 30, 60]
    assert {s.trained for s in steps[:30]} == {frozenset({"router"})}
    assert {s.trained for s in steps[30:60]} == {frozenset({"schemas", "lora"})}
    assert {s.trained for s in steps[60:]} == {frozenset({"router", "schemas", "lora"})}
    assert {s.bank_scale for s in steps} == {1.0}
    assert max(s.learning_rate for s in steps[30:60]) == 1e-4
    assert {s.tag_keep for s in steps[30:]} == {0.0}


@given(stages=curricula(), num_steps=st.integers(0, 10**7))
def test_stages_share_all_steps_by_their_ratios(stages: tuple[Stage, ...], num_steps: int) -> None:
    plans = plan(stages, num_steps)
    assert (plans[0].start, plans[-1].stop) == (0, num_steps)
    assert [p.start for p in plans[1:]] == [p.stop for p in plans[:-1]]
    assert [p.stage for p in plans] == list(stages)
    for placed in plans:
        rounding = 1 + 1e-5 * num_steps
        assert abs(placed.stop - placed.start - placed.stage.ratio * num_steps) <= rounding


@pytest.mark.parametrize("num_steps", [1, 2, 500_001, 3_000_001])
def test_thirds_that_sum_to_nearly_one_reach_the_last_step(num_steps: int) -> None:
    stages = tuple(stage(name=name, ratio=0.333333) for name in "abc")
    assert plan(stages, num_steps)[-1].stop == num_steps


@given(stages=curricula(), num_steps=st.integers(1, 60))
def test_every_step_belongs_to_one_stage_that_starts_once(
    stages: tuple[Stage, ...], num_steps: int
) -> None:
    steps = all_settings(*stages, num_steps=num_steps)
    order = [s.stage for s in steps]
    assert order == sorted(order)
    for index in set(order):
        firsts = [s.first for s in steps if s.stage == index]
        assert firsts == [True] + [False] * (len(firsts) - 1)


# Learning rates.


def rates(num_steps: int, **settings: object) -> list[float]:
    return [learning_rate(stage(**settings), step, num_steps) for step in range(num_steps)]


def test_linear_by_hand() -> None:
    expected = [0.4 / 3, 0.8 / 3, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05]
    assert rates(10, learning_rate=0.4, warmup_ratio=0.2) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    root = math.sqrt(0.5)
    half = [0.5, 1.0, 0.5 * (1 + root), 0.5, 0.5 * (1 - root)]
    found = rates(5, learning_rate=2.0, warmup_ratio=0.2, lr_scheduler_type="cosine")
    assert found == pytest.approx([2 * h for h in half])


def test_constant_by_hand() -> None:
    found = rates(4, learning_rate=3.0, warmup_ratio=0.25, lr_scheduler_type="constant")
    assert found == pytest.approx([1.5, 3.0, 3.0, 3.0])


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(4, warmup_ratio=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_started_warm_up_step_counts() -> None:
    """As in transformers, the number of warm-up steps is rounded up."""
    assert rates(21, warmup_ratio=0.05)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])


@given(
    num_steps=st.integers(1, 200),
    warmup_ratio=st.floats(0, 1),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_every_step_has_a_positive_rate_up_to_the_peak(
    num_steps: int, warmup_ratio: float, schedule: str
) -> None:
    found = rates(num_steps, warmup_ratio=warmup_ratio, lr_scheduler_type=schedule)
    assert all(0 < rate <= 1 for rate in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)


# Tags.


def test_tags_are_kept_in_four_quarters() -> None:
    steps = all_settings(THREE_STAGES[0].model_copy(update={"ratio": 1.0}), num_steps=100)
    kept = [s.tag_keep for s in steps]
    assert kept == [1.0] * 25 + [0.75] * 25 + [0.5] * 25 + [0.25] * 25


# The hand-over.


def test_bank_scale_is_annealed_over_the_steps_before_the_bare_tail() -> None:
    scales = [s.bank_scale for s in all_settings(BARE_TAIL, num_steps=28)]
    assert scales[:21] == pytest.approx([1 - i / 20 for i in range(21)])
    assert scales[21:] == [0.0] * 7


def test_bank_scale_between_any_two_values() -> None:
    rising = stage(train=("router",), bank_scale=(0.5, 1.5))
    scales = [s.bank_scale for s in all_settings(rising, num_steps=5)]
    assert scales == pytest.approx([0.5, 0.75, 1.0, 1.25, 1.5])


def test_the_bare_tail_trains_lora_alone() -> None:
    steps = all_settings(BARE_TAIL, num_steps=40)
    assert {s.trained for s in steps[:29]} == {frozenset({"router", "schemas", "lora"})}
    assert {s.trained for s in steps[30:]} == {frozenset({"lora"})}
    assert not any(s.first for s in steps[1:])


def test_the_learning_rate_runs_on_into_the_bare_tail() -> None:
    without = BARE_TAIL.model_copy(update={"bare_tail_ratio": 0.0, "bank_scale": (1.0, 1.0)})
    bare, plain = (all_settings(s, num_steps=40) for s in (BARE_TAIL, without))
    assert [s.learning_rate for s in bare] == [s.learning_rate for s in plain]
    assert bare[30].learning_rate < bare[29].learning_rate


def test_a_full_bank_before_a_bare_tail() -> None:
    abrupt = BARE_TAIL.model_copy(update={"bank_scale": (1.0, 1.0)})
    scales = [s.bank_scale for s in all_settings(abrupt, num_steps=20)]
    assert scales == [1.0] * 15 + [0.0] * 5


ALL = ("router", "schemas", "lora")


@pytest.mark.parametrize(
    "stages",
    [
        THREE_STAGES,
        (BARE_TAIL,),
        (stage(train=("router",)),),
        (stage(train=ALL, bank_scale=(0, 0)),),
        (stage(train=ALL, bank_probability=(0, 0)),),
        (stage(train=ALL, bank_scale=(0, 1)),),
        (stage(train=ALL, bank_probability=(1, 0)),),
        (stage(train=("router",), bank_scale=(0, 0)),),
    ],
    ids=range(8),
)
def test_trained_are_the_groups_that_some_step_updates(stages: tuple[Stage, ...]) -> None:
    updated = {group for step in all_settings(*stages, num_steps=40) for group in step.trained}
    assert trained_groups(stages) == updated


def test_a_tail_of_one_step_stage() -> None:
    (only,) = all_settings(BARE_TAIL, num_steps=1)
    assert (only.bank_scale, only.learning_rate) == (1.0, 0.5)


def test_the_second_stages_hand_over_starts_at_its_own_first_step() -> None:
    first = stage(name="first", ratio=0.5)
    second = BARE_TAIL.model_copy(update={"ratio": 0.5})
    joined = all_settings(first, second, num_steps=56)[28:]
    alone = all_settings(second.model_copy(update={"ratio": 1.0}), num_steps=28)
    assert [replace(s, stage=0, step=s.step - 28) for s in joined] == alone


# Steps that use the bank by chance.


def used(seed: int, *, num_steps: int = 2000, ends: tuple[float, float] = (0.3, 0.3)) -> list[bool]:
    drawn = stage(train=("router", "lora"), bank_probability=ends, learning_rate=0.1)
    steps = all_settings(drawn, num_steps=num_steps, seed=seed)
    assert {s.bank_scale for s in steps} <= {0.0, 1.0}
    for step in steps:
        groups = {"router", "lora"} if step.bank_scale else {"lora"}
        assert step.trained == groups
    return [s.bank_scale == 1.0 for s in steps]


def test_bank_probability_is_the_share_of_steps_with_the_bank() -> None:
    deviation = math.sqrt(0.3 * 0.7 / 2000)
    for seed in range(5):
        assert abs(sum(used(seed)) / 2000 - 0.3) < 4 * deviation


def test_bank_probability_one_and_zero_leave_nothing_to_chance() -> None:
    assert all(used(0, ends=(1.0, 1.0)))
    assert not any(used(0, ends=(0.0, 0.0)))


def test_bank_probability_is_annealed() -> None:
    picked = used(1, ends=(1.0, 0.0))
    quarters = [sum(picked[i : i + 500]) / 500 for i in range(0, 2000, 500)]
    assert quarters == pytest.approx([0.875, 0.625, 0.375, 0.125], abs=0.07)


def test_the_steps_with_the_bank_depend_on_seed_and_step_alone() -> None:
    assert used(7) == used(7)
    assert used(7) != used(8)
    assert used(7, num_steps=50) == used(7)[:50]
    drawn = stage(
        ratio=0.5, name="b", train=("router", "lora"), bank_probability=(0.3, 0.3), learning_rate=9
    )
    later = all_settings(stage(name="a", ratio=0.5), drawn, num_steps=2000, seed=7)
    assert [s.bank_scale == 1.0 for s in later[1000:]] == used(7)[1000:]
