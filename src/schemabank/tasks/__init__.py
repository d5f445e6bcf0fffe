"""Tasks: each module loads one data set as three splits of `Example`s. `scoring` scores answers."""

from schemabank.tasks.base import Example, Item, TaskData

__all__ = [
    "Example",
    "Item",
    "TaskData",
    "base",
    "catalog",
    "chat",
    "conversations",
    "firstrow",
    "prompts",
    "records",
    "scoring",
    "seams",
    "sources",
]
