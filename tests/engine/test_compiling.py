"""What a process compiled, later processes find."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from schemabank.engine.compiling import KERNELS

PROGRAM = """
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from schemabank.engine import compiling
from schemabank.engine.kernels.attention import causal_attention

compiling.KEY = compiling.key_of(Path(sys.argv[1]))
layer = torch.nn.Identity()
states = torch.arange(96.0).view(1, 2, 6, 8).sin().requires_grad_()


@compiling.optimised
def attend(states):
    return causal_attention(layer, states, states + 1, states + 2, None)[0]


attend(states).sum().backward()
kept = {name: n for name, n in counters["aot_autograd"].items() if name.startswith("autograd")}
print(kept, states.grad.numpy().tobytes().hex())
"""
MISSED = {"autograd_cache_miss": 1, "autograd_cache_saved": 1}
FOUND = {"autograd_cache_hit": 1}


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a CPU by g++")
def test_a_second_process_traces_no_gradient_anew_unless_a_kernel_changed(tmp_path: Path) -> None:
    changed = tmp_path / "kernels"
    shutil.copytree(KERNELS, changed)
    flash = changed / "flash.py"
    flash.write_text(flash.read_text() + "# another layout\n")
    printed = [compiled_in_a_process(tmp_path, kernels) for kernels in (KERNELS, KERNELS, changed)]
    kept, gradients = zip(*(line.rsplit(maxsplit=1) for line in printed), strict=True)
    assert kept == (str(MISSED), str(FOUND), str(MISSED))
    assert len(set(gradients)) == 1


def test_the_key_covers_all_gradients_written_by_hand_in_compiled_code() -> None:
    """Losses have some, too; they are not compiled."""
    engine = KERNELS.parent
    files = {path for path in engine.rglob("*.py") if "autograd.Function)" in path.read_text()}
    assert {path for path in files if path.parent != KERNELS} == {engine / "loss.py"}
    source = (engine / "loss.py").read_text()
    assert "compiled(" not in source
    assert "optimised(" not in source


def compiled_in_a_process(cache: Path, kernels: Path) -> str:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(kernels)]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
