"""Show where the time of a step goes, by kind of operation.

    python benchmarks/profile_step.py --slots 40 1 --out FILE.json
    python benchmarks/profile_step.py --show --out FILE.json

It profiles a step of stages 2-3 at the most frequent width; on CUDA, the captured graph alone.
``step_ms`` is the step's time without the profiler, the median of several. The parts are times that
the profiler saw. Their sum is less if the device waits between two operations.
"""

import argparse
import json
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import torch
from bench import (
    QWEN2,
    Bench,
    Row,
    bench_run,
    free,
    make_bench,
    origin,
    read_rows,
    synchronize,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of

# By the names of kernels and operations; the first that fits counts.
PARTS = {
    "loss": "log_softmax|^_cross_entropy_kernel",
    "attention": "^_(forward|query|key_value)_kernel|attention|_softmax$|_softmax_backward_data",
    "LoRA with dropout, first product": "^_(down|input|weight)_kernel|bitwise|shift",
    "matrix products": "nvjet|gemm|gemv|splitK|cutlass|aten::(mm|bmm|addmm|baddbmm)$",
    "SwiGLU": "silu",
    "optimizer and clipping": "lerp|pow_sum_[0-9]+$",
    "norms": "rsqrt|mean|pow",
    "rotary embedding": "neg",
}
OTHERS = "others"
REPEATS = 11


def main() -> None:
    """Profile, print and write."""
    arguments = _arguments()
    if not arguments.show:
        bench = make_bench(
            arguments.model, target=arguments.target, num_examples=arguments.examples
        )
        rows = [_profiled(bench, slots) for slots in arguments.slots]
        Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(read_rows(arguments.out)))  # noqa: T201 -- this is a script


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, with one column for each row."""
    heads = [f"{r['slots']} slots, {r['width']} tokens a row" for r in rows]
    lines = [f"| ms | {' | '.join(heads)} |", f"|---|{'---:|' * len(rows)}"]
    lines.append("| a step | " + " | ".join(f"{r['step_ms']:.2f}" for r in rows) + " |")
    lines += [
        f"| {part} | " + " | ".join(f"{r['parts'][part]:.2f}" for r in rows) + " |"
        for part in (*PARTS, OTHERS)
    ]
    return "\n".join(lines)


def _profiled(bench: Bench, slots: int) -> Row:
    free(bench.device)
    config = bench.config.model_copy(
        update={"curriculum": (bench.config.curriculum[1].model_copy(update={"ratio": 1.0}),)}
    )
    stack = AdapterStack(
        bench.base.model, lora=[config.lora] * slots, attach=method_of(config).attach([config])
    )
    runs = [bench_run(bench, stack, config.model_copy(update={"seed": s})) for s in range(slots)]
    cohort = Cohort(stack, runs, bench.data)
    for _ in islice(cohort.steps(), bench.data.schedule.steps_per_epoch):
        pass
    width, step = _most_frequent(bench, cohort)
    times = [_timed(step, bench.device) for _ in range(REPEATS)]
    parts = _parts(step, bench.device)
    stack.remove()
    return {
        **origin(bench.base.model, bench.model_name),
        "target": config.task.target,
        "slots": slots,
        "width": width,
        "step_ms": statistics.median(times),
        "parts": parts,
    }


def _most_frequent(bench: Bench, cohort: Cohort) -> tuple[int, Callable[[], Tensor]]:
    """Return the width of most steps, and the program that takes one."""
    order = Counter(bench.data.schedule.order(0))
    width = bench.data.schedule.buckets[order.most_common(1)[0][0]].width
    programs = cohort._programs._programs.items()
    return width, next(program.run for (_, shape), program in programs if shape[0] == width)


def _timed(step: Callable[[], Tensor], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    step()
    synchronize(device)
    return 1e3 * (time.perf_counter() - began)


def _parts(step: Callable[[], Tensor], device: torch.device) -> dict[str, float]:
    """Milliseconds of each part."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        step()
        synchronize(device)
    parts = dict.fromkeys((*PARTS, OTHERS), 0.0)
    for event in profiled.key_averages():
        name = next((n for n, p in PARTS.items() if re.search(p, event.key)), OTHERS)
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        parts[name] += own / 1e3
    return parts


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=QWEN2)
    parser.add_argument("--target", choices=["final", "solution"], default="final")
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 40])
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
