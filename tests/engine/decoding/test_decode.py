import gc
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cohorts import BANK, with_banks
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.decoding.decode import PACES, generate
from schemabank.engine.decoding.rowcache import (
    ROW_ATTENTION,
    DecodingRows,
    RowCache,
    RowLayer,
    row_attention,
)
from schemabank.engine.execute import Executor
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
LORA = [LoraSettings(r=4, lora_alpha=10), LoraSettings(r=2, lora_alpha=7), LoraSettings(r=4)]
PROMPTS = [[5, 9], list(range(20, 47)), [7], [200, 3, 150, 3, 80, 11, 60], list(range(90, 99))]
LIMIT = 12


class WarmingExecutor(Executor):
    """Runs a new program twice, as before a capture, and counts the programs."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), capture=False, explain=lambda _: None)
        self.num_programs = 0

    def program(self, function: Callable[[], Tensor], what: str = "") -> Callable[[], Tensor]:
        del what
        function()
        function()
        self.num_programs += 1
        return function


@pytest.fixture(params=["cpu", "cuda"])
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decoding at the pace of each device, on the CPU."""
    monkeypatch.setitem(PACES, "cpu", PACES[request.param])
    return str(request.param)


def decode(
    stack: AdapterStack,
    prompts: list[list[int]] = PROMPTS,
    *,
    limit: int = LIMIT,
    ends: tuple[int, ...] = (),
    batch_size: int = 9,
    executor: Executor | None = None,
) -> list[list[Completion]]:
    return generate(
        stack,
        prompts,
        max_new_tokens=limit,
        end_token_ids=ends,
        batch_size=batch_size,
        executor=executor,
    )


def stacked(kind: Kind, *, sliding_window: int | None = None) -> AdapterStack:
    """Three slots with large random adapters and banks. float64: rounding flips no argmax."""
    model = tiny_model(kind)
    if sliding_window is not None:
        set_window(model, sliding_window)
    stack = AdapterStack(model.double(), lora=LORA, attach=with_banks(BANK))
    for bank in banks_of(stack).banks.values():
        bank.double()
    generator = torch.Generator().manual_seed(1)
    for slot in range(len(LORA)):
        stack.initialise(slot, slot)
        tensors = {
            path: (a, torch.randn(b.shape, generator=generator) * 0.3)
            for path, (a, b) in stack.lora.tensors(slot).items()
        }
        stack.lora.load(slot, tensors)
        banks = banks_of(stack).tensors(slot)
        banks_of(stack).load(slot, {name: 3 * values for name, values in banks.items()})
    return stack


def set_window(model: PreTrainedModel, window: int) -> None:
    model.config.sliding_window = window
    for block in model.get_decoder().layers:
        if block.self_attn.sliding_window is not None:
            block.self_attn.sliding_window = window


def own_model(stack: AdapterStack, slot: int, kind: Kind, routing: Routing) -> PreTrainedModel:
    """A slot's model by itself: the adapter merged into plain weights, the bank of one slot."""
    model = tiny_model(kind).double()
    model.config.sliding_window = getattr(stack.model.config, "sliding_window", None)
    for own, other in zip(
        model.get_decoder().layers, stack.model.get_decoder().layers, strict=True
    ):
        own.self_attn.sliding_window = getattr(other.self_attn, "sliding_window", None)
    settings = stack.lora.settings[slot]
    for path, (a, b) in stack.lora.tensors(slot).items():
        update = b.double() @ a.double() * (settings.lora_alpha / settings.r)
        model.get_submodule(path).weight.data += update
    if routing != "off":
        alone = AdapterStack(model, lora=[LORA[0]], attach=with_banks(BANK))
        for bank in banks_of(alone).banks.values():
            bank.double()
        banks_of(alone).load(0, banks_of(stack).tensors(slot))
        banks_of(alone).routing = routing
    return model


def naive(model: PreTrainedModel, prompt: list[int], guess: Completion) -> Completion:
    """One prompt without cache, padding or end: the whole text anew for every token.

    A guess that the model would make token by token is shown by one look at the whole of it.
    """
    read = greedy(model, prompt + guess.tokens[:-1])
    if len(guess.tokens) == LIMIT and read[len(prompt) - 1 :] == guess.tokens:
        return Completion(tokens=guess.tokens, stop_reason="length")
    tokens: list[int] = []
    for _ in range(LIMIT):
        tokens.append(greedy(model, prompt + tokens)[-1])
    return Completion(tokens=tokens, stop_reason="length")


def greedy(model: PreTrainedModel, tokens: list[int]) -> list[int]:
    """The likeliest next token at every place."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
    found: list[int] = logits[0].argmax(-1).tolist()
    return found


@cache
def own_completions(
    kind: Kind, routing: Routing, sliding_window: int | None = None
) -> list[list[Completion]]:
    """What every slot's own model completes; that depends on neither pace nor batch."""
    stack = stacked(kind, sliding_window=sliding_window)
    models = [own_model(stack, slot, kind, routing) for slot in range(len(LORA))]
    with stack.evaluating(routing):
        guesses = decode(stack)
    return [
        [naive(model, *each) for each in zip(PROMPTS, own, strict=True)]
        for model, own in zip(models, guesses, strict=True)
    ]


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


def shapes(stack: AdapterStack) -> tuple[list[tuple[int, ...]], list[int]]:
    """From now on, the input shape of every prefill, and the rows of every decoding step."""
    prefills: list[tuple[int, ...]] = []
    steps: list[int] = []

    def note(_module: object, _args: object, kwargs: dict[str, Tensor]) -> None:
        shape = tuple(kwargs["input_ids"].shape)
        if "row_biases" in kwargs:
            steps.append(shape[0])
        else:
            prefills.append(shape)

    stack.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return prefills, steps


# The pace is how many steps are taken before the completions are looked at, whatever the routing.
@pytest.mark.parametrize(
    ("routing", "pace"),
    [("off", "cpu"), ("on", "cpu"), ("dense", "cpu"), ("on", "cuda")],
    indirect=["pace"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_slot_decodes_as_its_own_model_without_cache_or_padding(
    kind: Kind, routing: Routing, pace: str
) -> None:
    stack, unended = stacked(kind), own_completions(kind, routing)
    end = spread_end_token(unended)
    expected = [[ended(done, end) for done in slot] for slot in unended]
    assert len({len(d.tokens) for slot in expected for d in slot}) > 1, "rows end at odd times"
    with stack.evaluating(routing):
        for batch_size in (1, 2, 9):
            assert decode(stack, batch_size=batch_size) == unended, pace
            assert decode(stack, batch_size=batch_size, ends=(end,)) == expected
    assert unended[0] != unended[1] != unended[2], "slots have adapters of their own"


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_a_sliding_window_shorter_than_the_text_changes_nothing(batch_size: int, pace: str) -> None:
    stack = stacked("gemma3", sliding_window=8)
    wide = stacked("gemma3")
    expected = own_completions("gemma3", "on", 8)
    with stack.evaluating("on"):
        assert decode(stack, batch_size=batch_size) == expected, pace
    with wide.evaluating("on"):
        assert decode(wide, batch_size=batch_size) != expected


@pytest.mark.parametrize(
    ("kind", "window"), [("llama", None), ("qwen2", None), ("gemma3", None), ("gemma3", 8)]
)
def test_an_untrained_adapter_decodes_as_transformers_generates(
    kind: Kind, window: int | None
) -> None:
    model, plain = tiny_model(kind), tiny_model(kind)
    if window is not None:
        set_window(model, window)
        set_window(plain, window)
    stack = AdapterStack(model, lora=LORA[:2])
    for slot in range(2):
        stack.initialise(slot, slot)
    with stack.evaluating("off"):
        end = spread_end_token(decode(stack))
        completions = decode(stack, ends=(end,), batch_size=2)
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_slot_decodes_as_it_does_alone(kind: Kind, pace: str) -> None:
    stack = stacked(kind)
    with stack.evaluating("on"):
        end = spread_end_token(decode(stack))
        together = decode(stack, batch_size=2, ends=(end,))
    for slot in range(len(LORA)):
        alone = AdapterStack(tiny_model(kind).double(), lora=[LORA[slot]], attach=with_banks(BANK))
        for bank in banks_of(alone).banks.values():
            bank.double()
        alone.lora.load(0, stack.lora.tensors(slot))
        banks_of(alone).load(0, banks_of(stack).tensors(slot))
        with alone.evaluating("on"):
            assert decode(alone, batch_size=3, ends=(end,)) == [together[slot]], pace


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_shows_nothing_of_the_prompt_before(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what is not a number: memory that holds anything gives the same completions."""
    stack = stacked(kind)
    long_first = sorted(PROMPTS, key=len, reverse=True)
    with stack.evaluating("on"):
        alone = [decode(stack, [prompt]) for prompt in long_first]
        expected = [[done[slot][0] for done in alone] for slot in range(len(LORA))]
        assert decode(stack, long_first, batch_size=1) == expected
        memory = RowLayer._memory
        monkeypatch.setattr(
            RowLayer, "_memory", lambda self, states: memory(self, states).fill_(torch.nan)
        )
        assert decode(stack, long_first, batch_size=1) == expected
        assert decode(stack, long_first, batch_size=2) == expected


def test_a_row_that_ended_takes_the_next_prompt_of_its_slot() -> None:
    stack = stacked("llama")
    prompts = [prompt for _ in range(4) for prompt in PROMPTS]
    with stack.evaluating("on"):
        unended = decode(stack, prompts, batch_size=4)
        end = spread_end_token(unended)
        prefills, steps = shapes(stack)
        completions = decode(stack, prompts, batch_size=4, ends=(end,))
    assert completions == [[ended(done, end) for done in slot] for slot in unended]
    assert {rows for rows, _ in prefills} == {len(LORA)}, "one row a slot"
    assert max(steps) == 4 * len(LORA)
    assert all(size % len(LORA) == 0 for size in steps)
    chunked = 0
    for start in range(0, len(prompts), 4):
        done = [c for slot in completions for c in slot[start : start + 4]]
        chunked += max(c.num_new_tokens for c in done) - 1
    assert len(steps) < chunked, "the batch does not wait for its longest completion"


def test_prompts_are_read_together_up_to_an_eighth_of_the_rows() -> None:
    stack = stacked("llama")
    prompts = [[7 + i] * (1 + i % 5) for i in range(40)]
    with stack.evaluating("on"):
        expected = decode(stack, prompts, batch_size=1)
        prefills, _ = shapes(stack)
        assert decode(stack, prompts, batch_size=24) == expected
    assert prefills[:8] == [(3 * len(LORA), 5)] * 8
    assert sum(rows for rows, _ in prefills) >= 40 * len(LORA)


def test_the_batch_shrinks_when_no_prompt_waits() -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        unended = decode(stack)
        end = spread_end_token(unended)
        _, steps = shapes(stack)
        completions = decode(stack, ends=(end,))
    going = max(sum(d.stop_reason == "length" for d in slot) for slot in completions)
    assert steps == sorted(steps, reverse=True)
    assert steps[0] <= len(LORA) * len(PROMPTS)
    assert (steps[-1] < len(LORA) * len(PROMPTS)) == (going <= 0.75 * len(PROMPTS))
    assert all(size % len(LORA) == 0 for size in steps)


def test_the_end_token_counts_as_new_and_is_no_text() -> None:
    assert Completion(tokens=[4, 5], stop_reason="end_token").num_new_tokens == 3
    assert Completion(tokens=[4, 5], stop_reason="length").num_new_tokens == 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_end_token_may_come_first(batch_size: int) -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        unended = decode(stack)
        firsts = tuple({done.tokens[0] for slot in unended for done in slot})
        _, steps = shapes(stack)
        at_once = decode(stack, ends=firsts, batch_size=batch_size)
        assert steps == []
        mixed = decode(stack, ends=firsts[:1], batch_size=batch_size)
    assert all(done == Completion([], "end_token") for slot in at_once for done in slot)
    assert mixed == [[ended(done, firsts[0]) for done in slot] for slot in unended]


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_length_limit_is_exact(limit: int, pace: str) -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        whole = decode(stack)
        _, steps = shapes(stack)
        cut = decode(stack, limit=limit)
    assert len(steps) == limit - 1, f"no step whose token nobody wants, {pace}"
    for slot, slot_whole in zip(cut, whole, strict=True):
        for done, full in zip(slot, slot_whole, strict=True):
            assert done == Completion(tokens=full.tokens[:limit], stop_reason="length")


@pytest.mark.parametrize("kind", KINDS)
def test_warming_up_a_program_changes_no_completion(kind: Kind, pace: str) -> None:
    stack = stacked(kind)
    with stack.evaluating("on"):
        unended = decode(stack)
        end = spread_end_token(unended)
        expected = decode(stack, ends=(end,))
        for batch_size in (2, 9):
            executor = WarmingExecutor()
            assert decode(stack, batch_size=batch_size, executor=executor) == unended, pace
            done = decode(stack, batch_size=batch_size, ends=(end,), executor=executor)
            assert done == expected


def test_one_program_serves_as_long_as_prompts_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACES, "cpu", PACES["cuda"])
    stack = stacked("llama")
    executor = WarmingExecutor()
    with stack.evaluating("on"):
        decode(stack, [p for _ in range(6) for p in PROMPTS], batch_size=10, executor=executor)
    assert executor.num_programs == 1


def test_prompts_are_reported_once_all_slots_have_completed_them(pace: str) -> None:
    stack = stacked("llama")
    done: list[int] = []
    with stack.evaluating("on"):
        end = spread_end_token(decode(stack))
        completions = generate(
            stack,
            PROMPTS,
            max_new_tokens=LIMIT,
            end_token_ids=[end],
            batch_size=9,
            advance=done.append,
        )
    prompts = zip(*completions, strict=True)
    slowest = [max(done.num_new_tokens for done in slots) for slots in prompts]
    looks = [1, *range(1 + PACES["cpu"].steps, LIMIT, PACES["cpu"].steps), LIMIT]
    seen = [sum(tokens <= look for tokens in slowest) for look in looks]
    assert [sum(done[: i + 1]) for i in range(len(done))] == seen, pace
    assert seen[-2] < seen[-1] == len(PROMPTS)


def test_nothing_to_decode() -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        assert decode(stack, []) == [[], [], []]
        with pytest.raises(InputError, match="prompt 1 has no tokens"):
            decode(stack, [[1], []])


def test_the_models_own_attention_is_back_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        decode(stack)
        assert stack.model.config._attn_implementation == "sdpa"

        def fail(*_args: object) -> Tensor:
            assert stack.model.config._attn_implementation == ROW_ATTENTION
            raise RuntimeError("out of something")

        monkeypatch.setattr(DecodingRows, "step", fail)
        with pytest.raises(RuntimeError, match="out of something"):
            decode(stack)
    assert stack.model.config._attn_implementation == "sdpa"


def test_blocks_that_training_compiled_run_as_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = stacked("llama")
    with stack.evaluating("on"):
        expected = decode(stack)

        def compiled(*_args: object, **_kwargs: object) -> Tensor:
            raise AssertionError

        monkeypatch.setattr("schemabank.engine.stack.compiled", lambda _forward: compiled)
        stack.compile()
        assert decode(stack) == expected
    modules = [*stack.blocks, *banks_of(stack).banks.values()]
    assert all(module.forward is compiled for module in modules)


def test_the_cache_does_not_outlive_its_evaluation() -> None:
    stack = stacked("llama")
    gc.collect()
    gc.disable()
    try:
        with stack.evaluating("on"):
            decode(stack, executor=WarmingExecutor())
        assert not any(type(thing) is RowCache for thing in gc.get_objects())
    finally:
        gc.enable()


def test_models_with_other_attention_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacked("qwen2")
    with monkeypatch.context() as changed:
        changed.setattr(type(stack.model), "_supports_attention_backend", False)
        with pytest.raises(InputError, match="attention that cannot be replaced"):
            decode(stack)
    with monkeypatch.context() as changed:
        changed.setattr(stack.model.config, "layer_types", ["linear_attention"] * 3)
        with pytest.raises(InputError, match="types linear_attention"):
            decode(stack)
    with monkeypatch.context() as changed:
        changed.setattr(stack.model.config, "layer_types", ["chunked_attention"] * 3)
        changed.setattr(stack.model.config, "attention_chunk_size", 8, raising=False)
        with pytest.raises(InputError, match="types chunked_attention"):
            decode(stack)


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_row_attention_equals_attention_with_repeated_heads(scaling: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 6, 1, 8), torch.randn(5, 2, 9, 8), torch.randn(5, 2, 9, 8)
    seen = torch.arange(9) <= torch.tensor([0, 3, 8, 5, 1])[:, None]
    bias = torch.zeros(5, 9).masked_fill(~seen, torch.finfo().min)[:, None]
    module = torch.nn.Module()
    module.layer_idx = 1
    output, _ = row_attention(
        module, query, key, value, None, row_biases=[torch.empty(0), bias], scaling=scaling
    )
    repeated = (states.repeat_interleave(3, dim=1) for states in (key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *repeated, attn_mask=seen[:, None, None], scale=scaling
    )
    torch.testing.assert_close(output, expected.transpose(1, 2))


def test_row_attention_caps_scores_and_refuses_what_it_does_not_know() -> None:
    query, key = torch.full((1, 1, 1, 1), 100.0), torch.tensor([[[[1.0], [-1.0]]]])
    module = torch.nn.Module()
    module.layer_idx = 0
    given = (module, query, key, key, None)
    bias = [torch.zeros(1, 1, 2)]
    output, _ = row_attention(*given, row_biases=bias, softcap=0.5, sliding_window=8, dropout=0.0)
    assert output.item() == pytest.approx(torch.tensor(0.5).tanh().item())
    with pytest.raises(InputError, match="s_aux"):
        row_attention(*given, row_biases=bias, s_aux=torch.zeros(1))
    with pytest.raises(InputError, match="a mask of its own"):
        row_attention(*given[:4], torch.zeros(1), row_biases=bias)
