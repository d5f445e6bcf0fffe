"""Blocks that return their states alone or in a tuple, on tiny models of many architectures."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import cohorts
from cohorts import BANK, FAST_STAGES, LORA, bank_run, step_input, train, with_banks
from schemabank.common.errors import InputError
from schemabank.config.settings import LoraSettings
from schemabank.engine.blocks import noting, probed, replaced, returning
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.models.architecture import decoder_blocks
from tiny import END_TOKEN_ID, VOCAB_SIZE

IDS = {
    "vocab_size": VOCAB_SIZE,
    "bos_token_id": None,
    "eos_token_id": END_TOKEN_ID,
    "pad_token_id": None,
}
OLDER = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}
HEADS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
NEWER = {**HEADS, "intermediate_size": 64, "max_position_embeddings": 256}
GROUPED = {**NEWER, "num_key_value_heads": 2}
EMBEDDED = {"word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 256}
PLACES = {"attention_types": [[["global", "local", "global"], 1]], "max_position_embeddings": 256}

PROJECTIONS, JOINED = ("q_proj", "v_proj"), ("query_key_value", "dense")
ARCHITECTURES: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "Bloom": ({"hidden_size": 32, "n_layer": 3, "n_head": 4}, JOINED),
    "CodeGen": ({**OLDER, "rotary_dim": 4}, ("qkv_proj", "out_proj")),
    "Falcon": (HEADS, JOINED),
    "GPTJ": ({**OLDER, "rotary_dim": 4}, PROJECTIONS),
    "GPTNeo": ({"hidden_size": 32, "num_layers": 3, "num_heads": 4, **PLACES}, PROJECTIONS),
    "GPTNeoX": (NEWER, JOINED),
    "Gemma2": ({**GROUPED, "head_dim": 8}, PROJECTIONS),
    "Mistral": (GROUPED, PROJECTIONS),
    "OPT": ({**HEADS, **EMBEDDED}, PROJECTIONS),
    "Phi": (NEWER, PROJECTIONS),
    "Qwen3": ({**GROUPED, "head_dim": 8}, PROJECTIONS),
}
TOKENS = torch.arange(2, 2 + 4 * 12).view(2, 2, 12)


def tiny(name: str) -> PreTrainedModel:
    """A model of 3 blocks with random weights, of an architecture by its name in transformers."""
    config: PreTrainedConfig = getattr(transformers, f"{name}Config")(
        **IDS, **ARCHITECTURES[name][0]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def lora(name: str) -> LoraSettings:
    return LORA.model_copy(update={"target_modules": ARCHITECTURES[name][1]})


def outputs(model: PreTrainedModel) -> list[object]:
    """What every block returns for all tokens."""
    found: list[object] = []
    hooks = [
        block.register_forward_hook(lambda _block, _args, output: found.append(output))
        for block in decoder_blocks(model)
    ]
    model(TOKENS.flatten(0, 1), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_model_starts_from_its_states_below_the_first_bank(name: str) -> None:
    bank = BANK.model_copy(update={"last_n": 2})
    stack = AdapterStack(tiny(name), lora=[lora(name)] * 2, attach=with_banks(bank))
    for slot in range(2):
        stack.initialise(slot, slot)
    stack.begin_step(step_input([(1, 0), (2, 0)]))
    expected = stack.hidden(TOKENS)
    states = stack.trunk(TOKENS.flatten(0, 1))
    below = outputs(tiny(name))[1]
    assert torch.equal(states, below[0] if isinstance(below, tuple) else below)
    assert torch.equal(stack.hidden(TOKENS, states=states), expected)
    assert not torch.equal(stack.hidden(TOKENS, states=states + 1), expected)
    assert torch.equal(stack.hidden(TOKENS), expected), "forward passes are what they were before"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_trains_through_all_stages_and_comes_back(name: str) -> None:
    model = tiny(name)
    with torch.no_grad():
        before = model(TOKENS[0], use_cache=False).logits
    runs = [bank_run(seed, lora=lora(name), num_train_epochs=1) for seed in (1, 2)]
    stack = AdapterStack(model, lora=[lora(name)] * 2, attach=with_banks(BANK))
    steps = [step for steps in train(Cohort(stack, runs, cohorts.data())) for step in steps]
    assert {step.stage for step in steps} == {stage.name for stage in FAST_STAGES}
    assert all(math.isfinite(step.loss) and step.grad_norm > 0 for step in steps)
    stack.remove()
    with torch.no_grad():
        assert torch.equal(model(TOKENS[0], use_cache=False).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_both_forms_are_there_to_be_tested() -> None:
    assert all(isinstance(output, tuple) for output in outputs(tiny("GPTJ")))
    assert all(isinstance(output, Tensor) for output in outputs(tiny("Qwen3")))


# The parts.


class Block(nn.Module):
    """Adds one, and returns the result in some form."""

    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.form = form

    def forward(self, hidden: Tensor, *, cache: None = None) -> object:
        assert cache is None
        return self.form(hidden + 1)


def run(block: nn.Module, hidden: Tensor) -> object:
    return block(hidden, cache=None)


class OddModel(nn.Module):
    """A model of one block whose form only the model knows."""

    def __init__(self, block: nn.Module, name: object) -> None:
        super().__init__()
        self.block, self.name = block, name
        self.device, self.config = torch.device("cpu"), PreTrainedConfig()
        self.base_model = self.forward
        self.head = nn.Identity()

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, *, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        output = run(self.block, input_ids[..., None].float())
        states = output if self.name is None else output[self.name]
        return SimpleNamespace(last_hidden_state=states, logits=states)


@pytest.mark.parametrize(
    ("form", "name", "length"),
    [(lambda x: x, None, None), (lambda x: (x, None), 0, 2), (lambda x: (x,), 0, 1)],
)
def test_the_probe_finds_the_form(
    form: Callable[[Tensor], object], name: object, length: int | None
) -> None:
    block = Block(form)
    head, tuples = probed(OddModel(block, name), [block])
    assert tuples == ({} if length is None else {block: length})
    assert torch.equal(head(torch.ones(2)), torch.ones(2))
    assert not block._forward_hooks


@pytest.mark.parametrize(
    ("form", "name", "found"),
    [
        (lambda x: {"states": x}, "states", "dict"),
        (lambda x: (None, x), 1, "tuple"),
        (lambda x: [x], 0, "list"),
    ],
)
def test_a_block_that_returns_its_states_elsewhere_is_refused(
    form: Callable[[Tensor], object], name: object, found: str
) -> None:
    block = Block(form)
    with pytest.raises(InputError) as error:
        probed(OddModel(block, name), [block])
    assert str(error.value) == (
        f"the blocks of OddModel return a {found}: allowed are hidden states alone or first in a "
        "tuple, use a model of that kind"
    )
    assert not block._forward_hooks


@pytest.mark.parametrize("length", [None, 1, 2])
def test_a_block_returns_what_it_is_told_and_then_what_it_did(length: int | None) -> None:
    block = Block(lambda x: x if length is None else (x, "weights")[:length])
    given, states, found = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 5.0), list[Tensor]()
    for told, expected in ((states, states), (None, given)):
        with replaced([block], lambda _block, told=told: returning(told, length=length)):
            output = run(block, given)
            # Some models unpack what a block returns, so there is as much of it.
            assert output is expected if length is None else output == (expected, None)[:length]
    with replaced([block], lambda block: noting(block.forward, found)):
        output = run(block, given)
    assert found[0] is (output if length is None else output[0])
    assert torch.equal(found[0], given + 1)
    assert "forward" not in vars(block)


def test_a_block_gets_back_the_forward_of_its_own_that_it_had() -> None:
    block, plain = Block(lambda x: x), Block(lambda x: x)
    own = block.forward = returning(None, length=None)
    with (
        pytest.raises(ZeroDivisionError),
        replaced([block, plain], lambda _block: returning(None, length=1)),
    ):
        raise ZeroDivisionError
    assert block.forward is own
    assert "forward" not in vars(plain)
