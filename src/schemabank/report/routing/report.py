"""A routing analysis for the eye: tables, a Markdown page and heat maps.

Everything here is made from the contents of ``routing.json``.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemabank.common.lines import markdown_code, markdown_text
from schemabank.common.tables import PlainTable, markdown_cells, markdown_table
from schemabank.common.writing import write_json
from schemabank.report.figures import Cell, heat_map, write_figure
from schemabank.runs.folder import slug

JSON, PAGE = "routing.json", "routing.md"
MOST_VALUES = 40  # of a field in a heat map
LONGEST_LABEL = 40
SHOWN_TOKENS = 6

Analysis = Mapping[str, Any]


def write_report(folder: Path, report: Analysis) -> None:
    """Write ``routing.json``, ``routing.md`` and the figures into a folder."""
    write_json(folder / JSON, report)
    titles = {}
    for name, (rows, title, cells) in heat_map_cells(report).items():
        spec = heat_map(cells, x_title="schema", y_title=rows, value_title="share", title=title)
        write_figure(folder / name, spec)
        titles[name] = title
    (folder / PAGE).write_text(_page(report, titles), encoding="utf-8")


def tables(report: Analysis) -> list[PlainTable]:
    """Return the tables: the routers' choices, what they tell of fields, and reuse of schemas."""
    return [
        _states_table(report),
        *([_information_table(report)] if report["information"] else []),
        *([_reuse_table(report)] if report["reuse"] else []),
    ]


def _states_table(report: Analysis) -> PlainTable:
    tagged = "tag_agreement" in report["layers"][0]
    head = ["state", "layer", "entropy", "schemas in use", "dead", "load balance", "changed"]
    rows = []
    for row in report["layers"]:
        cells = [
            row["state"],
            str(row["layer"]),
            f"{row['entropy']:.2f}",
            f"{row['effective_schemas']:.1f}",
            str(len(row["dead"])),
            f"{row['load_balance']:.2f}",
            "" if row["changed"] is None else f"{row['changed']:.0%}",
        ]
        if tagged:
            chance = row["tag_agreement_by_chance"]
            cells.append(f"{row['tag_agreement']:.1%} ({chance:.1%})")
        rows.append(cells)
    title = (
        f"{report['num_schemas']} schemas, {report['top_k']} a token; "
        f"{report['num_examples']} examples of {report['task']} {report['split']}"
    )
    return title, head + (["on tags (by chance)"] if tagged else []), rows


def _information_table(report: Analysis) -> PlainTable:
    """One row a field, place and layer; a column a state: the information, and chance's 95 %."""
    last = report["states"][-1]
    found = {(r["field"], r["place"], r["layer"], r["state"]): r for r in report["information"]}
    rows = []
    for field, place, layer in sorted({key[:3] for key in found}):
        own = [found[field, place, layer, state] for state in report["states"]]
        cells = [f"{row['value']:.3f} ({row['shuffled_95']:.3f})" for row in own]
        end = found[field, place, layer, last]
        cells += [f"{end['field_entropy']:.3f}", f"{end['p_value']:.2g}"]
        rows.append([field, place, str(layer), *cells])
    head = ["field", "place", "layer", *report["states"], "at most", "p at the end"]
    title = "mutual information of schema and field, in nats (95 % of shuffles stay below)"
    return title, head, rows


def _reuse_table(report: Analysis) -> PlainTable:
    rows = [
        [
            row["place"],
            str(row["layer"]),
            f"{row['same']:.3f}",
            f"{row['other']:.3f}",
            f"{row['num_pairs']:,}",
            f"{row['p_value']:.2g}",
        ]
        for row in report["reuse"]
    ]
    head = ["place", "layer", "one meaning", "others", "pairs of one", "p"]
    return "overlap of the choices of two examples, at the end", head, rows


def heat_map_cells(report: Analysis) -> dict[str, tuple[str, str, list[Cell]]]:
    """Return heat maps by name: what their rows are, their title and their cells."""
    title = "share of choices by schema, layer and state of the training"
    cells = [
        Cell(str(schema), row["state"], share, f"layer {row['layer']}")
        for row in report["layers"]
        for schema, share in enumerate(row["usage"])
    ]
    found = {"usage": ("state", title, cells)}
    fields = list(dict.fromkeys(row["field"] for row in report["by_value"]))
    for field, place in dict.fromkeys((r["field"], r["place"]) for r in report["by_value"]):
        cells = [
            Cell(str(schema), _short_label(value), share, f"layer {row['layer']}")
            for row in report["by_value"]
            if (row["field"], row["place"]) == (field, place) and len(row["values"]) <= MOST_VALUES
            for value, shares in sorted(zip(row["values"], row["usage"], strict=True), key=_natural)
            for schema, share in enumerate(shares)
        ]
        if cells:
            title = f"share of choices by {field} at the end of the training, {place}"
            # Without dots, since a name with "www." becomes a link on some pages.
            name = f"by-{fields.index(field) + 1}-{slug(field)}-{slug(place)}".replace(".", "-")
            found[name] = field, title, cells
    return found


def _short_label(text: str) -> str:
    """A value as a label."""
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _natural(pair: tuple[str, object]) -> list[tuple[int, str]]:
    """Order of values with numbers in them: ``rule-2`` stands before ``rule-10``."""
    pieces = re.findall(r"\d+|\D+", pair[0])
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces]


def _page(report: Analysis, figures: Mapping[str, str]) -> str:
    lines = [
        f"# Routing of {markdown_text(report['run'])}",
        "",
        "Bank on at full scale, no dropout, no tag prefix. What the figures mean: docs/routing.md.",
        "",
    ]
    if isinstance(report["tags"], str):
        lines += [f"No agreement with tags is shown: {markdown_text(report['tags'])}.", ""]
    for title, head, rows in tables(report):
        lines += [_heading(title), "", *markdown_table(head, rows), ""]
    for name, title in figures.items():
        lines += [_heading(title), "", f"![{markdown_text(title)}]({name}.svg)", ""]
    lines += ["## Typical tokens and examples, at the end", "", *_typical_table(report)]
    return "\n".join(lines) + "\n"


def _heading(title: str) -> str:
    return f"## {markdown_text(title[0].upper() + title[1:])}"


def _typical_table(report: Analysis) -> Iterator[str]:
    last = report["states"][-1]
    usage = {row["layer"]: row["usage"] for row in report["layers"] if row["state"] == last}
    rows = []
    for row in report["schemas"]:
        share = usage[row["layer"]][row["schema"]]
        if share > 0:
            kinds = ", ".join(_token_shown(token) for token in row["tokens"][:SHOWN_TOKENS])
            examples = ", ".join(
                f"{markdown_text(str(e['id']))} ({e['share']:.0%})" for e in row["examples"]
            )
            rows.append([str(row["layer"]), str(row["schema"]), f"{share:.1%}", kinds, examples])
    yield from markdown_cells(
        ["layer", "schema", "usage", "tokens (times as often)", "examples"], rows
    )


def _token_shown(token: Mapping[str, Any]) -> str:
    return f"{markdown_code(repr(token['text'])[1:-1])} {token['times_as_often']:.1f}"
