"""Following runs in TensorBoard, Weights & Biases or trackio, each optional and off by default.

A library gives one log for each run, so that all runs of a cohort can be followed at once. All
values that are logged are on the host already. A library gets at most one step of a run in a
second, and the last step of each stage. A library that fails while runs are under way is left off;
no run stops for it.

``accelerate.tracking`` has one interface to such libraries, but is made for one run in a process.
Its settings go to ``wandb.config`` and ``trackio.config``, which belong to the process's current
run, not to one of many that are open. Its ``finish`` takes nothing, so a run that failed would
stand there as a finished one. In TensorBoard it writes settings by ``add_hparams``, before there
are scores and into a second folder. All three would be lost.
"""

import contextvars
import importlib
import io
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

from schemabank.common.errors import InputError, first_line
from schemabank.common.extras import require
from schemabank.common.waiting import waiting
from schemabank.config.file import run_id, to_yaml
from schemabank.config.naming import dotted_settings
from schemabank.config.settings import EngineSettings, RunConfig
from schemabank.engine.cohort import RunStep
from schemabank.runs.folder import free_name
from schemabank.runs.progress import Reporter

LOG_EVERY_S = 1.0
FINISH_TIMEOUT_S = 120  # a network that is gone must not hold back the next runs for ever
# What else would do than to leave a library out that cannot be made ready.
MENDS = {"wandb": "see to its API key with `wandb login`, set the variable WANDB_MODE=offline, or "}

End = Literal["finished", "failed", "interrupted"]


class RunLog(Protocol):
    """One run in one library."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step; steps come in order."""

    def close(self, end: End, scores: Mapping[str, float], why: str) -> None:
        """Log the run's scores, or why it has none, and close it."""


class Library(Protocol):
    """A tracking library, ready to follow runs."""

    place: str

    def follow(self, run: RunConfig) -> RunLog:
        """Begin to follow a run, beside those that are being followed."""


@dataclass
class _Followed:
    """A run that is being followed.

    Attributes:
        logs: in each library.
        stages: names of its stages in their order; those that its method adds, such as branches,
            come in as they begin.
        num_tokens: that it has seen.
        logged_at: when a step was last logged.
        waiting: the last step, which may be the last of its stage.
    """

    logs: dict[str, RunLog]
    stages: list[str]
    num_tokens: int = 0
    logged_at: float = -math.inf
    waiting: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)


class Trackers:
    """All libraries that runs are followed in.

    Args:
        libraries: by name.
        reporter: told where they log, and when one is left off.
    """

    def __init__(self, libraries: Mapping[str, Library], reporter: Reporter) -> None:
        self._libraries, self._reporter = dict(libraries), reporter
        self._runs: dict[str, _Followed] = {}
        for name, library in libraries.items():
            reporter.note(f"tracker {name}: {library.place}")

    def begin(self, runs: Iterable[RunConfig]) -> None:
        """Begin to follow runs, each in the libraries that it names."""
        for run in runs:
            followed = _Followed({}, [stage.name for stage in run.stages()])
            self._runs[run_id(run)] = followed
            for name in run.engine.trackers:
                self._try_library(name, partial(self._follow, name, run, followed))

    def go_on(self, num_tokens: Mapping[str, int]) -> None:
        """Take note of what runs have seen before, by their ids, in an earlier call."""
        for run, number in num_tokens.items():
            self._runs[run].num_tokens = number

    def steps(self, steps: Sequence[RunStep]) -> None:
        """Log a step of some runs, or keep it, since it may be the last of its stage."""
        if not self._libraries:
            return
        now = time.monotonic()
        for step in steps:
            run = self._runs[step.run]
            run.num_tokens += step.num_tokens
            if step.stage not in run.stages:
                run.stages.append(step.stage)
            if step.stage not in run.waiting:
                self._flush(run)
            run.waiting = {step.stage: (step.step, _step_values(step, run))}
            if now - run.logged_at >= LOG_EVERY_S or step.is_last:
                run.logged_at = now
                self._flush(run)

    def end(self, run: str, end: End, result: Mapping[str, Any] | None, why: str = "") -> None:
        """Log a run's scores or its failure, and close it; for a run not followed, do nothing."""
        followed = self._runs.pop(run, None)
        if followed is not None:
            self._flush(followed)
            for name, log in list(followed.logs.items()):
                self._try_library(name, partial(log.close, end, _all_scores(result), why))

    def interrupt(self) -> None:
        """Close whatever is open."""
        for run in list(self._runs):
            self.end(run, "interrupted", None, "interrupted")

    def _follow(self, name: str, run: RunConfig, followed: _Followed) -> None:
        followed.logs[name] = self._libraries[name].follow(run)

    def _flush(self, run: _Followed) -> None:
        """Log the step that waits, if one does."""
        for step, values in run.waiting.values():
            for name, log in list(run.logs.items()):
                self._try_library(name, partial(log.log, step, values))
        run.waiting = {}

    def _try_library(self, name: str, call: Callable[[], None]) -> None:
        """Call a library; where it fails in any way, go on without it and say so once."""
        if name not in self._libraries:
            return
        try:
            with waiting(f"waiting for the tracker {name}", self._reporter.note):
                call()
        except Exception as error:  # what a library raises is not ours to foresee
            del self._libraries[name]
            reason = " ".join(str(error).split())
            for followed in self._runs.values():
                log = followed.logs.pop(name, None)
                if log is not None:
                    with suppress(Exception):  # it may well fail again
                        log.close("interrupted", {}, reason)
            self._reporter.note(
                f"tracker {name} is left off from here on ({type(error).__name__}: {reason}); the "
                "runs go on, and metrics.jsonl has every step"
            )


def trackers_of(runs: Sequence[RunConfig], out: Path, reporter: Reporter) -> Trackers:
    """Make ready the libraries that runs name.

    Args:
        runs: those that are to be computed; none names a library unless it was asked to.
        out: folder of the runs.
        reporter: where trackers say what they do.

    Raises:
        InputError: a library is not installed, or lacks what it needs to log.
    """
    uses = _first_uses(runs).items()
    return Trackers({name: _ready(name, out, engine, reporter) for name, engine in uses}, reporter)


def check_installed(runs: Iterable[RunConfig]) -> None:
    """Make sure that the libraries that runs name are there; none is started, nothing logs in.

    Raises:
        InputError: one is not installed.
    """
    for name in _first_uses(runs):
        _import_library(name)


class TensorBoard:
    """Event files in ``OUT/tensorboard/RUN_ID``."""

    def __init__(self, out: Path, engine: EngineSettings) -> None:
        del engine  # folders take the place of projects
        _import_library("tensorboard")
        self._module = importlib.import_module("torch.utils.tensorboard")
        self._folder = out / "tensorboard"
        self.place = f"tensorboard --logdir {self._folder}"

    def follow(self, run: RunConfig) -> RunLog:
        """Begin a folder; what an unfinished run of that name left is kept under another one."""
        folder = self._folder / run_id(run)
        if folder.exists():
            folder.rename(free_name(folder, "earlier"))
        return _TensorBoardRun(self._module.SummaryWriter(str(folder)), run)


class _TensorBoardRun:
    def __init__(self, writer: Any, run: RunConfig) -> None:  # noqa: ANN401 -- an optional library
        self._writer, self._run = writer, run
        writer.add_text("settings", "\n".join(f"    {x}" for x in to_yaml(run).splitlines()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, end: End, scores: Mapping[str, float], why: str) -> None:
        self._writer.add_text("end", f"{end}: {why}" if why else end)
        for name, value in scores.items():
            self._writer.add_scalar(name, value)
        # The writer's own method for it would begin a second folder.
        summary = importlib.import_module("torch.utils.tensorboard.summary")
        plain = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in dotted_settings(self._run).items()
        }
        for part in summary.hparams(plain, dict(scores)):
            self._writer.file_writer.add_summary(part)
        self._writer.close()


class WandB:
    """Runs in a project of Weights & Biases, in its cloud, on a server or offline."""

    def __init__(self, out: Path, engine: EngineSettings) -> None:
        self._wandb = _import_library("wandb")
        self._group = out.name
        self._project = engine.tracker_project or os.environ.get("WANDB_PROJECT") or out.name
        self._folder = os.environ.get("WANDB_DIR") or str(out)
        mode = self._wandb.setup().settings.mode
        if mode == "online" and not self._wandb.login(prompt=False):
            raise InputError(
                "engine.trackers names 'wandb', but Weights & Biases has no API key: allowed is a "
                "key or no network, run `wandb login` or set the variable WANDB_MODE=offline"
            )
        self.place = f"project {self._project!r} of Weights & Biases, {mode}, in {self._folder}"

    def follow(self, run: RunConfig) -> RunLog:
        """Begin a run that leaves those under way as they are."""
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        found = self._wandb.init(
            project=self._project,
            group=os.environ.get("WANDB_RUN_GROUP") or self._group,
            name=run_id(run),
            id=secrets.token_hex(4),  # WANDB_RUN_ID would be the same for all runs
            dir=self._folder,
            config=run.model_dump(mode="json"),
            reinit="create_new",
            settings=self._wandb.Settings(**self._process_settings()),
        )
        return _WandBRun(found)

    def _process_settings(self) -> dict[str, object]:
        """Settings that several runs in one process need, unless a variable has them."""
        wanted = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "x_disable_stats": True,
            "finish_timeout": FINISH_TIMEOUT_S,
        }
        said = {name.replace("WANDB__", "WANDB_X_") for name in os.environ}
        return {k: v for k, v in wanted.items() if f"WANDB_{k.upper()}" not in said}


class _WandBRun:
    def __init__(self, run: Any) -> None:  # noqa: ANN401 -- an optional library
        self._run = run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, end: End, scores: Mapping[str, float], why: str) -> None:
        self._run.summary.update(_last_values(end, scores, why))
        self._run.finish(exit_code=0 if end == "finished" else 1)


class Trackio:
    """Runs in trackio's local database, or where its variables say."""

    def __init__(self, out: Path, engine: EngineSettings) -> None:
        self._trackio = _import_library("trackio")
        self._group, self._project = out.name, engine.tracker_project or out.name
        where = os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        self.place = f"project {self._project!r} of trackio in {where or self._trackio.TRACKIO_DIR}"

    def follow(self, run: RunConfig) -> RunLog:
        """Begin a run in a context of its own, since trackio ends its context's run before."""
        begin = partial(
            self._trackio.init,
            project=self._project,
            name=run_id(run),
            group=self._group,
            config=dotted_settings(run),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        with redirect_stdout(io.StringIO()):  # which is for the command's result
            return _TrackioRun(contextvars.Context().run(begin))


class _TrackioRun:
    def __init__(self, run: Any) -> None:  # noqa: ANN401 -- an optional library
        self._run, self._next = run, 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._next = step + 1
        self._run.log(dict(values), step=step)

    def close(self, end: End, scores: Mapping[str, float], why: str) -> None:
        self._run.log(_last_values(end, scores, why), step=self._next)
        with redirect_stdout(io.StringIO()):
            self._run.finish()


LIBRARIES: Mapping[str, Callable[[Path, EngineSettings], Library]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def _first_uses(runs: Iterable[RunConfig]) -> dict[str, EngineSettings]:
    """By the names of the libraries that runs name, the settings of the first run that does."""
    found: dict[str, EngineSettings] = {}
    for run in runs:
        for name in run.engine.trackers:
            found.setdefault(name, run.engine)
    return found


def _ready(name: str, out: Path, engine: EngineSettings, reporter: Reporter) -> Library:
    """Start a library; whatever it raises is refused."""
    try:
        with waiting(f"waiting for the tracker {name}", reporter.note):
            return LIBRARIES[name](out.resolve(), engine)
    except InputError:
        raise
    except Exception as error:  # what a library raises is not ours to foresee
        raise InputError(
            f"engine.trackers names {name!r}, which cannot be made ready ({type(error).__name__}: "
            f"{first_line(error)}): {MENDS.get(name, '')}leave it out"
        ) from error


def _import_library(name: str) -> ModuleType:
    """Import a library that is not installed by default."""
    require(name, f"engine.trackers names {name!r}, which", otherwise="leave it out")
    return importlib.import_module(name)


def _step_values(step: RunStep, run: _Followed) -> dict[str, float]:
    """The values of a step; a stage goes by its number, from 1, since libraries draw numbers."""
    return {
        "train/loss": step.loss,
        "train/learning_rate": step.learning_rate,
        "train/grad_norm": step.grad_norm,
        "train/tokens": run.num_tokens,
        "train/stage": run.stages.index(step.stage) + 1,
    }


def _last_values(end: End, scores: Mapping[str, float], why: str) -> dict[str, object]:
    """What is logged when a run ends: its scores, how it ended, and why it failed if it did."""
    return {**scores, "end": end, **({"failure": why} if why else {})}


def _all_scores(result: Mapping[str, Any] | None) -> dict[str, float]:
    """All numbers of a result, named ``score/GROUP/NAME``."""
    if result is None:
        return {}
    return {
        f"score/{group}/{name}": value
        for group, scores in result["groups"].items()
        for name, value in scores.items()
        if isinstance(value, (int, float))
    }
