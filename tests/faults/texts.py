"""Texts of others in reports: a payload in every field stays text in page, Markdown and terminal.

A case is named by its seed: a group of fields of :mod:`faults.fields`, which all hold the same
payload of :mod:`faults.payloads`. Its outputs are compared with those of a harmless word. Where
they differ in more than text, each field of the group is tried alone.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from faults import outputs
from faults.fields import Field, candidates, holding
from faults.outputs import Elements
from faults.payloads import KIND_OF, PAYLOADS

Row = dict[str, Any]
Shown = Mapping[str, str]  # by the name of the output
# Arms and settings are told apart by their names, so that few of them have the same at once.
GROUPS = {"report": 4, "routing": 2}
NUMBER = 2 * sum(GROUPS.values()) * len(PAYLOADS)
# Long texts are cut in tables for a terminal, so that shorter ones alone are looked for there.
WORDS = {False: "qvzj" * 8, True: "qvzj: " + "qvzj" * 6}  # lists set off what ends with ": "


@dataclass(frozen=True)
class Group:
    """Fields that hold a payload at once, each with the outputs that show it."""

    source: str
    fields: Sequence[tuple[Field, Sequence[str]]]

    @property
    def outputs(self) -> Sequence[str]:
        """All outputs that show one of them."""
        return [name for name in outputs.OUTPUTS if any(name in own for _, own in self.fields)]


def shown_with(source: str, texts: Mapping[Field, str], places: Collection[str]) -> Shown:
    """The outputs with texts in fields."""
    tree = holding(source, texts)
    writers = {
        "page": lambda: outputs.page_of(source, tree),
        "Markdown": lambda: outputs.markdown_of(source, tree),
        "terminal": lambda: outputs.printed_of(source, tree),
        "JSON": lambda: outputs.json_of(tree),
    }
    return {name: writers[name]() for name in places}


@cache
def dealt() -> Mapping[int, tuple[str, Sequence[Field]]]:
    """All fields, dealt to groups; single places apart from names, which stand in several."""
    outputs.drawn_once()
    found = {}
    for source, number in GROUPS.items():
        for is_name in (False, True):
            own = [one for one in candidates() if (one.source, one.is_name) == (source, is_name)]
            for at in range(number):
                found[len(found)] = (source, own[at::number])
    return found


@cache
def group_at(at: int) -> Group:
    """The fields of a group whose marks are shown."""
    source, fields = dealt()[at]
    marks = {own: f"qvzj{number:03}" for number, own in enumerate(fields)}
    shown = shown_with(source, marks, outputs.OUTPUTS)
    found = (
        (own, [name for name, text in shown.items() if mark in text]) for own, mark in marks.items()
    )
    return Group(source, [(own, places) for own, places in found if places])


def tried(seed: int) -> Row:
    """Put a payload into the fields of a group, and compare its outputs."""
    at, which = divmod(seed, len(PAYLOADS))
    group, name = group_at(at), list(PAYLOADS)[which]
    problems = list(_problems(group, PAYLOADS[name]))
    if problems and len(group.fields) > 1:
        alone = (Group(group.source, [own]) for own in group.fields)
        found = [
            f"{one.fields[0][0].name}: {p}" for one in alone for p in _problems(one, PAYLOADS[name])
        ]
        problems = found or problems
    return {
        "seed": seed,
        "group": at,
        "payload": name,
        "fields": len(group.fields),
        "shown": dict(Counter(place for _, places in group.fields for place in places)),
        "problems": problems[:20],
    }


def _problems(group: Group, payload: str) -> Iterator[str]:
    word = WORDS[": " in payload]
    texts = {own: payload for own, _ in group.fields}
    try:
        written = shown_with(group.source, texts, group.outputs)
    except Exception as error:  # whatever it is, no report was written
        yield f"{type(error).__name__}: {error}"
        return
    page, markdown, printed = _harmless(group.source, tuple(texts), word, tuple(group.outputs))
    if "page" in written:
        yield from outputs.page_problems(page, written["page"])
    if "Markdown" in written:
        yield from outputs.markdown_problems(markdown, written["Markdown"])
    if "terminal" in written:
        yield from outputs.terminal_problems(printed, written["terminal"], word, payload)
    if "JSON" in written:
        yield from outputs.json_problems(written["JSON"], holding(group.source, texts))


@cache
def _harmless(
    source: str, fields: Sequence[Field], word: str, places: Sequence[str]
) -> tuple[Elements, Sequence[str], str]:
    """What a group's outputs are with a harmless word, as they are compared."""
    found = shown_with(source, dict.fromkeys(fields, word), places)
    markdown = outputs.markdown_shape(found.get("Markdown", ""))
    return Elements(found.get("page", "")), markdown, found.get("terminal", "")


def summary(rows: Sequence[Row]) -> Row:
    """What the record holds of the campaign."""
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in dict.fromkeys(KIND_OF.values())}
    for row in rows:
        by_kind[KIND_OF[row["payload"]]].update(row["shown"])
    payloads = {row["payload"] for row in rows}
    met = Counter(row["group"] for row in rows)
    return {
        "fields": sum({row["group"]: row["fields"] for row in rows}.values()),
        "payloads": len(payloads),
        "fewest_payloads": min(met.values(), default=0),
        "shown": sum(own.total() for own in by_kind.values()),
        "by_kind": {
            kind: {"payloads": sum(KIND_OF[name] == kind for name in payloads)}
            | {place: own[place] for place in outputs.OUTPUTS}
            for kind, own in by_kind.items()
        },
    }
