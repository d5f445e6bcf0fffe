"""A Ray cluster of four CPU workers on the miniature suite, with harm; and a run that kills.

The first case kills a worker in the middle of a cohort, stops another one for longer than its
lease, and kills the driver. In the second, runs kill their process at the same step every time. A
ledger says which process took which step, so that whatever was done twice can be explained.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults import ledgers
from faults.hooks import append
from faults.world import RUNS, World, contents
from schemabank.launch.queue import BEATS
from schemabank.launch.rounds import ROUNDS, WORK
from schemabank.launch.sharing import LEASE_S

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
SUITE = ROOT / "configs" / "miniature" / "suite.yaml"
# Whole, the suite takes hours on two cores: fewer items and shorter answers, two runs at once.
CUT = (
    *("task.gsm_symbolic.train_size=16", "task.gsm_symbolic.validation_size=4"),
    *("task.gsm_symbolic.test_size=4", "eval.max_new_tokens=8", "engine.slots=2"),
    *("engine.checkpoint_steps=1", "engine.device=cpu"),
)
WORKERS = 4
LEDGER, POISON = "FAULTS_LEDGER", "FAULTS_POISON"
POISONED = "-seed1-"  # in the ids of the runs that kill their process: the tiny suite's final ones
AT_STEP = 3
LONGEST_S = 3600.0
DRIVER = """
import os, sys, ray
from schemabank.cli import main
hook = {"worker_process_setup_hook": "faults.cluster.watched"}
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, runtime_env=hook)
main()
"""


def watched() -> None:
    """Tell, in a worker's process, what it does; called by Ray before it does anything."""
    from schemabank.runs.folder import RunClaim
    from schemabank.runs.steplogs import StepLogs

    ledger, write, complete = Path(os.environ[LEDGER]), StepLogs.write, RunClaim.complete

    def written(own: StepLogs, step: Any) -> None:  # noqa: ANN401
        write(own, step)
        append(ledger, {"pid": os.getpid(), "run": step.run, "step": step.step})
        if POISON in os.environ and POISONED in step.run and step.step >= AT_STEP:
            os.kill(os.getpid(), signal.SIGKILL)

    def completed(own: RunClaim) -> None:
        complete(own)
        append(ledger, {"pid": os.getpid(), "finished": own.final.name})

    StepLogs.write, RunClaim.complete = written, completed  # type: ignore[method-assign]


def tried(world: World, seed: int, work: Path) -> Row:
    """Run the case of a seed, even ones with harm and odd ones with a run that kills.

    Args:
        world: has a tiny model.
        seed: of the case.
        work: where undisturbed runs of the miniature suite stay, which take many minutes.
    """
    place = world.root / "cases" / f"cluster-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    os.environ[LEDGER] = str(place.with_suffix(".steps"))
    Path(os.environ[LEDGER]).unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    tiny = str(world.root / "suite.yaml")
    suite = [tiny] if seed % 2 else [str(SUITE), *(word for s in CUT for word in ("--set", s))]
    whole = (world.root / "alone") if seed % 2 else work / "miniature"
    _alone(suite, whole)
    if seed % 2:
        os.environ[POISON] = "1"
    try:
        with _cluster() as address:
            os.environ["RAY_ADDRESS"] = address
            case = _Case(place, suite, random.Random(f"cluster {seed}"))
            row = case.poisoned(whole) if seed % 2 else case.harmed(whole)
    finally:
        os.environ.pop(POISON, None)
    if not row["problems"]:
        shutil.rmtree(place)
    return {"seed": seed, **row}


def _alone(suite: Sequence[str], whole: Path) -> None:
    """Run a suite in one process; a call that was interrupted goes on."""
    command = [sys.executable, "-m", "schemabank", "suite", *suite, "--out", str(whole / RUNS)]
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _cluster() -> Iterator[str]:
    """A cluster of this machine alone, whose processes are ours; yields its address."""
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": WORKERS, "num_gpus": 0, "include_dashboard": False},
    )
    try:
        yield found.address
    finally:
        found.shutdown()


@dataclass
class _Case:
    """A case under way.

    Attributes:
        place: where the suite writes.
        suite: of the command line.
        draw: says after how many steps harm is done.
        harm: by process, what was done to it.
        claims: by unit, how often it was claimed.
    """

    place: Path
    suite: Sequence[str]
    draw: random.Random
    harm: dict[int, str] = field(default_factory=dict)
    claims: dict[str, int] = field(default_factory=dict)

    def harmed(self, whole: Path) -> Row:
        """Do harm to workers and driver, and compare what it comes to."""
        began = time.monotonic()
        driver = self._driver()
        killed = self._harm("killed", after=self.draw.randint(2, 4))
        os.kill(killed, signal.SIGKILL)
        stopped = self._harm("stopped", after=self.draw.randint(6, 10))
        os.kill(stopped, signal.SIGSTOP)
        silent_s = self._until_taken_over(stopped, driver)
        with suppress(ProcessLookupError):  # Ray gives up a process that answers nothing
            os.kill(stopped, signal.SIGCONT)
        steps = len(self._steps())
        self._until(lambda: len(self._steps()) > steps)
        self.harm |= dict.fromkeys({row["pid"] for row in self._steps()}, "lost with its driver")
        self.harm |= {killed: "killed", stopped: "stopped"}
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        again = self._driver()
        code = again.wait(LONGEST_S)
        return self._row(code, 0, whole) | {
            "silent_s": round(silent_s),
            "lasted_s": round(time.monotonic() - began),
        }

    def poisoned(self, whole: Path) -> Row:
        """Let a run kill its process again and again, and see that all others are done."""
        driver = self._driver()
        while driver.poll() is None:
            self._look()
            time.sleep(0.2)
        said = (self.place / "said").read_text()
        row = self._row(driver.returncode, 1, whole)
        if "ended by itself 5 times before anything more of it was kept" not in said:
            row["problems"].append(f"the call did not say why a run failed: {said[-1000:]}")
        return row

    def _driver(self) -> "subprocess.Popen[bytes]":
        words = ["suite", *self.suite, "--launch", "ray", "--workers", str(WORKERS)]
        with (self.place / "said").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-c", DRIVER, *words, "--out", str(self.place / RUNS)],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def _harm(self, how: str, *, after: int) -> int:
        """Wait for a process in the middle of a run, after so many steps of all, and return it."""
        self._until(lambda: len(self._steps()) >= after and self._training() is not None)
        found = self._training()
        assert found is not None
        self.harm[found] = how
        return found

    def _training(self) -> int | None:
        """The process that took the newest step, if it is well and its run goes on."""
        rows = ledgers.read(Path(os.environ[LEDGER]))
        newest = rows[-1] if rows else {"pid": None, "finished": ""}
        return None if newest["pid"] in self.harm or "finished" in newest else newest["pid"]

    def _until_taken_over(self, stopped: int, driver: "subprocess.Popen[bytes]") -> float:
        """Wait until another process has taken a step of the stopped one's runs."""
        began = time.monotonic()
        runs = {row["run"] for row in self._steps() if row["pid"] == stopped}
        known = len(self._steps())

        def is_taken_over() -> bool:
            assert driver.poll() is None, (self.place / "said").read_text()[-2000:]
            return any(row["run"] in runs for row in self._steps()[known:])

        self._until(is_taken_over)
        silent_s = time.monotonic() - began
        # Others count from its last beat, which may have been that long before it was stopped.
        assert silent_s > LEASE_S - LEASE_S / BEATS, f"it was taken over after {silent_s:.0f} s"
        return silent_s

    def _until(self, is_so: Any) -> None:  # noqa: ANN401
        began = time.monotonic()
        while not is_so():
            self._look()
            assert time.monotonic() - began < LONGEST_S, "nothing happens"
            time.sleep(0.05)

    def _look(self) -> None:
        """Note how often units were claimed; a round goes when all is done."""
        for path in (self.place / RUNS).glob(f"{ROUNDS}/*/{WORK}/*/claim-*"):
            name = f"{path.parents[2].name}/{path.parent.name}"
            number = int(path.name.removeprefix("claim-"))
            self.claims[name] = max(self.claims.get(name, 0), number)

    def _steps(self) -> list[dict[str, Any]]:
        return [row for row in ledgers.read(Path(os.environ[LEDGER])) if "step" in row]

    def _row(self, code: int, allowed: int, whole: Path) -> Row:
        """What it has come to; of runs that failed the round stays, for the next call."""
        problems = [] if code == allowed else [f"exit code {code}, see {self.place / 'said'}"]
        now, then = (_records(contents(where)) for where in (self.place, whole))
        poison = {
            name
            for name in then | now
            if POISON in os.environ and (POISONED in name or f"/{ROUNDS}/" in name)
        }
        problems += [
            f"{n} differs" for n in sorted(then) if n not in poison and now.get(n) != then[n]
        ]
        problems += [f"{n} is left over" for n in sorted(now.keys() - then.keys() - poison)]
        again, unexplained = self._again()
        problems += unexplained
        return {
            "claims": dict(sorted(self.claims.items())),
            "workers": len({row["pid"] for row in self._steps()}),
            "harm": sorted(self.harm.values()),
            "steps": len({(row["run"], row["step"]) for row in self._steps()}),
            "steps_again": again,
            "problems": problems,
        }

    def _again(self) -> tuple[int, list[str]]:
        """How many steps were taken again, and those for which no lost process is to blame."""
        takers: dict[tuple[str, int], list[int]] = {}
        for row in self._steps():
            takers.setdefault((row["run"], row["step"]), []).append(row["pid"])
        poison = POISON in os.environ
        unexplained = [
            f"step {step} of {run} was taken by {pids}"
            for (run, step), pids in takers.items()
            if not (poison and POISONED in run) and not {*pids[:-1]} <= self.harm.keys()
        ]
        finished = [
            row["finished"] for row in ledgers.read(Path(os.environ[LEDGER])) if "finished" in row
        ]
        twice = {run for run in finished if finished.count(run) > 1}
        unexplained += [f"{run} was finished {finished.count(run)} times" for run in sorted(twice)]
        return sum(len(pids) - 1 for pids in takers.values()), unexplained


def _records(files: Mapping[str, str]) -> dict[str, str]:
    """Files of runs, without what the driver said."""
    return {name: digest for name, digest in files.items() if name.startswith(f"{RUNS}/")}
