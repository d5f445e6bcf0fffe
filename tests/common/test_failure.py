import json
from typing import get_args

import pytest
import torch

from schemabank.common.errors import InputError
from schemabank.common.failure import Failure, FailureKind, failure_of, read_failure

CPU = "DefaultCPUAllocator"  # whose errors have no class of their own


@pytest.mark.parametrize("kind", get_args(FailureKind))
def test_a_failure_comes_back_from_a_file_as_it_was(kind: FailureKind) -> None:
    failure = Failure(kind, "why\nand what to do")
    assert read_failure(json.loads(json.dumps(failure.row()))) == failure


def test_only_divergence_is_settled() -> None:
    assert [k for k in get_args(FailureKind) if Failure(k, "").is_settled] == ["diverged"]


@pytest.mark.parametrize(
    "said",
    [
        "no finite gradient in 20 steps in a row, up to step 30",
        "the adapter gives other logits than the run: relative difference nan, allowed 1e-05",
    ],
)
def test_no_sentence_settles_a_failure(said: str) -> None:
    """Earlier files hold a sentence alone; a full disk may be described in any words."""
    assert not read_failure({"failure": said}).is_settled
    assert not read_failure({"failure": said, "kind": "of another version"}).is_settled
    assert not failure_of(RuntimeError(said)).is_settled


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("no room"), "memory"),
        (MemoryError(), "memory"),
        (OSError(12, "Cannot allocate memory"), "memory"),
        (RuntimeError(f"[enforce fail at alloc_cpu.cpp] . {CPU}: can't allocate memory"), "memory"),
        (RuntimeError(f"{CPU}: not enough memory: you tried to allocate 4 bytes"), "memory"),
        (RuntimeError("not enough memory was thought of"), "error"),
        (OSError(28, "No space left on device"), "disk"),
        (InputError("too large"), "input"),
        (RuntimeError("diverged"), "error"),
    ],
)
def test_the_kind_is_that_of_the_exception_and_not_of_its_words(
    error: Exception, kind: FailureKind
) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert failure.message
