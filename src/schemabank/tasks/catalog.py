"""All tasks by name: how each is loaded, asked and scored where the settings do not say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase as Tokenizer

from schemabank.config.task import MetricName, TaskName, TaskSettings
from schemabank.sandbox import Verdict
from schemabank.tasks import (
    conditional,
    gsm8k,
    gsm_symbolic,
    humaneval,
    narrativeqa,
    perplexity,
    records,
)
from schemabank.tasks.base import Example, Item, TaskData

Split = Literal["validation", "test"]
Judged = tuple[str, Verdict]  # what was taken from a completion, and what it is worth


@dataclass(frozen=True)
class Task:
    """What a task brings.

    Attributes:
        load: reads or makes its three splits.
        prompt: template of its prompt.
        metric: name of its metric.
        split: what is scored by itself.
        ends: whether a target may end with the end token; pieces of a longer text do not.
        check: raises ``InputError`` where the task cannot be scored under these settings.
        judge: scores completions by what their examples' fields say; ``None``: the metric does.
        items: what an evaluation asks of a split's examples, where it is not their prompts.
        meaning: field that is the same for examples that mean the same.
        wording: field that tells how an example is said.
        data: settings that its examples depend on, beside those in its own section.
    """

    load: Callable[[TaskSettings], TaskData]
    prompt: str = "{question}\nThe answer is: "
    metric: MetricName = "numeric"
    split: Split = "validation"
    ends: bool = True
    check: Callable[[TaskSettings], None] = lambda _settings: None
    judge: Callable[[TaskSettings, Sequence[tuple[Item, str]]], list[Judged]] | None = None
    items: Callable[[Sequence[Example], TaskSettings, Tokenizer], list[Item]] | None = None
    meaning: str | None = None
    wording: str | None = None
    data: tuple[str, ...] = ("name",)


TASKS = {
    "gsm8k": Task(lambda settings: gsm8k.load(**settings.gsm8k.model_dump())),
    "gsm_symbolic": Task(lambda settings: gsm_symbolic.load(**settings.gsm_symbolic.model_dump())),
    "conditional": Task(
        lambda settings: conditional.load(**settings.conditional.model_dump()),
        meaning="rule",
        wording="template",
    ),
    "humaneval": Task(
        lambda _settings: humaneval.load(),
        prompt="{question}",
        metric="code",
        split="test",  # HumanEval is a benchmark: all of its problems are for testing
        check=lambda settings: humaneval.check_allowed(settings.humaneval),
        judge=lambda settings, completions: humaneval.judge(settings.humaneval, completions),
    ),
    "narrativeqa": Task(
        lambda settings: narrativeqa.load(**settings.narrativeqa.model_dump()),
        prompt="{title}\n\n{summary}\n\nQuestion: {question}\nAnswer: ",
        metric="reading",
    ),
    "records": Task(
        lambda settings: records.load(settings.records, prompt=prompt_of(settings)),
        metric="exact_match",
        data=("name", "prompt"),
    ),
    "perplexity": Task(
        lambda settings: perplexity.load(settings.perplexity),
        prompt="{question}",
        metric="perplexity",
        ends=False,
        items=lambda books, settings, tokenizer: perplexity.items(
            books, settings.perplexity, tokenizer
        ),
    ),
}


def load_task(settings: TaskSettings) -> TaskData:
    """Load the task that the settings name."""
    return TASKS[settings.name].load(settings)


def is_of_data(setting: str, task: TaskName) -> bool:
    """Whether a task's examples depend on a setting, which goes by its dotted name."""
    own = (f"task.{name}" for name in TASKS[task].data)
    return setting in own or setting.startswith(f"task.{task}.")


def same_training(task: TaskSettings, other: TaskSettings) -> bool:
    """Whether two settings of one task name the same training examples."""
    names = (*TASKS[task.name].data, task.name, "train_limit")
    return all(getattr(task, name) == getattr(other, name) for name in names)


def prompt_of(settings: TaskSettings) -> str:
    """Return the template of the prompt: the settings' or the task's own."""
    return TASKS[settings.name].prompt if settings.prompt is None else settings.prompt


def metric_of(settings: TaskSettings) -> MetricName:
    """Return the name of the metric: the settings' or the task's own."""
    return settings.metric or TASKS[settings.name].metric


def split_of(settings: TaskSettings, asked: Split | None) -> Split:
    """Return the split to score: the one that is asked for or the task's own."""
    return asked or TASKS[settings.name].split
