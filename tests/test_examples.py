"""The examples run, and the curriculum written by hand comes to the weights that the engine has."""

import csv
import json
import os
import re
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cohorts import BANK, bank_run, cohort, data, train
from programs import printed_by
from schemabank.config.settings import LoraSettings, Stage
from schemabank.engine.slots import Slot
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from tiny import tiny_model, tiny_tokenizer
from tools import load_tool

# PEFT asks a model of transformers 5 for what is called otherwise there.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

EXAMPLES = Path(__file__).parents[1] / "examples"
CURRICULUM = EXAMPLES / "curriculum.py"
LONGEST = 150  # lines that are not empty, to be read in one go
NUM_STEPS = 20
LORA = LoraSettings(r=4, lora_alpha=8, lora_dropout=0.0)


@pytest.fixture(scope="module")
def by_hand() -> ModuleType:
    return load_tool(CURRICULUM)


def test_the_curriculum_by_hand_is_short_and_does_not_import_schemabank() -> None:
    text = CURRICULUM.read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= LONGEST
    assert re.findall(r"^\s*(?:from|import) schemabank", text, re.MULTILINE) == []


def as_by_hand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A bank's weights in the example's shapes, from the engine's."""
    schemas = len(tensors["router"])
    return {
        **tensors,
        "U": tensors["U"].unflatten(1, (schemas, -1)).permute(1, 0, 2),
        "V": tensors["V"].unflatten(0, (schemas, -1)),
    }


def copied(by_hand: ModuleType, stack: AdapterStack) -> tuple[PeftModel, list[torch.nn.Module]]:
    """A model with stock PEFT's LoRA and the example's banks, at the weights of slot 0."""
    model = get_peft_model(
        tiny_model("llama").requires_grad_(False),
        LoraConfig(r=LORA.r, lora_alpha=LORA.lora_alpha, target_modules=list(LORA.target_modules)),
    )
    for path, weights in stack.lora.tensors(0).items():
        for own, given in zip(lora_of(model, path), weights, strict=True):
            own.data.copy_(given)
    banks = []
    for index, bank in sorted(banks_of(stack).banks.items()):
        sizes = (model.config.hidden_size, bank.num_schemas, bank.rank)
        own = by_hand.SchemaBank(*sizes, top_k=bank.top_k, attributes=bank.query.shape[1])
        own.load_state_dict(as_by_hand(bank.tensors(0)))
        block = model.base_model.model.model.layers[index]
        block.register_forward_hook(lambda _block, _args, states, own=own: own(states))
        banks.append(own)
    return model, banks


def lora_of(model: PeftModel, path: str) -> tuple[Tensor, Tensor]:
    layer: Any = model.base_model.model.get_submodule(path)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def test_the_engine_comes_to_the_same_weights(
    by_hand: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another implementation: autograd's own layers, PyTorch's AdamW, PEFT's LoRA."""
    batches, kept = [], []
    rows = Slot.rows

    def noted(slot: Slot, settings: Any) -> Any:  # noqa: ANN401
        found = rows(slot, settings)
        kept.append(settings.tag_keep)
        batches.append(
            [
                by_hand.Row(list(row.encoded.tokens), row.encoded.label_start, row.shown)
                for row in found
                if row is not None
            ]
        )
        return found

    monkeypatch.setattr(Slot, "rows", noted)
    stages = [
        by_hand.Stage(s.ratio, s.groups, s.learning_rate * 5, s.tag_keep) for s in by_hand.STAGES
    ]
    run = bank_run(
        1,
        bank=BANK.model_copy(update={"load_balance_weight": 0.0}),
        stages=tuple(
            Stage(
                name=str(number),
                ratio=stage.ratio,
                train=stage.groups,
                learning_rate=stage.learning_rate,
                tag_keep=stage.tag_keep,
            )
            for number, stage in enumerate(stages)
        ),
        lora=LORA,
        max_steps=NUM_STEPS,
        max_grad_norm=1.0,
    )
    trained = cohort([run], data())
    trained.stack.initialise(0, run.seed)  # as its first step does again
    model, banks = copied(by_hand, trained.stack)
    expected = [(step.loss, step.total_loss) for (step,) in train(trained)]

    given, asked = iter(batches), []

    def batch(keep: float) -> Any:  # noqa: ANN401
        asked.append(keep)
        return next(given)

    found = list(by_hand.train(model, banks, stages, NUM_STEPS, batch))
    assert found == [pytest.approx(losses, abs=1e-5) for losses in expected]
    assert asked == kept
    assert any(row.tags for batch in batches for row in batch)
    for path, weights in trained.stack.lora.tensors(0).items():
        for own, expected_weight in zip(lora_of(model, path), weights, strict=True):
            torch.testing.assert_close(own.data, expected_weight, rtol=0, atol=1e-5)
    for own, (_, bank) in zip(banks, sorted(banks_of(trained.stack).banks.items()), strict=True):
        for name, weight in as_by_hand(bank.tensors(0)).items():
            torch.testing.assert_close(own.state_dict()[name], weight, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "base"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def run_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run an example as a user does; return what it prints."""

    def run(name: str, *arguments: object) -> str:
        path = EXAMPLES / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_curriculum_by_hand_ends_as_a_plain_adapter(
    base: Path, tmp_path: Path, run_example: Callable[..., str]
) -> None:
    first, last = map(
        float, re.findall(r"\d+\.\d+", run_example("curriculum", base, tmp_path / "adapter"))
    )
    assert last < first
    PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")


def test_own_pairs_give_adapters_that_stock_peft_uses_and_merges(
    base: Path, tmp_path: Path, run_example: Callable[..., str]
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i} plus {i} is", "completion": f" {2 * i}"} for i in range(12)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = run_example("own_pairs", base, pairs, tmp_path / "out")
    assert re.findall(r"^(\w+): 6 steps, last loss \d", said, re.MULTILINE) == [
        "lora",
        "schemabank",
    ]
    merged = tmp_path / "merged"
    run_example("use_adapter", base, tmp_path / "out" / "schemabank", "3 plus 3 is", merged)
    own = AutoModelForCausalLM.from_pretrained(merged)
    tokens = torch.arange(8)[None]
    assert not torch.equal(own(tokens).logits, tiny_model("llama")(tokens).logits)


def write_answers(path: Path) -> None:
    rows = [f'"{i}, and 1 more?",{i + 1}' for i in range(12)]
    path.write_text("\n".join(["question,answer", *rows]), encoding="utf-8")


def write_pairs(path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "completion": f" {i + 1}"} for i in range(12)]
    Dataset.from_list(rows).to_parquet(path)


def write_chats(path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "x"}]}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


OWN_FILES = {
    "own_csv": ("answers.csv", write_answers),
    "own_parquet": ("pairs.parquet", write_pairs),
    "own_chats": ("chats.jsonl", write_chats),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_own_files_give_an_adapter_in_twelve_lines(
    name: str, base: Path, tmp_path: Path, run_example: Callable[..., str]
) -> None:
    file, write = OWN_FILES[name]
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.startswith('"""')]
    assert len(code) <= 12
    model = tmp_path / "model"
    shutil.copytree(base, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
    tokenizer.save_pretrained(model)
    write(tmp_path / file)
    run_example(name, model, tmp_path / file, tmp_path / "out")
    PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "out")


def forked(command: Sequence[object], **_options: object) -> CompletedProcess[str]:
    """Run the program as an example does, without importing everything anew."""
    program, *arguments = map(str, command)
    assert Path(program).name == "schemabank"
    assert os.access(program, os.X_OK), "the command is installed"
    return CompletedProcess([program, *arguments], 0, stdout=printed_by(arguments))


def test_a_comparison_ends_with_a_verdict_and_a_table(
    base: Path,
    tmp_path: Path,
    run_example: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = tmp_path / "rows.jsonl"
    found = [{"question": f"{i} plus {i % 7} is", "answer": str(i + i % 7)} for i in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    monkeypatch.setattr("subprocess.run", forked)
    said = run_example("compare", base, rows, tmp_path / "out")
    scored = re.findall(r"^(\w[\w ]*?)(?: \(.*\))?: [\d.]+ %$", said, re.MULTILINE)
    assert scored == ["untouched", "best constant answer", "lora", "schemabank"]
    assert "schemabank against lora: no verdict" in said
    assert "\n- 2 seeds: " in said
    assert run_example("compare", base, rows, tmp_path / "out") == said, "it goes on"
    runs = tmp_path / "out" / "runs"
    table = list(csv.DictReader(run_example("read_runs", runs).splitlines()))
    assert Counter(row["arm"] for row in table) == {"untouched": 1, "lora": 2, "schemabank": 2}
    assert all((row["num_steps"] == "0") == (row["arm"] == "untouched") for row in table)
    assert {row["split"] for row in table} == {"test"}
    (runs / "suite.json").unlink()
    again = list(csv.DictReader(run_example("read_runs", runs).splitlines()))
    assert Counter(row["arm"] for row in again) == {"base": 1, "lora": 2, "schemabank": 2}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_without_arguments_says_how_it_is_called(
    path: Path, run_example: Callable[..., str]
) -> None:
    with pytest.raises(SystemExit, match=rf"python examples/{path.name} \w+"):
        run_example(path.stem)
