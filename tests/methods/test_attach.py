import pytest
import torch
from torch import Tensor, nn

from cohorts import bank_run, cohort, data, train, with_banks
from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import AttachedBanks, bank_layers, banks_of
from schemabank.methods.schemabank.bank import SchemaBank
from tiny import Kind, tiny_model

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")
TOKENS = torch.tensor([[5, 9, 200, 33, 12, 99], [1, 2, 3, 4, 5, 6]])


def trained_cohort(kind: Kind) -> Cohort:
    trained = cohort([bank_run(1)], data(), kind=kind)
    train(trained)
    return trained


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_detach_restores_the_unrouted_logits_bit_for_bit(kind: Kind) -> None:
    stack = trained_cohort(kind).stack
    off = logits(stack.model)
    banks = banks_of(stack)
    banks.routing, banks.scale = "on", torch.ones(1)
    on = logits(stack.model)
    banks.routing = "dense"
    dense = logits(stack.model)
    assert (on - off).abs().max() > 1e-3
    assert (dense - off).abs().max() > 1e-3
    assert not torch.equal(on, dense)
    banks_of(stack).routing = "on"
    stack.strip()
    assert torch.equal(logits(stack.model), off)
    never = AdapterStack(tiny_model(kind), lora=stack.lora.settings)
    never.lora.load(0, stack.lora.tensors(0))
    assert torch.equal(logits(never.model), off)
    assert not torch.equal(off, logits(tiny_model(kind))), "the adapter was trained"


@pytest.mark.parametrize("kind", KINDS)
def test_removal_restores_the_base_model_bit_for_bit(kind: Kind) -> None:
    plain = tiny_model(kind)
    stack = trained_cohort(kind).stack
    banks_of(stack).routing = "on"
    stack.remove()
    assert torch.equal(logits(stack.model), logits(plain))
    ours, theirs = stack.model.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in stack.model.modules())


@pytest.mark.parametrize(
    ("last_n", "layers", "expected"),
    [
        (2, None, (1, 2)),
        (3, None, (0, 1, 2)),
        (1, None, (2,)),
        (2, (2, 0), (0, 2)),
        (9, (1,), (1,)),
    ],
)
def test_where_banks_sit(
    last_n: int, layers: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    assert bank_layers(3, last_n=last_n, layers=layers) == expected
    bank = BankSettings(last_n=last_n, layers=layers, num_schemas=4, rank=2)
    stack = AdapterStack(tiny_model("llama"), lora=[LoraSettings()], attach=with_banks(bank))
    hooked = [i for i, b in enumerate(stack.model.get_decoder().layers) if b._forward_hooks]
    assert tuple(hooked) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"last_n": 4},
            "bank.last_n is 4, but the model has 3 blocks: allowed is 1 to 3, lower it",
        ),
        (
            {"layers": (0, 3)},
            "bank.layers names block 3, but the model has 3 blocks: allowed are 0 to 2, name those",
        ),
    ],
)
def test_blocks_that_are_not_there(settings: dict[str, object], sentence: str) -> None:
    model = tiny_model("llama")
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError) as error:
        AdapterStack(model, lora=[LoraSettings()], attach=with_banks(BankSettings(**settings)))
    assert str(error.value) == sentence
    assert [name for name, _ in model.named_modules()] == names, "the model was not touched"


class TupleBlock(nn.Module):
    """A block of the older kind: its hidden state comes first in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, hidden: Tensor) -> tuple[Tensor, str]:
        return self.map(hidden), "attention weights"


def test_a_block_may_return_a_tuple() -> None:
    torch.manual_seed(0)
    block, hidden = TupleBlock(), torch.randn(2, 5, 8)
    bank = SchemaBank(
        num_slots=1, hidden_size=8, num_schemas=4, rank=2, top_k=2, attribute_dim=3, residual=True
    )
    bank.initialise(0, torch.Generator().manual_seed(0), init_std=0.5)
    plain, _ = block(hidden)
    settings = BankSettings(num_schemas=4, rank=2, attribute_dim=3)
    attached = AttachedBanks([block], {0: bank}, settings, num_slots=1)
    assert torch.equal(block(hidden)[0], plain), "off is the default"
    attached.routing = "on"
    moved, rest = block(hidden)
    expected, routed = bank(plain, scale=torch.ones(1))
    assert torch.equal(moved, expected)
    assert rest == "attention weights"
    assert not torch.equal(moved, plain)
    assert [r.gates.shape for r in attached.routed] == [routed.gates.shape]
    block(hidden)
    assert len(attached.routed) == 1, "only the last forward pass is kept"
    attached.detach()
    assert torch.equal(block(hidden)[0], plain)
    assert attached.routed == []
