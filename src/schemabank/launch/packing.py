"""Settings of many runs in few bytes: those of the first whole, of the others what differs.

Every worker reads the settings of all runs of its round. The runs of a suite have nearly all of
them in common: 10,000 whole ones take 60 MiB, of which 64 workers would read 4 GiB.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

Tree = dict[str, Any]
Change = tuple[Sequence[str], Any]
"""The path of a value in a tree, and the value."""


def packed(trees: Sequence[Tree]) -> Tree:
    """Return trees, of which there is at least one, as JSON that :func:`unpacked` reads."""
    first = trees[0]
    return {"first": first, "others": [[*_changes(first, tree)] for tree in trees[1:]]}


def unpacked(value: Mapping[str, Any]) -> Iterator[Tree]:
    """Yield the trees that were packed, in their order."""
    yield value["first"]
    for changes in value["others"]:
        yield _changed(value["first"], changes)


def _changes(before: Tree, now: Tree, at: Sequence[str] = ()) -> Iterator[Change]:
    """Yield what differs between trees of the same keys."""
    for key, own in now.items():
        other, place = before[key], (*at, key)
        if isinstance(own, dict) and isinstance(other, dict) and own.keys() == other.keys():
            yield from _changes(other, own, place)
        elif repr(own) != repr(other):  # True, 1 and 1.0 are equal, also within lists
            yield place, own


def _changed(first: Tree, changes: Iterable[Change]) -> Tree:
    found = deepcopy(first)
    for place, value in changes:
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    return found
