"""Runs campaigns of faults, or one case by its seed.

    python -m tests.faults kills operations power     as `make soak` does; --jobs 2: two at a time
    python -m tests.faults kills --seed 17            that case alone; its folder stays if it fails
    python -m tests.faults kills --device cuda --embedded --minutes 20
    python -m tests.faults record                     write results/reliability.json and the page
    python -m tests.faults check                      whether the page is what the record says

A campaign that is interrupted goes on from its journal in --work, and the folders of cases that
failed stay there. It ends with 1 where a promise was not kept.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # where the tests' own modules are
os.environ.setdefault("OMP_NUM_THREADS", "1")

from faults import shim  # noqa: E402 -- found on the path above

WORK = HERE.parents[1] / "soak"
CAMPAIGNS = ("kills", "operations", "power")


def main() -> None:
    """Do what the command line says."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    if "check" in options.what or "record" in options.what:
        from faults import page

        sys.exit(page.check() if "check" in options.what else page.write(options.work))
    if options.jobs > 1:
        sys.exit(_side_by_side(options.jobs))
    if not shim.is_loaded():
        library = str(shim.built(options.work))
        command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "LD_PRELOAD": library})
    until = time.monotonic() + 60 * options.minutes
    sys.exit(1 if sum([_failed(name, options, until) for name in options.what]) else 0)


def _side_by_side(jobs: int) -> int:
    """Run so many shares of the cases at once; return 1 if a case failed in any."""
    command = [sys.executable, "-m", "tests.faults", *sys.argv[1:], "--jobs", "1", "--share"]
    shares = [subprocess.Popen([*command, f"{n}/{jobs}"]) for n in range(jobs)]
    return max([share.wait() for share in shares])


def _failed(name: str, options: argparse.Namespace, until: float) -> int:
    """Run a campaign, or one case; return how many cases failed."""
    import torch

    from faults import campaigns
    from faults.world import World

    torch.set_num_threads(1)
    on_gpu = options.device == "cuda"
    name = campaigns.DEVICE if on_gpu else name
    share, shares = map(int, options.share.split("/"))
    file = f"{name.replace(' ', '-')}-{share}-{shares}"
    with tempfile.TemporaryDirectory(dir=_fast(options.work)) as place:
        world = World(Path(place), device=options.device, embedded=options.embedded)
        own = campaigns.campaign(name, world)
        if options.seed is not None:
            row = own.tried(options.seed)
            _keep_failed(world, options.work, [row])
            print(json.dumps(row, indent=1))
            return bool(row["problems"])
        journal = options.work / f"{file}.jsonl"
        number = options.count or campaigns.NUMBERS[name]
        seeds = campaigns.SHORT[name] if options.short else range(share, number, shares)
        failed = 0
        for row in own.rows(seeds, journal, until=until):
            failed += bool(row["problems"])
            if row["problems"]:
                _keep_failed(world, options.work, [row])
                print(json.dumps(row, indent=1), flush=True)
        rows = campaigns.read_rows(journal)
    print(json.dumps({name: campaigns.summary(name, rows)}, indent=1), flush=True)
    # Asked last: a process that has begun with a GPU can fork none that uses it.
    journal.with_suffix(".machine.json").write_text(json.dumps(campaigns.machine(options.device)))
    return failed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description="Campaigns of faults.")
    parser.add_argument("what", nargs="+", choices=[*CAMPAIGNS, "record", "check"])
    parser.add_argument("--seed", type=int, help="run this case alone")
    parser.add_argument("--count", type=int, help="how many cases a campaign has")
    parser.add_argument("--short", action="store_true", help="the few cases of `make test`")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="begin no case after")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--embedded", action="store_true", help="train the embedded model")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the journals")
    options = parser.parse_args()
    if options.device == "cuda" and options.what != ["kills"]:
        parser.error("on a GPU there are kills alone: the other faults do not depend on it")
    return options


def _fast(work: Path) -> Path:
    """Where cases write: in memory, if there is such a place, since syncing only counts there."""
    memory = Path("/dev/shm")  # noqa: S108 -- a folder with a random name is made in it
    return memory if os.access(memory, os.W_OK) else work


def _keep_failed(world: Any, work: Path, rows: list[dict[str, Any]]) -> None:  # noqa: ANN401
    """Copy the folders of cases that failed to where they stay."""
    for row in rows:
        for folder in (world.root / "cases").glob(f"*-{row['seed']}*"):
            target = work / "failed" / folder.name
            if row["problems"] and folder.is_dir():
                shutil.copytree(folder, target, dirs_exist_ok=True, symlinks=True)


if __name__ == "__main__":
    main()
