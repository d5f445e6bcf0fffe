"""Hides hints that libraries print for their own developers and that no user can act on.

The command line hides them from its start to its end, a Python program only while it trains with a
:class:`schemabank.Tuner` or :func:`schemabank.train_cohort`, since the process is not ours. For the
same reason it has the bars of loading hidden only while we load, and only where stderr is no
terminal. Every other warning passes. Of TF32 only the hint goes: matrix products of float32 stay
exact, as PyTorch has them by default, since ten bits of mantissa would cost training digits that a
comparison of runs needs. (Convolutions of float32, which models such as Mamba have, do use TF32 on
a GPU by PyTorch's default, and no hint speaks of them.)
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

COMPILER = r"torch\._inductor\."
# Speed that PyTorch's compiler might yet gain, by the beginning of the sentence.
HINTS = (
    r"\s*Online softmax is disabled on the fly",
    r"TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
)
LOGGER, RECORD = "torch._inductor.utils", "Not enough SMs to use max_autotune_gemm mode"
# Each hides the bars of one library; the last hides those of all that do not decide themselves.
HUB = "HF_HUB_DISABLE_PROGRESS_BARS"
DATASETS = "HF_DATASETS_DISABLE_PROGRESS_BARS"
TQDM = "TQDM_DISABLE"
TRUE = {"1", "ON", "TRUE", "YES"}  # as huggingface_hub and datasets read it


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Leave out the compiler's hints for a while, unless Python was told what to do with warnings.

    ``-W`` or ``PYTHONWARNINGS`` shows them.
    """
    with ExitStack() as exits:
        logger = logging.getLogger(LOGGER)
        # Made anew each time: of two uses, one within the other, the inner must not end the outer.
        passes = _PassesOthers()
        logger.addFilter(passes)
        exits.callback(logger.removeFilter, passes)
        if not sys.warnoptions:
            exits.enter_context(warnings.catch_warnings())
            for hint in HINTS:
                warnings.filterwarnings("ignore", hint, UserWarning, COMPILER)
        yield


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Leave out the compiler's hints and the loading bars of a whole process.

    Downloads from the hub keep their bars, which huggingface_hub draws on terminals only: they may
    take minutes. A variable that the user has set is left as it is. Libraries read them as they are
    imported, so this comes first.
    """
    with ExitStack() as exits:
        exits.enter_context(quiet_compiler())
        for name in _variables_to_set():
            os.environ[name] = "1"
            exits.callback(os.environ.pop, name, None)
        yield


@contextmanager
def bars_on_terminals_only(library: Any, variable: str) -> Iterator[None]:  # noqa: ANN401
    """Hide a library's bars for a while, where stderr is no terminal and nobody asked for them.

    Args:
        library: module with ``disable_progress_bar`` and its counterparts.
        variable: of the environment, which decides about these bars.
    """
    asked_for = _shows_bars(variable) or os.environ.get(TQDM) == ""
    hide = not (sys.stderr.isatty() or asked_for) and library.is_progress_bar_enabled()
    if hide:
        library.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            library.enable_progress_bar()


def _variables_to_set() -> list[str]:
    """The variables that hide loading bars and that the user has left open."""
    asked_for = _shows_bars(HUB) or _shows_bars(DATASETS)
    # tqdm's own would hide what the user asks another library to show.
    left_open = {DATASETS: True, TQDM: not asked_for}
    return [name for name, is_open in left_open.items() if is_open and name not in os.environ]


def _shows_bars(variable: str) -> bool:
    """Whether the user has set a variable so that it shows bars."""
    return os.environ.get(variable, "1").upper() not in TRUE


class _PassesOthers(logging.Filter):
    """Stops the record that is a hint."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(RECORD)
