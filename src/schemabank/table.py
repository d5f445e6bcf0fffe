"""The table of results that the command line prints."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

Result = Mapping[str, Any]

COLUMNS = (
    "arm",
    "seed",
    "items",
    "correct (95 % interval)",
    "strict",
    "flexible",
    "ended",
    "of ended",
    "at limit",
    "no answer",
    "new tokens",
    "gold NLL",
    "with end",
    "LoRA steps",
)


def results_table(results: Sequence[Result], *, failed: Sequence[str] = ()) -> Table:
    """Lay out results of runs: one row an arm, seed and group of items.

    Args:
        results: contents of ``result.json``.
        failed: names of runs that have none.
    """
    table = Table(
        title="exact match; NLL of the gold target in nats per token", title_justify="left"
    )
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "arm" else "right")
    groups = list(dict.fromkeys(group for r in results for group in r["groups"]))
    for group in groups:
        scored = [r for r in results if group in r["groups"]]
        for row in _constant_rows(scored, group):
            table.add_row(*row)
        for result in scored:
            table.add_row(*_row(result, group))
        table.add_section()
    for name in failed:
        table.add_row(name, "", "failed")
    return table


def _row(result: Result, group: str) -> tuple[str, ...]:
    s = result["groups"][group]
    low, high = s["correct_interval_95"]
    return (
        _arm(result),
        str(result["seed"]),
        f"{s['num_items']} {group}",
        f"{s['correct']:.1%} ({100 * low:.1f}–{100 * high:.1f})",
        f"{s['strict']:.1%}",
        f"{s['flexible']:.1%}",
        f"{s['ended_ratio']:.0%}",
        f"{s['correct_among_ended']:.1%}" if "correct_among_ended" in s else "",
        f"{s['length_limit_ratio']:.0%}",
        f"{s['unparsable_ratio']:.0%}",
        f"{s['mean_new_tokens']:.1f}",
        f"{s['gold_nll']:.3f}",
        f"{s['gold_nll_with_end']:.3f}",
        str(result["training"]["num_lora_updates"]) if result["training"] else "",
    )


def _constant_rows(results: Sequence[Result], group: str) -> Iterator[tuple[str, ...]]:
    """The best constant answer on each set of items that the results were scored on."""
    seen = {
        (s["num_items"], s["best_constant_answer"], s["best_constant_correct"])
        for s in (r["groups"][group] for r in results)
    }
    for num_items, answer, share in sorted(seen):
        name = f"always answer {answer}"
        yield (name, "", f"{num_items} {group}", f"{share:.1%}", *[""] * (len(COLUMNS) - 4))


def _arm(result: Result) -> str:
    parts = [str(result["arm"])]
    if result["few_shot"]:
        parts.append(f"{result['few_shot']}-shot")
    if result["routing"] != "off":
        parts.append(f"routing {result['routing']}")
    return ", ".join(parts)
