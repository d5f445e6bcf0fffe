"""What libraries print on their own account and no user can act on: hints to those who make them.

Who owns the process decides: the command line is quiet from its start to its end, a Python program
only while it trains with a :class:`schemabank.Tuner`. Every other warning passes. Of TF32 only the
hint goes: products of float32 stay exact, as PyTorch has them by default, since ten bits of
mantissa would cost training digits that a comparison of runs needs.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

COMPILER = r"torch\._inductor\."
# Speed that PyTorch's compiler might yet gain, by the beginning of the sentence.
HINTS = (
    r"\s*Online softmax is disabled on the fly",
    r"TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled",
)
RECORDS = {"torch._inductor.utils": "Not enough SMs to use max_autotune_gemm mode"}
# Bars of huggingface_hub and transformers, of datasets, and of tqdm by itself.
BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


@contextmanager
def quiet_compiler() -> Iterator[None]:
    """Leave out the compiler's hints for a while, unless Python was told what to do with warnings.

    ``-W`` or ``PYTHONWARNINGS`` shows them.
    """
    with ExitStack() as exits:
        for name, beginning in RECORDS.items():
            logger = logging.getLogger(name)
            passes = _Passes(beginning)
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

    A user who sets any of the variables in ``BARS`` decides about all bars. Libraries read them as
    they are imported, so this comes first.
    """
    with ExitStack() as exits:
        exits.enter_context(quiet_compiler())
        if not any(name in os.environ for name in BARS):
            for name in BARS:
                os.environ[name] = "1"
                exits.callback(os.environ.pop, name, None)
        yield


class _Passes(logging.Filter):
    """Stops the records that begin so."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._beginning)
