"""Measure what checkpoints cost a training: seconds, bytes, and the share of the time.

    python benchmarks/checkpoints.py --out results/checkpoints.json
    python benchmarks/checkpoints.py --show --out results/checkpoints.json

Runs of plain LoRA on GSM8K train with `train_cohort`, as many as there are slots. Blocks of steps
take turns: one begins with a checkpoint of all runs and lasts until that is on disk, the next has
none. A checkpoint's cost is the time that its block took beyond the same number of steps without
one. So it holds the wait for the device, the copies to the host, and what writing beside the
training slows it down. The first block compiles, captures and fills caches, and is not counted.
Its share of the time follows from the cost and the default of ``engine.checkpoint_minutes``.

All steps have one shape, and the examples are the shortest of GSM8K: how long a step takes changes
nothing of a checkpoint. It needs GSM8K (``SCHEMABANK_DATA`` or the hub), and disk for two
checkpoints of all runs. On a CPU, take a tiny model (``--model DIR --steps 5 --slots 1 2``).
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench import Row, free, origin, read_rows

from schemabank import RunConfig, train_cohort
from schemabank.common.tables import markdown_table
from schemabank.common.waiting import Note
from schemabank.common.writing import write_json
from schemabank.engine.cohort import Cohort
from schemabank.models.basemodel import BaseModel, load_base_model, resolve_dtype
from schemabank.models.embedded import EMBEDDED
from schemabank.runs import programsaves
from schemabank.runs.checkpointing import Checkpoints, _Due
from schemabank.runs.checkpoints import checkpoints_in
from schemabank.runs.kept import MadeWith
from schemabank.runs.members import Member
from schemabank.runs.trained import Records
from schemabank.tasks.catalog import load_task

NUM_EXAMPLES = 320
MOST_STEPS = 20_000  # of a run; the last block ends it long before
ROUND = 4  # digits of seconds

Times = tuple[list[tuple[int, float]], list[tuple[int, float]]]


class Measured(Exception):  # noqa: N818 -- it ends a training, and is no error
    """All blocks of a case are measured."""


@dataclass
class Blocks:
    """Blocks of steps, with a checkpoint at their beginning and without, in turns.

    Attributes:
        num_steps: of a block, at least.
        num_checkpoints: after how many of them, and a block without one after each, it is enough.
        times: steps and seconds of the blocks so far: first those without a checkpoint.
        paused_s: of each checkpoint: for how long it was copied to the host.
        write_s: of each checkpoint: for how long it was written.
        num_bytes: of each checkpoint: of all runs, on disk.
    """

    num_steps: int
    num_checkpoints: int
    times: Times = field(default_factory=lambda: ([], []))
    paused_s: list[float] = field(default_factory=list)
    write_s: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)
    _began: float = field(default_factory=time.perf_counter)
    _steps: int = 0
    _saves: bool | None = None  # whether this block began with a checkpoint; None: it warms up

    def is_due(self, *, is_writing: bool) -> bool:
        """Whether the step that comes begins a block with a checkpoint.

        Raises:
            Measured: there have been enough.
        """
        now = time.perf_counter()
        if self._steps < self.num_steps or is_writing:
            self._steps += 1
            return False
        if self._saves is not None:
            self.times[self._saves].append((self._steps, now - self._began))
        if len(self.times[False]) == self.num_checkpoints:
            raise Measured
        self._began, self._steps, self._saves = now, 1, not self._saves
        return self._saves

    def row(self) -> Row:
        """What a checkpoint takes: the median of all."""
        if min(len(self.write_s), len(self.times[True])) < self.num_checkpoints:
            sys.exit("a checkpoint was not written in time: name a --folder on another disk")
        step_s = median(seconds / steps for steps, seconds in self.times[False])
        lost_s = median(seconds - steps * step_s for steps, seconds in self.times[True])
        return {
            "checkpoints": len(self.times[True]),
            "steps": sum(steps for each in self.times for steps, _ in each),
            "ms_per_step": round(1e3 * step_s, 3),
            "paused_s": round(median(self.paused_s), ROUND),
            "lost_s": round(lost_s, ROUND),
            "write_s": round(median(self.write_s), ROUND),
            "bytes": int(median(self.num_bytes)),
        }


class TimedCheckpoints(Checkpoints):
    """Checkpoints that are made when blocks say so."""

    def __init__(
        self,
        blocks: Blocks,
        members: Sequence[Member],
        made: MadeWith,
        began: float,
        note: Note,
        *,
        records: Records | None = None,
    ) -> None:
        super().__init__(members, made, began, note, records=records)
        self._blocks = blocks

    def is_due(self) -> bool:
        """Whether a block begins with one now, or a signal asks for one."""
        super().is_due()  # sees how writing went
        is_writing = self._writing is not None
        return self._blocks.is_due(is_writing=is_writing) or self._leaving.asked is not None

    def _save(self, cohort: Cohort) -> None:
        super()._save(cohort)
        self._blocks.paused_s.append(self._paused_s)

    def _write(self, due: Sequence[_Due], *, is_beside: bool) -> float:
        began = time.perf_counter()
        cost_s = super()._write(due, is_beside=is_beside)
        self._blocks.write_s.append(time.perf_counter() - began)
        self._blocks.num_bytes.append(sum(_on_disk(each.folder) for each in due))
        return cost_s


def main() -> None:
    """Measure every number of slots, write the rows and print a table."""
    arguments = _arguments()
    if not arguments.show:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = resolve_dtype("auto", device)
        base = load_base_model(arguments.model, dtype=dtype, device=device)
        rows: list[Row] = []
        for slots in arguments.slots:
            with TemporaryDirectory(dir=arguments.folder) as folder:
                blocks = Blocks(arguments.steps, arguments.checkpoints)
                rows.append(measured(base, arguments.model, slots, blocks, Path(folder)))
            write_json(Path(arguments.out), rows)
    print("\n".join(table(read_rows(arguments.out))))  # noqa: T201 -- this is a script


def measured(base: BaseModel, name: str, slots: int, blocks: Blocks, folder: Path) -> Row:
    """Train so many runs at once until all blocks are measured."""
    free(base.model.device)
    settings: dict[str, Any] = {"max_steps": MOST_STEPS, "max_buckets": 1}
    runs = [RunConfig(arm="lora", seed=seed, train=settings) for seed in range(slots)]
    before = programsaves.Checkpoints
    programsaves.Checkpoints = partial(TimedCheckpoints, blocks)
    try:
        train_cohort(
            base.model,
            base.tokenizer,
            runs,
            _examples(),
            slots=slots,
            checkpoints=folder / "checkpoints",
        )
    except Measured:
        pass
    finally:
        programsaves.Checkpoints = before
    row = blocks.row()
    minutes = runs[0].engine.checkpoint_minutes
    assert minutes is not None
    # Noise may hide the cost, but no checkpoint costs less than the time of its copies.
    cost_s = max(row["lost_s"], row["paused_s"])
    return {
        **origin(base.model, name),
        "date": datetime.now(UTC).date().isoformat(),
        "slots": slots,
        "rank": runs[0].lora.r,
        **row,
        "minutes": minutes,
        "share_ratio": round(cost_s / (60 * minutes + cost_s), 6),
    }


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as lines of Markdown."""
    head = ["slots", "training stands still", "lost in all", "written in", "size"]
    head.append("share of the time, one every 5 minutes")
    return markdown_table(
        head,
        [
            [
                str(row["slots"]),
                *(f"{1e3 * row[name]:,.0f} ms" for name in ("paused_s", "lost_s", "write_s")),
                f"{row['bytes'] / 1e6:,.0f} MB",
                f"{100 * row['share_ratio']:.2g} %",
            ]
            for row in rows
        ],
    )


def _examples() -> list[tuple[str, str]]:
    """The shortest questions of GSM8K, with their worked solutions."""
    task = RunConfig(arm="lora", task={"name": "gsm8k"}).task
    pairs = [(f"{each.question}\n", each.solution) for each in load_task(task).train]
    return sorted(pairs, key=lambda pair: len("".join(pair)))[:NUM_EXAMPLES]


def _on_disk(folder: Path) -> int:
    """Bytes of a run's newest checkpoint."""
    return sum(path.stat().st_size for path in checkpoints_in(folder)[0].iterdir())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=next(iter(EMBEDDED)), help="by name, or its folder")
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 20, 40])
    parser.add_argument("--steps", type=int, default=100, help="of a block, at least")
    parser.add_argument("--checkpoints", type=int, default=3, help="of each number of slots")
    parser.add_argument("--folder", help="on a disk with room; the usual one for temporary files")
    parser.add_argument("--show", action="store_true", help="only print --out as a table")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
