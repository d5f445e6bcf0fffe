"""The tables of results that the command line prints: scores, and how completions ended."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.table import Table

from schemabank.adapters.peftcheck import read_check
from schemabank.common.tables import PlainTable, bare_table, plain, plain_table

Result = Mapping[str, Any]
Row = tuple[str, ...]

LONGEST_ANSWER = 40  # characters shown
NO_SHARES = {"perplexity"}  # scores that are no fractions
TITLES = {"correct": "exact match", "exact_match": "exact match", "f1": "token F1"}
DIFFERENT = "WARNING: adapters that are not as trained, by stock PEFT"
NOT_COMPARED = "WARNING: adapters that stock PEFT could not be compared with"
DIAGNOSTICS = (
    *("arm", "seed", "items", "ended", "of ended", "limit", "no answer", "tokens", "NLL"),
    "NLL+end",
)


def results_tables(
    results: Sequence[Result], *, failed: Mapping[str, str] = MappingProxyType({})
) -> list[Table]:
    """Lay out results of runs, one row an arm, seed and group of items.

    Args:
        results: contents of ``result.json``, all of one metric.
        failed: by the name of each failed run, the kind of its failure.

    Returns:
        Scores, the primary one first; where there are completions, the diagnostics that tell format
        from skill; and adapters that are in doubt.
    """
    names = list(dict.fromkeys(name for r in results for name in r["scores"]))
    scores = _table_of_scores(names)
    diagnostics = _empty_table("completions; NLL of the gold target in nats per token", DIAGNOSTICS)
    for group in dict.fromkeys(group for r in results for group in r["groups"]):
        scored = [r for r in results if group in r["groups"]]
        if names and f"best_constant_{names[0]}" in scored[0]["groups"][group]:
            for row in _constant_rows(scored, group, names):
                scores.add_row(*map(plain, row))
        for result in scored:
            scores.add_row(*map(plain, _score_cells(result, group, names)))
            if "ended_ratio" in result["groups"][group]:
                diagnostics.add_row(*map(plain, _diagnostic_cells(result, group, names)))
        scores.add_section()
        diagnostics.add_section()
    for name, kind in failed.items():
        scores.add_row(plain(name), "", f"failed: {kind}")
    doubts = [plain_table(*table) for table in check_tables(results)]
    return [scores, *([diagnostics] if diagnostics.row_count else []), *doubts]


def check_tables(results: Iterable[Result | None]) -> list[PlainTable]:
    """Lay out the runs whose adapter is in doubt, in a table for each kind of doubt.

    Returns:
        Adapters that compute other logits in stock PEFT, and those that it could not compute.
    """
    found: dict[str, list[Row]] = {DIFFERENT: [], NOT_COMPARED: []}
    for result in results:
        check = read_check(result)
        if result is not None and check is not None and not check.agrees:
            title = DIFFERENT if check.is_made else NOT_COMPARED
            found[title].append((str(result["arm"]), str(result["seed"]), *check.cells))
    head = ["arm", "seed", "difference of logits", "rounding explains", "reason"]
    return [(title, head, rows) for title, rows in found.items() if rows]


def skipped_lines(results: Sequence[Result]) -> list[str]:
    """Say which runs made fewer updates than they took steps, one line each."""
    lines = []
    for result in results:
        training = result["training"]
        if training and training["num_skipped_steps"]:
            lines.append(
                f"{result['arm']}, seed {result['seed']}: {training['num_skipped_steps']} of "
                f"{training['num_steps']} steps skipped, since their loss or gradient was not "
                "finite; they changed nothing"
            )
    return lines


def _table_of_scores(names: Sequence[str]) -> Table:
    shown = [f"{names[0]} (95 %)", *names[1:]] if names else []
    title = TITLES.get(names[0], names[0]) if names else "no metric, so no scores"
    return _empty_table(title, ("arm", "seed", "items", *shown, "LoRA steps"))


def _empty_table(title: str, columns: Sequence[str]) -> Table:
    table = bare_table(title)
    for column in columns:
        is_arm = column == "arm"  # the only one that may take several lines: figures stay whole
        table.add_column(plain(column), justify="left" if is_arm else "right", no_wrap=not is_arm)
    return table


def _score_cells(result: Result, group: str, names: Sequence[str]) -> Row:
    s, training = result["groups"][group], result["training"]
    cells = [_score_text(name, s[name]) if name in s else "" for name in names]
    interval = s[f"{names[0]}_interval_95"] if names else None
    if interval is not None:
        low, high = (_score_text(names[0], end).rstrip("%") for end in interval)
        cells[0] += f" ({low}–{high})"
    updates = str(training["num_lora_updates"]) if training else ""
    return (*_first_cells(result, group), *cells, updates)


def _score_text(name: str, value: float) -> str:
    return f"{value:.2f}" if name in NO_SHARES else f"{value:.1%}"


def _diagnostic_cells(result: Result, group: str, names: Sequence[str]) -> Row:
    s = result["groups"][group]
    among = s.get(f"{names[0]}_among_ended") if names else None
    return (
        *_first_cells(result, group),
        f"{s['ended_ratio']:.0%}",
        "" if among is None else f"{among:.1%}",
        f"{s['length_limit_ratio']:.0%}",
        f"{s['unparsable_ratio']:.0%}",
        f"{s['mean_new_tokens']:.1f}",
        f"{s['gold_nll']:.3f}",
        f"{s['gold_nll_with_end']:.3f}",
    )


def _first_cells(result: Result, group: str) -> Row:
    parts = [str(result["arm"])]
    if result["few_shot"]:
        parts.append(f"{result['few_shot']}-shot")
    if result["routing"] != "off":
        parts.append(f"routing {result['routing']}")
    if result.get("prompt_form", "whole") != "whole":  # results of older versions have none
        parts.append(f"prompt {result['prompt_form']}")
    num_items = result["groups"][group]["num_items"]
    return ", ".join(parts), str(result["seed"]), f"{num_items} {group}"


def _constant_rows(results: Sequence[Result], group: str, names: Sequence[str]) -> Iterator[Row]:
    """The best constant answer on each set of items that the results were scored on."""
    seen = {
        (s["num_items"], s["best_constant_answer"], s[f"best_constant_{names[0]}"])
        for s in (r["groups"][group] for r in results)
    }
    for num_items, answer, share in sorted(seen):
        shown = answer if len(answer) <= LONGEST_ANSWER else answer[:LONGEST_ANSWER] + "…"
        name = "always answer " + " ".join(shown.split())
        yield (name, "", f"{num_items} {group}", f"{share:.1%}", *[""] * len(names))
