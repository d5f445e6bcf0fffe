import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from cohorts import BANK, FAST_STAGES, bank_run, data, train
from runs import write_model
from schemabank.adapters import (
    CONFIG,
    WEIGHTS,
    load_adapter,
    load_bank,
    model_card,
    save_adapter,
    save_bank,
)
from schemabank.cohort.engine import Cohort
from schemabank.cohort.joined import join_linears
from schemabank.cohort.stack import AdapterStack
from schemabank.config import LoraSettings
from schemabank.errors import InputError
from schemabank.export import check_with_peft, probe_logits, save_merged
from schemabank.models import BaseModel, load_base_model
from tiny import Kind, tiny_model, tiny_tokenizer

# PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TARGETS = ("q_proj", "v_proj", "down_proj")
LORA = [
    LoraSettings(r=4, lora_alpha=10, lora_dropout=0.2, target_modules=TARGETS),
    LoraSettings(r=2, lora_alpha=7, lora_dropout=0.0, target_modules=TARGETS),
]
TOKENS = torch.tensor([[5, 9, 200, 33, 12, 99, 4, 4]])
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
    stack = AdapterStack(tiny_model(kind), lora=LORA, bank=BANK)
    train(Cohort(stack, [bank_run(1, lora=LORA[0]), bank_run(2, lora=LORA[1])], data()))
    return stack


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return result


def stack_logits(stack: AdapterStack) -> Tensor:
    """Every slot's logits with the banks off."""
    with stack.evaluating("off"):
        return stack.head(stack.hidden(TOKENS.expand(stack.num_slots, 1, -1)))


def export(stack: AdapterStack, slot: int, folder: Path, *, base_name: str = "tiny") -> Path:
    settings = stack.lora_settings[slot]
    card = model_card(base_name, settings, training="Trained in a test.")
    save_adapter(folder, stack.lora_tensors(slot), settings, base_name=base_name, card=card)
    return folder


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


def test_the_adapter_is_minimal(stack: AdapterStack, tmp_path: Path) -> None:
    folder = export(stack, 0, tmp_path / "new" / "adapter", base_name="owner/model")
    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    assert json.loads((folder / CONFIG).read_text()) == {
        "base_model_name_or_path": "owner/model",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 10.0,
        "lora_dropout": 0.2,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    weights = load_file(folder / WEIGHTS)
    assert len(weights) == 3 * len(TARGETS) * 2
    assert all(any(f".{target}.lora_" in key for target in TARGETS) for key in weights)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    assert weights[key].shape == (4, 64)


def test_the_card_carries_what_the_hub_reads(stack: AdapterStack, tmp_path: Path) -> None:
    text = (export(stack, 0, tmp_path / "a", base_name="owner/model") / "README.md").read_text()
    head = text.split("---\n")[1].splitlines()
    assert "library_name: peft" in head
    assert "base_model: owner/model" in head
    assert head[head.index("tags:") :] == ["tags:", "- lora", "- schemabank"]
    assert "Rank 4, alpha 10, on q_proj, v_proj, down_proj." in text


def test_an_adapter_survives_the_round_trip_bit_for_bit(
    stack: AdapterStack, tmp_path: Path
) -> None:
    settings, tensors = load_adapter(export(stack, 1, tmp_path / "adapter"))
    assert settings == LORA[1]
    fresh = AdapterStack(tiny_model("llama"), lora=[settings], bank=None)
    fresh.load_lora(0, tensors)
    for path, pair in stack.lora_tensors(1).items():
        assert all(map(torch.equal, fresh.lora_tensors(0)[path], pair))
    torch.testing.assert_close(stack_logits(fresh)[0], stack_logits(stack)[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [4, 10])
def test_what_peft_saved_computes_the_same_here(alpha: int, tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(tmp_path)
    settings, tensors = load_adapter(tmp_path)
    assert (settings.r, settings.lora_alpha) == (4, alpha)
    assert set(settings.target_modules) == {"q_proj", "up_proj"}
    fresh = AdapterStack(tiny_model("llama"), lora=[settings], bank=None)
    fresh.load_lora(0, tensors)
    expected = logits(model)
    torch.testing.assert_close(stack_logits(fresh), expected, rtol=0, atol=1e-5)
    assert (expected - logits(tiny_model("llama"))).abs().max() > 1e-2


def test_layers_that_peft_left_out_stay_untouched(tmp_path: Path) -> None:
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj"], layers_to_transform=[1], init_lora_weights=False
    )
    model = peft.get_peft_model(tiny_model("llama"), config)
    model.save_pretrained(tmp_path)
    settings, tensors = load_adapter(tmp_path)
    fresh = AdapterStack(tiny_model("llama"), lora=[settings], bank=None)
    fresh.load_lora(0, tensors)
    torch.testing.assert_close(stack_logits(fresh), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"use_rslora": True}, "use_rslora"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"target_modules": r".*\.q_proj"}, "target_modules as a pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ],
)
def test_more_than_plain_lora_is_refused(
    options: dict[str, object], named: str, tmp_path: Path
) -> None:
    config = peft.LoraConfig(**({"r": 2, "target_modules": ["q_proj"]} | options))
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_adapter(tmp_path)
    assert str(error.value) == (
        f"{str(tmp_path)!r} uses {named}, allowed is plain LoRA with a list of targets: evaluate "
        "it with PEFT, or merge it and name the merged folder as the model"
    )


def test_another_kind_of_adapter_is_refused(tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"of type 'IA3', allowed is LORA"):
        load_adapter(tmp_path)


def test_weights_beyond_lora_are_refused_whatever_the_configuration_says(
    stack: AdapterStack, tmp_path: Path
) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    key = "base_model.model.lm_head.weight"
    save_file({**load_file(folder / WEIGHTS), key: torch.zeros(300, 32)}, folder / WEIGHTS)
    with pytest.raises(InputError, match=rf"holds '{key}', allowed are LoRA's A and B"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"r": 0}, r"r is 0, but .* greater than or equal to 1"), ({"r": None}, "r is None")],
)
def test_a_damaged_configuration(
    change: dict[str, object], message: str, stack: AdapterStack, tmp_path: Path
) -> None:
    path = export(stack, 0, tmp_path / "adapter") / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_adapter(path.parent)
    del config["lora_alpha"]
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="lacks 'lora_alpha'"):
        load_adapter(path.parent)


def test_files_that_are_missing_or_torn(stack: AdapterStack, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json"):
        load_adapter(tmp_path / "nothing")
    folder = export(stack, 0, tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
    with pytest.raises(InputError, match="cannot read"):
        load_adapter(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match="cannot read"):
        load_adapter(folder)


def test_an_adapter_of_another_model_is_refused(stack: AdapterStack) -> None:
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]], bank=None)
    path, (a, b) = next(iter(stack.lora_tensors(0).items()))
    with pytest.raises(InputError) as error:
        fresh.load_lora(0, {path: (a[:, :24], b)})
    assert str(error.value) == (
        "the adapter has weights for 'model.layers.0.self_attn.q_proj', 24 to 32, but the model "
        "has 32 to 32 there: allowed is the base model that it was trained on, name that"
    )
    with pytest.raises(InputError, match=r"'model\.layers\.9\.q_proj', .* has no such layer"):
        fresh.load_lora(0, {"model.layers.9.q_proj": (a, b)})


def test_a_bank_of_other_settings_is_refused(stack: AdapterStack) -> None:
    other = BANK.model_copy(update={"num_schemas": 4})
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]], bank=other)
    with pytest.raises(InputError, match=r"\.router \[8, 32\].* does not fit .*\.router \[4, 32\]"):
        fresh.load_bank(0, stack.bank_tensors(0))
    elsewhere = BANK.model_copy(update={"layers": (0, 1)})
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[0]], bank=elsewhere)
    with pytest.raises(InputError, match="leave bank settings out"):
        fresh.load_bank(0, stack.bank_tensors(0))


def test_an_existing_folder_is_never_overwritten(stack: AdapterStack, tmp_path: Path) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="exists and is not overwritten: name a new folder"):
        export(stack, 1, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_bank_survives_the_round_trip_bit_for_bit(stack: AdapterStack, tmp_path: Path) -> None:
    save_bank(tmp_path / "bank", stack.bank_tensors(1))
    assert [p.name for p in (tmp_path / "bank").iterdir()] == ["bank.safetensors"]
    loaded = load_bank(tmp_path / "bank")
    assert set(loaded) == {
        f"layers.{i}.{n}" for i in (1, 2) for n in ("router", "U", "V", "attributes", "query")
    }
    fresh = AdapterStack(tiny_model("llama"), lora=[LORA[1]], bank=BANK)
    fresh.load_lora(0, stack.lora_tensors(1))
    fresh.load_bank(0, loaded)
    for name, values in stack.bank_tensors(1).items():
        assert torch.equal(fresh.bank_tensors(0)[name], values)
    with fresh.evaluating("on"), stack.evaluating("on"):
        torch.testing.assert_close(
            fresh.hidden(TOKENS[None])[0],
            stack.hidden(TOKENS.expand(2, 1, -1))[1],
            rtol=1e-5,
            atol=1e-5,
        )


def test_a_folder_without_a_bank(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no bank .*: allowed is --routing off, or a run"):
        load_bank(tmp_path)


def test_the_check_accepts_what_was_saved_and_leaves_the_base_as_it_was(
    stack: AdapterStack, base: BaseModel, tmp_path: Path
) -> None:
    before = {name: values.clone() for name, values in base.model.state_dict().items()}
    expected = probe_logits(stack, base)
    for slot in range(2):
        folder = export(stack, slot, tmp_path / str(slot))
        assert check_with_peft(folder, base, expected[slot]) < 1e-5
        with pytest.raises(RuntimeError, match=r"gives other logits than the run: .*allowed 1e-05"):
            check_with_peft(folder, base, expected[1 - slot])
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], values) for name, values in before.items())


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_bfloat16_base_is_compared_in_float32_and_stays_bfloat16(
    kind: Kind, joined: bool, tmp_path: Path
) -> None:
    """Its adapters are compared as they are saved, not as bfloat16 rounds them for computing."""
    trained = trained_stack(kind)
    folder = write_model(tmp_path / "base", kind)
    base = load_base_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    base.model.to(torch.bfloat16)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    linears = join_linears(base.model) if joined else {}
    half = AdapterStack(base.model, lora=LORA, bank=None)
    half.joined = linears
    for slot in range(2):
        half.load_lora(slot, trained.lora_tensors(slot))
    routed = stack_logits(half)
    expected = probe_logits(half, base)
    assert torch.equal(stack_logits(half), routed), "the model computes in bfloat16 again"
    assert half.is_whole()
    half.remove()
    for slot in range(2):
        assert (
            check_with_peft(export(half, slot, tmp_path / str(slot)), base, expected[slot]) < 1e-5
        )
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}


def test_the_merged_model_needs_nothing_but_transformers(
    stack: AdapterStack, base: BaseModel, tmp_path: Path
) -> None:
    folder = export(stack, 0, tmp_path / "adapter")
    assert save_merged(tmp_path / "merged", folder, base) < 1e-5
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
    save_bank(tmp_path / "out" / "bank", stack.bank_tensors(0))
    check_with_peft(adapter, base, probe_logits(stack, base)[0])
    save_merged(tmp_path / "out" / "merged", adapter, base)
    suffixes = {p.suffix for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}


def test_stages_of_this_file_train_all_groups() -> None:
    assert set().union(*(s.train for s in FAST_STAGES)) == {"router", "schemas", "lora"}
