"""Measure the cohort engine against a PEFT training loop, in one process and on the same batches.

    python benchmarks/engine.py --model qwen2-0.5b-shape --target final --out FILE.json
    python benchmarks/engine.py --model smollm2-135m-instruct --target solution --out FILE.json

Each case trains with dropout, clipping and AdamW. Tokens are real tokens, not padding. The first
epoch of a case compiles, captures and fills caches, and is not timed; ``start_s`` says how long it
took. On a GPU the PEFT loop is also timed as compiled code, since an eager loop waits for Python.
This needs GSM8K (``SCHEMABANK_DATA`` or the hub). The model of Qwen2's shape has random weights.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
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
    peak_gib,
    read_rows,
    synchronize,
)
from peft_loop import COMPILED, STATIC_LABELS, STATIC_WIDTH, Alternating, Kind, PeftLoop

from schemabank.engine import cohort as engine
from schemabank.engine import compiling, loss
from schemabank.engine.batches import Batch, collate
from schemabank.engine.cohort import Cohort
from schemabank.engine.decoding.decode import generate
from schemabank.engine.execute import DEPTH, Executor
from schemabank.engine.lora import SharedInput
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of

PEFT_STEPS, PEFT_WARM_UP = 40, 5
LOOPS: dict[Kind, str] = {
    "plain": "PEFT",
    "tuned": "PEFT, tuned",
    "compiled": "PEFT, tuned and compiled",
    "captured": "PEFT, tuned, compiled and captured",
}
TECHNIQUES: dict[str, tuple[object, str, object]] = {
    "capture": (engine, "default_executor", partial(Executor, capture=False)),
    "deterministic kernels": (compiling, "OPTIONS", {}),
    "compiling": (torch, "compile", lambda function, **_: function),
    "attention kernel": (AdapterStack, "_attention", lambda _stack: nullcontext()),
    "loss kernel": (loss, "can_compile", lambda _device: False),
    "LoRA kernel": (SharedInput, "low", lambda _shared, adapter, x, _keys: adapter._low(x)),
    "cached trunk": (engine, "CACHE_SHARE", 0.0),
}
MATRIX_SIZE = {"cuda": 8192, "cpu": 2048}


def main() -> None:
    """Run the cases, print a table and write the rows."""
    arguments = _arguments()
    if arguments.show:
        print(table(read_rows(arguments.out)))  # noqa: T201
        return
    bench = make_bench(arguments.model, target=arguments.target, num_examples=arguments.examples)
    rows = read_rows(arguments.out) if arguments.append else []

    def add(case: str, slots: int, **values: object) -> None:
        rows.append(_row(bench, case, slots, values, rows=rows))
        print(_line(rows[-1]), flush=True)  # noqa: T201 -- this is a script
        Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    if _rate(bench, rows, ["tuned"]) is None:
        add("matrix product", 0, tflops=_matrix_tflops(bench))
        for kind in _loops(bench):
            add(LOOPS[kind], 1, **_peft(bench, kind))
    for slots in arguments.slots:
        for case, values in _engine(bench, slots).items():
            add(f"engine, {case}", slots, **values)
        for technique in arguments.without:
            with without(technique):
                for case, values in _engine(bench, slots).items():
                    add(f"engine, {case}, without {technique}", slots, **values)
    if arguments.decode:
        slots, prompts, new_tokens = arguments.decode
        add("engine, decoding", slots, **_decode(bench, slots, prompts, new_tokens))


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown tables, one for each model and target."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{row['model']}, {row['target']}", []).append(row)
    tables = {title: _table(group) for title, group in groups.items()}
    return "\n\n".join(f"*{title}*\n\n{table}" for title, table in tables.items())


def _table(rows: Sequence[Row]) -> str:
    columns = {
        "ms a step": ("ms_per_step", ",.1f"),
        "real tokens/s": ("real_tokens_per_s", ",.0f"),
        "x PEFT, tuned": ("ratio_to_peft", ",.1f"),
        "x PEFT, fastest": ("ratio_to_fastest", ",.1f"),
        "padding": ("padding_ratio", ".1%"),
        "GiB": ("peak_memory_gib", ".1f"),
    }
    if not any(isinstance(row.get("ratio_to_fastest"), float) for row in rows):
        del columns["x PEFT, fastest"]
    lines = [
        f"| case | slots | {' | '.join(columns)} |",
        f"|---|---:|{'---:|' * len(columns)}",
    ]
    for row in rows:
        cells = [_shown(row, name, form) for name, form in columns.values()]
        if "tflops" in row:
            cells[1] = f"{_shown(row, 'tflops', ',.0f')} TFLOP/s"
        if "total_s" in row:
            cells[1] = f"{_shown(row, 'total_s', ',.0f')} s in all"
        lines.append(f"| {row['case']} | {row['slots'] or ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


@contextmanager
def without(technique: str) -> Iterator[None]:
    """Switch one of ``TECHNIQUES`` off, to see what it brings."""
    replaced, name, replacement = TECHNIQUES[technique]
    before = getattr(replaced, name)
    setattr(replaced, name, replacement)
    torch.compiler.reset()  # compiled code does not notice the replacement
    try:
        yield
    finally:
        setattr(replaced, name, before)
        torch.compiler.reset()


def _loops(bench: Bench) -> list[Kind]:
    """The PEFT loops to time on a device: on a CPU, compiling brings nothing."""
    return [kind for kind in LOOPS if bench.device.type == "cuda" or kind not in COMPILED]


def _peft(bench: Bench, kind: Kind) -> Row:
    """Time a training loop around PEFT, after a warm-up with every shape."""
    free(bench.device)
    loop = PeftLoop(bench.base.model, bench.config.lora, kind=kind)
    batches = [b.to(bench.device) for b in _peft_batches(bench, static=kind in COMPILED)]
    began = time.perf_counter()
    for batch in _warm_up(batches, every_shape=kind in COMPILED):
        loop.step(batch)
    synchronize(bench.device)
    start_s = time.perf_counter() - began
    timed, began = batches[PEFT_WARM_UP:], time.perf_counter()
    for batch in timed:
        loop.step(batch)
    synchronize(bench.device)
    elapsed = time.perf_counter() - began
    loop.close()
    real, positions = (sum(f(b) for b in timed) for f in (_num_real, lambda b: b.real.numel()))
    return _speed(elapsed, len(timed), real, 1 - real / positions) | {"start_s": start_s}


def _warm_up(batches: Sequence[Batch], *, every_shape: bool) -> list[Batch]:
    """The first batches; for compiled code, three of every shape: the third replays a capture."""
    first = list(batches[:PEFT_WARM_UP])
    if not every_shape:
        return first
    shapes = {(batch.tokens.shape, batch.labels.shape): batch for batch in batches}
    return [*first, *(batch for batch in shapes.values() for _ in range(3))]


def _peft_batches(bench: Bench, *, static: bool) -> list[Batch]:
    """One run's batches of an epoch, padded to their own longest row as a collator would.

    Args:
        bench: the data.
        static: round widths and labels up to a few sizes, as compiled code wants them.
    """
    rows = bench.data.schedule.rows(0, 0)
    wide, deep = (STATIC_WIDTH, STATIC_LABELS) if static else (1, 1)
    batches = []
    for indices in rows[: PEFT_STEPS + PEFT_WARM_UP]:
        examples = [bench.data.encoded[i] for i in indices if i >= 0]
        width = max(len(e.tokens) for e in examples)
        labels = max(e.num_labels for e in examples)
        size = {"width": -(-width // wide) * wide, "num_labels": -(-labels // deep) * deep}
        batches.append(collate([examples], **size))
    return batches


def _engine(bench: Bench, slots: int) -> dict[str, Row]:
    """Time a cohort in stage 1 and in the later stages, each in its second epoch."""
    free(bench.device)
    clock = Alternating(bench.base.model, bench.config.lora, _peft_batches(bench, static=False))
    stack = AdapterStack(
        bench.base.model,
        lora=[bench.config.lora] * slots,
        attach=method_of(bench.config).attach([bench.config]),
    )
    config = bench.config
    runs = [bench_run(bench, stack, config.model_copy(update={"seed": s})) for s in range(slots)]
    cohort = Cohort(stack, runs, bench.data, explain=_note)
    per_epoch = bench.data.schedule.steps_per_epoch
    results: dict[str, Row] = {}
    started = time.perf_counter()
    for number, reports in enumerate(cohort.steps(), start=1):
        clock.count(reports)
        if number % (2 * per_epoch) == per_epoch:
            start_s = time.perf_counter() - started
            clock.reset()
        elif number % (2 * per_epoch) == 2 * per_epoch - DEPTH:  # reports may come this late
            speed = _speed(clock.elapsed_s, clock.steps, clock.real, bench.padding_ratio)
            ratio = {} if clock.ratio is None else {"ratio_to_peft": clock.ratio}
            results[reports[0].stage] = speed | ratio | {"start_s": start_s}
            started = time.perf_counter()
    for result in results.values():
        result["peak_memory_gib"] = peak_gib(bench.device)
    stack.remove()
    return results


def _note(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _decode(bench: Bench, slots: int, prompts: int, new_tokens: int) -> Row:
    """Time greedy decoding that never meets an end token, twice; the second time is used."""
    free(bench.device)
    stack = AdapterStack(bench.base.model, lora=[bench.config.lora] * slots)
    for slot in range(slots):
        stack.initialise(slot, slot)
    texts = [e.tokens[: e.label_start] for e in bench.data.encoded[:prompts]]
    times = []
    executor = Executor(bench.device, capture=bench.device.type == "cuda", explain=_note)
    with stack.evaluating("off"):
        for _ in range(2):
            began = time.perf_counter()
            done = generate(
                stack,
                texts,
                max_new_tokens=new_tokens,
                end_token_ids=[-1],
                batch_size=prompts,
                executor=executor,
            )
            times.append(time.perf_counter() - began)
    stack.remove()
    tokens = sum(c.num_new_tokens for slot in done for c in slot)
    speed = _speed(times[1], new_tokens, tokens, 0.0)
    return speed | {"start_s": times[0] - times[1], "peak_memory_gib": peak_gib(bench.device)}


def _matrix_tflops(bench: Bench) -> float:
    """Rate of a large product of random matrices in the model's type."""
    size, dtype = MATRIX_SIZE[bench.device.type], bench.base.model.dtype
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        synchronize(bench.device)
        began = time.perf_counter()
        a @ b
        synchronize(bench.device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times)[len(times) // 2] / 1e12


def _speed(elapsed: float, steps: int, real: int, padding: float) -> Row:
    return {
        "ms_per_step": 1e3 * elapsed / steps,
        "real_tokens_per_s": real / elapsed,
        "padding_ratio": padding,
    }


def _row(bench: Bench, case: str, slots: int, values: Row, *, rows: Sequence[Row]) -> Row:
    rate = values.get("real_tokens_per_s")
    loops = {"ratio_to_peft": _rate(bench, rows, ["tuned"])}
    if case not in LOOPS.values():
        loops["ratio_to_fastest"] = _rate(bench, rows, COMPILED)
    known = isinstance(rate, float) and case != "engine, decoding"
    return {
        **origin(bench.base.model, bench.model_name),
        "target": bench.config.task.target,
        "case": case,
        "slots": slots,
        "ms_per_step": None,
        "real_tokens_per_s": None,
        **{name: rate / loop if known and loop else None for name, loop in loops.items()},
        "padding_ratio": None,
        "peak_memory_gib": peak_gib(bench.device),
        **values,
    }


def _rate(bench: Bench, rows: Sequence[Row], kinds: Sequence[Kind]) -> float | None:
    """Real tokens a second of the fastest of some PEFT loops on the same model and target."""
    same = {"model": bench.model_name, "target": bench.config.task.target}
    cases = [LOOPS[kind] for kind in kinds]
    rates = [
        rate
        for row in rows
        if row["case"] in cases
        and same.items() <= row.items()
        and isinstance(rate := row["real_tokens_per_s"], float)
    ]
    return max(rates, default=None)


def _shown(row: Row, name: str, form: str) -> str:
    value = row.get(name)
    return format(value, form) if isinstance(value, float) else "-"


def _num_real(batch: Batch) -> int:
    return int(batch.real.sum())


def _line(row: Row) -> str:
    def shown(name: str, form: str) -> str:
        return _shown(row, name, form)

    return (
        f"{row['case']!s:34s} {row['slots']:>3} slots {shown('ms_per_step', '9.2f')} ms/step "
        f"{shown('real_tokens_per_s', '10,.0f')} tokens/s {shown('ratio_to_peft', '7.1f')} x PEFT "
        f"{shown('ratio_to_fastest', '6.1f')} x fastest PEFT "
        f"{shown('padding_ratio', '6.1%')} padding {shown('peak_memory_gib', '5.1f')} GiB "
        f"{shown('start_s', '6.1f')} s to start {shown('tflops', '6.1f')} TFLOP/s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=QWEN2)
    parser.add_argument("--target", choices=["final", "solution"], default="final")
    parser.add_argument("--examples", type=int, default=320)
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 4, 8, 20, 40])
    parser.add_argument(
        "--decode", type=int, nargs=3, metavar=("SLOTS", "PROMPTS", "TOKENS"), default=None
    )
    parser.add_argument("--without", nargs="*", default=[], choices=list(TECHNIQUES))
    parser.add_argument("--append", action="store_true", help="add rows to those in --out")
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
