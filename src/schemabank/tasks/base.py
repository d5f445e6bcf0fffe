"""What every task hands over: examples in three splits, and what an evaluation asks."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from schemabank.common.errors import InputError
from schemabank.common.stored import Codec

OVERHEAD = 1024  # bytes of an example's objects beside its texts
MOST_BYTES = 256 * 2**20  # of a split's examples in memory; larger ones lie in a file


class Turn(NamedTuple):
    """One turn of a chat: who says what, and whether a model learns to say it.

    ``extra`` is what else a template is given, as a JSON object: calls of tools, a tool's name.
    """

    role: str
    content: str
    learned: bool = False
    extra: str = ""


@dataclass(frozen=True)
class Example:
    """One question and its answers.

    Attributes:
        id: stable over processes and versions, unique within the task.
        question: what is asked, without any prompt around it; taggers read it.
        solution: the long target; a worked solution that ends in a marked answer, ``#### 72``.
        answer: the short target; the final answer alone, as the data set writes it.
        fields: named columns that a prompt template, a tagger or a report may use.
        group: which part of the split results are reported for (``all``, ``seen``, ``held_out``).
        references: answers that count as right, where there are others beside ``answer``.
        cluster: what the example was drawn with (a document), where it was not drawn alone.
        turns: the whole chat, where the example is one; its last turn is learned, and says the
            ``solution``.
        tools: schemas of the tools that the chat may call, as a JSON list.
    """

    id: str
    question: str
    solution: str
    answer: str
    fields: Mapping[str, str] = field(default_factory=dict)
    group: str = "all"
    references: tuple[str, ...] = ()
    cluster: str = ""
    turns: tuple[Turn, ...] = ()
    tools: str = ""

    @property
    def golds(self) -> tuple[str, ...]:
        """All answers that count as right."""
        return self.references or (self.answer,)


def _packed(example: Example) -> bytes:
    values = [getattr(example, name) for name in Example.__dataclass_fields__]
    return json.dumps(values, ensure_ascii=False).encode()


def _unpacked(packed: bytes) -> Example:
    values = dict(zip(Example.__dataclass_fields__, json.loads(packed), strict=True))
    turns = tuple(Turn(*turn) for turn in values["turns"])
    return Example(**{**values, "references": tuple(values["references"]), "turns": turns})


def _text_size(example: Example) -> int:
    """About how many bytes an example takes, most of them text."""
    texts = (example.question, example.solution, *example.fields.values())
    return OVERHEAD + sum(map(len, texts)) + sum(len(turn.content) for turn in example.turns)


EXAMPLES = Codec(write=_packed, read=_unpacked, size=_text_size)


@dataclass(frozen=True)
class Item:
    """One question of an evaluation.

    Attributes:
        id, group: the example's.
        prompt: what the model is given, as text.
        prompt_tokens: the same as token ids.
        target_tokens: the gold target with its end token.
        golds: all answers that count as right.
        cluster: the example's.
        has_end: whether the target's last tokens end it.
        num_end: how many tokens these are.
        start_text: text that a completion begins with and that is no part of the answer.
        end_text: text that ends a completion, where that is not the tokenizer's end token.
        fields: the example's columns, for those who judge completions by them.
        sample: which of the completions of the same question, counted from 0.
    """

    id: str
    group: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    target_tokens: tuple[int, ...]
    golds: tuple[str, ...]
    cluster: str = ""
    has_end: bool = True
    num_end: int = 1
    start_text: str = ""
    end_text: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    sample: int = 0


@dataclass(frozen=True)
class TaskData:
    """The three splits of a task; no question stands in two of them.

    Attributes:
        train, validation, test: the splits.
        cluster_field: field that every example's cluster repeats, where a task generates its
            examples; a digest of them has it once.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    cluster_field: str | None = None

    def split(self, name: str) -> Sequence[Example]:
        """Return the split ``train``, ``validation`` or ``test``."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in splits:
            raise InputError(f"split {name!r} is not one of {', '.join(splits)}: name one of them")
        return splits[name]


def text_hash(text: str) -> bytes:
    """Return the SHA-256 of a text; sorted by it, items stand in an order that is fixed."""
    return hashlib.sha256(text.encode()).digest()


def hash_position(text: str) -> float:
    """Return a fixed place in [0, 1) for a text, by which a share of a split is set aside."""
    return int.from_bytes(text_hash(text)[:8], "big") / 2**64


def check_at_least(least: int, **numbers: int | None) -> None:
    """Refuse settings that are too small; ``None`` stands for no limit.

    Raises:
        InputError: the first one below ``least``.
    """
    for name, number in numbers.items():
        if number is not None and number < least:
            raise InputError(f"{name} {number} is below {least}: use {least} or more")


def check_validation_ratio(ratio: float) -> None:
    """Refuse a share of the training examples that :func:`set_aside` cannot use.

    Raises:
        InputError: it is below 0, or leaves nothing to train on.
    """
    if not 0 <= ratio < 1:
        raise InputError(f"validation_ratio {ratio} is outside [0, 1): use for instance 0.1")


def set_aside(
    examples: Iterable[Example], ratio: float, *, by: Callable[[Example], str]
) -> tuple[list[Example], list[Example]]:
    """Set a share of examples aside as the validation split.

    Args:
        examples: in any order.
        ratio: the share, in [0, 1). A larger share keeps all examples of a smaller one.
        by: the text whose hash decides, so that examples of equal texts stay together.

    Returns:
        The examples that are left, and those set aside.
    """
    kept: list[Example] = []
    aside: list[Example] = []
    for example in examples:
        (aside if hash_position(by(example)) < ratio else kept).append(example)
    return kept, aside
