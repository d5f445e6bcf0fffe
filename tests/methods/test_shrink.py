"""Shrink: the nearest adapter of its own rank takes the wide one's place, and trains on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

import cohorts
from cohorts import LORA, LORA_STAGE, lora_run
from schemabank.common.errors import InputError
from schemabank.common.failure import Failure
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.config.train import AverageSettings
from schemabank.engine.cohort import Cohort
from schemabank.engine.reduction import nearest
from schemabank.engine.run import OnCourse, Run
from schemabank.engine.stack import RANK, AdapterStack
from schemabank.methods.method import Setup
from schemabank.methods.shrink import Shrink, ShrinkCourse
from tiny import tiny_model

DATA = cohorts.data()
WIDE = LoraSettings(r=16, lora_dropout=0.2)
FACTOR = 4


def run(seed: int, ratio: float = 0.5, *, factor: int = FACTOR, **train: object) -> Run:
    course = partial(ShrinkCourse, ratio=ratio)
    return Run(
        name=f"shrink-{seed}",
        seed=seed,
        stages=(LORA_STAGE,),
        train=lora_run(seed, **train).train,
        lora=LORA,
        method=OnCourse(course, {RANK: LORA.r * factor}),
    )


def new_cohort(runs: Sequence[Run], *, slots: int | None = None) -> Cohort:
    """Runs in slots with room for the rank at the beginning."""
    stack = AdapterStack(tiny_model("llama"), lora=[WIDE] * (slots or len(runs)))
    return Cohort(stack, runs, DATA, explain=pytest.fail)


def factors(trained: Cohort, slot: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Both factors of every layer's update, ``(in, rank)`` and ``(rank, out)``, of all ranks."""
    own = trained.stack.groups["lora"].master
    return {p: (own[f"{p}.A"][slot], own[f"{p}.B"][slot]) for p in trained.stack.lora.layers}


def products(trained: Cohort, slot: int) -> dict[str, torch.Tensor]:
    """Every layer's update of all ranks of a slot, ``(in, out)``."""
    return {path: a @ b for path, (a, b) in factors(trained, slot).items()}


def test_the_nearest_product_does_not_depend_on_the_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((4096, 128), (128, 1024)))
    before, found = torch.get_num_threads(), list[tuple[torch.Tensor, torch.Tensor]]()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(nearest(a, b, 16))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0][0], low_a) for low_a, _ in found)
    assert all(torch.equal(found[0][1], low_b) for _, low_b in found)


def test_the_nearest_product_of_a_rank_is_that_of_the_largest_singular_values() -> None:
    torch.manual_seed(1)
    a, b = torch.randn(40, 12), torch.randn(12, 30)
    low_a, low_b = nearest(a, b, 5)
    u, values, v = torch.linalg.svd((a @ b).double(), full_matrices=False)
    torch.testing.assert_close(
        (low_a @ low_b).double(), u[:, :5] * values[:5] @ v[:5], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(low_a.norm(dim=0), low_b.norm(dim=1))
    assert low_a.shape == (40, 5)


def test_a_product_of_a_lower_rank_stays_what_it_is() -> None:
    """Also one that is zero, as before the first step."""
    torch.manual_seed(2)
    a, b = torch.zeros(20, 8), torch.zeros(8, 24)
    a[:, :3], b[:3] = torch.randn(20, 3), torch.randn(3, 24)
    torch.testing.assert_close(torch.matmul(*nearest(a, b, 4)), a @ b, rtol=0, atol=1e-5)


def test_a_product_that_is_zero_leaves_a_its_directions() -> None:
    """As of a layer that has had no update: B then gets a gradient, and nothing is dead."""
    torch.manual_seed(4)
    a = torch.randn(20, 8)
    low_a, low_b = nearest(a, torch.zeros(8, 24), 4)
    assert not low_b.any()
    torch.testing.assert_close(low_a.T @ low_a, torch.eye(4))
    torch.testing.assert_close(a @ torch.linalg.lstsq(a, low_a).solution, low_a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_factors_that_are_not_finite_stay_so(value: float) -> None:
    a, b = torch.randn(20, 8), torch.randn(8, 24)
    b[7, 3] = value
    for factor in nearest(a, b, 4):
        assert factor.isnan().all()


def test_a_run_that_diverges_before_it_is_reduced_costs_no_neighbour() -> None:
    steep = (LORA_STAGE.model_copy(update={"learning_rate": 1e38}),)
    diverging = replace(run(1, max_steps=40), stages=steep)
    trained = new_cohort([diverging, lora_run(2, max_steps=40)])
    list(trained.steps())
    first, second = trained.slots
    assert first.failure is not None or not trained.finished["shrink-1"]["lora"].isfinite().all()
    assert second.failure is None
    assert trained.finished["lora-2"]["lora"].isfinite().all()


@pytest.mark.parametrize("width", [3, 6])
def test_a_layer_may_be_narrower_than_the_rank_at_the_beginning(width: int) -> None:
    """The factors keep their number of ranks; those that a product cannot have are zero."""
    torch.manual_seed(3)
    a, b = torch.randn(width, 16), torch.randn(16, 24)
    low_a, low_b = nearest(a, b, 4)
    assert (low_a.shape, low_b.shape) == ((width, 4), (4, 24))
    lost = torch.linalg.svdvals((a @ b).double())[4:].norm()
    torch.testing.assert_close(
        torch.linalg.matrix_norm((a @ b - low_a @ low_b).double()), lost, rtol=1e-4, atol=1e-4
    )


def test_the_run_is_reduced_at_its_step_and_keeps_its_rank_from_there() -> None:
    trained = new_cohort([run(1), lora_run(2)])
    at = trained.slots[0].num_steps // 2
    assert trained.slots[0].course.reduced_at == at
    ranks, before = [], {}
    reduce = trained.stack.lora.reduce

    def noted(slot: int) -> None:
        before.update({p: product.clone() for p, product in products(trained, slot).items()})
        reduce(slot)
        for path, product in products(trained, slot).items():
            values = torch.linalg.svdvals(before[path])
            lost = torch.linalg.matrix_norm(before[path] - product)
            torch.testing.assert_close(lost, values[LORA.r :].norm(), rtol=1e-3, atol=1e-5)

    trained.stack.lora.reduce = noted  # type: ignore[method-assign]
    for _ in trained.steps():
        own = trained.stack.groups["lora"].master
        ranks.append(max(int(own[p][0].any(0).sum()) for p in own if p.endswith(".A")))
    wide, narrow = LORA.r * FACTOR, LORA.r
    assert ranks == [wide] * at + [narrow] * (len(ranks) - at)
    assert before, "the run was never reduced"
    trained.seat(["shrink-1"])
    for a, b in trained.stack.lora.tensors(0).values():
        assert (a.shape[0], b.shape[1]) == (narrow, narrow)


@pytest.mark.parametrize("max_steps", [1, 12])
def test_a_run_that_ends_before_its_step_is_reduced_at_its_end(max_steps: int) -> None:
    """A run of one step, and one that is given up after it."""
    trained = new_cohort([run(1, max_steps=max_steps)])
    steps = trained.steps()
    next(steps)
    expected = {
        path: torch.matmul(*nearest(*pair, LORA.r)) for path, pair in factors(trained, 0).items()
    }
    if max_steps > 1:
        trained.give_up(Failure("diverged", "given up"))
    list(steps)
    trained.seat(["shrink-1"])
    for path, product in products(trained, 0).items():
        torch.testing.assert_close(product, expected[path], rtol=0, atol=1e-6)
        assert not factors(trained, 0)[path][0][:, LORA.r :].any()


def test_weights_are_counted_with_the_rank_at_the_beginning() -> None:
    trained = new_cohort([run(1)])
    stack, layers = trained.stack, trained.stack.lora.layers.values()
    of_a_rank = sum(layer.in_features + layer.out_features for layer in layers)
    counted = stack.num_weights("lora", LORA, {RANK: LORA.r * FACTOR})
    assert counted == LORA.r * FACTOR * of_a_rank
    assert stack.num_weights("lora", LORA, {}) == LORA.r * of_a_rank


def test_muon_knows_the_rank_of_both_parts() -> None:
    trained = new_cohort([run(1, optimizer="muon"), lora_run(2)])
    muon = trained.optimizers["lora"].muon
    assert muon is not None
    ranks = [int(muon.ranks[0]) for _ in trained.steps()]
    at = trained.slots[0].course.reduced_at
    assert at is not None
    assert ranks == [LORA.r * FACTOR] * at + [LORA.r] * (len(ranks) - at)


def test_the_optimizer_begins_anew_and_the_rate_rises_again_to_the_runs_own() -> None:
    """Of 100 steps with a warm-up of five, the rate falls to half of its peak at the 50th."""
    made = run(1, max_steps=100, learning_rate=1.0, warmup_ratio=0.05)
    course, plain = ShrinkCourse(made, DATA, ratio=0.5), lora_run(1, max_steps=100).method
    own = plain.course(replace(made, method=plain), DATA)
    rates = [course.step(n).learning_rate / own.step(n).learning_rate for n in range(100)]
    assert rates[:50] == [1] * 50
    assert rates[50:55] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert rates[55:] == [1] * 45
    assert [n for n in range(100) if course.step(n).first] == [0, 50]


def test_neighbours_change_no_bit() -> None:
    for own, others in (
        (lora_run(1), [run(2), lora_run(2)]),
        (run(1), [run(2, 0.25), lora_run(2), run(3, factor=2)]),
    ):
        rows = []
        for other in others:
            trained = new_cohort([own, other])
            list(trained.steps())
            rows.append(trained.finished[own.name]["lora"])
        assert all(torch.equal(row, rows[0]) for row in rows[1:])


def test_a_slot_serves_other_runs_after_one_that_was_reduced() -> None:
    """As it serves them alone, and the other way round."""
    for before, own in ((run(1), lora_run(2)), (lora_run(1), run(2)), (run(1), run(2, 0.25))):
        rows = []
        for runs in ([replace(before, name="before"), own], [own]):
            trained = new_cohort(runs, slots=1)
            list(trained.steps())
            rows.append(trained.finished[own.name]["lora"])
        assert torch.equal(*rows)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("steps", [3, 8])
def test_a_run_goes_on_where_its_cohort_was_halted(steps: int, slots: int) -> None:
    """Before it was reduced and after: in as many slots to the bit, in fewer within rounding."""
    runs = [run(1), run(2, 0.25)]
    cohorts.assert_goes_on(lambda: new_cohort(runs), runs, WIDE, steps=steps, slots=slots)


def check(kind: str) -> None:
    config = RunConfig(arm="shrink", lora={"r": 4}, average={"kind": kind})
    setup = Setup((), AdapterStack(tiny_model("llama"), lora=[LORA]), DATA.tokenizer)
    Shrink().check(config, setup)


def test_a_mean_that_adds_the_way_from_the_first_weights_is_refused() -> None:
    with pytest.raises(InputError, match=r"average\.kind is 'bema'.* allowed are 'none'"):
        check("bema")


@pytest.mark.parametrize("kind", ["none", "last", "exponential"])
def test_other_means_are_not(kind: str) -> None:
    check(kind)


def test_a_mean_over_the_steps_has_the_adapters_own_rank() -> None:
    """It is the exponential mean of the weights after the steps from the reduction on."""
    average = AverageSettings(kind="exponential", decay=0.9)
    trained = new_cohort([replace(run(1), average=average), run(2)])
    at, means = trained.slots[0].course.reduced_at, torch.zeros(0)
    assert at is not None
    for number, _ in enumerate(trained.steps()):
        if number >= at:
            rate = 0.1 / (1 - 0.9 ** (number - at + 1))
            weights = trained.stack.groups["lora"].weights[0].clone()
            means = torch.lerp(means, weights, rate) if len(means) else weights
    row = trained.finished["shrink-1"]["lora"]
    torch.testing.assert_close(row, means, rtol=1e-5, atol=1e-6)
    views = trained.stack.groups["lora"].views(row)
    for name, own in views.items():
        ranks = own.any(0) if name.endswith(".A") else own.any(1)
        assert int(ranks.sum()) == LORA.r
