"""The tasks: each module loads one data set as three splits of `Example`s."""

from schemabank.tasks.base import Example, Item, TaskData

__all__ = ["Example", "Item", "TaskData"]
