"""All tasks by name. A task is the module of that name, with a ``TASK``."""

from collections.abc import Mapping
from importlib import import_module

from schemabank.common.extras import require
from schemabank.config.task import TASK_NAMES, MetricName, TaskName, TaskSettings
from schemabank.tasks.base import TaskData
from schemabank.tasks.scoring.scores import METRICS
from schemabank.tasks.task import Split, Task

TASKS: Mapping[TaskName, Task] = {
    name: import_module(f"schemabank.tasks.{name}").TASK for name in TASK_NAMES
}


def check_extras(settings: TaskSettings) -> None:
    """Make sure that the packages are there that a task's data and its metric need.

    Raises:
        InputError: one is not installed; no data were read.
    """
    _check_data_extra(settings)
    metric = metric_of(settings)
    if extra := METRICS[metric].extra:
        otherwise = "take another metric, such as task.metric=f1"
        require(extra, f"the metric {metric!r} of the task {settings.name}", otherwise=otherwise)


def load_task(settings: TaskSettings) -> TaskData:
    """Load the task that the settings name."""
    _check_data_extra(settings)
    return TASKS[settings.name].load(settings)


def is_of_data(setting: str, task: TaskName) -> bool:
    """Whether a task's examples depend on a setting, given by its dotted name."""
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


def _check_data_extra(settings: TaskSettings) -> None:
    if extra := TASKS[settings.name].extra:
        require(extra, f"the task {settings.name}", otherwise="take another one")
