import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapterfiles import LORA, export, logits, stack_logits
from cohorts import BANK, FAST_STAGES, bank_run, data, train, with_banks
from schemabank.adapters.export import SAFETY, check_with_peft, probe, save_merged
from schemabank.adapters.files import save_bank
from schemabank.common.errors import InputError
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.models.basemodel import BaseModel, load_base_model
from tiny import Kind, tiny_model, tiny_tokenizer
from tinyruns import write_model

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

KINDS: tuple[Kind, ...] = ("llama", "qwen2", "gemma3")

# A process in which our package does not exist.
STOCK_PEFT = """
import sys
sys.modules["schemabank"] = None
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(base, sys.argv[2])
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[5, 9, 200, 33, 12, 99, 4, 4]])).logits
save_file({"logits": logits}, sys.argv[3])
try:
    import schemabank
except ImportError:
    print("without schemabank")
"""


def trained_stack(kind: Kind) -> AdapterStack:
    """Two slots of different rank and alpha, trained with banks, seeds of their own."""
    stack = AdapterStack(tiny_model(kind), lora=LORA, attach=with_banks(BANK))
    train(Cohort(stack, [bank_run(1, lora=LORA[0]), bank_run(2, lora=LORA[1])], data()))
    return stack


def with_stock_peft(model: PreTrainedModel, folder: Path) -> Tensor:
    return logits(peft.PeftModel.from_pretrained(model, str(folder)))


@pytest.fixture(scope="module")
def stack() -> AdapterStack:
    return trained_stack("llama")


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    folder = write_model(tmp_path / "base")
    return load_base_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_reproduces_the_logits_of_every_slot(kind: Kind, tmp_path: Path) -> None:
    trained = trained_stack(kind)
    expected = stack_logits(trained)
    plain = logits(tiny_model(kind))[0]
    for slot in range(2):
        folder = export(trained, slot, tmp_path / str(slot))
        found = with_stock_peft(tiny_model(kind), folder)[0]
        torch.testing.assert_close(found, expected[slot], rtol=0, atol=1e-5)
        assert (found - plain).abs().max() > 1e-2, "the adapter was trained"
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "every slot exports its own"


def test_the_adapter_loads_where_schemabank_is_not_installed(
    stack: AdapterStack, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "base")
    adapter = export(stack, 0, tmp_path / "adapter", base_name=str(model))
    command = [sys.executable, "-c", STOCK_PEFT, model, adapter, tmp_path / "logits.safetensors"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "without schemabank\n"
    found = load_file(tmp_path / "logits.safetensors")["logits"][0]
    torch.testing.assert_close(found, stack_logits(stack)[0], rtol=0, atol=1e-5)


def test_an_adapter_of_another_model_is_refused(stack: AdapterStack) -> None:
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]])
    path, (a, b) = next(iter(stack.lora.tensors(0).items()))
    with pytest.raises(InputError) as error:
        fresh.lora.load(0, {path: (a[:, :24], b)})
    assert str(error.value) == (
        "the adapter has weights for 'model.layers.0.self_attn.q_proj', 24 to 32, but the model "
        "has 32 to 32 there: allowed is the base model that it was trained on, name that"
    )
    with pytest.raises(InputError, match=r"'model\.layers\.9\.q_proj', .* has no such layer"):
        fresh.lora.load(0, {"model.layers.9.q_proj": (a, b)})


def test_a_bank_of_other_settings_is_refused(stack: AdapterStack) -> None:
    other = BANK.model_copy(update={"num_schemas": 4})
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]], attach=with_banks(other))
    with pytest.raises(InputError, match=r"\.router \[8, 32\].* does not fit .*\.router \[4, 32\]"):
        banks_of(fresh).load(0, banks_of(stack).tensors(0))
    elsewhere = BANK.model_copy(update={"layers": (0, 1)})
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]], attach=with_banks(elsewhere))
    with pytest.raises(InputError, match="leave bank settings out"):
        banks_of(fresh).load(0, banks_of(stack).tensors(0))


def test_the_check_accepts_what_was_saved_and_leaves_the_base_as_it_was(
    stack: AdapterStack, base: BaseModel, tmp_path: Path
) -> None:
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    expected = probe(stack, base)
    for slot in range(2):
        folder = export(stack, slot, tmp_path / str(slot))
        assert check_with_peft(folder, base, expected[slot]).agrees
        other = check_with_peft(folder, base, expected[1 - slot])
        assert not other.agrees
        assert "gives other logits in stock PEFT than in its run: the largest" in other.said
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_rounding_is_measured_where_its_unit_does_not_explain_a_difference(
    stack: AdapterStack, base: BaseModel, tmp_path: Path
) -> None:
    (good, other), folder = probe(stack, base), export(stack, 0, tmp_path / "adapter")
    least = SAFETY * torch.finfo(torch.float64).eps
    found = check_with_peft(folder, base, good)
    assert found.agrees
    assert found.allowed == least
    measured = check_with_peft(folder, base, good, always_measure=True)
    assert measured.agrees
    assert measured.allowed is not None
    assert measured.allowed > least
    assert measured.difference == found.difference
    assert check_with_peft(folder, base, other).allowed == measured.allowed


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_bfloat16_base_is_compared_in_float64_and_stays_bfloat16(
    kind: Kind, joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its adapters are compared as they are saved, not as bfloat16 rounds them for computing."""
    trained = trained_stack(kind)
    folder = write_model(tmp_path / "base", kind)
    base = load_base_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    base.model.to(torch.bfloat16)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    monkeypatch.setattr("schemabank.engine.loralayers._joins", lambda *_: joined)
    half = AdapterStack(base.model, lora=LORA)
    for slot in range(2):
        half.lora.load(slot, trained.lora.tensors(slot))
    routed = stack_logits(half)
    expected = probe(half, base)
    assert torch.equal(stack_logits(half), routed), "the model computes in bfloat16 again"
    assert half.is_whole()
    half.remove()
    for slot in range(2):
        folder = export(half, slot, tmp_path / str(slot))
        assert check_with_peft(folder, base, expected[slot]).agrees
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}


def test_the_merged_model_needs_nothing_but_transformers(
    stack: AdapterStack, base: BaseModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    assert save_merged(tmp_path / "merged", folder, base).agrees
    assert capfd.readouterr() == ("", "")  # no bars in logs
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged) is type(tiny_model("llama"))
    torch.testing.assert_close(logits(merged)[0], stack_logits(stack)[0], rtol=0, atol=1e-5)
    assert not list((tmp_path / "merged").glob("adapter*"))
    text = "3 pens cost 6"
    assert base.tokenizer(text) == tiny_tokenizer()(text)


def test_saving_touches_no_network_and_writes_no_pickle(
    stack: AdapterStack, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    adapter = export(stack, 0, tmp_path / "out" / "adapter", base_name="owner/model")
    save_bank(tmp_path / "out" / "bank", banks_of(stack).tensors(0))
    check_with_peft(adapter, base, probe(stack, base)[0])
    save_merged(tmp_path / "out" / "merged", adapter, base)
    suffixes = {p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}


def test_stages_of_this_file_train_all_groups() -> None:
    assert set().union(*(s.train for s in FAST_STAGES)) == {"router", "schemas", "lora"}
