"""Every text that a report shows, as a field that a payload is put into.

A field is a place in what ``report.json``, ``samples.jsonl`` or ``routing.json`` hold, or a name
that stands in several places, such as an arm's. Which texts are shown is found by putting a mark
into each: no list can be forgotten that way.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pages

Tree = Any  # JSON
Place = tuple[str | int, ...]
Change = Callable[[Tree], Tree]
ROUTING = Path(__file__).parents[2] / "results" / "routing" / "rule-tags.json"
# The package's own words, of a fixed vocabulary: no file of anybody's says them.
OWN = frozenset({"outcome", "flip", "test", "statistic", "holm_family"})
TIED = frozenset({"states", "state", "field", "place"})  # of an analysis: rows refer to each other
NAMED = frozenset({"versions"})  # whose keys are shown
FEW = 3  # of what a list holds: more of it shows nothing else


class Key(str):
    """A key of an object, as the last part of a place."""

    __slots__ = ()


@dataclass(frozen=True)
class Field:
    """A text of a report.

    Attributes:
        source: whose: ``report`` or ``routing``.
        name: of the field.
        places: where it stands; a name of an arm stands in many.
    """

    source: str
    name: str
    places: tuple[Place, ...]

    @property
    def is_name(self) -> bool:
        """Whether it stands in several places."""
        return len(self.places) > 1


def holding(source: str, texts: Mapping[Field, str]) -> Tree:
    """What a source holds, with texts in some of its fields."""
    tree = copy.deepcopy(whole(source))
    # Keys last: places are found by those that were there.
    puts = [(place, text) for own, text in texts.items() for place in own.places]
    for place, text in sorted(puts, key=lambda put: isinstance(put[0][-1], Key)):
        _put(tree, place, text)
    return tree


@cache
def whole(source: str) -> Tree:
    """What a report, or an analysis of routing, holds, with little of everything."""
    return _report() if source == "report" else _analysis()


@cache
def candidates() -> Sequence[Field]:
    """Every text of the sources, whether it is shown or not: single ones, then names."""
    found: dict[tuple[str, str], Field] = {}
    for source in ("report", "routing"):
        by_text: dict[str, list[Place]] = {}
        for place, text in _texts(whole(source)):
            if not OWN.isdisjoint(place):
                continue
            by_text.setdefault(text, []).append(place)
            if source == "report" or TIED.isdisjoint(place):
                name = ".".join(map(_named, place))
                found.setdefault((source, name), Field(source, name, (place,)))
        for text, places in by_text.items():
            if len(places) > 1:
                name = f"everywhere {text!r:.30}"
                found[source, name] = Field(source, name, tuple(places))
    return list(found.values())


def _report() -> Tree:
    found = pages.runs_report()
    for name in ("contrasts", "arms", "references", "claims", "rates", "warnings"):
        found[name] = _one_of_each(found[name], name)
    for curve in found["curves"]:
        curve["points"] = curve["points"][::30]
    (heat_map,) = found["routing"]
    heat_map["cells"] = heat_map["cells"][:FEW]
    found["provenance"]["runs"] = found["provenance"]["runs"][:FEW]
    samples = [
        {**sample, "prompt": f"Question {at}?", "id": f"item-{at}"}
        for at, sample in enumerate(pages.samples(FEW))
    ]
    for at, sample in enumerate(samples):
        for number, answer in enumerate(sample["answers"]):
            answer["completion"] = f"completion {at} {number}"
    return json.loads(json.dumps({**found, "samples": samples}))


def _one_of_each(rows: Sequence[Tree], name: str) -> Sequence[Tree]:
    """A list of rows of every kind, but not many of one."""
    by = {"claims": "follows", "warnings": "id", "rates": "arm", "arms": "arm"}.get(name)
    kinds: dict[str, Tree] = {}
    for row in rows:
        kinds.setdefault(str(row[by]) if by else "", row)
    return list(kinds.values())


def _analysis() -> Tree:
    """The recorded analysis with a row or two of each kind."""
    found = json.loads(ROUTING.read_text(encoding="utf-8"))
    ends = {"start", "end"}
    rows = [{**row, "usage": [0.25, 0.75], "dead": [0]} for row in found["layers"]]
    layers = {row["state"]: row for row in rows if row["state"] in ends}
    place = {row["state"]: row["layer"] for row in layers.values()}["end"]
    schemas = [row for row in found["schemas"] if row["layer"] == place and row["schema"] < 2]
    by_value = {**found["by_value"][0], "values": ["one", "two"], "usage": [[1, 0], [0, 1]]}
    return {
        **found,
        "run": found.get("run", "run"),
        "states": list(layers),
        "layers": list(layers.values()),
        "information": [
            row for row in found["information"] if row["state"] in ends and row["place"] == "answer"
        ],
        "reuse": found["reuse"][:1],
        "by_value": [by_value],
        "schemas": [_short(row) for row in schemas],
        "tags": "a reason why there are no tags",
    }


def _short(row: Mapping[str, Tree]) -> Tree:
    return {**row, "tokens": row["tokens"][:FEW], "examples": row["examples"][:FEW]}


def _texts(tree: Tree, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every text of JSON, with its place."""
    if isinstance(tree, str):
        yield place, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            if not NAMED.isdisjoint(place):
                yield (*place, Key(key)), key
            yield from _texts(value, (*place, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _texts(value, (*place, index))


def _named(part: str | int) -> str:
    if isinstance(part, Key):
        return "(a key)"
    return part if isinstance(part, str) else "*"


def _put(tree: Tree, place: Place, text: str) -> None:
    for part in place[:-1]:
        tree = tree[part]
    last = place[-1]
    if isinstance(last, Key):
        tree[text] = tree.pop(last)
    else:
        tree[last] = text
