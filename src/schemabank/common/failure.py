"""Why a run failed: a kind, which alone decides what comes next, and a sentence for the reader.

Only a run that has diverged would do so again, so only that is settled. Any other cause may be gone
at the next call, which tries the run again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from schemabank.common.errors import InputError
from schemabank.common.writing import how_to_mend

# What a run may meet that the others of its cohort do not; any other exception is a fault of ours.
FAILING = (InputError, RuntimeError, OSError, MemoryError)

# Errors of the system that no disk has anything to do with.
OF_NO_DISK = (BlockingIOError, ChildProcessError, ConnectionError)

FailureKind = Literal["diverged", "memory", "disk", "input", "error"]


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        kind: ``diverged`` for weights or gradients that ran away; ``memory`` and ``disk`` for what
            the machine lacked; ``input`` for a setting or a file that did not fit; ``error`` for
            everything else.
        message: a sentence that says what to do about it.
    """

    kind: FailureKind
    message: str

    def __str__(self) -> str:
        """The sentence with its kind."""
        return f"{self.kind}: {self.message}"

    @property
    def is_settled(self) -> bool:
        """Whether the run would fail again, so that there is no use in trying."""
        return self.kind == "diverged"

    def row(self) -> dict[str, object]:
        """The failure as files and JSON output hold it."""
        return {"kind": self.kind, "failure": self.message}


def read_failure(row: Mapping[str, object]) -> Failure:
    """Read :meth:`Failure.row`.

    Earlier files have no kind, and a sentence does not tell one: theirs is ``error``, which is
    tried again.
    """
    kinds = {str(kind): kind for kind in get_args(FailureKind)}
    return Failure(kinds.get(str(row.get("kind")), "error"), str(row.get("failure")))


def failure_of(error: Exception) -> Failure:
    """Return what an exception makes of a run."""
    from schemabank.common.memory import is_out_of_memory  # noqa: PLC0415 -- needs PyTorch

    message = str(error) or type(error).__name__
    if is_out_of_memory(error):
        return Failure("memory", message)
    if _is_of_disk(error) or _is_of_disk(error.__cause__):
        return Failure("disk", message)
    if isinstance(error, InputError):
        return Failure("input", message)
    return Failure("error", message)


def failure_to_write(error: Exception, folder: Path | None = None) -> Failure:
    """Return what an exception makes of a run whose files it may have kept from being written.

    Args:
        error: the exception.
        folder: of the run, for an error that names no file; ``None`` for a run without one.
    """
    failure = failure_of(error)
    told = failure.message
    if folder is not None and failure.kind == "disk" and _names_no_place(error):
        told = f"{told} (of the run in {str(folder)!r})"
    return replace(failure, message=f"{told}{how_to_mend(error)}")


def _is_of_disk(error: BaseException | None) -> bool:
    return isinstance(error, OSError) and not isinstance(error, OF_NO_DISK)


def _names_no_place(error: Exception) -> bool:
    """Whether it is of a file, of which the system knew no name, as of one that is open."""
    # One without a number has a sentence of ours, which names it.
    return isinstance(error, OSError) and error.errno is not None and error.filename is None
