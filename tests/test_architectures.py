"""Every architecture trains, exports and decodes exactly, or is refused before training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel

from architectures import CHANGES, tiny_architecture
from cohorts import BANK, bank_run, data, lora_run, train, with_banks
from schemabank.adapters.export import check_with_peft, probe
from schemabank.adapters.files import save_adapter
from schemabank.adapters.peftlayers import check_peft_layers
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.cohort import Cohort
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.decoding.decode import Completion, generate
from schemabank.engine.decoding.slotwise import generate_by_slot
from schemabank.engine.kernels.attention import short_attention
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from tiny import END_TOKEN_ID, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [
    list(TOKENIZER(text)["input_ids"])
    for text in ("How many clips did Natalia sell", "One", "The capital", "Two")
]
# One of a kind: attention that is no module of its own, vision beside text, Conv1D, sinks, scaled
# logits, convolutions, recurrence, a shared expert. All others are tried in `make soak`.
OFTEN = ("falcon", "gemma3", "gpt2", "gpt_oss", "granite", "lfm2", "mamba", "qwen2_moe")
# Linear layers that cannot have an adapter: PEFT takes them for routed experts' weights or refuses
# them, or the model reads their weights by itself.
REFUSED = {
    "deepseek_v3": {"down_proj", "gate_proj", "up_proj"},
    "falcon_mamba": {"dt_proj", "out_proj"},
    "jamba": {"dt_proj"},
    "mamba": {"dt_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "qwen3_next": {"down_proj", "gate_proj", "up_proj"},
}
# Decoded by transformers' generate; all others by our decoder. docs/models.md lists both.
BY_SLOT = {
    "biogpt",
    "bloom",
    "codegen",
    "falcon",
    "falcon_mamba",
    "gpt_neo",
    "gpt_oss",
    "gptj",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "mpt",
    "nemotron",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "stablelm",
    "xglm",
}
UNTRAINABLE = {"llama4_text": "no known decoder blocks"}
BANKLESS: dict[str, str] = {}
UNREADABLE = {"rwkv": r"neither by SchemaBank nor by transformers' generate \(its logits differ"}


def each(*, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    names = [
        pytest.param(name, marks=[] if name in OFTEN else [pytest.mark.soak])
        for name in sorted(CHANGES)
        if name not in but
    ]
    return pytest.mark.parametrize("name", names)


def layers_of(name: str) -> tuple[set[str], set[str]]:
    """Names of an architecture's linear layers: those that can have an adapter, and those not."""
    model = tiny_architecture(name)
    names = {path.rpartition(".")[2] for path, m in model.named_modules() if hasattr(m, "weight")}
    allowed, refused = set(), set()
    for target in names:
        settings = LoraSettings(r=2, target_modules=(target,))
        try:
            check_peft_layers(model, settings)
            AdapterStack(model, lora=[settings]).remove()
        except InputError as error:
            reason = str(error)
            if f"names {target!r}" not in reason:  # the model's fault, not the target's
                raise
            if "no linear layer" not in reason:
                refused.add(target)
        else:
            allowed.add(target)
    return allowed, refused


def trained(
    name: str, targets: set[str], *, device: str = "cpu"
) -> tuple[AdapterStack, list[float]]:
    """The stack after two runs, and the loss of every step.

    One run is under the curriculum with its cached first stage, the other is plain LoRA.
    """
    lora = LoraSettings(r=2, lora_dropout=0.1, target_modules=tuple(sorted(targets)))
    banked = name not in BANKLESS
    first = bank_run(1, max_steps=6) if banked else lora_run(1, max_steps=6)
    runs = [replace(run, lora=lora) for run in (first, lora_run(2, max_steps=6))]
    model = tiny_architecture(name).to(device)
    stack = AdapterStack(model, lora=[lora] * 2, attach=with_banks(BANK if banked else None))
    cohort = Cohort(stack, runs, data(), explain=lambda _: None)
    steps = train(cohort)
    assert [slot.failure for slot in cohort.slots] == [None, None]
    return stack, [step.loss for both in steps for step in both]


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "opt_projected", "qwen2"])
def test_all_linear_layers_have_adapters_or_the_first_that_cannot_is_named(name: str) -> None:
    """Also those outside of all blocks, and an error names what nobody wrote."""
    model = tiny_architecture(name)
    settings = LoraSettings.model_validate({"r": 2, "target_modules": "all-linear"})
    try:
        stack = AdapterStack(model, lora=[settings])
    except InputError as error:
        assert "finds" in str(error)  # noqa: PT017 -- some models have such layers
        return
    names = {path.rpartition(".")[2] for path in stack.lora.layers}
    assert set(stack.lora.settings[0].target_modules) == names
    assert len(names) >= 3
    assert ("project_in" in names) == (name == "opt_projected")
    assert max(int(layer.block) for layer in stack.lora.layers.values()) < stack.lora.num_blocks


def completed(stack: AdapterStack, *, by_slot: bool, limit: int = 6) -> list[list[Completion]]:
    decode = generate_by_slot if by_slot else generate
    with stack.evaluating("off"):
        return decode(
            stack, PROMPTS, max_new_tokens=limit, end_token_ids=[END_TOKEN_ID], batch_size=3
        )


def completed_by_peft(model: PreTrainedModel, folder: Path) -> list[Completion]:
    """What stock PEFT's ``generate`` completes, one prompt at a time."""
    tuned = PeftModel.from_pretrained(model, str(folder))
    plain = GenerationConfig(max_new_tokens=6, eos_token_id=END_TOKEN_ID, pad_token_id=END_TOKEN_ID)
    completions = []
    for prompt in PROMPTS:
        tokens = torch.tensor([prompt])
        mask = torch.ones_like(tokens)
        written = tuned.generate(input_ids=tokens, attention_mask=mask, generation_config=plain)
        row = written[0, len(prompt) :].tolist()
        ended = END_TOKEN_ID in row
        kept = row[: row.index(END_TOKEN_ID)] if ended else row
        completions.append(Completion(kept, "end_token" if ended else "length"))
    tuned.unload()
    return completions


@each(but=tuple(UNTRAINABLE))
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_an_architecture_trains_exports_and_decodes_as_stock_peft_does(
    name: str, tmp_path: Path
) -> None:
    allowed, refused = layers_of(name)
    assert refused == REFUSED.get(name, set())
    by_slot = why_by_slot(tiny_architecture(name)) is not None
    assert by_slot == (name in BY_SLOT)
    stack, _ = trained(name, allowed)
    found = completed(stack, by_slot=by_slot)
    base = BaseModel("tiny", None, stack.model, TOKENIZER, (END_TOKEN_ID,), "made here")
    probes = probe(stack, base)
    tensors = [stack.lora.tensors(slot) for slot in range(2)]
    assert all(b.abs().max() > 0 for own in tensors for _, b in own.values())
    stack.remove()
    for slot, own in enumerate(tensors):
        save_adapter(
            tmp_path / str(slot),
            own,
            stack.lora.settings[slot],
            base_name="tiny",
            card="",
            layout=stack.lora.layout,
        )
        check = check_with_peft(tmp_path / str(slot), base, probes[slot])
        assert check.agrees, check.said
        other = check_with_peft(tmp_path / str(slot), base, probes[1 - slot])
        assert not other.agrees, other.said
        if name not in UNREADABLE:
            assert found[slot] == completed_by_peft(stack.model, tmp_path / str(slot))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler and its libraries warn of their own
@pytest.mark.parametrize("name", [*OFTEN, "deepseek_v3", "opt"])
def test_an_architecture_trains_on_a_gpu_as_on_a_cpu(name: str, tmp_path: Path) -> None:
    allowed, _ = layers_of(name)
    _, expected = trained(name, allowed)
    stack, losses = trained(name, allowed, device="cuda")
    assert losses == pytest.approx(expected, abs=1e-2)
    completed(stack, by_slot=name in BY_SLOT)
    base = BaseModel("tiny", None, stack.model, TOKENIZER, (END_TOKEN_ID,), "made here")
    probes = probe(stack, base)
    own = stack.lora.tensors(1)
    stack.remove()
    settings = stack.lora.settings[1]
    folder = tmp_path / "adapter"
    save_adapter(folder, own, settings, base_name="tiny", card="", layout=stack.lora.layout)
    check = check_with_peft(folder, base, probes[1])
    assert check.agrees, check.said


@pytest.mark.parametrize("name", UNTRAINABLE)
def test_an_architecture_that_cannot_be_trained_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(InputError, match=UNTRAINABLE[name]):
        AdapterStack(tiny_architecture(name), lora=[LoraSettings()])


@pytest.mark.parametrize("name", BANKLESS)
def test_banks_on_blocks_that_cannot_be_left_out_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=BANKLESS[name]):
        AdapterStack(
            tiny_architecture(name), lora=[LoraSettings()], attach=with_banks(BANK), adapters=False
        )


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_architecture_that_nothing_decodes_rightly_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=UNREADABLE[name]):
        check_generates(tiny_architecture(name))


@each()
def test_attention_for_short_rows_is_the_models_own(name: str) -> None:
    model = tiny_architecture(name)
    tokens = torch.arange(1, 13).view(1, 12)  # more than a window has
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        with short_attention(model):
            found = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@each(but=(*UNTRAINABLE, *UNREADABLE))
def test_transformers_generates_what_our_decoder_does(name: str) -> None:
    model = tiny_architecture(name)
    check_generates(model)
    if why_by_slot(model) is None:
        stack = AdapterStack(model, lora=[LoraSettings()], adapters=False)
        ours, theirs = (completed(stack, by_slot=by_slot, limit=12) for by_slot in (False, True))
        assert ours == theirs
