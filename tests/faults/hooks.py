"""Tells where a program is while it runs, in a file that outlives it, and what it has done.

Nothing that it does is changed but two things, which are asked for: that a checkpoint is waited
for, so that events come in one order, and that one is made before every step.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.shim import Watch

BEGIN, RECOVER, TRAIN, EVALUATE = "begin", "recover", "train", "evaluate"
SAVE = "save"


@dataclass
class Hooks:
    """What is told of a program.

    Args:
        watch: that is told where the program is.
        waits: whether training waits for every checkpoint to be written.
        again: whether this program goes on where another one was killed.
        ledger: gets a line for every step; ``None``: nobody wants to know.
        saves: gets the digests of checkpoints, of which one is then made before every step.
    """

    watch: Watch
    waits: bool = False
    again: bool = False
    ledger: Path | None = None
    saves: Path | None = None
    _now: dict[str, str] = field(default_factory=dict)
    _epoch: int = 1

    def install(self) -> None:
        """Hook into the package; called in the process of the program alone."""
        from schemabank.engine.programs import Programs
        from schemabank.runs import checkpointing, experiment, finish, steplogs, training
        from schemabank.runs.answers import KeptAnswers
        from schemabank.runs.folder import RunClaim
        from schemabank.suites import execution

        self._now = {"phase": RECOVER if self.again else BEGIN}
        self._say()
        around: list[tuple[Any, str, Callable[..., Any]]] = [
            (Programs, "launch", self._launch),
            (steplogs.StepLogs, "write", self._step),
            (training, "take_steps", self._take_steps),
            (checkpointing, "write_checkpoint", self._checkpoint),
            (steplogs, "write_trained", self._trained),
            (finish, "evaluate_forms", self._evaluate),
            (KeptAnswers, "completed", self._completed),
            (KeptAnswers, "measured", self._measured),
            (experiment, "finish_runs", self._finish),
            (execution, "_search_rates", self._search),
            (RunClaim, "complete", self._complete),
        ]
        for owner, name, hook in around:
            _wrap(owner, name, hook)
        if self.waits:
            _wrap(checkpointing.Checkpoints, "is_due", _waiting)
        if self.saves is not None:
            checkpointing.how_often = lambda _: (None, 1)

    def _say(self, **now: str) -> None:
        self._now |= now
        self.watch.say(" ".join(text for text in self._now.values() if text))

    def _launch(self, call: Callable[..., Any], *given: Any) -> Any:  # noqa: ANN401
        if self._now["phase"] in (BEGIN, RECOVER):
            self._say(phase=TRAIN)
        self.watch.point("step")
        return call(*given)

    def _take_steps(self, call: Callable[..., Any], cohort: Any, *given: Any) -> Any:  # noqa: ANN401
        self._epoch = cohort.data.schedule.steps_per_epoch
        return call(cohort, *given)

    def _step(self, call: Callable[..., Any], log: Any, step: Any) -> None:  # noqa: ANN401
        call(log, step)
        epoch = step.step // self._epoch
        self._say(phase=TRAIN, at=f"stage={step.stage} epoch={epoch} step={step.step}")
        if self.ledger is not None:
            append(self.ledger, {"pid": os.getpid(), "run": step.run, "step": step.step})

    def _checkpoint(
        self,
        call: Callable[..., Any],
        folder: Path,
        standing: Any,  # noqa: ANN401
        *given: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> None:
        step = standing.state.step
        if self.ledger is not None:
            append(self.ledger, {"run": _name(folder), "begun": step})
        self._say(saving=SAVE)
        call(folder, standing, *given, **named)
        self.watch.point(f"saved {_name(folder)} {step}")
        if self.saves is not None:
            weights = folder / "checkpoints" / f"step-{step}" / "weights.safetensors"
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            append(self.saves, {"run": _name(folder), "step": step, "sha256": digest})
        self._say(saving="")

    def _trained(self, call: Callable[..., Any], folder: Path, *given: Any, **more: Any) -> None:  # noqa: ANN401
        self._say(saving=f"{SAVE} of the end")
        call(folder, *given, **more)
        self.watch.point(f"trained {_name(folder)}")
        self._say(saving="")

    def _complete(self, call: Callable[..., Any], claim: Any) -> None:  # noqa: ANN401
        call(claim)
        self.watch.point(f"finished {claim.final.name}")

    def _evaluate(self, call: Callable[..., Any], *given: Any, **more: Any) -> Any:  # noqa: ANN401
        self._say(phase=EVALUATE)
        self.watch.point("evaluate")
        found = call(*given, **more)
        self.watch.point("evaluated")
        return found

    def _completed(self, call: Callable[..., Any], own: Any, slot: int, *given: Any) -> None:  # noqa: ANN401
        call(own, slot, *given)
        self._answer(own, slot, f"completion {given[0]}")

    def _measured(
        self,
        call: Callable[..., Any],
        own: Any,  # noqa: ANN401
        question: int,
        losses: Sequence[Any],
    ) -> None:
        call(own, question, losses)
        for slot in range(len(losses)):
            self._answer(own, slot, f"losses {question}")

    def _answer(self, own: Any, slot: int, what: str) -> None:  # noqa: ANN401
        """Take note of a run's answer; a slot without a run has none."""
        self.watch.point("answer")
        members = own._keeping._members
        if self.ledger is not None and slot < len(members):
            answer = f"{own._files[slot]._name} {what}"
            append(self.ledger, {"run": members[slot].name, "answer": answer})

    def _finish(self, call: Callable[..., Any], *given: Any, **more: Any) -> Any:  # noqa: ANN401
        self._say(phase=EVALUATE)
        return call(*given, **more)

    def _search(self, call: Callable[..., Any], *given: Any) -> Any:  # noqa: ANN401
        self._say(search="search")
        found = call(*given)
        self._say(search="")
        return found


def _wrap(owner: Any, name: str, hook: Callable[..., Any]) -> None:  # noqa: ANN401
    call = getattr(owner, name)
    setattr(owner, name, lambda *given, **more: hook(call, *given, **more))


def _waiting(call: Callable[[Any], bool], own: Any) -> bool:  # noqa: ANN401
    if own._writing is not None:
        own._writing.exception()
    return call(own)


def _name(folder: Path) -> str:
    """The run's name by the folder in which it trains."""
    return folder.name.removeprefix(".").removesuffix(".partial")


def append(path: Path, row: dict[str, object]) -> None:
    """Write a line at the end of a ledger, whole."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, json.dumps(row).encode() + b"\n")
    os.close(file)
