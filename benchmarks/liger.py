"""Measure whether Liger's kernels (github.com/linkedin/Liger-Kernel) would speed up the engine.

    python benchmarks/liger.py --out FILE.json
    python benchmarks/liger.py --show --out FILE.json

It times captured forward and backward passes through the frozen blocks of Qwen2-0.5B's shape: once
compiled as in the engine, and once uncompiled with Liger's norm, rotary embedding and SwiGLU. The
compiler cannot analyse Liger's Triton kernels inside compiled blocks (liger-kernel 0.8.5). This
needs a CUDA GPU and liger-kernel.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench import QWEN2, Row, origin, random_qwen2, read_rows
from torch import Tensor
from transformers import PreTrainedModel

from schemabank.engine.execute import Executor, compiled

WIDTH, BATCH_SIZE = 72, 4
REPEATS = 21


def main() -> None:
    """Measure, print and write."""
    arguments = _arguments()
    rows: list[Row] = []
    if not arguments.show:
        # Liger's patch stays in the process, so this case comes last.
        for liger in (False, True):
            rows += [_row(slots, liger=liger) for slots in arguments.slots]
            Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(read_rows(arguments.out)))  # noqa: T201 -- this is a script


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| blocks | slots | ms |", "|---|---:|---:|"]
    lines += [f"| {row['case']} | {row['slots']} | {row['ms']:.2f} |" for row in rows]
    return "\n".join(lines)


def _row(slots: int, *, liger: bool) -> Row:
    model = random_qwen2(torch.bfloat16, torch.device("cuda"))
    if liger:
        _patch(model)
    return {
        **origin(model, QWEN2),
        "case": "Liger's kernels" if liger else "compiled",
        "slots": slots,
        "width": WIDTH,
        "ms": _measure(model, slots * BATCH_SIZE, compile_blocks=not liger),
    }


def _patch(model: PreTrainedModel) -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_qwen2  # noqa: PLC0415 -- optional

    apply_liger_kernel_to_qwen2(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=model,
    )


def _measure(model: PreTrainedModel, num_rows: int, *, compile_blocks: bool) -> float:
    """Milliseconds of a captured forward and backward pass, the median of several."""
    model.requires_grad_(False)
    for block in model.model.layers if compile_blocks else ():
        block.forward = compiled(block.forward)
    shape = (num_rows, WIDTH, model.config.hidden_size)
    hidden = torch.randn(shape, device=model.device, dtype=model.dtype, requires_grad=True)
    upstream = torch.randn_like(hidden)

    def step() -> Tensor:
        # No mask: attention is causal by itself, and one made in a capture would be another.
        output = model.model(
            inputs_embeds=hidden, attention_mask={"full_attention": None}, use_cache=False
        ).last_hidden_state
        return torch.autograd.grad(output, hidden, upstream)[0]

    def explain(reason: str) -> None:
        raise RuntimeError(reason)

    run = Executor(hidden.device, capture=True, explain=explain).program(step)
    return statistics.median(_milliseconds(run) for _ in range(REPEATS))


def _milliseconds(run: Callable[[], Tensor]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 40])
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
