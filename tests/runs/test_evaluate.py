import json
from dataclasses import asdict, replace

import pytest
import torch

from cohorts import BANK, with_banks
from schemabank.config.settings import LoraSettings
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.decoding.decode import generate
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import Procedure, _item_record, completion_text, evaluate, gold_losses
from schemabank.runs.prepare import Item
from schemabank.tasks.scoring.scores import METRICS, ItemRecord, Scored
from tiny import END_TOKEN_ID, tiny_model, tiny_tokenizer

NUMERIC = METRICS["numeric"]
LORA = [LoraSettings(r=4, lora_alpha=10), LoraSettings(r=2, lora_alpha=7)]
TARGETS = ("add them: #### 7", "7", "the sum of both is\n#### 12", "", "4", "10 #### 10", "1", "9")


def items() -> list[Item]:
    tokenizer = tiny_tokenizer()
    made = []
    for i, target in enumerate(TARGETS):
        prompt = "+".join(["3"] * (1 + 5 * i % 7)) + "=\nThe answer is: "
        made.append(
            Item(
                id=f"sum/{i}",
                group="seen" if i % 3 else "held_out",
                prompt=prompt,
                prompt_tokens=tuple(tokenizer(prompt)["input_ids"]),
                target_tokens=(*tokenizer(target)["input_ids"], END_TOKEN_ID),
                golds=(str(i + 1),),
            )
        )
    return made


def base() -> BaseModel:
    return BaseModel(
        name="tiny",
        hub_id=None,
        model=tiny_model("llama"),
        tokenizer=tiny_tokenizer(),
        end_token_ids=(END_TOKEN_ID, 17),
        source="made here",
    )


def stacked(model: BaseModel) -> AdapterStack:
    stack = AdapterStack(model.model, lora=LORA, attach=with_banks(BANK))
    generator = torch.Generator().manual_seed(0)
    for slot in range(2):
        stack.initialise(slot, slot)
        tensors = stack.lora.tensors(slot)
        drawn = {p: (a, torch.randn(b.shape, generator=generator)) for p, (a, b) in tensors.items()}
        stack.lora.load(slot, drawn)
    return stack


def records(batch_size: int = 3, routing: str = "on") -> list[list[ItemRecord]]:
    model = base()
    done: list[int] = []
    scored = evaluate(
        stacked(model),
        model,
        items(),
        Procedure(metric=NUMERIC, routing=routing, max_new_tokens=6, batch_size=batch_size),
        advance=done.append,
    )
    assert sum(done) == len(TARGETS)
    return scored


def test_records_stand_in_the_order_of_the_items_and_say_what_was_decoded() -> None:
    model = base()
    stack = stacked(model)
    scored = records()
    assert [len(slot) for slot in scored] == [len(TARGETS)] * 2
    for index, item in enumerate(items()):
        with stack.evaluating("on"):
            completions = generate(
                stack,
                [item.prompt_tokens],
                max_new_tokens=6,
                end_token_ids=model.end_token_ids,
                batch_size=1,
            )
        for slot in range(2):
            record, done = scored[slot][index], completions[slot][0]
            assert (record.id, record.group, record.prompt) == (item.id, item.group, item.prompt)
            assert record.golds == item.golds
            assert record.completion == model.tokenizer.decode(done.tokens)
            assert record.new_tokens == done.num_new_tokens
            assert record.stop_reason == done.stop_reason
    assert [r.completion for r in scored[0]] != [r.completion for r in scored[1]]


def test_completions_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["#### 1", "the answer is 2. 5", "no number", "#### 5", "6", "7", "8", "#### 9"])
    model = base()
    monkeypatch.setattr("schemabank.runs.evaluate.continuation_text", lambda *_args: next(texts))
    stack = AdapterStack(model.model, lora=LORA[:1])
    same_length = [items()[0]] * 8
    given = [
        Item(**(asdict(item) | {"id": str(i), "golds": (str(i + 1),)}))
        for i, item in enumerate(same_length)
    ]
    (scored,) = evaluate(
        stack,
        model,
        given,
        Procedure(metric=NUMERIC, routing="off", max_new_tokens=2, batch_size=8),
        advance=lambda _: None,
    )
    assert [r.scores["correct"] for r in scored] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert [r.readings["strict"] for r in scored][:4] == ["1", "2", None, "5"]
    assert [r.readings["flexible"] for r in scored][:4] == ["1", "5", None, "5"]
    assert [r.scores["strict"] for r in scored][:3] == [1, 1, 0]
    assert [r.scores["flexible"] for r in scored][:3] == [1, 0, 0]
    assert [r.extracted for r in scored][:4] == ["1", "2", None, "5"]


@pytest.mark.parametrize("routing", ["off", "on", "dense"])
def test_gold_losses_equal_those_of_the_models_own_logits(routing: str) -> None:
    model = base()
    stack = stacked(model)
    with stack.evaluating(routing):
        losses = gold_losses(stack, items())
        for index, item in enumerate(items()):
            tokens = torch.tensor([item.prompt_tokens + item.target_tokens])
            logits = model.model(tokens.repeat(2, 1), use_cache=False).logits
            start = len(item.prompt_tokens)
            surprise = -logits[:, start - 1 : -1].log_softmax(-1)
            picked = surprise.gather(-1, tokens[:, start:, None].repeat(2, 1, 1))[..., 0]
            for slot in range(2):
                without, with_end = losses[slot][index]
                assert with_end == pytest.approx(picked[slot].mean().item(), rel=1e-5)
                text = picked[slot, :-1]
                expected = text.mean().item() if len(text) else 0.0
                assert without == pytest.approx(expected, rel=1e-5)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_the_batch_size_changes_no_score(batch_size: int) -> None:
    for slot, reference in zip(records(batch_size), records(3), strict=True):
        for record, other in zip(slot, reference, strict=True):
            ours, theirs = asdict(record), asdict(other)
            for name in ("gold_nll", "gold_nll_with_end"):
                assert ours.pop(name) == pytest.approx(theirs.pop(name), rel=1e-5)
            assert ours == theirs


def test_the_same_evaluation_twice_gives_equal_records() -> None:
    assert json.dumps([asdict(r) for r in records()[0]]) == json.dumps(
        [asdict(r) for r in records()[0]]
    )


def test_routing_changes_what_is_measured_and_is_off_again_afterwards() -> None:
    losses = {
        routing: [r.gold_nll_with_end for r in records(routing=routing)[0]]
        for routing in ("off", "on", "dense")
    }
    assert losses["off"] != losses["on"] != losses["dense"] != losses["off"]
    model = base()
    stack = stacked(model)
    evaluate(
        stack,
        model,
        items()[:1],
        Procedure(metric=NUMERIC, routing="on", max_new_tokens=1, batch_size=1),
        advance=lambda _: None,
    )
    assert banks_of(stack).routing == "off"


def scored(completion: str) -> Scored:
    return NUMERIC.score(completion, items()[0].golds)


def test_chat_marks_that_a_model_writes_stay_in_its_completion() -> None:
    model = base()
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    mark = model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    done = Completion(
        tokens=[*model.tokenizer("18")["input_ids"], mark, *model.tokenizer("user\n3")["input_ids"]]
    )
    text = completion_text(items()[0], done, model, ())
    record = _item_record(items()[0], done, (0.0, 0.0), text, scored("18<|im_start|>user\n3"))
    assert record.completion == "18<|im_start|>user\n3"
    assert record.readings == {"strict": "18", "flexible": "18"}, "the next turn does not count"


def test_a_completion_is_cut_at_the_first_stop_text() -> None:
    model = base()
    done = Completion(tokens=model.tokenizer("18\n\nand 3")["input_ids"])
    assert completion_text(items()[0], done, model, ["and", "\n\n"]) == ("18", "stop_text")
    assert completion_text(items()[0], done, model, ["or"]) == ("18\n\nand 3", done.stop_reason)
    text = completion_text(items()[0], done, model, ["\n\n"])
    record = _item_record(items()[0], done, (0.0, 0.0), text, scored(text[0]))
    assert (record.completion, record.stop_reason) == ("18", "stop_text")
    assert record.new_tokens == done.num_new_tokens


def test_likelihoods_alone_are_measured_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "schemabank.runs.evaluate.generate", lambda *_args, **_options: pytest.fail("decoded")
    )
    monkeypatch.setattr("schemabank.runs.evaluate.NLL_TOKENS", 40)
    model = base()
    stack = stacked(model)
    given = [replace(item, has_end=False) for item in items()]
    done: list[int] = []
    scored = evaluate(
        stack,
        model,
        given,
        Procedure(metric=METRICS["perplexity"], routing="off", max_new_tokens=1, batch_size=1),
        advance=done.append,
    )
    assert sum(done) == len(given) > len(done) > 1
    with stack.evaluating("off"):
        expected = gold_losses(stack, items())
    for slot, slot_records in enumerate(scored):
        for record, item, (_, with_end) in zip(slot_records, given, expected[slot], strict=True):
            assert record.gold_nll == record.gold_nll_with_end == pytest.approx(with_end, rel=1e-5)
            assert record.gold_tokens == len(item.target_tokens)
            assert (record.completion, record.stop_reason) == ("", "not_decoded")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_decoding_ends_at_a_stop_text(batch_size: int) -> None:
    model = base()
    stack = stacked(model)
    how = Procedure(metric=NUMERIC, routing="off", max_new_tokens=12, batch_size=batch_size)
    free = evaluate(stack, model, items(), how, advance=lambda _: None)
    # What the models like to write, at least once in the middle of a completion.
    mark = next(r.completion[4:6] for r in free[0] if len(r.completion) > 8)
    cut = evaluate(stack, model, items(), replace(how, stop=(mark,)), advance=lambda _: None)
    shorter = 0
    for slot, other in zip(cut, free, strict=True):
        for record, whole in zip(slot, other, strict=True):
            if mark in whole.completion:
                assert record.completion == whole.completion.partition(mark)[0]
                assert record.stop_reason == "stop_text"
                shorter += record.new_tokens < whole.new_tokens
            else:
                assert record.completion == whole.completion
                assert record.stop_reason == whole.stop_reason
    assert shorter
