"""Measure how many runs an hour two GPUs finish, compared with one.

    python benchmarks/workers.py --out results/workers.json
    python benchmarks/workers.py --show --out results/workers.json

One suite of plain LoRA on GSM8K is trained and evaluated by `schemabank suite` with one worker,
and again in a new folder with two. Both have the same slots, so both must end with the same bytes.
A call before them, of a few steps, lets the compiler fill its cache: a second suite on a machine
has that, too.

The time of a call is the whole one's, from the shell. A part of it does not grow with the suite: to
start Python, load the model, read the data, and to compile and capture in each worker. Python must
keep what it compiles of its modules (``PYTHONDONTWRITEBYTECODE`` unset), as it does by default.

On a machine of three GPUs or more, `--at-once` makes both calls at the same time, each on GPUs and
cores of its own. That takes a third less time, and the two share what else is on the machine.

On a CPU, `--device cpu` shares the cores among the workers, which says nothing of GPUs.
"""

import argparse
import filecmp
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from bench import Row, device_name, read_rows

from schemabank.common.tables import markdown_table
from schemabank.common.writing import write_json

WORKERS = (1, 2)
SLOTS = 12
RUNS = 48  # two units for each of two workers
EXAMPLES = 3400
WARM_STEPS = 12
SAME = ("adapter/adapter_model.safetensors", "predictions.jsonl.gz")


@dataclass(frozen=True)
class Place:
    """Where a call runs: by its environment, and by what its command starts with."""

    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()


ANYWHERE = Place()


def main() -> None:
    """Measure one worker and two, write the rows and print a table."""
    arguments = _arguments()
    if not arguments.show:
        with TemporaryDirectory(dir=arguments.folder) as folder:
            rows = measured(Path(folder), arguments)
        write_json(Path(arguments.out), rows)
    print("\n".join(table(read_rows(arguments.out))))  # noqa: T201 -- this is a script


def measured(folder: Path, arguments: argparse.Namespace) -> list[Row]:
    """Call the suite with each number of workers, and compare what they wrote.

    Args:
        folder: gets the suites and their runs.
        arguments: of the command line.

    Raises:
        SystemExit: if a call fails.
    """
    settings = suite(arguments)
    if arguments.device == "cuda":
        short = {"train": {"max_steps": WARM_STEPS}, "eval": {"split": "test", "limit": SLOTS}}
        _call(folder / "warm", _changed(settings, short), max(WORKERS), arguments)
    folders = {workers: folder / f"workers-{workers}" for workers in WORKERS}
    places = own_places() if arguments.at_once else dict.fromkeys(WORKERS, ANYWHERE)

    def took_s(workers: int) -> float:
        return _call(folders[workers], settings, workers, arguments, places[workers])

    with ThreadPoolExecutor(len(WORKERS) if arguments.at_once else 1) as pool:
        walls_s = [*pool.map(took_s, WORKERS)]
    return [
        {
            **_origin(arguments),
            **row(runs, workers, wall_s),
            "different_files": differences(folders[WORKERS[0]], runs),
        }
        for (workers, runs), wall_s in zip(folders.items(), walls_s, strict=True)
    ]


def own_places() -> dict[int, Place]:
    """Return for each call as many GPUs as it has workers, and these GPUs' part of the cores.

    Raises:
        SystemExit: there are too few GPUs.
    """
    count = torch.cuda.device_count()
    if count < sum(WORKERS):
        sys.exit(f"--at-once takes {sum(WORKERS)} GPUs, and there are {count}")
    cores, first, places = sorted(os.sched_getaffinity(0)), 0, dict[int, Place]()
    part = len(cores) // count
    for workers in WORKERS:
        end = first + workers
        gpus = ",".join(map(str, range(first, end)))
        own = ",".join(map(str, cores[first * part : end * part]))
        places[workers] = Place({"CUDA_VISIBLE_DEVICES": gpus}, ("taskset", "-c", own))
        first = end
    return places


def suite(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the suite."""
    return {
        "defaults": {
            "preset": "sound",
            "model": {"name": arguments.model},
            "task": {"name": "gsm8k", "train_limit": arguments.examples},
            "engine": {"slots": arguments.slots},
            "train": {"num_train_epochs": 1},
            "eval": {"split": "test", "limit": arguments.questions},
        },
        "arms": {"lora": {}},
        "seeds": [*range(1, arguments.runs + 1)],
    }


def row(runs: Path, workers: int, wall_s: float) -> Row:
    """Return what a call did, and how fast.

    Args:
        runs: folder that the call wrote.
        workers: of the call.
        wall_s: seconds of the call.
    """
    costs = [json.loads(path.read_text()) for path in sorted(runs.glob("*/cost.json"))]
    return {
        "workers": workers,
        "runs": len(costs),
        "slots": costs[0]["slots"],
        "wall_s": round(wall_s, 1),
        "runs_per_hour": round(3600 * len(costs) / wall_s, 1),
    }


def differences(one: Path, other: Path) -> list[str]:
    """Return the files of two folders of runs that differ, or are in one alone."""
    names = {
        path.relative_to(runs).as_posix()
        for runs in (one, other)
        for file in SAME
        for path in runs.glob(f"*/{file}")
    }
    assert names
    return filecmp.cmpfiles(one, other, sorted(names), shallow=False)[1] + [
        name for name in sorted(names) if not ((one / name).exists() and (other / name).exists())
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Rows as lines of Markdown."""
    lines: list[Any] = [*rows]
    of_one = lines[0]["runs_per_hour"]
    cells = [
        [
            *(str(each[name]) for name in ("workers", "runs", "wall_s")),
            f"{each['runs_per_hour']:,.0f}",
            f"{each['runs_per_hour'] / of_one:.2f}",
        ]
        for each in lines
    ]
    return markdown_table(
        ["GPUs", "runs", "seconds in all", "runs an hour", "times those of one"], cells
    )


def _call(
    runs: Path,
    settings: dict[str, Any],
    workers: int,
    arguments: argparse.Namespace,
    place: Place = ANYWHERE,
) -> float:
    """Call ``schemabank suite``, and return the seconds that it took."""
    path = runs.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(settings))
    launch = "gpus" if arguments.device == "cuda" else "local"
    command = [sys.executable, "-m", "schemabank", "suite", str(path), "--out", str(runs)]
    begin = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 -- this very package
        [*place.prefix, *command, "--launch", launch, "--workers", str(workers)],
        env={**os.environ, **place.environment},
        stdout=sys.stderr,
        check=False,
    )
    wall_s = time.perf_counter() - begin
    if ended.returncode:
        sys.exit(f"the call with {workers} workers ended with {ended.returncode}")
    return wall_s


def _changed(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {**settings, "defaults": {**settings["defaults"], **defaults}}


def _origin(arguments: argparse.Namespace) -> Row:
    return {
        "device": device_name(torch.device(arguments.device)),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.now(UTC).date().isoformat(),
        "model": arguments.model,
        "examples": arguments.examples,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", required=True, help="the file of the rows")
    parser.add_argument("--show", action="store_true", help="print the file's rows")
    parser.add_argument("--folder", help="where the runs lie while it measures")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--at-once", action="store_true", help="both, a GPU for each worker")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--slots", type=int, default=SLOTS, help="runs at once of a worker")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="to train on")
    parser.add_argument("--questions", type=int, help="that are answered; default: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
