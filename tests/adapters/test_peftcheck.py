"""The comparison of saved adapters with their runs: no good one is called bad, no damaged one good.

The kinds of damage are those of ``benchmarks/peft_check.py``, which asks the same of a real model.
"""

import errno
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from schemabank.adapters import export
from schemabank.adapters.files import save_adapter
from schemabank.adapters.peftcheck import FIELD, PeftCheck, read_check
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from tiny import Kind, tiny_model, tiny_tokenizer
from tinyruns import write_model
from tools import BENCHMARKS, load_tool

pytestmark = [
    # PEFT 0.21 asks transformers 5.23 for a property by its deprecated name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    # A layer that an adapter lacks is what PEFT warns of; whether it is found does not rest on it.
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
]

HIDDEN = 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
# Of B's weights: what learning rates from 1e-5 to 1e-2 come to, and beyond.
SIZES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
# A scale that float32 cannot hold, one that it can, and matrices A that are square.
LORA = (
    LoraSettings(r=3, lora_alpha=7, lora_dropout=0.0, target_modules=TARGETS),
    LoraSettings(r=HIDDEN, lora_alpha=64, lora_dropout=0.0, target_modules=TARGETS),
)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_tool(BENCHMARKS / "peft_check.py")


def base_model(kind: Kind, dtype: torch.dtype) -> BaseModel:
    return BaseModel("tiny", None, tiny_model(kind).to(dtype), tiny_tokenizer(), (0,), "")


def drawn(base: BaseModel, size: float, seed: int) -> AdapterStack:
    """Two slots of different rank, with weights of B that are drawn."""
    stack = AdapterStack(base.model, lora=LORA)
    generator = torch.Generator().manual_seed(seed)
    for slot in range(len(LORA)):
        stack.initialise(slot, seed)
        tensors = {
            path: (a, torch.randn(b.shape, generator=generator) * size)
            for path, (a, b) in stack.lora.tensors(slot).items()
        }
        stack.lora.load(slot, tensors)
    return stack


def test_what_is_computed_for_an_adapter_does_not_depend_on_its_slot() -> None:
    """A run that goes on may have another slot and other neighbours; its result has the same bytes.

    With MKL, a product of float64 matrices rounds an odd row by its place among the others.
    """
    base = base_model("llama", torch.float32)
    stack = drawn(base, 0.1, seed=1)
    (_, own), tensors = export.probe(stack, base), stack.lora.tensors(1)
    stack.remove()
    found = []
    for count, slot in [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]:
        other = AdapterStack(base.model, lora=[LORA[1]] * count)
        other.lora.load(slot, tensors)
        found.append(export.probe(other, base)[slot])
        other.remove()
    assert isinstance(own, export.Probe)
    for each in found:
        assert isinstance(each, export.Probe)
        assert torch.equal(each.states, own.states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_rounding_alone_is_never_called_a_difference_and_damage_always_is(
    kind: Kind, dtype: torch.dtype, benchmark: ModuleType, tmp_path: Path
) -> None:
    base, damages = base_model(kind, dtype), [*benchmark.DAMAGES]
    called_bad, called_good = [], []
    for seed, size in enumerate(SIZES):
        stack = drawn(base, size, seed)
        probes = export.probe(stack, base)
        tensors = [stack.lora.tensors(slot) for slot in range(len(LORA))]
        stack.remove()
        for slot, settings in enumerate(LORA):
            trained = benchmark.Trained(
                RunConfig(arm="lora", lora=settings), tensors[slot], probes[slot]
            )
            # Every size and slot has another damage, so that each kind of model has had all.
            damage = damages[(2 * seed + slot) % len(damages)]
            for kinds in (None, damage):
                place = tmp_path / f"{seed}-{slot}-{kinds}"
                found = benchmark.check(trained, kinds, base, place, random.Random(seed))
                case = (size, slot, kinds, found)
                harmless = kinds is None or (size == 0 and kinds != "one weight NaN")
                if harmless and not found.agrees:
                    called_bad.append(case)
                if not harmless and found.agrees:
                    called_good.append(case)
    assert not called_bad
    assert not called_good


def test_adapters_trained_at_all_rates_and_their_damaged_copies(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The benchmark itself, on a tiny model: its numbers, its file and how it ends."""
    model, out = write_model(tmp_path / "model"), tmp_path / "new" / "record.json"
    options = ["--adapters", "7", "--slots", "4", "--steps", "3", "--device", "cpu"]
    monkeypatch.setattr(
        sys,
        "argv",
        ["x", "--model", str(model), "--dtype", "bfloat16", *options, "--out", str(out)],
    )
    assert benchmark.main() == 0
    shown = capsys.readouterr().out
    rows = json.loads(out.read_text())
    assert len(rows) == 14
    assert {row["learning_rate"] for row in rows} == set(benchmark.RATES)
    assert {row["adapter"] for row in rows} == {"good", *benchmark.DAMAGES}
    assert benchmark.table(rows) == shown
    rows[0]["agrees"] = not rows[0]["agrees"]
    assert benchmark.wrong(rows) == [rows[0]]


def test_rows_without_a_difference_are_counted_in_the_table(benchmark: ModuleType) -> None:
    about = {"model": "tiny", "dtype": "float32", "device": "cpu", "learning_rate": 1e-3}
    checks = [PeftCheck(1e-15, 1e-13), PeftCheck(None, None, "no kernel")]
    rows = [{"adapter": "good", **about, "agrees": check.agrees, **check.row()} for check in checks]
    found = benchmark.table(rows)
    assert "| good | 2 | 1 | 1.0e-02 | 1.0e-02 |" in found
    assert "1 of 2 could not be compared (1: no kernel)." in found
    assert "| 0.001 | 2 | 1.0e-15 | 1.0e-13 |" in found
    assert "| 0.001 | 1 | – | – |" in benchmark.table(rows[1:])
    assert benchmark.wrong(rows) == rows[1:]


def test_an_adapter_that_peft_cannot_load_is_no_crash(tmp_path: Path) -> None:
    base = base_model("llama", torch.float32)
    stack = drawn(base, 0.1, 1)
    (first, _), tensors = export.probe(stack, base), stack.lora.tensors(0)
    stack.remove()
    folder = tmp_path / "adapter"
    save_adapter(folder, tensors, LORA[0], base_name="tiny", card="")
    (folder / "adapter_model.safetensors").write_bytes(b"not what it was")
    found = export.check_with_peft(folder, base, first)
    assert not found.agrees
    assert "could not be compared with its run in stock PEFT: " in found.said
    before = tiny_model("llama").state_dict()
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], values) for name, values in before.items())


def test_a_file_that_could_not_be_read_for_a_moment_settles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result would keep it, and every further call would use it."""
    base = base_model("llama", torch.float32)
    stack = drawn(base, 0.1, 1)
    (first, _), tensors = export.probe(stack, base), stack.lora.tensors(0)
    stack.remove()
    save_adapter(tmp_path / "adapter", tensors, LORA[0], base_name="tiny", card="")
    load, tried = export._load_with_peft, list[Path]()

    def failing_once(own: BaseModel, folder: Path) -> object:
        tried.append(folder)
        if len(tried) == 1:
            raise OSError(errno.EIO, "Input/output error")
        return load(own, folder)

    monkeypatch.setattr(export, "_load_with_peft", failing_once)
    assert export.check_with_peft(tmp_path / "adapter", base, first).agrees
    assert len(tried) == 2


def test_a_model_that_float64_does_not_suit_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_model("llama", torch.float32)
    stack = drawn(base, 0.1, 1)

    def refuses(*_args: object) -> None:
        raise RuntimeError("no kernel for Double")

    monkeypatch.setattr(stack, "hidden", refuses)
    first, second = export.probe(stack, base)
    stack.remove()
    assert first is second
    found = export.check_with_peft(tmp_path, base, first)
    assert found == PeftCheck(None, None, "RuntimeError: no kernel for Double")


@pytest.mark.parametrize(
    "check",
    [PeftCheck(1e-15, 1e-13), PeftCheck(1e-3, 1e-13), PeftCheck(None, 1e-13, "NaN")],
)
def test_a_check_comes_back_from_a_result_as_it_was(check: PeftCheck) -> None:
    assert read_check(json.loads(json.dumps({FIELD: check.row()}))) == check
    assert check.agrees == (check.difference == 1e-15)


def test_results_without_a_check_are_in_no_doubt() -> None:
    assert read_check(None) is None
    assert read_check({"arm": "base"}) is None


def test_every_rate_of_the_benchmark_meets_every_damage(benchmark: ModuleType) -> None:
    num_rates, num_damages = len(benchmark.RATES), len(benchmark.DAMAGES)
    met = {(n % num_rates, benchmark.damage_of(n)) for n in range(num_rates * num_damages)}
    assert len(met) == num_rates * num_damages


def test_a_result_keeps_as_many_digits_as_every_slot_gives() -> None:
    kept = PeftCheck(5.106327103375989e-16, 1.234567890e-13).row()
    assert (kept["difference"], kept["allowed"]) == (5.10633e-16, 1.23457e-13)
