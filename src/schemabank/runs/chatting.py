"""Owns a conversation with a run's adapter: its turns so far, and the model that answers them.

It is `Tuner.generate` over what lies on disk: the same prompts, decoding and stop texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from schemabank.adapters.files import load_adapter
from schemabank.common.errors import InputError
from schemabank.common.waiting import Note
from schemabank.config.settings import RunConfig
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.asking import Prompt, completions, decodable
from schemabank.runs.inputs import check_used_again
from schemabank.runs.loading import loaded_base, resolve_device
from schemabank.runs.located import locate, named
from schemabank.runs.saved import loaded_stack


@dataclass(frozen=True)
class Manner:
    """How a conversation is held.

    Attributes:
        system: what the system turn says; ``None`` for a chat without one.
        plain: complete every line by itself, without the chat template.
        asked: settings of ``eval`` beside the run's own.
    """

    system: str | None = None
    plain: bool = False
    asked: Mapping[str, object] = field(default_factory=dict)


class Conversation:
    """A run's adapter on its base model, and what was said.

    Args:
        run: its settings.
        base: the base model, from `decodable`.
        stack: with the adapter.
        manner: how to talk.
    """

    def __init__(
        self, run: RunConfig, base: BaseModel, stack: AdapterStack, manner: Manner
    ) -> None:
        self._run, self._base, self._stack, self._manner = run, base, stack, manner
        self._turns: list[Mapping[str, object]] = []
        self.reset()

    def reset(self) -> None:
        """Forget what was said, but for the system turn."""
        system = self._manner.system
        self._turns = [] if system is None else [{"role": "system", "content": system}]

    @property
    def remembers(self) -> bool:
        """Whether something was said that the next question stands behind."""
        return any(turn["role"] == "assistant" for turn in self._turns)

    def answer(self, text: str) -> str:
        """Return what the model says; where it cannot, the text is not kept.

        Raises:
            InputError: the chat template refuses the chat, or the model has no room for it.
        """
        if self._manner.plain:
            return self._completed(text)
        asked = [*self._turns, {"role": "user", "content": text}]
        said = self._completed(asked)
        # An empty answer is no turn that a template can hold, so the question is not kept either.
        if said.strip():
            self._turns = [*asked, {"role": "assistant", "content": said}]
        return said

    def _completed(self, prompt: Prompt) -> str:
        own = self._run.eval
        drawn = {"temperature": own.temperature, "top_p": own.top_p}
        asked = {"max_new_tokens": own.max_new_tokens, **drawn, **self._manner.asked}
        stop = self._run.task.stop
        (said,) = completions(self._stack, self._base, [prompt], self._run, asked, stop=stop)
        return said


def open_conversation(
    folder: Path, manner: Manner, note: Note, *, model: str | None = None
) -> Conversation:
    """Load a run or an adapter, and begin to talk with it.

    Args:
        folder: a run, an exported adapter, or an adapter that PEFT wrote.
        manner: how to talk; without a chat template, plainly, which is noted.
        note: told what takes long, and what a reader should know.
        model: base model of an adapter that names none.

    Raises:
        InputError: no such run, other weights than it was trained on, a model that cannot be
            decoded, or a system turn without a chat template.
    """
    run, adapter = locate(folder, named(model))
    weights = None if adapter is None else load_adapter(adapter)
    check_used_again(folder, adapter, run, named(model), note, with_data=False)
    base = loaded_base(run, resolve_device(run.engine.device), note)
    plain = manner.plain or base.tokenizer.chat_template is None
    if plain and manner.system is not None:
        raise InputError(
            f"a system turn {manner.system!r:.60} was given, but without a chat template there are "
            "no turns: leave it out"
        )
    if plain and not manner.plain:
        note("the model has no chat template: every line is completed by itself")
    if not plain and not run.task.chat_template:
        note("trained without the chat template: --plain completes every line as it stands")
    stack = loaded_stack(run, base, weights, None)
    asked = run.model_copy(
        update={"task": run.task.model_copy(update={"chat_template": not plain})}
    )
    own = Manner(manner.system, plain, manner.asked)
    return Conversation(asked, decodable(base, stack), stack, own)
