"""A task's defaults beside its data: how it is asked and scored if the settings do not say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from schemabank.config.task import MetricName, TaskSettings
from schemabank.sandbox import CheckResult
from schemabank.tasks.base import Example, Item, TaskData

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase as Tokenizer

PROMPT = "{question}\nThe answer is: "

Split = Literal["validation", "test"]
JudgedText = tuple[str, CheckResult]  # what was taken from a completion, and how it did


@dataclass(frozen=True)
class Task:
    """A task: its data and its defaults.

    Attributes:
        load: reads or makes its three splits.
        prompt: template of its prompt.
        metric: name of its metric.
        split: which one is scored by default.
        ends: whether a target may end with the end token; pieces of a longer text do not.
        check: raises ``InputError`` where the task cannot be scored under these settings.
        judge: scores completions by what their examples' fields say; ``None``: the metric does.
        items: what an evaluation asks of a split's examples, where it is not their prompts.
        meaning: field that is the same for examples that mean the same.
        wording: field that tells how an example is said.
        cluster: field that tells what an example was drawn with, where the task generates it.
        extra: what brings the packages that its data need; empty where none are needed.
        data: settings that its examples depend on, beside those in its own section.
    """

    load: Callable[[TaskSettings], TaskData]
    prompt: str = PROMPT
    metric: MetricName = "numeric"
    split: Split = "validation"
    ends: bool = True
    check: Callable[[TaskSettings], None] = lambda _settings: None
    judge: Callable[[TaskSettings, Sequence[tuple[Item, str]]], list[JudgedText]] | None = None
    items: "Callable[[Sequence[Example], TaskSettings, Tokenizer], list[Item]] | None" = None
    meaning: str | None = None
    wording: str | None = None
    cluster: str | None = None
    extra: str = ""
    data: tuple[str, ...] = ("name",)
