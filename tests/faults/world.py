"""A tiny world for campaigns: model, data, programs, and what they come to undisturbed.

Every program is the command line, in a process of its own that is forked from one that has imported
everything. ``hooks.py`` tells where it is while it runs.
"""

import hashlib
import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from faults.child import Ended, run
from faults.hooks import Hooks
from faults.shim import Event, Watch, read_log
from schemabank.runs import preflight
from tinyruns import SETTINGS, write_gsm8k, write_model

COST, REPORT, RUNS = "cost.json", "report", "runs"
MODULES = "modules"
STEPS = 2  # of a cohort, from checkpoint to checkpoint
ITEMS = 7  # of an evaluation
AT_ONCE = 2  # completions of a run
EVALUATED = {"split": "test", "max_new_tokens": 2, "batch_size": AT_ONCE}
EMBEDDED = {"name": "smollm2-135m-instruct", "dtype": "auto"}


@dataclass(frozen=True)
class Program:
    """A call of the command line.

    Attributes:
        name: of the campaign's own.
        arguments: of the command line, but for where it writes.
        target: the name in the watched folder of what it writes.
    """

    name: str
    arguments: Sequence[str]
    target: str = RUNS

    def called(self, place: Path) -> list[str]:
        """All arguments."""
        return [*self.arguments, "--out", str(place / self.target)]


@dataclass
class Undisturbed:
    """What a program comes to if nothing happens.

    Attributes:
        files: the SHA-256 of every file but costs, by its path.
        events: of the program.
        saves: by run and step, the SHA-256 of the tensors of a checkpoint.
        place: where its files are.
    """

    files: Mapping[str, str]
    events: Sequence[Event]
    saves: Mapping[tuple[str, int], str]
    place: Path


@dataclass
class World:
    """Where campaigns run.

    Args:
        root: a folder of its own.
        device: of the programs.
        embedded: whether they train the embedded model, else a tiny one.
        forks: whether programs are forked; a GPU can be used by those alone that start anew.
    """

    root: Path
    device: str = "cpu"
    embedded: bool = False
    forks: bool = True
    _known: dict[str, Undisturbed] = field(default_factory=dict)
    programs: dict[str, Program] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        data = self.root / "data"
        if not data.exists():
            write_gsm8k(data, num_train=24, num_test=ITEMS)
        os.environ["SCHEMABANK_DATA"] = str(data)
        model = str(self.root / "model")
        if not self.embedded and not Path(model).exists():
            write_model(Path(model))
        if self.device == "cpu":  # measured once a process, and forked programs begin with it
            preflight._measured_rate(torch.device("cpu"), torch.float32)
            preflight._measured_operation_s()
        self._write_settings(EMBEDDED if self.embedded else {"name": model, "dtype": "float32"})
        self.programs = {
            "train": Program("train", ["train", str(self.root / "train.yaml")]),
            "lora": Program("lora", ["train", str(self.root / "lora.yaml")]),
            "schemabank": Program("schemabank", ["train", str(self.root / "schemabank.yaml")]),
            "search": Program("search", ["suite", str(self.root / "suite.yaml")]),
        }

    def _write_settings(self, model: Mapping[str, str]) -> None:
        """Write the configurations and the suite."""
        engine = {"slots": 2, "checkpoint_steps": STEPS, "device": self.device}
        common = {**SETTINGS, "model": model, "engine": engine, "eval": EVALUATED}
        common["swap"] = {"num_branches": 2, "branch_ratio": 0.5}
        self.settings = common
        short = {"num_train_epochs": 1, "learning_rate": 1e-2}
        arms: dict[str, str | list[str]] = {"lora": "lora", "schemabank": "schemabank"}
        arms["train"] = ["base", "lora", "schemabank", "swap"]
        for name, arm in arms.items():
            train = {**short, "num_train_epochs": 2 if name == "train" else 1}
            tree = {**common, "arm": arm, "train": train}
            (self.root / f"{name}.yaml").write_text(yaml.safe_dump(tree))
        suite = {
            "arms": {"lora": {}, "schemabank": {}},
            "seeds": [1],
            "tune": {"factors": [1, 2], "seeds": [1001], "extend": 0},
            "defaults": {k: v for k, v in {**common, "train": short}.items() if k != "arm"},
        }
        (self.root / "suite.yaml").write_text(yaml.safe_dump(suite))

    def undisturbed(self, name: str) -> Undisturbed:
        """Return what a program comes to; it runs once, and once more with every checkpoint."""
        if name not in self._known:
            if name == REPORT:
                runs = self.undisturbed("search").place / RUNS
                self.programs[REPORT] = Program(REPORT, ["report", str(runs)], REPORT)
            self._known[name] = self._measured(self.programs[name])
        return self._known[name]

    def _measured(self, program: Program) -> Undisturbed:
        place, log = self.root / "whole" / program.name, self.root / f"{program.name}.log"
        saves = self.root / f"{program.name}.saves"
        for path in (log, saves):
            path.unlink(missing_ok=True)
        place.mkdir(parents=True)
        watch = Watch(self.root / "watch", place, log=log)
        ended = self.run(program, place, watch, Hooks(watch, waits=True))
        assert ended.code == 0, ended.said
        every = self.root / "every" / program.name
        every.mkdir(parents=True)
        if program.target == RUNS:
            watch = Watch(self.root / "watch", every)
            ended = self.run(program, every, watch, Hooks(watch, waits=True, saves=saves))
            assert ended.code == 0, ended.said
            first, second = contents(place), contents(every)
            others = [
                name for name in first.keys() | second.keys() if first.get(name) != second.get(name)
            ]
            assert not others, f"a second run comes to other bytes of {sorted(others)}"
        if self.forks:
            import_all(self.root / MODULES)
        rows = [json.loads(line) for line in _lines(saves)]
        found = {(row["run"], row["step"]): row["sha256"] for row in rows}
        return Undisturbed(contents(place), list(read_log(log)), found, place)

    def run(
        self,
        program: Program,
        place: Path,
        watch: Watch,
        hooks: Hooks,
        **more: Any,  # noqa: ANN401
    ) -> Ended:
        """Run a program in a process of its own, which is watched."""
        arguments = program.called(place)
        task = partial(_called, arguments, watch, hooks, self.root / MODULES)
        if not self.forks:
            task = partial(_started_anew, task)
        return run(task, place.parent, **more)


def contents(place: Path) -> dict[str, str]:
    """The SHA-256 of all that a program has come to, without costs and what was put aside."""
    return {
        str(path.relative_to(place)): sha256(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != COST and ".unfinished-" not in str(path)
    }


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def import_all(names: Path) -> None:
    """Import what a program has imported, so that the next ones need not."""
    for name in _lines(names):
        with suppress(Exception):  # such as modules that exist for one program alone
            importlib.import_module(name)


def _started_anew(task: Callable[[], None]) -> None:
    """Become a Python that imports everything itself, and does a task then."""
    code = "import pickle, sys; pickle.loads(bytes.fromhex(sys.argv[1]))()"
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", code, pickle.dumps(task).hex()]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def _called(arguments: Sequence[str], watch: Watch, hooks: Hooks, modules: Path) -> None:
    from schemabank.cli import main

    sys.argv = ["schemabank", *arguments]
    hooks.install()
    watch.attach()
    try:
        main()
    finally:
        names = [name for name in sys.modules if not name.startswith(("__", "faults"))]
        modules.write_text("\n".join(names))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
