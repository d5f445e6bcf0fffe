"""What a user sees before any compute is spent: estimates of the right order, from shapes alone."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from cohorts import BANK, LORA, bank_run, cohort, data, lora_run, with_banks
from schemabank.config.settings import RunConfig
from schemabank.config.train import AverageSettings
from schemabank.engine.planner import times_products
from schemabank.engine.run import Run
from schemabank.engine.stack import AdapterStack
from schemabank.runs import preflight
from schemabank.runs.preflight import Estimate, describe_data, estimate, slots_that_fit
from schemabank.tasks import Item
from tiny import tiny_model


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a million operations a second, on which Python takes no time."""
    monkeypatch.setattr(preflight, "_matrix_rate", lambda _model: 1e6)
    monkeypatch.setattr(preflight, "_operation_s", lambda _model: 0.0)


def of_slots(num_slots: int, num_steps: tuple[int, int]) -> Estimate:
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * num_slots, attach=with_banks(BANK))
    return estimate(stack, data(), num_steps, [])


def test_time_grows_with_steps_and_slots() -> None:
    one = of_slots(1, (0, 100))
    assert of_slots(1, (0, 200)).time_s == pytest.approx(2 * one.time_s)
    assert of_slots(1, (100, 100)).time_s == pytest.approx(1.3 * one.time_s)
    assert 3 * one.time_s < of_slots(4, (0, 100)).time_s < 5 * one.time_s
    assert of_slots(4, (0, 1)).memory_gib > of_slots(1, (0, 1)).memory_gib > 0


def test_time_is_that_of_the_models_products_at_real_shapes() -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LORA])
    training = data()
    schedule = training.schedule
    flop = 0
    for bucket in schedule.order(0):
        width, labels = schedule.buckets[bucket].width, schedule.buckets[bucket].num_labels
        blocks = sum(p.numel() for block in stack.blocks for p in block.parameters())
        head = stack.model.get_output_embeddings().weight.numel()
        flop += 4 * schedule.batch_size * (blocks * width + head * labels)
    found = estimate(stack, training, (0, schedule.steps_per_epoch), [])
    assert found.time_s == pytest.approx(flop / 0.4e6)


@pytest.mark.parametrize(
    ("changes", "num_bytes"),
    [({"average": {"kind": "bema"}}, 4), ({"train": {"optimizer": "muon"}}, 16)],
    ids=["average", "muon"],
)
def test_what_an_adapters_weight_takes_beside_adamws_bytes(
    changes: dict[str, object], num_bytes: int
) -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 2, attach=with_banks(BANK))
    plain = RunConfig(arm="schemabank")
    larger = RunConfig.model_validate({"arm": "schemabank", **changes})
    without, with_one = (
        estimate(stack, data(), (0, 1), [plain, other]).memory_gib for other in (plain, larger)
    )
    of_adapter = sum(stack.groups[name].weights.numel() for name in stack.lora.groups)
    assert with_one - without == pytest.approx(num_bytes * of_adapter / preflight.GIB)


def test_slices_take_eight_bytes_for_each_weight_of_the_adapter() -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 2, attach=with_banks(BANK))
    without, with_slices = (
        estimate(stack, data(), (0, 1), [RunConfig(arm="lora"), RunConfig(arm=arm)]).memory_gib
        for arm in ("lora", "molf")
    )
    of_adapter = sum(stack.groups[name].weights.numel() for name in stack.lora.groups)
    assert with_slices - without == pytest.approx(8 * of_adapter / preflight.GIB)


def test_fewer_slots_fit_where_an_average_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_activation_bytes", lambda *_: 0)
    stack = AdapterStack(tiny_model("llama"), lora=[LORA])
    num_weights = sum(group.weights.numel() for group in stack.groups.values())
    free = 10 * 20 * num_weights / preflight.MEMORY_SHARE
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free + 1, free + 1))
    plain = RunConfig(arm="lora")
    averaged = plain.model_copy(update={"average": AverageSettings(kind="last")})
    assert slots_that_fit(stack, data(), [plain]) == 10
    assert slots_that_fit(stack, data(), [averaged]) == 8


def test_soft_targets_of_every_bucket_take_room_in_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 2)
    taught = RunConfig.model_validate({"arm": "lora", "distill": {"teachers": 2, "top_k": 1024}})
    untrained = taught.model_copy(update={"arm": "base"})
    plain, same, more = (
        estimate(stack, data(), (0, 1), [run]).memory_gib
        for run in (RunConfig(arm="lora"), untrained, taught)
    )
    labels = [bucket.num_labels for bucket in data().schedule.buckets]
    num_bytes = 2 * data().schedule.batch_size * 1024 * 8 * (sum(labels) + max(labels))
    assert more - plain == pytest.approx(num_bytes / preflight.GIB)
    assert same == plain
    free = 40 * num_bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    one = AdapterStack(tiny_model("llama"), lora=[LORA])
    assert slots_that_fit(one, data(), [taught]) < slots_that_fit(one, data(), [untrained])


def test_a_choice_of_scales_takes_a_pass_of_the_validation_split_at_every_factor() -> None:
    """Five runs in two slots: three parts, each as long as its longest choice."""
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 2)
    runs = [
        RunConfig.model_validate({"arm": "lora", "rescale": {"factors": factors}})
        for factors in ([0.5, 2], [0.5], [], [], [0.5])
    ]
    tokens = (1,) * 30
    item = Item("1", "all", "", tokens, tokens[:10], ("1",))
    plain, chosen = (
        estimate(stack, data(), (0, 9), runs, validation=items).time_s for items in ([], [item] * 3)
    )
    blocks = sum(p.numel() for block in stack.blocks for p in block.parameters())
    head = stack.model.get_output_embeddings().weight.numel()
    flop = 2 * 2 * (3 + 0 + 2) * 3 * (40 * blocks + 10 * head)
    assert chosen - plain == pytest.approx(flop / 0.4e6)


def test_each_step_of_small_operations_takes_a_while_and_the_first_takes_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = of_slots(1, (10, 100)).time_s
    monkeypatch.setattr(preflight, "_operation_s", lambda _model: 1e-6)
    blocks = len(AdapterStack(tiny_model("llama"), lora=[LORA]).blocks)
    more = (0.3 * 10 + 100) * blocks * 1000e-6 + 0.05
    assert of_slots(1, (10, 100)).time_s == pytest.approx(plain + more)
    assert of_slots(1, (0, 0)).time_s == 0


def test_a_graph_on_a_gpu_takes_no_time_for_small_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert 1e-7 < preflight._operation_s(tiny_model("llama")) < 1e-2
    assert preflight._operation_s(tiny_model("llama").to("meta")) == 0


def test_few_slots_do_not_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of n slots takes as long as the products of n + 4."""
    stack = AdapterStack(tiny_model("llama"), lora=[LORA] * 8)
    on_a_cpu = estimate(stack, data(), (0, 10), []).time_s
    monkeypatch.setattr(preflight, "_times_products", lambda stack: times_products(stack.num_slots))
    assert estimate(stack, data(), (0, 10), []).time_s == pytest.approx(on_a_cpu * 12 / 8)


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("meta", 1.5)])
def test_only_a_gpu_waits_for_small_operations(device: str, times: float) -> None:
    model = SimpleNamespace(device=torch.device(device))
    stack = cast(AdapterStack, SimpleNamespace(model=model, num_slots=8))
    assert preflight._times_products(stack) == times


@pytest.mark.alone
@pytest.mark.parametrize("make", [lora_run, bank_run])
@pytest.mark.parametrize("num_runs", [1, 4])
def test_a_short_training_takes_about_as_long_as_expected(
    make: Callable[..., Run], num_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of four in one of five tries; other programs may interrupt either part."""
    monkeypatch.undo()
    ratios = list[float]()
    for _ in range(5):
        trained = cohort([make(i, max_steps=40) for i in range(num_runs)], data(num_orders=1))
        expected = estimate(trained.stack, trained.data, trained.steps_to_come, []).time_s
        began = time.perf_counter()
        for _ in trained.steps():
            pass
        ratios.append(expected / (time.perf_counter() - began))
        if 1 / 4 < ratios[-1] < 4:
            return
    pytest.fail(f"expected over taken: {ratios}")


def test_a_cohort_says_how_many_steps_of_which_cost_are_to_come() -> None:
    trained = cohort([bank_run(1, max_steps=10), lora_run(2, max_steps=4)], data(num_orders=1))
    assert trained.steps_to_come == (3, 7)
    assert trained.num_steps == 10


def test_the_measured_rate_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rate = preflight._matrix_rate(tiny_model("llama"))
    assert 1e8 < rate < 1e16


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        ((1e-4, 8e-4, 64e-4), 2 * 256**3 / 1e-4),
        ((0.013, 0.14, 3.0), 2 * 256**3 / 0.013),  # bfloat16 without instructions for it
        ((0.015, 0.015, 0.015), 2 * 1024**3 / 0.015),  # busy: what is waited is most of it
        ((1.0,), 2 * 256**3),
    ],
)
def test_the_rate_is_the_highest_of_products_that_do_not_take_long(
    seconds: tuple[float, ...], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(seconds)
    monkeypatch.setattr(preflight, "usual_s", lambda _compute: next(left))
    found = preflight._measured_rate.__wrapped__(torch.device("cpu"), torch.bfloat16)
    assert found == pytest.approx(rate)
    assert list(left) == ([3.0] if 3.0 in seconds else []), "the longest is left out"


def test_a_computation_is_measured_several_times() -> None:
    """The first few are slow; of the others, those that are interrupted count as well."""
    left = [0.3, 0.2, 0.2, *[0.001, 0.05] * 1000]

    def compute() -> torch.Tensor:
        time.sleep(left.pop(0))
        return torch.ones(1)

    assert 0.02 < preflight.usual_s(compute) < 0.15


def test_lengths_cuts_and_padding_are_told() -> None:
    training = data()
    cut = replace(training, encoded=[replace(e, cut=i < 2) for i, e in enumerate(training.encoded)])
    lines = "\n".join(describe_data(cut, training.tokenizer))
    assert "2 of 22 cut" in lines
    assert f"{training.schedule.steps_per_epoch} steps an epoch" in lines
    assert "no loss on" in lines


def test_a_step_of_two_passes_takes_twice_the_time_and_more_memory() -> None:
    one, two = (
        estimate(AdapterStack(tiny_model("llama"), lora=[LORA], passes=passes), data(), (0, 9), ())
        for passes in (1, 2)
    )
    assert two.time_s == pytest.approx(2 * one.time_s)
    assert two.memory_gib > one.memory_gib
