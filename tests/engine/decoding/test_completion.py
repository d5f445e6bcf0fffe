"""Completions that are known from an earlier call: all others are computed to the same bits."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from cohorts import BANK, with_banks
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding import decode
from schemabank.engine.decoding.completion import Completion, Memory
from schemabank.engine.decoding.decode import PACES, generate
from schemabank.engine.decoding.rowcache import DecodingRows
from schemabank.engine.decoding.sampling import Sampling, sample_keys
from schemabank.engine.decoding.slotwise import generate_by_slot
from schemabank.engine.stack import AdapterStack
from tiny import tiny_model

LORA = [LoraSettings(r=4, lora_alpha=10), LoraSettings(r=2, lora_alpha=7)]
PROMPTS = [[7 * n % 190 + 3, *range(20, 20 + 3 * n % 11)] for n in range(13)]
LIMIT = 9
ENDS = tuple(range(0, 256, 9))  # so that completions end at any length


class Recorder(Memory):
    """Knows some completions, and lists those that come."""

    def __init__(self, known: Mapping[tuple[int, int], Completion] | None = None) -> None:
        self.known, self.told = dict(known or {}), list[tuple[tuple[int, int], Completion]]()

    def completions(self, slot: int) -> Mapping[int, Completion]:
        return {prompt: own for (of, prompt), own in self.known.items() if of == slot}

    def completed(self, slot: int, prompt: int, completion: Completion) -> None:
        self.told.append(((slot, prompt), completion))


class Calls:
    """The logits of every call of the model, with the rows that complete what is not known."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.by_step: dict[int, list[tuple[Tensor, list[int]]]] = {}
        self.prefills = 0
        self._step = 0
        steps, logits, prefill = decode._decode_steps, DecodingRows.logits, DecodingRows.prefill

        def counted(batch: decode._ActiveRows, ledger: decode._Ledger) -> None:
            self._step, self._of = self._step + 1, (batch, ledger)
            steps(batch, ledger)

        def seen(rows: DecodingRows, num_rows: int, visible: int) -> Tensor:
            found = logits(rows, num_rows, visible)
            batch, ledger = self._of
            new = [row for row in range(num_rows) if ledger.is_new(*divmod(row, batch.per_slot))]
            self.by_step.setdefault(self._step, []).append((found.clone(), new))
            return found

        def filled(*given: object) -> list[int]:
            self.prefills += 1
            return prefill(*given)  # type: ignore[arg-type]

        patch.setattr(decode, "_decode_steps", counted)
        patch.setattr(DecodingRows, "logits", seen)
        patch.setattr(DecodingRows, "prefill", filled)


def stacked() -> AdapterStack:
    stack = AdapterStack(tiny_model("llama"), lora=LORA, attach=with_banks(BANK))
    generator = torch.Generator().manual_seed(1)
    for slot in range(len(LORA)):
        stack.initialise(slot, slot)
        tensors = stack.lora.tensors(slot)
        drawn = {
            path: (a, 0.3 * torch.randn(b.shape, generator=generator))
            for path, (a, b) in tensors.items()
        }
        stack.lora.load(slot, drawn)
    return stack


def completed(
    stack: AdapterStack, memory: Memory | None, sampling: Sampling | None = None
) -> tuple[list[list[Completion]], Calls]:
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch, stack.evaluating("on"):
        calls = Calls(patch)
        found = generate(
            stack,
            PROMPTS,
            max_new_tokens=LIMIT,
            end_token_ids=ENDS,
            batch_size=4,
            sampling=sampling,
            advance=done.append,
            memory=memory,
        )
    assert sum(done) == len(PROMPTS)
    return found, calls


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("pace", ["cpu", "cuda"])
def test_the_others_are_computed_in_the_same_batches_to_the_same_bits(
    pace: str, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACES, "cpu", PACES[pace])
    keys = sample_keys(3, [(str(n), 0) for n in range(len(PROMPTS))])
    sampling = Sampling(keys=keys, temperature=1.0, top_p=1.0) if drawn else None
    stack, all_of_them = stacked(), Recorder()
    whole, calls = completed(stack, all_of_them, sampling)
    assert len(all_of_them.told) == 2 * len(PROMPTS)
    assert {own.stop_reason for own in whole[0]} == {"end_token", "length"}
    assert completed(stack, None, sampling)[0] == whole
    for count in (0, 1, 9, 20, 25, 26):
        known = Recorder(dict(all_of_them.told[:count]))
        found, fewer = completed(stack, known, sampling)
        assert found == whole
        assert [who for who, _ in known.told] == [who for who, _ in all_of_them.told[count:]]
        assert fewer.by_step.keys() <= calls.by_step.keys()
        for step, own in fewer.by_step.items():
            for (logits, new), (expected, _) in zip(own, calls.by_step[step], strict=True):
                assert logits.shape == expected.shape
                assert torch.equal(logits[new], expected[new])
    assert (fewer.by_step, fewer.prefills) == ({}, 0), "all were known"


def test_a_call_computes_no_step_again_that_had_ended_before_what_is_missing_began() -> None:
    stack, all_of_them = stacked(), Recorder()
    _, calls = completed(stack, all_of_them)
    _, fewer = completed(stack, Recorder(dict(all_of_them.told[:20])))
    assert min(fewer.by_step) > 5
    assert len(fewer.by_step) < len(calls.by_step) / 2 + LIMIT
    assert fewer.prefills < calls.prefills


def test_one_that_misses_in_the_middle_is_computed_alone() -> None:
    stack, all_of_them = stacked(), Recorder()
    whole, calls = completed(stack, all_of_them)
    known = dict(all_of_them.told)
    missing = known.pop((1, 6))
    again = Recorder(known)
    found, fewer = completed(stack, again)
    assert found == whole
    assert again.told == [((1, 6), missing)]
    assert fewer.prefills == 1
    assert len(fewer.by_step) == max(0, missing.num_new_tokens - 1) < len(calls.by_step)


def test_slot_by_slot_a_batch_that_is_known_is_not_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack, all_of_them, asked = stacked(), Recorder(), list[int]()
    settings = {"max_new_tokens": LIMIT, "end_token_ids": ENDS, "batch_size": 2}
    generated = stack.model.generate

    def counted(**given: object) -> object:
        asked.append(len(given["input_ids"]))  # type: ignore[arg-type]
        return generated(**given)

    with stack.evaluating("on"):
        whole = generate_by_slot(stack, PROMPTS, memory=all_of_them, **settings)  # type: ignore[arg-type]
        monkeypatch.setattr(stack.model, "generate", counted)
        known = Recorder(dict(all_of_them.told[:-3]))
        assert generate_by_slot(stack, PROMPTS, memory=known, **settings) == whole  # type: ignore[arg-type]
    assert known.told == all_of_them.told[-3:]
    assert sum(asked) in {3, 4}, "a batch of which one is missing is computed whole"
