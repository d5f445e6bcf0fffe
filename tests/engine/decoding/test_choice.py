"""Who decodes a model is decided before training, and every model is evaluated."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from architectures import tiny_architecture
from cohorts import with_banks
from docblocks import blocks
from schemabank.common.errors import InputError
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.decoding import choice
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.stack import AdapterStack
from schemabank.runs.members import Outcome
from schemabank.runs.saved import evaluate_saved, export_run
from tiny import mixed, state, tiny_model, tiny_tokenizer
from tinyruns import Notes, write_config
from tinyruns import run as run_config

JOINED = "schemabank.engine.loralayers._joins"  # where a GPU has few slots
VISION = [f"model.vision_tower.encoder.layers.0.self_attn.{name}_proj" for name in ("v", "q")]
BY_SLOT = "decoding: one run at a time, by transformers' generate, which takes longer: "


def run(
    folder: Path, name: str, changes: dict[str, object], *overrides: str
) -> tuple[list[Outcome], list[str]]:
    tiny_architecture(name).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    config = write_config(folder / "tiny.yaml", folder / "model", **changes)
    return run_config(config, folder / "runs", *overrides)


def predictions(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llama", None),
        ("gpt2", None),
        ("gemma3", None),
        ("qwen2_moe", None),
        ("falcon", "FalconForCausalLM has an attention that cannot be replaced"),
        ("gpt_oss", "GptOssAttention has attention with s_aux"),
        ("lfm2", "Lfm2ForCausalLM has layers of the types conv, full_attention"),
        ("nemotron", "NemotronAttention has attention with no row_biases"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_decoder_says_why_it_cannot_decode_a_model(
    name: str, reason: str | None, dtype: torch.dtype
) -> None:
    model = tiny_architecture(name).to(dtype)
    before = {path: weight.clone() for path, weight in model.named_parameters()}
    attention = model.config.get_text_config()._attn_implementation
    trained = mixed(model)
    found = why_by_slot(model)
    assert state(model) == trained
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)
    check_generates(model.eval())
    assert all(torch.equal(before[path], w) for path, w in model.named_parameters())
    assert model.config.get_text_config()._attn_implementation == attention


def test_a_model_that_is_told_other_positions_is_decoded_by_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("llama")
    forward = type(model.base_model).forward

    def at_the_first_place(self: PreTrainedModel, **given: object) -> object:
        given.pop("position_ids", None)
        return forward(self, **given)

    monkeypatch.setattr(type(model.base_model), "forward", at_the_first_place)
    assert "from those of whole texts" in str(why_by_slot(model))


def test_a_model_that_neither_decodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise NotImplementedError("no generation here")

    monkeypatch.setattr(type(model), "generate", fail)
    with pytest.raises(
        InputError, match=r"LlamaForCausalLM can be decoded neither .* \(no generation here\)"
    ):
        check_generates(model)


def test_a_model_with_other_attention_is_trained_and_evaluated(gsm8k: Path, tmp_path: Path) -> None:
    del gsm8k
    changes = {
        "arm": ["base", "lora", "schemabank"],
        "lora": {"target_modules": ["query_key_value"]},
        "train": {"max_steps": 5},
    }
    outcomes, notes = run(tmp_path, "falcon", changes)
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert sum(note.startswith(BY_SLOT) for note in notes) == 1
    (line,) = (block.body for block in blocks("docs/models.md") if block.language == "text")
    assert line.strip() in notes
    reporter = Notes()
    (again,) = evaluate_saved(outcomes[1].folder / "adapter", [], tmp_path / "again", reporter)
    assert predictions(again.folder) == predictions(outcomes[1].folder)
    assert sum(note.startswith(BY_SLOT) for note in reporter.lines) == 1


def test_a_task_that_decodes_nothing_does_not_ask_who_decodes(
    gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del gsm8k

    def fail(_model: object) -> None:
        raise AssertionError

    monkeypatch.setattr("schemabank.runs.loading.check_generates", fail)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "book.txt.gz").write_bytes(gzip.compress(b"one two three four " * 200))
    book = {"book_id": "book", "file": "text/book.txt.gz", "narrativeqa_set": "test"}
    (tmp_path / "index.jsonl").write_text(json.dumps(book) + "\n")
    books = {"path": str(tmp_path), "windows": [32], "num_targets": 8, "leave_out": []}
    changes: dict[str, object] = {
        "arm": "base",
        "task": {"name": "perplexity", "perplexity": books},
    }
    outcomes, notes = run(tmp_path, "falcon", changes)
    assert outcomes[0].failure is None
    assert not any(note.startswith(BY_SLOT) for note in notes)


def test_the_arm_base_is_scored_whatever_the_settings_of_adapters(
    gsm8k: Path, tmp_path: Path
) -> None:
    del gsm8k
    changes: dict[str, object] = {
        "arm": "base",
        "lora": {"target_modules": ["nothing"], "layers_to_transform": [99]},
        "bank": {"last_n": 99},
        "tags": {"tagger": "field", "field": "nothing"},
        "task": {"max_length": 8},
    }
    outcomes, _ = run(tmp_path, "gpt2", changes)
    assert outcomes[0].failure is None
    (again,) = evaluate_saved(outcomes[0].folder, [], tmp_path / "again", Notes())
    assert predictions(again.folder) == predictions(outcomes[0].folder)


def test_what_an_arm_with_an_adapter_cannot_have_is_refused_before_training(
    gsm8k: Path, tmp_path: Path
) -> None:
    del gsm8k
    with pytest.raises(InputError, match=r"names 'q_proj', .*: allowed are c_attn, c_fc, c_proj,"):
        run(tmp_path, "gpt2", {"arm": ["base", "lora"], "lora": {"target_modules": ["q_proj"]}})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "targets", "told"),
    [
        ("gpt2", ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
        ("gemma3", ["q_proj", "v_proj"], {"exclude_modules": VISION}),
    ],
)
def test_an_adapter_says_what_peft_needs_to_find_its_layers(
    gsm8k: Path, tmp_path: Path, name: str, targets: list[str], told: dict[str, object]
) -> None:
    del gsm8k
    changes = {"arm": "lora", "lora": {"target_modules": targets}, "train": {"max_steps": 3}}
    (outcome,), _ = run(tmp_path, name, changes)
    assert outcome.failure is None
    config = json.loads((outcome.folder / "adapter" / "adapter_config.json").read_text())
    assert told.items() <= config.items()
    (again,) = evaluate_saved(outcome.folder / "adapter", [], tmp_path / "again", Notes())
    assert predictions(again.folder) == predictions(outcome.folder)
    for merge in (False, True):
        assert export_run(outcome.folder, tmp_path / f"out-{merge}", merge=merge).agrees


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_looking_who_decodes_leaves_every_layer_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JOINED, lambda *_: True)
    model = tiny_architecture(name)
    before = [(path, id(module)) for path, module in model.named_modules()]
    why_by_slot(model)
    assert [(path, id(module)) for path, module in model.named_modules()] == before


def test_runs_with_joined_products_are_what_stock_peft_loads(
    gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del gsm8k
    monkeypatch.setattr(JOINED, lambda *_: True)
    outcomes, lines = run(tmp_path, "llama", {"arm": ["lora", "schemabank"]})
    assert [outcome.failure for outcome in outcomes] == [None, None]
    assert sum("the same logits in stock PEFT" in line for line in lines) == 2


def out_of_memory(*_args: object, **_kwargs: object) -> None:
    raise torch.OutOfMemoryError


def test_memory_that_runs_out_is_not_taken_for_a_fault_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_architecture("llama")
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStack, "hidden", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            AdapterStack(model, lora=[LoraSettings()])
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStack, "trunk", out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            AdapterStack(model, lora=[LoraSettings()], attach=with_banks(BankSettings()))
    name = "schemabank.engine.decoding.choice._difference_from_whole_texts"
    monkeypatch.setattr(name, out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        why_by_slot(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("precise", "problem"),
    [
        (1e-5, None),
        (2e-3, "its logits differ by 2.0e-03 from those of whole texts"),
        (float("nan"), "its logits differ by nan from those of whole texts"),
        (
            torch.OutOfMemoryError(),
            "its logits differ by 6.3e-02 from those of whole texts, and memory is too short to "
            "compute them in float32",
        ),
        (InputError("no such attention"), "no such attention"),
    ],
)
def test_what_rounding_alone_may_have_made_is_asked_again_in_float32(
    dtype: torch.dtype,
    precise: float | Exception,
    problem: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[torch.dtype] = []

    def difference(model: PreTrainedModel) -> float:
        asked.append(model.dtype)
        if model.dtype == dtype:
            return 0.063
        if isinstance(precise, Exception):
            raise precise
        return precise

    model = tiny_architecture("llama").to(dtype)  # type: ignore[arg-type]  # typed for devices
    tensors = [*model.parameters(), *model.buffers()]
    before = [(tensor.data_ptr(), tensor.dtype) for tensor in tensors]
    monkeypatch.setattr(choice, "_difference_of_ours", difference)
    assert why_by_slot(model) == problem
    assert asked == [dtype, torch.float32]
    assert [(tensor.data_ptr(), tensor.dtype) for tensor in tensors] == before


def test_weights_that_are_not_plain_numbers_are_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_architecture("llama").to(torch.bfloat16)
    model.quantised = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    monkeypatch.setattr(choice, "_difference_of_ours", lambda _: 0.063)
    assert why_by_slot(model) == "its logits differ by 6.3e-02 from those of whole texts"
