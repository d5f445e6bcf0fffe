"""A model's refusal is an answer; memory that runs out is none, wherever a model is asked."""

import ast
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cohorts import with_banks
from schemabank.adapters import peftlayers
from schemabank.common.errors import InputError
from schemabank.common.failure import failure_of
from schemabank.common.memory import is_out_of_memory
from schemabank.config.settings import BankSettings, LoraSettings
from schemabank.engine.decoding.choice import check_generates, why_by_slot
from schemabank.engine.stack import AdapterStack
from schemabank.engine.targets import check_calls
from schemabank.models.checks import loading
from schemabank.models.refusals import RefusalError, asking
from tiny import tiny_model

SOURCE = Path(__file__).parents[2] / "src" / "schemabank"
TOO_MUCH = 2**60  # bytes, more than any host has


def of_a_device(*_args: object, **_named: object) -> None:
    raise torch.OutOfMemoryError("no room")


def of_the_host(*_args: object, **_named: object) -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def of_python(*_args: object, **_named: object) -> None:
    bytearray(TOO_MUCH)


EMPTY = [
    (of_a_device, torch.OutOfMemoryError),
    (of_the_host, RuntimeError),
    (of_python, MemoryError),
]


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("no such part\nand more"),
        AssertionError("no such part"),
        ImportError("no such part"),
        ZeroDivisionError("no such part"),
        IndexError("no such part"),
        KeyError("no such part"),
        NotImplementedError("no such part"),
        RuntimeError("no such part"),
        TypeError("no such part"),
        ValueError("no such part"),
    ],
)
def test_what_a_models_parts_raise_is_a_refusal_in_a_line(error: Exception) -> None:
    with pytest.raises(RefusalError, match=r"^'?no such part'?$") as found, asking():
        raise error
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [InputError("ours"), OSError("gone"), KeyboardInterrupt()])
def test_our_own_sentence_a_disk_and_an_interrupt_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, asking():
        raise error
    assert found.value is error


@pytest.mark.parametrize(("spend", "kind"), EMPTY)
def test_memory_that_runs_out_is_no_refusal(
    spend: Callable[[], None], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as found, asking():
        spend()
    assert not isinstance(found.value, RefusalError)
    assert is_out_of_memory(found.value)
    assert failure_of(found.value).kind == "memory"
    with pytest.raises(kind), loading("a model"):
        spend()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to mmap 405170384 bytes from file <x>: Cannot allocate memory (12)"),
        SafetensorError("Error while mapping: Cannot allocate memory (os error 12)"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_other_words_for_memory_that_runs_out_are_known(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_a_sentence_that_quotes_them_is_not_taken_for_it() -> None:
    assert not is_out_of_memory(InputError("'Cannot allocate memory' is no name of a model"))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize(("spend", "kind"), EMPTY)
def test_wherever_a_model_is_asked_memory_that_runs_out_is_said_as_such(
    spend: Callable[[], None], kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lora = tiny_model("llama"), LoraSettings()
    before = dict(model.named_modules())
    with monkeypatch.context() as patch:
        patch.setattr(peftlayers, "LoraModel", spend)
        with pytest.raises(kind) as found:
            peftlayers.check_peft_layers(model, lora)
        assert not isinstance(found.value, InputError)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "generate", spend)
        with pytest.raises(kind) as found:
            check_generates(model)
        assert not isinstance(found.value, InputError)
    with monkeypatch.context() as patch:
        patch.setattr("schemabank.engine.decoding.choice._difference_from_whole_texts", spend)
        with pytest.raises(kind):
            why_by_slot(model)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterStack, "trunk", spend)
        with pytest.raises(kind) as found:
            AdapterStack(model, lora=[lora], attach=with_banks(BankSettings()))
        assert not isinstance(found.value, InputError)
    with pytest.raises(kind) as found:
        check_calls({}, spend, num_slots=1, device=torch.device("cpu"))
    assert not isinstance(found.value, InputError)
    assert dict(model.named_modules()) == before


def lists(tree: ast.AST) -> list[str]:
    """Clauses that catch what a foreign model may raise, kind by kind."""
    kinds = {"AttributeError", "RuntimeError", "TypeError"}
    tuples = [node for node in ast.walk(tree) if isinstance(node, ast.Tuple)]
    named = [{x.id for x in node.elts if isinstance(x, ast.Name)} for node in tuples]
    return [ast.unparse(t) for t, own in zip(tuples, named, strict=True) if kinds <= own]


def test_what_a_model_may_raise_is_listed_in_one_place() -> None:
    found = {
        path.name: own
        for path in SOURCE.rglob("*.py")
        if (own := lists(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert list(found) == ["refusals.py"]
    assert len(found["refusals.py"]) == 1
