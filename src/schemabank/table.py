"""The tables of results that the command line prints: scores, and how completions ended."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

Result = Mapping[str, Any]
Row = tuple[str, ...]

SCORES = ("arm", "seed", "items", "correct (95 %)", "strict", "flexible", "LoRA steps")
DIAGNOSTICS = (
    "arm",
    "seed",
    "items",
    "ended",
    "of ended",
    "limit",
    "no answer",
    "tokens",
    "NLL",
    "NLL+end",
)


def results_tables(results: Sequence[Result], *, failed: Sequence[str] = ()) -> tuple[Table, Table]:
    """Lay out results of runs, one row an arm, seed and group of items.

    Args:
        results: contents of ``result.json``.
        failed: names of runs that have none.

    Returns:
        Exact match, and the diagnostics that tell format from skill.
    """
    scores = _table("exact match", SCORES)
    diagnostics = _table("completions; NLL of the gold target in nats per token", DIAGNOSTICS)
    for group in dict.fromkeys(group for r in results for group in r["groups"]):
        scored = [r for r in results if group in r["groups"]]
        for row in _constant_rows(scored, group):
            scores.add_row(*row)
        for result in scored:
            scores.add_row(*_scores(result, group))
            diagnostics.add_row(*_diagnostics(result, group))
        scores.add_section()
        diagnostics.add_section()
    for name in failed:
        scores.add_row(name, "", "failed")
    return scores, diagnostics


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        is_arm = column == "arm"  # the only one that may take several lines: figures stay whole
        table.add_column(column, justify="left" if is_arm else "right", no_wrap=not is_arm)
    return table


def _scores(result: Result, group: str) -> Row:
    s, training = result["groups"][group], result["training"]
    low, high = s["correct_interval_95"]
    return (
        *_name(result, group),
        f"{s['correct']:.1%} ({100 * low:.1f}–{100 * high:.1f})",
        f"{s['strict']:.1%}",
        f"{s['flexible']:.1%}",
        str(training["num_lora_updates"]) if training else "",
    )


def _diagnostics(result: Result, group: str) -> Row:
    s = result["groups"][group]
    return (
        *_name(result, group),
        f"{s['ended_ratio']:.0%}",
        f"{s['correct_among_ended']:.1%}" if "correct_among_ended" in s else "",
        f"{s['length_limit_ratio']:.0%}",
        f"{s['unparsable_ratio']:.0%}",
        f"{s['mean_new_tokens']:.1f}",
        f"{s['gold_nll']:.3f}",
        f"{s['gold_nll_with_end']:.3f}",
    )


def _name(result: Result, group: str) -> Row:
    parts = [str(result["arm"])]
    if result["few_shot"]:
        parts.append(f"{result['few_shot']}-shot")
    if result["routing"] != "off":
        parts.append(f"routing {result['routing']}")
    num_items = result["groups"][group]["num_items"]
    return ", ".join(parts), str(result["seed"]), f"{num_items} {group}"


def _constant_rows(results: Sequence[Result], group: str) -> Iterator[Row]:
    """The best constant answer on each set of items that the results were scored on."""
    seen = {
        (s["num_items"], s["best_constant_answer"], s["best_constant_correct"])
        for s in (r["groups"][group] for r in results)
    }
    for num_items, answer, share in sorted(seen):
        yield (f"always answer {answer}", "", f"{num_items} {group}", f"{share:.1%}", "", "", "")
