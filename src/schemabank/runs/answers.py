"""Keeps what runs have answered while they are evaluated, so that the next call goes on from there.

On a CPU an evaluation may take hours. What each slot has completed, and the losses that were
measured, are added to files in the runs' folders, as often as checkpoints of a training are made,
and when a signal asks to leave. The next call computes only what is missing, in batches of the
same shapes, and comes to the same bits.

On a GPU nothing is kept: an evaluation takes minutes there, and nobody has tried whether its bits
stay the same.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from schemabank.common.errors import InputError, first_line
from schemabank.common.waiting import Note
from schemabank.common.writing import how_to_mend
from schemabank.config.file import config_hash
from schemabank.engine.decoding.completion import Completion
from schemabank.engine.stack import AdapterStack
from schemabank.runs.answerfiles import Answered, AnswerFile, Bounds, names
from schemabank.runs.checkpointing import how_often
from schemabank.runs.evaluate import Procedure
from schemabank.runs.forms import Form, Recalling
from schemabank.runs.kept import MadeWith, other_processor
from schemabank.runs.leaving import Leaving
from schemabank.runs.members import Member
from schemabank.runs.progress import SAVING
from schemabank.runs.recall import Losses, Recall
from schemabank.tasks import Item

VERSION = 1  # of what the files hold


def recalling(
    members: Sequence[Member], stack: AdapterStack, how: Procedure, made: MadeWith, note: Note
) -> Recalling:
    """Return what knows the answers of runs that are evaluated at once, and keeps new ones.

    Args:
        members: the runs, one a slot; there may be more slots.
        stack: their adapters.
        how: decoding and metric.
        made: what they are evaluated with.
        note: told where an evaluation goes on, or what of it cannot be used or kept.
    """
    is_kept = how_often([member.run for member in members]) != (None, None)
    if stack.model.device.type != "cpu" or not is_kept:
        return lambda _form, _items: Recall()
    return _Keeping(members, stack, how, made, note).of


class _Keeping:
    """Writes the answers of runs in all forms when it is time.

    Args:
        members, stack, how, made, note: as :func:`recalling` has them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        stack: AdapterStack,
        how: Procedure,
        made: MadeWith,
        note: Note,
    ) -> None:
        self._members, self._stack, self._how, self._made = members, stack, how, made
        self._note = note
        self._every_s, self._every = how_often([member.run for member in members])
        self._last_s, self._said = time.monotonic(), set[str]()
        self._files: list[AnswerFile] = []  # that can be written
        self.leaving = Leaving()

    def of(self, form: Form, items: Sequence[Item]) -> "KeptAnswers":
        """Return what is known of a form's items."""
        base, found, files = self._head(form, items), list[Answered](), list[AnswerFile]()
        bounds = Bounds(
            prompts=len(items),
            questions=sum(item.sample == 0 for item in items),
            max_new_tokens=self._how.max_new_tokens,
            vocabulary=self._stack.model.get_input_embeddings().num_embeddings,
        )
        num_slots, num_members = self._stack.num_slots, len(self._members)
        for slot, (index, name) in enumerate(names(num_slots, num_members, form)):
            own = self._of_run(slot) if slot < num_members else self._of_no_run(slot)
            files.append(AnswerFile(self._members[index].claim, name, {**base, **own}))
            is_told = slot < num_members and not self._members[slot].is_lost
            found.append(self._read(files[-1], bounds, is_told=is_told))
        for beside in found[num_members:]:  # nobody asks what these say, so it may be anything
            beside.completions = beside.completions or found[num_members - 1].completions
            beside.losses = found[num_members - 1].losses
        owners = (self._members[index] for index, _ in names(num_slots, num_members, form))
        self._files += [f for f, owner in zip(files, owners, strict=True) if not owner.is_lost]
        self._tell(form, found[:num_members], bounds)
        return KeptAnswers(self, found, files, num_members)

    def is_due(self) -> bool:
        """Whether it is time to write."""
        by_clock = self._every_s is not None and time.monotonic() - self._last_s >= self._every_s
        if by_clock or self._every is None:
            return by_clock
        return any(len(file.pending) >= self._every for file in self._files)

    def write(self) -> None:
        """Write all that is new; a file that cannot be written is left as it is."""
        for file in list(self._files):
            try:
                file.write()
            except (OSError, InputError) as error:
                self._files.remove(file)
                self._say(
                    "unwritten",
                    f"answers could not be kept ({first_line(error)}): the evaluation goes on, and "
                    "if it is interrupted, it goes on from those that were"
                    f"{how_to_mend(error)}",
                )
        self._last_s = time.monotonic()

    def look(self) -> None:
        """Write when it is time, or when a signal asks to leave, and leave then."""
        if self.leaving.asked is not None:
            self.leaving.answer()
            self._note(SAVING)
            self.write()
            self.leaving.leave()
        elif self.is_due():
            self.write()

    def _head(self, form: Form, items: Sequence[Item]) -> dict[str, Any]:
        """What answers of a form belong to, whoever gives them.

        Routing is not there: only a run with a bank is routed, and its own settings say how.
        """
        how = self._how
        return {
            **self._made,
            "version": VERSION,
            "slots": self._stack.num_slots,
            "form": form,
            "prompts": _digest(items),
            "procedure": {
                "decodes": how.metric.decodes,
                "max_new_tokens": how.max_new_tokens,
                "batch_size": how.batch_size,
                "stop": repr(how.stop),
                "temperature": how.temperature,
                "top_p": how.top_p,
                "sampling_seed": how.sampling_seed,
            },
        }

    def _of_run(self, slot: int) -> dict[str, object]:
        """What a run's answers belong to: whatever runs are beside it, they are its own."""
        run = self._members[slot].run
        return {"run": config_hash(run), "weights": _weights(self._stack, slot)}

    def _of_no_run(self, slot: int) -> dict[str, object]:
        """What answers of a slot without a run belong to, in which is whatever was there before."""
        return {"slot": slot, "beside": ", ".join(member.name for member in self._members)}

    def _read(self, file: AnswerFile, bounds: Bounds, *, is_told: bool) -> Answered:
        try:
            found, lost = file.read(bounds)
        except (OSError, InputError) as error:
            found, lost = Answered(), first_line(error)
        if lost and is_told:
            self._say("unused", f"answers of an earlier call are not used: {lost}")
        if other := other_processor(file.before, self._made):
            self._say("processor", f"evaluation: {other}")
        return found

    def _tell(self, form: Form, found: Sequence[Answered], bounds: Bounds) -> None:
        """Say where an evaluation goes on, if it does not begin."""
        total, known = bounds.prompts, [{*each.completions} for each in found]
        if not self._how.metric.decodes:
            total, known = bounds.questions, [{*each.losses} for each in found]
        done = len(set[int].intersection(*known))
        if done:
            where = f"with item {done + 1} of {total}" if done < total else f"after all {total}"
            of = ", ".join(member.name for member in self._members)
            asked = "" if form == "whole" else f", prompts {form}"
            self._note(f"evaluation goes on {where}{' items' * (done == total)}: {of}{asked}")

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            self._note(text)


class KeptAnswers(Recall):
    """What an earlier call has kept of the answers in one form; what is new is kept with it.

    Args:
        keeping: writes it.
        found: what is known of each slot.
        files: of each slot.
        num_runs: how many of the slots have a run.
    """

    def __init__(
        self,
        keeping: _Keeping,
        found: Sequence[Answered],
        files: Sequence[AnswerFile],
        num_runs: int,
    ) -> None:
        self._keeping, self._found, self._files = keeping, found, files
        self._num_runs = num_runs

    def __enter__(self) -> Self:
        """From now on, a signal that asks to leave waits until answers are written."""
        self._keeping.leaving.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Answer a signal that nobody has answered."""
        try:
            if error[0] is None:  # the evaluation came to its end
                self.look()
        finally:
            self._keeping.leaving.__exit__(*error)

    def completions(self, slot: int) -> Mapping[int, Completion]:
        """Return the completions of a slot that are known."""
        return self._found[slot].completions

    def completed(self, slot: int, prompt: int, completion: Completion) -> None:
        """Keep a completion."""
        self._files[slot].completed(prompt, completion)

    def losses(self, question: int) -> Sequence[Losses] | None:
        """Return a question's losses, if those of all slots are known."""
        known = [each.losses.get(question) for each in self._found]
        all_known = [losses for losses in known if losses is not None]
        return all_known if len(all_known) == len(known) else None

    def measured(self, question: int, losses: Sequence[Losses]) -> None:
        """Keep a question's losses."""
        for file, own in zip(self._files[: self._num_runs], losses, strict=False):
            file.measured(question, own)

    def look(self) -> None:
        """Write when it is time, or when a signal asks to leave, and leave then."""
        self._keeping.look()


def _weights(stack: AdapterStack, slot: int) -> str:
    """The SHA-256 of a slot's weights."""
    found = hashlib.sha256()
    for name, group in sorted(stack.groups.items()):
        row = group.weights[slot].detach().contiguous()
        found.update(f"{name} {row.dtype} {tuple(row.shape)}\n".encode())
        found.update(row.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest(items: Sequence[Item]) -> str:
    """The SHA-256 of all that a model is given of items, in their order."""
    found = hashlib.sha256()
    for item in items:
        own = (item.id, item.sample, item.prompt_tokens, item.target_tokens)
        found.update(json.dumps([*own, item.has_end, item.num_end, item.end_text]).encode())
    return found.hexdigest()
