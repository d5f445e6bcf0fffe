"""Train adapters at many learning rates, damage a copy of each, and see which the check calls bad.

    python benchmarks/peft_check.py --adapters 21 --slots 7 --steps 6 --out FILE.json
    python benchmarks/peft_check.py --show --out results/peft_check/nvidia-h100.json

The adapters train together in ``--slots`` slots for a few steps. Their rates range from 1e-5, at
which they have hardly begun to learn, to 1e-2, at which activations blow up. Each adapter is saved
and checked like that of a run (schemabank/adapters/export.py), and again with one kind of damage.
The program ends with 1 if a good adapter is called bad or a damaged one good.
"""

import argparse
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench import Row, origin
from torch import Tensor

from schemabank.adapters.export import Probe, check_with_peft, probe
from schemabank.adapters.files import LoraTensors, save_adapter
from schemabank.adapters.peftcheck import PeftCheck
from schemabank.config.file import run_id
from schemabank.config.settings import LoraSettings, RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.models.basemodel import BaseModel
from schemabank.runs.loading import load_base, resolve_device, resolved
from schemabank.runs.prepare import engine_run, training_data
from schemabank.runs.stacks import build_stack
from schemabank.tasks import Example

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
GOOD = "good"
SCALE = 1.001
NUDGE = 0.01  # of the largest weight of the same matrix

Damage = Callable[[LoraTensors, random.Random], LoraTensors]


@dataclass(frozen=True)
class Trained:
    """An adapter, and what its run computes with it."""

    run: RunConfig
    tensors: LoraTensors
    probe: Probe | PeftCheck


def one_weight(tensors: LoraTensors, rng: random.Random) -> LoraTensors:
    """Change one weight by a hundredth of its matrix's largest weight."""

    def nudged(matrix: Tensor) -> Tensor:
        row, column = (rng.randrange(size) for size in matrix.shape)
        matrix[row, column] += NUDGE * matrix.abs().max()
        return matrix

    return _with_one(tensors, rng, nudged)


def layers_swapped(tensors: LoraTensors, rng: random.Random) -> LoraTensors:
    """Give two layers of the same shape each other's A and B."""
    first = rng.choice(list(tensors))
    shape = [m.shape for m in tensors[first]]
    same = [p for p in tensors if p != first and [m.shape for m in tensors[p]] == shape]
    second = rng.choice(same)
    return {**tensors, first: tensors[second], second: tensors[first]}


def layer_missing(tensors: LoraTensors, rng: random.Random) -> LoraTensors:
    """Leave out one layer."""
    lost = rng.choice(list(tensors))
    return {path: pair for path, pair in tensors.items() if path != lost}


def square_transposed(tensors: LoraTensors, rng: random.Random) -> LoraTensors:
    """Transpose the largest square at the corner of one A."""

    def turned(matrix: Tensor) -> Tensor:
        side = min(matrix.shape)
        matrix[:side, :side] = matrix[:side, :side].T.clone()
        return matrix

    return _with_one(tensors, rng, turned)


def rounded(tensors: LoraTensors, _rng: random.Random) -> LoraTensors:
    """Round all weights to bfloat16."""
    return {p: (a.bfloat16().float(), b.bfloat16().float()) for p, (a, b) in tensors.items()}


def not_a_number(tensors: LoraTensors, rng: random.Random) -> LoraTensors:
    """Set one weight to NaN."""

    def spoiled(matrix: Tensor) -> Tensor:
        matrix[rng.randrange(len(matrix)), 0] = torch.nan
        return matrix

    return _with_one(tensors, rng, spoiled)


def unchanged(tensors: LoraTensors, _rng: random.Random) -> LoraTensors:
    """Leave the weights as they are: the adapter's configuration has the wrong scale."""
    return tensors


DAMAGES: Mapping[str, Damage] = {
    "one weight changed": one_weight,
    "scale wrong by 0.1 %": unchanged,
    "two layers swapped": layers_swapped,
    "one layer missing": layer_missing,
    "a square transposed": square_transposed,
    "rounded to bfloat16": rounded,
    "one weight NaN": not_a_number,
}


def check(
    trained: Trained, damage: str | None, base: BaseModel, folder: Path, rng: random.Random
) -> PeftCheck:
    """Save an adapter, with damage or without, and check it."""
    settings, tensors = trained.run.lora, trained.tensors
    if damage is not None:
        tensors = DAMAGES[damage](tensors, rng)
        if tensors is trained.tensors:
            alpha = settings.lora_alpha * SCALE
            settings = settings.model_copy(update={"lora_alpha": alpha})
    save_adapter(folder, tensors, settings, base_name=base.name, card="")
    return check_with_peft(folder, base, trained.probe, always_measure=True)


def train(runs: Sequence[RunConfig], base: BaseModel, *, slots: int) -> Iterator[Trained]:
    """Train runs in one cohort; leave out those that diverged."""
    examples = list(_examples())
    texts = [(e.id, e.question, e.solution) for e in examples]
    data = training_data(examples, texts, runs[0], base.tokenizer)
    stack = build_stack(runs, base, slots=min(slots, len(runs)))
    engine_runs = [
        engine_run(run, examples, stack, base.tokenizer, name=run_id(run)) for run in runs
    ]
    cohort = Cohort(stack, engine_runs, data)
    for _ in cohort.steps():
        pass
    cohort.free()
    done = []
    for first in range(0, len(runs), stack.num_slots):
        part = runs[first : first + stack.num_slots]
        cohort.seat([run_id(run) for run in part])
        probes = probe(stack, base)
        for slot, run in enumerate(part):
            done.append(Trained(run, stack.lora.tensors(slot), probes[slot]))
    stack.remove()
    yield from (t for t in done if all(m.isfinite().all() for ab in t.tensors.values() for m in ab))


def damage_of(number: int) -> str:
    """Return an adapter's damage; over all adapters, every rate meets every kind."""
    return list(DAMAGES)[(number + number // len(RATES)) % len(DAMAGES)]


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Train and check; one row an adapter."""
    device = resolve_device(arguments.device)
    runs = resolved(_runs(arguments), device)
    base = load_base(runs[0], device)
    began = time.perf_counter()
    trained = list(train(runs, base, slots=arguments.slots))
    trained_s = time.perf_counter() - began
    sys.stderr.write(f"{len(trained)} adapters trained in {trained_s:.0f} s\n")
    rng, rows = random.Random(0), []
    shared = {**origin(base.model, base.name), "steps": arguments.steps}
    with TemporaryDirectory() as scratch:
        for number, each in enumerate(trained):
            for kind in (None, damage_of(number)):
                place = Path(scratch) / f"{number}-{'good' if kind is None else 'damaged'}"
                found = check(each, kind, base, place, rng)
                rows.append(_row(each.run, kind, found) | shared)
    sys.stderr.write(f"{len(rows)} checks, {time.perf_counter() - began:.0f} s in all\n")
    return rows


def table(rows: Sequence[Row]) -> str:
    """Lay out the rows, a line for each kind of adapter: how many were called bad, how clearly."""
    lines = [
        "| adapter | checked | called bad | difference / bound, from | to |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in (GOOD, *DAMAGES):
        own = [row for row in rows if row["adapter"] == kind]
        if own:
            ratios = [_ratio(row) for row in own]
            bad = sum(not row["agrees"] for row in own)
            ends = [f"{end:.1e}" if math.isfinite(end) else "–" for end in _ends(ratios)]
            lines.append(f"| {kind} | {len(own)} | {bad} | {ends[0]} | {ends[1]} |")
    lost = [str(row["reason"]) for row in rows if row["difference"] is None]
    if lost:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in Counter(lost).items())
        lines += ["", f"{len(lost)} of {len(rows)} could not be compared ({reasons})."]
    first = rows[0]
    lines += [
        "",
        f"{first['model']}, {first['dtype']}, {first['device']}; good adapters by rate:",
        "",
    ]
    lines += [
        "| learning rate | adapters | largest difference | largest bound |",
        "|---:|---:|---:|---:|",
    ]
    for rate in sorted({float(str(row["learning_rate"])) for row in rows}):
        own = [r for r in rows if r["adapter"] == GOOD and r["learning_rate"] == rate]
        figures = [_largest(own, name) for name in ("difference", "allowed")]
        lines.append(f"| {rate:g} | {len(own)} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def wrong(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose adapter was judged wrongly."""
    return [row for row in rows if row["agrees"] != (row["adapter"] == GOOD)]


def main() -> int:
    """Measure and write the rows, or show those of a file; say whether any is wrong."""
    arguments = _arguments()
    out = Path(arguments.out)
    if arguments.show:
        rows: list[Row] = json.loads(out.read_text(encoding="utf-8"))
    else:
        rows = measure(arguments)
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    sys.stdout.write(table(rows))
    return 1 if wrong(rows) else 0


def _with_one(
    tensors: LoraTensors, rng: random.Random, change: Callable[[Tensor], Tensor]
) -> LoraTensors:
    """Change the A of one layer that does anything."""
    path = rng.choice([path for path, (_, b) in tensors.items() if bool(b.any())] or [*tensors])
    a, b = tensors[path]
    return {**tensors, path: (change(a.clone()), b)}


def _runs(arguments: argparse.Namespace) -> list[RunConfig]:
    """Runs that differ in rate and seed."""
    model = {"name": arguments.model, "dtype": arguments.dtype}
    lora = LoraSettings(r=8, lora_alpha=20, lora_dropout=0.05)
    return [
        RunConfig.model_validate(
            {
                "arm": "lora",
                "seed": seed,
                "model": model,
                "lora": lora.model_dump(),
                "train": {
                    "learning_rate": RATES[seed % len(RATES)],
                    "max_steps": arguments.steps,
                    "batch_size": 4,
                },
            }
        )
        for seed in range(arguments.adapters)
    ]


def _examples() -> Iterator[Example]:
    """Short sums, generated here so that no data is needed."""
    rng = np.random.default_rng(0)
    for number in range(64):
        a, b = (int(x) for x in rng.integers(2, 99, 2))
        said, answer = f"What is {a} + {b}?\nThe answer is: ", str(a + b)
        yield Example(id=f"sums/{number}", question=said, solution=answer, answer=answer)


def _row(run: RunConfig, damage: str | None, found: PeftCheck) -> Row:
    return {
        "adapter": damage or GOOD,
        "learning_rate": run.train.learning_rate,
        "seed": run.seed,
        "agrees": found.agrees,
        **found.row(),
    }


def _ratio(row: Row) -> float:
    if row["difference"] is None:
        return math.nan
    return float(str(row["difference"])) / float(str(row["allowed"]))


def _largest(rows: Sequence[Row], name: str) -> str:
    """The largest number of that name, as far as there is any."""
    known = [float(str(row[name])) for row in rows if row[name] is not None]
    return f"{max(known):.1e}" if known else "–"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    return (min(known), max(known)) if known else (math.nan, math.nan)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--adapters", type=int, default=105, help="good ones; as many are damaged")
    parser.add_argument("--slots", type=int, default=35)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--show", action="store_true", help="show a file's rows")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
