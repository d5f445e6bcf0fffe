import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from schemabank.common.errors import InputError
from schemabank.common.failure import (
    Failure,
    FailureKind,
    failure_of,
    failure_to_write,
    read_failure,
)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


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
        (BlockingIOError(11, "Resource temporarily unavailable"), "error"),
        (ConnectionResetError(104, "Connection reset by peer"), "error"),
        (InputError("too large"), "input"),
        (caused(InputError("cannot write"), OSError(28, "No space left on device")), "disk"),
        (caused(InputError("in use"), BlockingIOError(11, "Try again")), "input"),
        (caused(InputError("unreachable"), ConnectionRefusedError(111, "refused")), "input"),
        (RuntimeError("diverged"), "error"),
    ],
)
def test_the_kind_is_that_of_the_exception_and_not_of_its_words(
    error: Exception, kind: FailureKind
) -> None:
    failure = failure_of(error)
    assert failure.kind == kind
    assert failure.message


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(28, "No space left on device"),
            "[Errno 28] No space left on device (of the run in '/runs/a'); free some space",
        ),
        (
            OSError(28, "No space left on device", "/runs/a/b"),
            "[Errno 28] No space left on device: '/runs/a/b'; free some space",
        ),
        (FileNotFoundError("'/runs/a' was removed"), "'/runs/a' was removed"),
        (ConnectionResetError(104, "Connection reset"), "[Errno 104] Connection reset"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (RuntimeError("diverged"), "diverged"),
    ],
)
def test_what_could_not_be_written_is_told_with_its_place(error: Exception, said: str) -> None:
    assert failure_to_write(error, Path("/runs/a")).message == said
    alone = failure_to_write(error)
    assert alone.kind == failure_of(error).kind
    assert alone.message == said.replace(" (of the run in '/runs/a')", "")
