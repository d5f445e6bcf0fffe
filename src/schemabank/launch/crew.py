"""The worker processes of this machine: started, listened to, replaced when they are lost, ended.

A process that has ended by itself gives its unit free at once. One that is silent for twice as long
as its lease, by when any other worker may have taken its unit over, is killed and replaced: it may
be stopped, or hang with a GPU in its hands.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from schemabank.common.errors import InputError
from schemabank.common.files import read_text
from schemabank.common.waiting import waiting
from schemabank.launch.messages import Message, Screen
from schemabank.launch.progress import RoundProgress
from schemabank.launch.queue import MOST_CRASHES, End, Lease
from schemabank.launch.rounds import PLAN, WORK, Round
from schemabank.launch.worker import LOST, PAUSE_S, command
from schemabank.runs.launched import Launched
from schemabank.runs.progress import SAVING, Reporter

MOST_FRUITLESS = 2  # processes of a worker in a row that ended before they began a unit
DRAIN_S = 5.0  # for what an ended process has told, where a child of its keeps the pipe open
SILENT = 2.0  # times a lease: so long may a process be silent before it is killed
IDLE_S = 5.0  # for workers to end by themselves when all is done
ENDING_S = 8.0  # for workers that are interrupted to end, or to begin to save
SAVING_S = 120.0  # for those that have begun to save where their runs stand
ENDS_EVERY_S = 0.05  # between two looks at who has ended
WAITING = "waiting for a worker to begin a part (what others hold is free once silent for {:g} s)"


@dataclass
class _Hand:
    """A worker process, and what it holds."""

    number: int
    process: "subprocess.Popen[str]"
    log: Path
    num_fruitless: int  # processes of this number in a row before it
    ended_s: float | None = None
    lease: Lease | None = None
    refused: str | None = None
    is_killed: bool = False
    is_saving: bool = False
    has_begun: bool = False


class Crew:
    """Processes that work on a round.

    Args:
        shared: the round.
        environments: what is set for each process beside our own environment.
        reporter: where progress goes.
        launcher: what the call has started them with, for what their runs cost.
    """

    def __init__(
        self,
        shared: Round,
        environments: Sequence[Mapping[str, str]],
        reporter: Reporter,
        *,
        launcher: str,
    ) -> None:
        self.screen = Screen(reporter)
        self._shared, self._environments, self._reporter = shared, environments, reporter
        self._launched = Launched(launcher, len(environments))
        self._progress = RoundProgress(shared, reporter, len(environments))
        self._queue = self._progress.queue
        self._hands: dict[int, _Hand] = {}
        self._inbox: SimpleQueue[tuple[_Hand, Message | None]] = SimpleQueue()
        self._num_lost = 0  # since a unit was done

    def work(self) -> None:
        """Let the processes work until the round is over.

        Raises:
            InputError: something in the settings cannot be had.
            RuntimeError: processes end before they begin, or one after the other before the end.
        """
        is_over = False
        try:
            for number in range(len(self._environments)):
                self._start(number)
            with waiting(WAITING.format(self._shared.lease_s), self._reporter.note) as wait:
                while not self._progress.is_over():
                    self._look()
                    self._listen()
                    self._notice_ended()
                    self._kill_silent()
                    if any(hand.lease for hand in self._hands.values()):
                        wait.goes_on()
            is_over = True
        finally:
            self._end(is_over=is_over)
        self._progress.close()

    def _start(self, number: int, num_fruitless: int = 0) -> None:
        log = self._shared.folder / f"worker-{os.getpid()}-{number}.log"
        with log.open("a") as stderr:
            process = subprocess.Popen(  # noqa: S603 -- our own module
                command(self._shared.folder, os.getpid(), self._launched, speaks=number == 0),
                env={**os.environ, **self._environments[number]},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we let them save
            )
        self._hands[number] = hand = _Hand(number, process, log, num_fruitless)
        threading.Thread(target=self._read, args=(hand,), daemon=True).start()

    def _read(self, hand: _Hand) -> None:
        """Put what a process tells into the inbox, and ``None`` when it tells no more."""
        assert hand.process.stdout is not None
        with hand.process.stdout as pipe:
            for line in pipe:
                with suppress(ValueError):  # it was killed in the middle of its last line
                    self._inbox.put((hand, json.loads(line)))
        self._inbox.put((hand, None))

    def _look(self) -> None:
        """See whether units were done."""
        if self._progress.done():
            self._num_lost = 0

    def _listen(self) -> None:
        """Show what the processes tell for a moment, and what has come by its end.

        No longer, since those that train always have something to tell. And no less: of a process
        whose last words are not heard yet, an old lease is known, on which it is silent.
        """
        end_s = time.monotonic() + PAUSE_S
        with suppress(Empty):
            while self._hands and (left_s := end_s - time.monotonic()) > 0:
                self._hear(*self._inbox.get(timeout=left_s))
        for _ in range(self._inbox.qsize()):
            self._hear(*self._inbox.get_nowait())

    def _hear(self, hand: _Hand, message: Message | None) -> None:
        if self._hands.get(hand.number) is not hand:
            return  # it has ended, and a child of its kept the pipe
        if message is None:
            self._ended(hand)
        else:
            self._told(hand, message)

    def _notice_ended(self) -> None:
        """See which processes have ended, though others hold their pipes and could tell more."""
        now = time.monotonic()
        for hand in list(self._hands.values()):
            if hand.ended_s is None and hand.process.poll() is not None:
                hand.ended_s = now
            if hand.ended_s is not None and now - hand.ended_s > DRAIN_S:
                self._ended(hand)

    def _told(self, hand: _Hand, message: Message) -> None:
        if "unit" in message:
            hand.lease = Lease(self._shared.folder / WORK / message["unit"], message["number"])
            if message["unit"] == PLAN:
                return
            hand.has_begun = True
            if message["number"] > 1:
                took = f"takes over part {message['unit']}, which was not done"
                self._reporter.note(f"worker {hand.number + 1} {took}")
        elif "done" in message:
            hand.lease = None
        elif "refused" in message:
            hand.refused = message["refused"]
        else:
            self.screen.show(hand.number, message)

    def _ended(self, hand: _Hand) -> None:
        """See why a process ended, and start another one unless all is done."""
        del self._hands[hand.number]
        code = hand.process.wait()
        self.screen.forget(hand.number)
        if hand.refused is not None:
            raise InputError(hand.refused)
        self._look()
        if self._progress.is_over():
            return
        if hand.lease is not None and code != LOST:
            self._give_free(hand.lease, "lost" if hand.is_killed else "crashed")
        self._replace(hand, _why(code, hand.log))

    def _replace(self, hand: _Hand, why: str) -> None:
        """Start another process in place of one that was lost, if there is hope for it.

        Raises:
            RuntimeError: there is none.
        """
        self._num_lost += 1
        num_fruitless = 0 if hand.has_begun else hand.num_fruitless + 1
        if num_fruitless >= MOST_FRUITLESS:
            if not self._hands:
                raise RuntimeError(f"workers end before they begin ({why})")
            self._reporter.note(f"worker {hand.number + 1} ends before it begins ({why}): left out")
            return
        if self._num_lost > MOST_CRASHES * len(self._environments):
            raise RuntimeError(f"{self._num_lost} workers were lost and no part was done ({why})")
        self._reporter.note(f"worker {hand.number + 1} was lost ({why}), another one is started")
        self._start(hand.number, num_fruitless)

    def _give_free(self, lease: Lease, how: End) -> None:
        if self._queue.record(lease.unit) is None and lease.is_ours():
            lease.end(how)

    def _kill_silent(self) -> None:
        """Kill processes that have shown no sign of life for too long."""
        for hand in self._hands.values():
            if hand.lease is None or hand.is_killed:
                continue
            if self._queue.silent_s(hand.lease) > SILENT * self._shared.lease_s:
                hand.is_killed = True
                hand.process.kill()

    def _end(self, *, is_over: bool) -> None:
        """End all processes; those that do not end in time are killed.

        Those that save where their runs stand have as long as it takes to write that.
        """
        began = time.monotonic()
        try:
            if not is_over:
                for hand in self._hands.values():
                    hand.process.terminate()
            while left := [hand for hand in self._hands.values() if hand.process.poll() is None]:
                self._see_who_saves()
                for hand in left:
                    wait_s = SAVING_S if hand.is_saving else IDLE_S if is_over else ENDING_S
                    if time.monotonic() - began > wait_s:
                        hand.process.kill()
                time.sleep(ENDS_EVERY_S)
        finally:
            for hand in self._hands.values():
                hand.process.kill()  # without effect on one that has ended
                hand.process.wait()

    def _see_who_saves(self) -> None:
        """Take note of the processes that have begun to save."""
        with suppress(Empty):
            while True:
                hand, message = self._inbox.get_nowait()
                if message is not None and message.get("note") == SAVING:
                    hand.is_saving = True


def _why(code: int, log: Path) -> str:
    """Say how a process ended."""
    if code == LOST:
        return "it was silent for longer than its lease"
    if code == 0:
        return "it ended before all was done"
    return f"exit code {code}: {_last(log)}" if code > 0 else signal.Signals(-code).name


def _last(log: Path) -> str:
    """The last line of what a process wrote to stderr."""
    with suppress(InputError):
        if lines := read_text(log).split("\n"):
            return next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    return f"see {str(log)!r}"
