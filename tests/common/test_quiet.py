"""Which hints and bars of libraries go, and that everything else stays."""

import contextlib
import importlib
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import warnings

import pytest
import torch

from schemabank.common.quiet import DATASETS, HUB, TQDM, quiet_compiler, quiet_libraries

LOWERING, COMPILE = "torch._inductor.lowering", "torch._inductor.compile_fx"
SOFTMAX = "\nOnline softmax is disabled on the fly since Inductor decides to\nsplit the reduction."
TF32 = (
    "TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled. "
    "Consider setting `torch.set_float32_matmul_precision('high')` for better performance."
)
SMALL_GPU = "Not enough SMs to use max_autotune_gemm mode"
BARS = (HUB, DATASETS, TQDM)
Warned = tuple[str, type[Warning], str]


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has said anything about bars or warnings."""
    for name in BARS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])


def shown(*given: Warned) -> list[str]:
    """Warn, in the name of some module; return what arrives."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with quiet_compiler():
            for text, category, module in given:
                warnings.warn_explicit(text, category, "file.py", 1, module, registry={})
    return [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    "hint",
    [
        (SOFTMAX, UserWarning, LOWERING),
        (TF32, UserWarning, COMPILE),
        (TF32, UserWarning, "torch._inductor.fx_passes.fuse_attention"),
    ],
)
def test_the_compilers_hints_go(hint: Warned) -> None:
    assert shown(hint) == []


@pytest.mark.parametrize(
    "other",
    [
        ("hit config.recompile_limit", UserWarning, "torch._dynamo.convert_frame"),
        ("does not support bfloat16 compilation natively", UserWarning, COMPILE),
        (TF32, UserWarning, "somebody"),
        (TF32, FutureWarning, COMPILE),
        (f"Not this: {TF32}", UserWarning, COMPILE),
        ("The CUDA Graph is empty.", UserWarning, "torch.cuda.graphs"),
    ],
)
def test_every_other_warning_passes(other: Warned) -> None:
    assert shown(other) == [other[0]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # as it imports its compiler
def test_what_pytorch_itself_says_of_tf32_goes_and_its_arithmetic_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    precision = torch.get_float32_matmul_precision()
    hint = importlib.import_module(COMPILE)._warn_tf32_disabled.__wrapped__
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with quiet_compiler():
            hint()
        assert found == []
        hint()
    assert [str(warning.message) for warning in found] == [TF32]
    assert torch.get_float32_matmul_precision() == precision == "highest"


def test_who_asked_python_for_warnings_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    assert shown((TF32, UserWarning, COMPILE)) == [TF32]


def test_one_line_of_the_compilers_log_goes_and_the_log_is_as_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("torch._inductor.utils")
    filters, filtered = list(logger.filters), warnings.filters.copy()
    logger.addHandler(caplog.handler)  # PyTorch's loggers hand nothing up
    try:
        with quiet_compiler():
            logger.warning(SMALL_GPU)
            logger.warning("cache kept at %s", "x")
        logger.warning(SMALL_GPU)
    finally:
        logger.removeHandler(caplog.handler)
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert said == ["cache kept at x", SMALL_GPU]
    assert logger.filters == filters
    assert warnings.filters == filtered


def set_meanwhile() -> dict[str, str]:
    """The variables about bars while libraries are quiet."""
    before = dict(os.environ)
    with quiet_libraries():
        found = {name: os.environ[name] for name in BARS if name in os.environ}
    assert dict(os.environ) == before
    return found


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, {DATASETS: "1", TQDM: "1"}),
        ({HUB: "1"}, {HUB: "1", DATASETS: "1", TQDM: "1"}),
        ({HUB: "0"}, {HUB: "0", DATASETS: "1"}),
        ({DATASETS: "1"}, {DATASETS: "1", TQDM: "1"}),
        ({DATASETS: "false"}, {DATASETS: "false"}),
        ({TQDM: ""}, {DATASETS: "1", TQDM: ""}),
        ({HUB: "yes", TQDM: ""}, {HUB: "yes", DATASETS: "1", TQDM: ""}),
    ],
)
def test_a_variable_that_the_user_sets_decides_about_its_own_bars(
    asked: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert set_meanwhile() == expected


BARS_OF_LIBRARIES = """
from schemabank.common.quiet import quiet_libraries
with quiet_libraries():
    import datasets.utils
    from transformers.utils import logging
    from huggingface_hub.utils import tqdm as hub
    from tqdm.auto import tqdm
    bars = {"hub": hub, "transformers": logging.tqdm, "datasets": datasets.utils.tqdm, "tqdm": tqdm}
    for name, bar in bars.items():
        for _ in bar(range(3), desc="BAR of " + name):
            pass
    for _ in hub(range(3), desc="BAR of downloads", disable=None):  # as the hub asks for it
        pass
"""
DOWNLOADS, LOADING = {"downloads"}, {"hub", "transformers", "datasets", "tqdm"}


@pytest.mark.parametrize(
    ("asked", "on_terminal", "expected"),
    [
        ({}, False, set()),
        ({}, True, DOWNLOADS),
        ({HUB: "1"}, True, set()),
        ({HUB: "0"}, False, LOADING - {"datasets"}),
        ({DATASETS: "0"}, False, LOADING),
        ({TQDM: ""}, True, DOWNLOADS | LOADING - {"datasets"}),
    ],
)
def test_the_libraries_heed_it(
    asked: dict[str, str], on_terminal: bool, expected: set[str]
) -> None:
    reading, writing = pty.openpty() if on_terminal else os.pipe()
    if on_terminal:
        termios.tcsetwinsize(writing, (24, 80))
    with subprocess.Popen(
        [sys.executable, "-c", BARS_OF_LIBRARIES], env={**os.environ, **asked}, stderr=writing
    ) as program:
        os.close(writing)
        text = all_of(reading)
    assert program.returncode == 0, text
    assert set(re.findall(r"BAR of (\w+): 100%", text)) == expected


def all_of(reading: int) -> str:
    """Read to the end, which a terminal tells as an error."""
    pieces: list[bytes] = []
    with contextlib.suppress(OSError):
        while piece := os.read(reading, 2**16):
            pieces.append(piece)
    os.close(reading)
    return b"".join(pieces).decode()
