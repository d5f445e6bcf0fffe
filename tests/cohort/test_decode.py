from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from cohorts import BANK
from schemabank.bank import Routing
from schemabank.cohort.decode import Completion, greedy
from schemabank.cohort.stack import AdapterStack
from schemabank.config import LoraSettings
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
LORA = [LoraSettings(r=4, lora_alpha=10), LoraSettings(r=2, lora_alpha=7), LoraSettings(r=4)]
PROMPTS = [[5, 9], list(range(20, 47)), [7], [200, 3, 150, 3, 80, 11, 60], list(range(90, 99))]
LIMIT = 12


def stacked(kind: Kind, *, sliding_window: int | None = None) -> AdapterStack:
    """Three slots with large random adapters and banks. float64: rounding flips no argmax."""
    model = tiny_model(kind)
    if sliding_window is not None:
        model.config.sliding_window = sliding_window
        for block in model.get_decoder().layers:
            if block.self_attn.sliding_window is not None:
                block.self_attn.sliding_window = sliding_window
    stack = AdapterStack(model.double(), lora=LORA, bank=BANK)
    for bank in stack.banks.banks.values():
        bank.double()
    generator = torch.Generator().manual_seed(1)
    for slot in range(len(LORA)):
        stack.initialise(slot, slot)
        tensors = {
            path: (a, torch.randn(b.shape, generator=generator) * 0.3)
            for path, (a, b) in stack.lora_tensors(slot).items()
        }
        stack.load_lora(slot, tensors)
        banks = stack.bank_tensors(slot)
        stack.load_bank(slot, {name: 3 * values for name, values in banks.items()})
    return stack


def own_model(stack: AdapterStack, slot: int, kind: Kind, routing: Routing) -> PreTrainedModel:
    """A slot's model by itself: the adapter merged into plain weights, the bank of one slot."""
    model = tiny_model(kind).double()
    model.config.sliding_window = getattr(stack.model.config, "sliding_window", None)
    for own, other in zip(
        model.get_decoder().layers, stack.model.get_decoder().layers, strict=True
    ):
        own.self_attn.sliding_window = getattr(other.self_attn, "sliding_window", None)
    settings = stack.lora_settings[slot]
    for path, (a, b) in stack.lora_tensors(slot).items():
        update = b.double() @ a.double() * (settings.lora_alpha / settings.r)
        model.get_submodule(path).weight.data += update
    if routing != "off":
        alone = AdapterStack(model, lora=[LORA[0]], bank=BANK)
        for bank in alone.banks.banks.values():
            bank.double()
        alone.load_bank(0, stack.bank_tensors(slot))
        alone.banks.routing = routing
    return model


def naive(model: PreTrainedModel, prompt: list[int]) -> Completion:
    """One prompt, the whole text anew for every token: no cache, no padding, no end."""
    tokens: list[int] = []
    for _ in range(LIMIT):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return Completion(tokens=tokens, stop_reason="length")


def ended(done: Completion, end: int) -> Completion:
    """The same completion where ``end`` is an end token."""
    if end not in done.tokens:
        return done
    return Completion(tokens=done.tokens[: done.tokens.index(end)], stop_reason="end_token")


def spread_end_token(completions: list[list[Completion]]) -> int:
    """The token whose first places in the completions differ most, but is missing in some."""
    rows = [done.tokens for slot in completions for done in slot]
    places = {
        token: Counter(row.index(token) for row in rows if token in row)
        for token in {token for row in rows for token in row}
    }
    partial = {t: p for t, p in places.items() if p.total() < len(rows)}
    return max(partial, key=lambda token: (len(partial[token]), partial[token].total(), token))


def batch_sizes(stack: AdapterStack) -> list[int]:
    """The number of rows of every forward pass from now on."""
    sizes: list[int] = []
    stack.model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


@pytest.mark.parametrize("routing", ["off", "on", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_decodes_as_its_own_model_without_cache_or_padding(
    kind: Kind, routing: Routing
) -> None:
    stack = stacked(kind)
    models = [own_model(stack, slot, kind, routing) for slot in range(len(LORA))]
    unended = [[naive(model, prompt) for prompt in PROMPTS] for model in models]
    end = spread_end_token(unended)
    expected = [[ended(done, end) for done in slot] for slot in unended]
    assert len({len(d.tokens) for slot in expected for d in slot}) > 1, "rows end at odd times"
    with stack.evaluating(routing):
        assert greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[]) == unended
        assert greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[end]) == expected
    assert unended[0] != unended[1] != unended[2], "slots have adapters of their own"


def test_a_sliding_window_shorter_than_the_text_changes_nothing() -> None:
    stack = stacked("gemma3", sliding_window=8)
    wide = stacked("gemma3")
    models = [own_model(stack, slot, "gemma3", "on") for slot in range(len(LORA))]
    expected = [[naive(model, prompt) for prompt in PROMPTS] for model in models]
    with stack.evaluating("on"):
        completions = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[])
    assert completions == expected
    with wide.evaluating("on"):
        assert greedy(wide, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[]) != expected


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_decodes_as_transformers_generates(kind: Kind) -> None:
    stack = AdapterStack(tiny_model(kind), lora=LORA[:2], bank=None)
    for slot in range(2):
        stack.initialise(slot, slot)
    with stack.evaluating("off"):
        unended = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[])
        end = spread_end_token(unended)
        completions = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[end])
    plain = tiny_model(kind)
    for prompt, done in zip(PROMPTS, completions[0], strict=True):
        tokens = torch.tensor([prompt])
        generated = plain.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=LIMIT,
            eos_token_id=end,
            pad_token_id=end,
        )[0, len(prompt) :].tolist()
        assert generated == done.tokens + [end] * (done.stop_reason == "end_token")
    assert completions[0] == completions[1]


def test_rows_that_ended_leave_the_batch_of_every_slot_alike() -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        unended = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[])
        ends = sorted({done.tokens[2] for slot in unended for done in slot})
        expected = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=ends)
        sizes = batch_sizes(stack)
        assert greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=ends) == expected
    assert sizes[0] == len(LORA) * len(PROMPTS)
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == max(d.num_new_tokens for slot in expected for d in slot) <= 3
    assert all(size % len(LORA) == 0 for size in sizes)


def test_rows_shrink_to_those_still_going() -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        unended = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[])
        end = spread_end_token(unended)
        sizes = batch_sizes(stack)
        completions = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[end])
    going = max(sum(d.stop_reason == "length" for d in slot) for slot in completions)
    assert sizes[-1] <= len(LORA) * len(PROMPTS)
    assert (sizes[-1] < sizes[0]) == (going <= 0.75 * len(PROMPTS))


def test_the_end_token_counts_as_new_and_is_no_text() -> None:
    assert Completion(tokens=[4, 5], stop_reason="end_token").num_new_tokens == 3
    assert Completion(tokens=[4, 5], stop_reason="length").num_new_tokens == 2
    stack = stacked("llama")
    with stack.evaluating("on"):
        (first, *_), *_ = greedy(stack, PROMPTS[:1], max_new_tokens=LIMIT, end_token_ids=[])
        (at_once, *_), *_ = greedy(
            stack, PROMPTS[:1], max_new_tokens=LIMIT, end_token_ids=first.tokens[:1]
        )
    assert (at_once.tokens, at_once.stop_reason, at_once.num_new_tokens) == ([], "end_token", 1)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_length_limit_is_exact(limit: int) -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        whole = greedy(stack, PROMPTS, max_new_tokens=LIMIT, end_token_ids=[])
        sizes = batch_sizes(stack)
        cut = greedy(stack, PROMPTS, max_new_tokens=limit, end_token_ids=[])
    assert len(sizes) == limit, "no forward pass whose token nobody wants"
    for slot, slot_whole in zip(cut, whole, strict=True):
        for done, full in zip(slot, slot_whole, strict=True):
            assert done == Completion(tokens=full.tokens[:limit], stop_reason="length")
