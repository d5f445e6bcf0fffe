"""Experts: which is used when, what that computes, and that their mean is what remains."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

import cohorts
from architectures import tiny_architecture
from cohorts import LORA, LORA_STAGE, lora_run, step_input
from schemabank.common.errors import InputError
from schemabank.config.methods import ExpertsSettings
from schemabank.config.settings import RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.lora import Maps
from schemabank.engine.loralayers import MIX, NEXT_MIX, ROUTED
from schemabank.engine.part import StepInput
from schemabank.engine.run import OnCourse, Run
from schemabank.engine.slots import Kind
from schemabank.engine.stack import AdapterStack
from schemabank.engine.step import Training, train_step
from schemabank.methods.experts import Experts, ExpertsCourse
from schemabank.methods.method import Setup
from tiny import tiny_model

DATA = cohorts.data()
NUM_EXPERTS = 3
TOKENS = torch.arange(2, 2 + 2 * 2 * 6).view(2, 2, 6)


def run(seed: int, stack: AdapterStack, routing: str = "random", **changes: object) -> Run:
    settings = ExpertsSettings.model_validate(
        {"num_experts": NUM_EXPERTS, "routing": routing, **changes}
    )
    maps = Maps(NUM_EXPERTS, routed=routing == "learned")
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
                room=stack.lora.room.count,
            ),
            {"maps": maps},
        ),
        passes=2 if settings.consistency_weight else 1,
    )


def new_stack(
    num_maps: int = NUM_EXPERTS, *, routed: bool = False, passes: int = 1
) -> AdapterStack:
    plain = LORA.model_copy(update={"lora_dropout": 0.0})
    maps = Maps(num_maps, routed=routed)
    return AdapterStack(tiny_model("llama"), lora=[plain] * 2, maps=maps, passes=passes)


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
        stack.configure(slot, stack.lora.settings[slot], {"maps": Maps(NUM_EXPERTS)})
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
    stack.configure(0, stack.lora.settings[0], {"maps": Maps(NUM_EXPERTS)})
    weights = stack.groups["lora"].weights
    weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    before = {path: stack.lora._maps(path, 0).clone() for path in stack.lora.layers}
    firsts = {path: a for path, (a, _) in stack.lora.tensors(0).items()}
    kept, folded = weights[0].clone(), stack.lora.folded(weights[0], NUM_EXPERTS)
    assert torch.equal(weights[0], kept)
    weights[0] = folded
    stack.lora.use_maps(0, Maps())
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
    assert stack.num_weights("lora", LORA, {"maps": Maps(NUM_EXPERTS)}) == plain + more


def routed_stack() -> AdapterStack:
    """Both slots with random maps and routers; the second has one map less."""
    stack = new_stack(routed=True)
    for slot, count in enumerate((NUM_EXPERTS, NUM_EXPERTS - 1)):
        settings = stack.lora.settings[slot]
        stack.configure(slot, settings, {"maps": Maps(count, routed=True)})
        stack.initialise(slot, seed=slot)
    group = stack.groups["lora"]
    group.weights.copy_(
        torch.randn(group.weights.shape, generator=torch.Generator().manual_seed(0))
    )
    group.publish()
    return stack


def given_for_routers(stack: AdapterStack, share: float) -> StepInput:
    given = step_input([(1, 0), (2, 0)])
    counts = torch.tensor([maps.count for maps in stack.lora.maps])
    equal = (torch.arange(NUM_EXPERTS) < counts[:, None]) / counts[:, None]
    mix = (1 - share) * equal[:, None, None].expand(-1, 2, len(stack.lora.layers), -1)
    fields = {
        **given.fields,
        MIX: mix,
        ROUTED: torch.full((2,), share),
        "adapter_strength": torch.ones(2, 3),
    }
    return StepInput(given.batch, fields)


@torch.no_grad()
def test_a_router_weighs_the_maps_of_a_layer_for_every_token() -> None:
    """One layer against its equation, written token by token."""
    stack, share = routed_stack(), 0.6
    path, layer = next(iter(stack.lora.layers.items()))
    inputs = torch.randn(4, 5, layer.in_features, generator=torch.Generator().manual_seed(1))
    stack.begin_step(given_for_routers(stack, share))
    found = (layer(inputs) - layer.base(inputs)).view(2, 2, 5, -1)
    for slot, row, token in np.ndindex(2, 2, 5):
        x, count = inputs.view(2, 2, 5, -1)[slot, row, token], stack.lora.maps[slot].count
        gates = torch.softmax(x @ layer.router[slot, :, :count], dim=-1)
        weights = share * gates + (1 - share) / count
        low = layer.scaling[slot] * x @ layer.A[slot]
        expected = sum(
            w * low @ b for w, b in zip(weights, stack.lora._maps(path, slot), strict=True)
        )
        torch.testing.assert_close(found[slot, row, token], expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_a_routed_layer_are_those_of_its_equation() -> None:
    stack, share = routed_stack(), 0.6
    _, layer = next(iter(stack.lora.layers.items()))
    stack.groups["lora"].require_grad(True)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 5, layer.in_features, generator=generator, requires_grad=True)
    upstream = torch.randn(4, 5, layer.out_features, generator=generator)
    stack.begin_step(given_for_routers(stack, share))
    wanted = (inputs, layer.A, layer.B, layer.router)
    found = torch.autograd.grad(layer(inputs), wanted, upstream)
    x, a, b, router = (each.detach().double().requires_grad_() for each in wanted)
    rows = x.view(2, 10, -1)
    mixed = []
    for slot, maps in enumerate(stack.lora.maps):
        gates = torch.softmax(rows[slot] @ router[slot, :, : maps.count], dim=-1)
        weights = share * gates + (1 - share) / maps.count
        own = b[slot].view(NUM_EXPERTS, -1, layer.out_features)[: maps.count]
        low = layer.scaling[slot] * rows[slot] @ a[slot]
        mixed.append(torch.einsum("tk,tr,kro->to", weights, low, own))
    output = x @ layer.base.weight.double().T + torch.stack(mixed).view(4, 5, -1)
    expected = torch.autograd.grad(output, (x, a, b, router), upstream.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)
    assert found[3][0].abs().max() > 0.1


def test_routers_begin_with_numbers_of_the_runs_seed() -> None:
    stack, drawn = new_stack(routed=True), []
    for seed, routed in ((1, True), (2, True), (1, True), (1, False)):
        stack.configure(0, LORA, {"maps": Maps(NUM_EXPERTS, routed=routed)})
        stack.initialise(0, seed)
        views = stack.groups["lora"].views(stack.groups["lora"].weights[0].clone())
        drawn.append(
            {
                n: torch.cat([w.flatten() for p, w in views.items() if p.endswith(n)])
                for n in (".A", ".router")
            }
        )
    assert torch.equal(drawn[0][".router"], drawn[2][".router"])
    assert not torch.equal(drawn[0][".router"], drawn[1][".router"])
    assert drawn[0][".router"].unique().numel() > 100
    assert not drawn[3][".router"].any()
    assert torch.equal(drawn[0][".A"], drawn[3][".A"]), "a router takes no numbers of A's"


def test_shares_of_routers_and_maps_sum_to_one_also_where_there_is_room_for_more() -> None:
    stack = new_stack(NUM_EXPERTS + 2, routed=True)
    course = course_of(run(1, stack, "learned"))
    for step in (0, 3, course.num_steps - 1):
        at = course.step(step)
        values = course.values(at, course.rows(at, [0, 1, 2, 0]))
        mix = np.asarray(values[MIX])
        assert mix.sum(-1) + values[ROUTED] == pytest.approx(np.ones(mix.shape[:-1]))
        assert not mix[..., NUM_EXPERTS:].any()


def test_routers_work_where_a_layer_sees_all_rows_at_once() -> None:
    """The shared expert of a mixture of experts, without dropout in any slot."""
    lora = LORA.model_copy(update={"lora_dropout": 0.0, "target_modules": ("all-linear",)})
    maps = Maps(NUM_EXPERTS, routed=True)
    stack = AdapterStack(tiny_architecture("qwen2_moe"), lora=[lora] * 2, maps=maps)
    made = replace(run(1, stack, "learned"), lora=lora)
    cohort = Cohort(stack, [made, replace(made, name="other", seed=2)], DATA)
    reports = [report for steps in cohort.steps() for report in steps]
    assert all(np.isfinite(report.loss) and not report.skipped for report in reports)


@torch.no_grad()
def test_a_router_without_a_share_leaves_the_mean() -> None:
    stack = routed_stack()
    stack.begin_step(given_for_routers(stack, 0.0))
    faded = stack.hidden(TOKENS)
    stack.begin_step(given_for_routers(stack, 1.0))
    routed = stack.hidden(TOKENS)
    stack.rest()
    with stack.evaluating("off"):
        mean = stack.hidden(TOKENS)
    torch.testing.assert_close(faded, mean, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(routed, mean, rtol=1e-2)


def test_routing_fades_and_has_faded_when_a_run_ends() -> None:
    course = course_of(run(1, new_stack(routed=True), "learned", annealing_ratio=0.5))
    shares = [course.routed_share(step) for step in range(course.num_steps)]
    half = course.num_steps // 2
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1 - 1 / half)
    assert all(share > 0 for share in shares[: half - 1])
    assert not any(shares[half - 1 :])
    to_the_end = course_of(run(1, new_stack(routed=True), "learned", annealing_ratio=1.0))
    assert to_the_end.routed_share(to_the_end.num_steps - 1) == 0
    assert course.logged(course.step(0)) == {"routed_share": shares[0]}
    assert course_of(run(1, new_stack())).logged(course.step(0)) == {}
    with pytest.raises(ValueError, match="greater than 0"):
        ExpertsSettings(routing="learned", annealing_ratio=0)


def course_of(made: Run) -> ExpertsCourse:
    course = made.method.course(made, DATA)
    assert isinstance(course, ExpertsCourse)
    return course


def test_routers_learn_and_are_gone_at_the_end() -> None:
    stack = new_stack(routed=True)
    cohort = Cohort(stack, [run(1, stack, "learned"), lora_run(2)], DATA)
    steps = cohort.steps()
    next(steps)
    routers = {p: stack.lora._master(p, "router").clone() for p in stack.lora.layers}
    for _ in range(4):
        next(steps)
    for path, before in routers.items():
        now = stack.lora._master(path, "router")
        assert not torch.equal(now[0], before[0])
        assert not now[1].any(), "the neighbour has none"
    list(steps)
    cohort.seat(["experts-1", "lora-2"])
    for path in stack.lora.layers:
        assert not stack.lora._master(path, "router").any()
        assert not stack.lora._all_maps(path, 0)[1:].any()


def test_routers_are_counted_among_the_trained_weights() -> None:
    stack = new_stack(routed=True)
    sizes = [layer.in_features for layer in stack.lora.layers.values()]
    drawn = stack.num_weights("lora", LORA, {"maps": Maps(NUM_EXPERTS)})
    learned = stack.num_weights("lora", LORA, {"maps": Maps(NUM_EXPERTS, routed=True)})
    assert learned == drawn + NUM_EXPERTS * sum(sizes)


@pytest.mark.parametrize("routing", ["random", "hash"])
def test_a_second_pass_uses_other_experts(routing: str) -> None:
    stack = new_stack(passes=2)
    course = course_of(run(1, stack, routing, consistency_weight=0.5))
    at = course.step(3)
    values = course.values(at, course.rows(at, [0, 1, 2, 0]))
    assert values["consistency_weight"] == 0.5
    first, second = np.asarray(values[MIX]), np.asarray(values[NEXT_MIX])
    assert first.shape == second.shape
    assert not np.array_equal(first, second)
    plain = course_of(run(1, stack, routing)).values(at, course.rows(at, [0, 1, 2, 0]))
    assert np.array_equal(np.asarray(plain[MIX]), first)
    assert NEXT_MIX not in plain


@pytest.mark.parametrize("routing", ["random", "hash"])
def test_the_loss_gains_what_two_passes_differ_by(
    routing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step's loss and gradient norm against autograd on both passes' whole logits."""
    weight, plain = 0.7, LORA.model_copy(update={"lora_dropout": 0.0})
    stack = new_stack(passes=2)
    made = run(1, stack, routing, consistency_weight=weight)
    train = made.train.model_copy(update={"loss_weighting": "token"})
    expected: list[tuple[float, float]] = []

    def watched(training: Training, kind: Kind, given: StepInput, states: None) -> torch.Tensor:
        assert kind.passes == 2
        expected.append(_first_slots_loss(stack, given, weight))
        return train_step(training, kind, given, states)

    monkeypatch.setattr("schemabank.engine.cohort.train_step", watched)
    cohort = Cohort(stack, [replace(made, train=train, lora=plain)], DATA)
    reports = [report for steps in cohort.steps() for report in steps]
    for report, (total, norm) in zip(reports, expected, strict=True):
        assert report.total_loss == pytest.approx(total, rel=1e-5)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
    assert len({report.total_loss / report.loss for report in reports}) > len(reports) / 2


def _first_slots_loss(stack: AdapterStack, given: StepInput, weight: float) -> tuple[float, float]:
    """The first slot's loss with the weighted divergence of two passes, and its gradient's norm."""
    batch, logits = given.batch, []
    group = stack.groups["lora"]
    group.require_grad(True)
    for name in (MIX, NEXT_MIX):
        stack.begin_step(StepInput(batch, {**given.fields, MIX: given[name]}))
        hidden = stack.hidden(batch.tokens).unflatten(0, (2, -1))[0]
        at = batch.positions[0][..., None].expand(-1, -1, hidden.shape[-1])
        logits.append(stack.model.lm_head(hidden.gather(1, at)).log_softmax(-1))
    first, second = logits
    entropy = -first.gather(-1, batch.labels[0][..., None])[..., 0]
    divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2
    weights = batch.weights[0]
    mean = (weights * (entropy + weight * divergence)).sum() / weights.sum()
    total = given["loss_scale"][0] * mean
    grads = torch.autograd.grad(total, list(group.parameters.values()))
    stack.rest()
    return total.item(), torch.cat([grad.flatten() for grad in grads]).norm().item()


def test_a_second_pass_drops_other_features() -> None:
    lora = LORA.model_copy(update={"lora_dropout": 0.5})
    stack = AdapterStack(tiny_model("llama"), lora=[lora] * 2)
    for slot in range(2):
        stack.initialise(slot, seed=slot)
    weights = stack.groups["lora"].weights
    weights.copy_(torch.randn(weights.shape, generator=torch.Generator().manual_seed(0)))
    given = step_input([(1, 0), (2, 0)])
    given = StepInput(given.batch, {**given.fields, "adapter_strength": torch.ones(2, 3)})
    with torch.no_grad():
        stack.begin_step(given)
        first = stack.hidden(TOKENS)
        stack.next_pass(given)
        second = stack.hidden(TOKENS)
        stack.begin_step(given)
        assert torch.equal(stack.hidden(TOKENS), first)
    assert not torch.allclose(first, second, rtol=1e-2)


def test_two_passes_that_are_the_same_are_refused() -> None:
    run_config = RunConfig(
        arm="experts",
        lora={"lora_dropout": 0},
        experts={"routing": "learned", "consistency_weight": 1},
    )
    stack = new_stack()
    with pytest.raises(InputError, match=r"experts\.consistency_weight is 1.*dropout"):
        Experts().check(run_config, Setup(DATA.examples, stack, DATA.tokenizer))
    for changes in ({"lora": {"lora_dropout": 0.1}}, {"experts": {"consistency_weight": 1}}):
        allowed = RunConfig.model_validate({**run_config.model_dump(), **changes})
        Experts().check(allowed, Setup(DATA.examples, stack, DATA.tokenizer))


@pytest.mark.parametrize(("max_steps", "ratio"), [(1, 1.0), (4, 0.25)])
def test_routers_that_would_fade_within_the_first_step_are_refused(
    max_steps: int, ratio: float
) -> None:
    setup = Setup(DATA.examples, new_stack(), DATA.tokenizer)

    def made(routing: str, steps: int) -> RunConfig:
        experts = {"routing": routing, "annealing_ratio": ratio}
        return RunConfig(arm="experts", experts=experts, train={"max_steps": steps})

    with pytest.raises(InputError, match=rf"annealing_ratio is {ratio:g} of {max_steps} steps"):
        Experts().check(made("learned", max_steps), setup)
    Experts().check(made("learned", max_steps + 1), setup)
    Experts().check(made("random", max_steps), setup)


def test_one_expert_is_no_mixture() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        ExpertsSettings(num_experts=1)
