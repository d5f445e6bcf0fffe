"""YAML as settings need it: mappings with text keys, lists, texts, numbers, truth values, null.

What YAML adds to that is left out: dates and numbers to base 60 are texts, ``on`` and ``off`` are
words, as in YAML 1.2, and tags are refused. Aliases may save writing, but not stand for more than a
bounded number of values, nor for something that holds them.
"""

import re
from collections.abc import Iterable, Iterator

import yaml

from schemabank.common.errors import InputError

MOST_VALUES = 100_000
DEEPEST = 40
COLON = "mapping values are not allowed"  # what PyYAML says of `prompt: Q: {question}`

Location = tuple[str | int, ...]
Lines = list[tuple[Location, int]]

TAG = "tag:yaml.org,2002:"
MERGE = f"{TAG}merge"
KNOWN = {f"{TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
SCALARS = (
    ("bool", "(?i:true|false)$", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+][0-9]+)?$"
        r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$",
        "-+0123456789.",
    ),
)
REPLACED = {f"{TAG}{name}" for name in ("bool", "int", "float", "timestamp", "value")}


class _Loader(yaml.SafeLoader):
    """Safe YAML with fewer kinds of plain scalars."""

    yaml_implicit_resolvers = {  # noqa: RUF012 -- the base class declares it so
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in REPLACED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


for _name, _pattern, _first in SCALARS:
    _Loader.add_implicit_resolver(f"{TAG}{_name}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, where: str) -> tuple[object, Lines]:
    """Parse YAML that comes from outside.

    Args:
        text: the YAML, of a bounded length.
        where: the file, or how it was said, for messages.

    Returns:
        The value, and the line of every key and of every item of a list.

    Raises:
        InputError: it is malformed, or uses more of YAML than settings need.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _count_values(node, where, {}, 0)
        lines = list(_key_lines(node, ()))
        return loader.construct_document(node), lines
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: 5,000 digits
        if isinstance(error, InputError):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())
        mend = "put a text with a colon in quotes" if COLON in reason else "mend it there"
        raise InputError(f"{where} is not valid YAML ({reason:.300}): {mend}") from error


def _count_values(node: yaml.Node, where: str, known: dict[int, int], depth: int) -> int:
    """Count the values that a node stands for, with its aliases written out; refuse too many.

    Args:
        node: the node.
        where: the file, for messages.
        known: sizes of the nodes that were seen; 0 of one that is being looked at.
        depth: of the node.
    """
    line = f"{where}:{node.start_mark.line + 1}"
    if node.tag not in KNOWN:
        raise InputError(f"{line} has the YAML tag {node.tag:.80}, allowed are none: remove it")
    if known.get(id(node)) == 0 or depth > DEEPEST:
        raise InputError(f"{line} is nested more than {DEEPEST} deep: allowed is less, flatten it")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 0
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, where)
    total = 1 + sum(_count_values(part, where, known, depth + 1) for part in _inner_nodes(node))
    if total > MOST_VALUES:
        raise InputError(
            f"{line} stands for more than {MOST_VALUES} values: allowed are as many, use fewer "
            "aliases"
        )
    known[id(node)] = total
    return total


def _inner_nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for _, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in {f"{TAG}str", MERGE}:
            is_scalar = isinstance(key, yaml.ScalarNode)
            found = f"{key.value:.60}" if is_scalar else "a list or a mapping"
            raise InputError(
                f"{where}:{key.start_mark.line + 1} has a key that is not text, "
                f"{found}: allowed are names, quote it if it is one"
            )


def _key_lines(node: yaml.Node, path: Location) -> Iterable[tuple[Location, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, key.value)
            yield inner, key.start_mark.line + 1
            yield from _key_lines(value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*path, index), value.start_mark.line + 1
            yield from _key_lines(value, (*path, index))
