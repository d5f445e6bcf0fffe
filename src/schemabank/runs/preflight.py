"""What a user should see before any compute is spent: an example as the loss sees it, and sizes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise
from statistics import fmean

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemabank.config.methods import METHODS
from schemabank.config.settings import RunConfig
from schemabank.engine.batches import Encoded
from schemabank.engine.planner import times_products
from schemabank.engine.run import TrainingData
from schemabank.engine.seating import CACHED_COST
from schemabank.engine.stack import AdapterStack, slices_of
from schemabank.methods import method_of
from schemabank.models.architecture import hidden_size
from schemabank.tasks import Item

QUANTILES = (0, 25, 50, 75, 95, 100)
EFFICIENCY = 0.4  # share of the measured matrix-product rate that a training step reaches
# What Python and PyTorch take for each operation decides the time of a small model on a CPU. On
# tiny ones, a step with an adapter takes as long as 600 to 900 operations a block, one with a bank
# as long as 2,000. A GPU replays a graph instead, and none of this is left.
BLOCK_OPERATIONS = 1000
START_OPERATIONS = 50_000  # what the first step of a process takes longer than another, in these
CHAIN = 10  # links of a chain of small operations that is measured
LINK_OPERATIONS = 3  # in a link, each with its backward pass
PROBES = 3  # left out: the first few are slow
PROBE_S = 0.2  # long enough to be interrupted as often as training will be
PROBE_SIZES = {"cuda": (4096,), "cpu": (256, 512, 1024)}
PROBE_LONG_S = 0.5  # a larger product that is expected to take as long is left out
GIB = 2**30
TRAINED_BYTES = 20  # a weight in float32, its gradient, its two moments, and room for a copy
AVERAGE_BYTES = 4  # the mean of a weight over the steps
SLICE_BYTES = 8  # a weight before a step, and what it adds to the score of its slice
MUON_BYTES = 16  # a weight's momentum, the same by shape, the update made of it, and the new weight
SOFT_BYTES = 8  # a token and its share, in a label's soft target
MEMORY_SHARE = 0.6  # of a GPU's free memory, for slots; cached states take most of the rest


@dataclass(frozen=True)
class Estimate:
    """The estimated time and memory of a cohort's training."""

    memory_gib: float
    time_s: float


def describe_data(data: TrainingData, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return lines on one example, lengths, cuts and padding."""
    # One pass, since each reads what lies in a file anew.
    sizes = ((len(e.tokens), e.cut) for e in data.encoded)
    lengths, cut = np.fromiter(sizes, np.dtype((np.int64, 2)), len(data.encoded)).T
    quantiles = np.percentile(lengths, QUANTILES).astype(int)
    schedule = data.schedule
    widths = ", ".join(str(b.width) for b in schedule.buckets)
    named = ", ".join(f"{q}%: {v}" for q, v in zip(QUANTILES, quantiles, strict=True))
    padding = schedule.padding_ratio(int(lengths.sum()))
    return [
        *describe_example(data.encoded[0], tokenizer),
        f"tokens an example: {named}; {cut.sum()} of {len(lengths)} cut",
        f"batches: {schedule.batch_size} x {{{widths}}} tokens, "
        f"{schedule.steps_per_epoch} steps an epoch, {padding:.1%} padding",
    ]


def describe_example(example: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Show where the loss begins and how the text ends, told by position."""
    last = tokenizer.convert_ids_to_tokens([example.tokens[-1]])[0]
    is_end = example.tokens[-1] == tokenizer.eos_token_id
    shown = []
    bounds = [0, example.label_start, *chain(*example.gaps), len(example.tokens)]
    for index, (start, stop) in enumerate(pairwise(bounds)):
        text = tokenizer.decode(list(example.tokens[start:stop]))
        said = "loss on {} tokens: " if index % 2 else "no loss on {} tokens:"
        shown += [f"  {said.format(stop - start)} {text!r}"] * (stop > start)
    return [
        f"example {example.id}:",
        *shown,
        f"  last token {last!r}, " + ("the end token" if is_end else "no end token"),
    ]


def estimate(
    stack: AdapterStack,
    data: TrainingData,
    num_steps: tuple[int, int],
    runs: Sequence[RunConfig],
    *,
    validation: Sequence[Item] = (),
) -> Estimate:
    """Estimate peak memory and training time of a cohort from shapes and a short measurement.

    The time is that of training alone: compiling for a GPU, evaluation, and the comparison with
    stock PEFT come on top.

    Args:
        stack: of the cohort.
        data: the training examples.
        num_steps: with the base model's trunk, and others.
        runs: of the cohort, in the order in which they train.
        validation: items by which the scales of their adapters are chosen.
    """
    model = stack.model
    schedule = data.schedule
    rows = schedule.batch_size * stack.num_slots
    shapes = np.array([data.shape_of(bucket, 0) for bucket in schedule.buckets])
    shapes = shapes[np.asarray(schedule.order(0))]  # of every step of an epoch
    positions, labels = rows * shapes.mean(0)  # of a step
    head = model.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for block in stack.blocks for p in block.parameters())
    bytes_frozen = sum(p.numel() * p.element_size() for p in model.parameters())
    passes = stack.lora.passes
    flop = 4 * passes * (blocks * positions + head * labels)
    asked = sum(len(item.prompt_tokens) + len(item.target_tokens) for item in validation)
    answered = sum(len(item.target_tokens) for item in validation)
    choices = 2 * _num_trials(runs, stack.num_slots) * (blocks * asked + head * answered)
    whole_steps = CACHED_COST * num_steps[0] + num_steps[1]
    bytes_activations = passes * _activation_bytes(model, rows * int(shapes[:, 0].max()))
    bytes_targets = stack.num_slots * _target_bytes(data, runs)
    bytes_of_slots = _trained_bytes(stack, runs) + bytes_activations + bytes_targets
    return Estimate(
        memory_gib=(bytes_frozen + bytes_of_slots) / GIB,
        time_s=expected_s(whole_steps * flop * _times_products(stack) + choices, model)
        + passes * whole_steps * len(stack.blocks) * BLOCK_OPERATIONS * _operation_s(model)
        + (sum(num_steps) > 0) * START_OPERATIONS * _operation_s(model),
    )


def expected_s(num_operations: float, model: PreTrainedModel) -> float:
    """Estimate the time of a model's operations in matrix products, forwards and backwards."""
    return num_operations / (EFFICIENCY * _matrix_rate(model))


def _times_products(stack: AdapterStack) -> float:
    """How many times as long as its products a step takes, but for what BLOCK_OPERATIONS counts."""
    return 1.0 if stack.model.device.type == "cpu" else times_products(stack.num_slots)


def usual_s(compute: Callable[[], torch.Tensor]) -> float:
    """Measure the time of a computation, the device's part included: the mean of many.

    On a busy machine that is longer than the shortest, as it will be for all that follows.
    """
    took: list[float] = []
    while len(took) <= PROBES or sum(took[PROBES:]) < PROBE_S:
        began = time.perf_counter()
        compute().flatten()[0].item()
        took.append(time.perf_counter() - began)
    return fmean(took[PROBES:])


def slots_that_fit(stack: AdapterStack, data: TrainingData, runs: Sequence[RunConfig]) -> int:
    """Estimate how many slots a GPU's free memory has room for, from a stack of one."""
    widest = max(bucket.width for bucket in data.schedule.buckets) * data.schedule.batch_size
    activations = stack.lora.passes * _activation_bytes(stack.model, widest)
    per_slot = _trained_bytes(stack, runs) + activations + _target_bytes(data, runs)
    free, _ = torch.cuda.mem_get_info(stack.model.device)
    return max(1, int(MEMORY_SHARE * free / per_slot))


def _trained_bytes(stack: AdapterStack, runs: Sequence[RunConfig]) -> int:
    """What training keeps of weights; all slots have room for what one run needs."""
    averages = any(r.averaging.kind != "none" or METHODS[r.arm].ends_as_mean for r in runs)
    has_slices = any(slices_of(method_of(run).settings(run)) > 1 for run in runs)
    has_muon = any(run.train.optimizer == "muon" for run in runs)
    of_adapter = averages * AVERAGE_BYTES + has_slices * SLICE_BYTES + has_muon * MUON_BYTES
    return sum(
        group.weights.numel() * (TRAINED_BYTES + (name in stack.lora.groups) * of_adapter)
        for name, group in stack.groups.items()
    )


def _target_bytes(data: TrainingData, runs: Sequence[RunConfig]) -> int:
    """The soft targets of a slot: each bucket's program has its own, and widens one's tokens."""
    width = max((run.distill.top_k for run in runs if run.num_teachers), default=0)
    labels = [bucket.num_labels for bucket in data.schedule.buckets]
    return SOFT_BYTES * width * data.schedule.batch_size * (sum(labels) + max(labels))


def _num_trials(runs: Sequence[RunConfig], slots: int) -> int:
    """How often slots, all of them at once, compute a likelihood of the validation split."""
    parts = (runs[first : first + slots] for first in range(0, len(runs), slots))
    return slots * sum(max(len(run.rescale.factors) for run in part) for part in parts)


def _activation_bytes(model: PreTrainedModel, positions: int) -> int:
    """Activations that a backward pass keeps: about 16 hidden and 4 MLP widths a block."""
    config = model.config.get_text_config(decoder=True)
    inner = getattr(config, "intermediate_size", None) or 0  # one a block in some models
    widest = max(inner) if isinstance(inner, list) else inner
    width = 16 * hidden_size(model) + 4 * widest
    size = next(model.parameters()).element_size()
    return int(positions * config.num_hidden_layers * width * size)


def _matrix_rate(model: PreTrainedModel) -> float:
    """Measured operations a second of a matrix product in the model's number type."""
    weight = next(model.parameters())
    return _measured_rate(weight.device, weight.dtype)


def _operation_s(model: PreTrainedModel) -> float:
    """Measured time of a small operation with its backward pass; nothing on a GPU."""
    return _measured_operation_s() if model.device.type == "cpu" else 0.0


@lru_cache
def _measured_operation_s() -> float:
    weight, start = torch.ones(8, 8), torch.ones(2, 8, requires_grad=True)

    def compute() -> torch.Tensor:
        hidden = start
        for _ in range(CHAIN):
            hidden = torch.nn.functional.linear(hidden, weight) * 0.1 + start
        (gradient,) = torch.autograd.grad(hidden.sum(), start)
        return gradient

    with torch.enable_grad():
        return usual_s(compute) / (CHAIN * LINK_OPERATIONS)


@lru_cache  # a suite has many cohorts, and all of them are on one device
def _measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Of the probe with the highest; the largest are left out where they take long.

    Processors without instructions for bfloat16 take seconds for the largest. A small one takes
    longer to be called than to be computed.
    """
    rate = 0.0
    for size in PROBE_SIZES[device.type]:
        if rate and 2 * size**3 / rate > PROBE_LONG_S:
            break
        a = torch.ones(size, size, dtype=dtype, device=device)
        rate = max(rate, 2 * size**3 / usual_s(partial(torch.matmul, a, a)))
    return rate
