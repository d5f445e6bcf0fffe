"""Runs campaigns of faults, or one case by its seed.

    python -m tests.faults kills operations power long    as `make soak` does; --jobs 2: two at once
    python -m tests.faults inputs texts numbers       harmed files, texts of others, and NaN
    python -m tests.faults cluster                    where Ray is installed
    python -m tests.faults kills --seed 17            that case alone; its folder stays if it fails
    python -m tests.faults kills --device cuda --embedded --minutes 20
    python -m tests.faults record                     write results/reliability.json and the page
    python -m tests.faults check                      whether the page is what the record says
    python -m tests.faults source                     which code this is, as the record names it

A campaign that is interrupted goes on from its journal in --work, and the folders of cases that
failed stay there. It ends with 1 where a promise was not kept.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # where the tests' own modules are
os.environ.setdefault("OMP_NUM_THREADS", "1")

from faults import shim  # noqa: E402 -- found on the path above
from madepages import read_rows, source_digest  # noqa: E402

if TYPE_CHECKING:
    from faults.campaigns import Campaign

WORK = HERE.parents[1] / "soak"
CAMPAIGNS = ("kills", "operations", "power", "inputs", "texts", "numbers", "long", "cluster")
WATCHED = frozenset({"kills", "operations", "power", "long"})  # whose file operations are seen
LONG = {"long", "cluster"}


def main() -> None:
    """Do what the command line says."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    if "source" in options.what:
        print(source_digest())
        return
    if "check" in options.what or "record" in options.what:
        from faults import page

        sys.exit(page.made().check() if "check" in options.what else page.write(options.work))
    if options.jobs > 1:
        sys.exit(_side_by_side(options.jobs))
    if "cluster" in options.what and importlib.util.find_spec("ray") is None:
        sys.exit("a cluster needs Ray: pip install 'schemabank[ray]'")
    if WATCHED & {*options.what} and not shim.is_loaded():
        library = str(shim.built(options.work))
        command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "LD_PRELOAD": library})
    sys.exit(1 if _failed(options) else 0)


def _side_by_side(jobs: int) -> int:
    """Run so many shares of the cases at once; return 1 if a case failed in any."""
    command = [sys.executable, "-m", "tests.faults", *sys.argv[1:], "--jobs", "1", "--share"]
    shares = [subprocess.Popen([*command, f"{n}/{jobs}"]) for n in range(jobs)]
    return max([share.wait() for share in shares])


def _failed(options: argparse.Namespace) -> int:
    """Run campaigns, or one case of each; return how many cases failed."""
    import torch

    from faults import campaigns
    from faults.world import World

    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    names = [campaigns.DEVICE] if options.device == "cuda" else options.what
    failed = 0
    with tempfile.TemporaryDirectory(dir=_fast(options.work)) as place:
        world = None
        if campaigns.IN_WORLD & {*names}:
            world = World(
                Path(place),
                device=options.device,
                embedded=options.embedded,
                forks=options.device == "cpu" and not options.anew,
            )
        for name in names:
            in_world = name in campaigns.IN_WORLD
            where_to = world if world and in_world else Path(place)
            own = campaigns.campaign(name, where_to, options.work)
            if options.seed is not None:
                rows = [own.tried(options.seed)]
                print(json.dumps(rows[0], indent=1), flush=True)
            else:
                rows = _ran(own, options, until)
            failed += sum(bool(row["problems"]) for row in rows)
            _keep_failed(Path(place) / "cases", options.work / "failed")
    if options.seed is None:
        # Asked last: a process that has begun with a GPU can fork none that uses it.
        where = json.dumps(campaigns.machine(options.device))
        for name in names:
            _journal(name, options).with_suffix(".machine.json").write_text(where)
    return failed


def _ran(own: "Campaign", options: argparse.Namespace, until: float) -> list[dict[str, Any]]:
    """Run a campaign, say what failed, and return the rows of all its cases."""
    from faults import campaigns

    share, shares = map(int, options.share.split("/"))
    number = options.count or campaigns.NUMBERS[own.name]
    seeds: Sequence[int] = range(options.first + share, number, shares)
    if options.short:
        seeds = campaigns.SHORT.get(own.name, (0,))
    journal = _journal(own.name, options)
    for row in own.rows(seeds, journal, until=until):
        if row["problems"]:
            print(json.dumps(row, indent=1), flush=True)
    rows = read_rows(journal)
    print(json.dumps({own.name: campaigns.summary(own.name, rows)}), flush=True)
    return rows


def _journal(name: str, options: argparse.Namespace) -> Path:
    share = options.share.replace("/", "-")
    path: Path = options.work / f"{name.replace(' ', '-')}-{share}.jsonl"
    return path


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.faults", description="Campaigns of faults.")
    parser.add_argument("what", nargs="+", choices=[*CAMPAIGNS, "record", "check", "source"])
    parser.add_argument("--seed", type=int, help="run this case alone")
    parser.add_argument("--count", type=int, help="how many cases a campaign has")
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with")
    parser.add_argument("--short", action="store_true", help="the few cases of `make test`")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="begin no case after")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--anew", action="store_true", help="start every program anew")
    parser.add_argument("--embedded", action="store_true", help="train the embedded model")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the journals")
    options = parser.parse_args()
    if options.device == "cuda" and options.what != ["kills"]:
        parser.error("on a GPU there are kills alone: the other faults do not depend on it")
    if options.short and (found := sorted(LONG & {*options.what})):
        parser.error(f"{found[0]!r} has no short cases: leave it out, or --short")
    return options


def _fast(work: Path) -> Path:
    """Where cases write: in memory, if there is such a place, since syncing only counts there."""
    memory = Path("/dev/shm")  # noqa: S108 -- a folder with a random name is made in it
    return memory if os.access(memory, os.W_OK) else work


def _keep_failed(cases: Path, place: Path) -> None:
    """Move the folders of cases that failed to where they stay; those of others are gone."""
    for folder in cases.iterdir() if cases.is_dir() else ():
        if folder.is_dir():
            shutil.rmtree(place / folder.name, ignore_errors=True)
            shutil.copytree(folder, place / folder.name, symlinks=True)
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
