"""Tables of what a folder of runs knows and a table of scores does not.

Each function takes the contents of ``report.json`` and returns titles, heads and rows; what the
report does not have gives no table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemabank.report.sections.cells import interval, number, percent, points, setting, short
from schemabank.tables import PlainTable

Report = Mapping[str, Any]
RATE_MARKS = {"chosen": "chosen", "at_edge": "edge of grid", "best_score": "best score"}
LEFT = {
    "failed": "failed runs",
    "failed_trials": "failed tuning runs",
    "excluded": "excluded runs",
    "unfinished": "unfinished runs",
}


def run_tables(report: Report) -> list[PlainTable]:
    """Return other arms, groups, items, learning rates, completions and cost, where known."""
    found = [*comparison_tables(report), rates(report), behaviour(report), cost(report)]
    return [table for table in found if table is not None]


def comparison_tables(report: Report) -> list[PlainTable]:
    """Return the treatment against other arms, by group, and item by item, where known."""
    found = [_others(report), _groups(report), _crossed(report), _mcnemar(report)]
    return [table for table in found if table is not None]


def rates(report: Report) -> PlainTable | None:
    """Return the scores at every learning rate that was tried."""
    rows = [
        [
            r["arm"],
            setting(r),
            short(r["learning_rate"]),
            r["split"],
            str(len(r["scores"])),
            str(r["failed"]),
            percent(r["mean"]),
            interval(r["interval"], 100),
            ", ".join(word for key, word in RATE_MARKS.items() if r[key]),
        ]
        for r in _rows(report, "rates")
    ]
    head = ["arm", "setting", "learning rate", "split", "seeds", "failed", "mean"]
    head += ["95 % interval, %", "note"]
    return _table("learning rates tried", head, rows)


def behaviour(report: Report) -> PlainTable | None:
    """Return how completions ended."""
    rows = [
        [
            r["arm"],
            setting(r),
            percent(r["ended_ratio"]),
            percent(r["at_limit_ratio"]),
            number(r["mean_new_tokens"], 1),
            percent(r["read_ratio"]),
        ]
        for r in _rows(report, "behaviour")
    ]
    head = ["arm", "setting", "ended", "at limit", "new tokens", "answer read"]
    return _table("how completions ended", head, rows)


def cost(report: Report) -> PlainTable | None:
    """Return what a run cost."""
    rows = [
        [
            r["arm"],
            setting(r),
            number(r["runs"], 0),
            number(r["num_steps"], 0),
            number(r["num_lora_updates"], 0),
            number(r["num_trained_parameters"], 0),
            number(r["tokens"], 0),
            number(r["training_s"], 1),
            number(r["evaluation_s"], 1),
            number(r["peak_host_memory_gib"]),
            number(r["peak_device_memory_gib"]),
        ]
        for r in _rows(report, "cost")
    ]
    head = ["arm", "setting", "runs", "steps", "LoRA updates", "trained parameters", "tokens"]
    head += ["training, s", "evaluation, s", "host peak, GiB", "device peak, GiB"]
    return _table("means a run; seconds are those of a cohort, divided by its runs", head, rows)


def left_tables(report: Report) -> list[PlainTable]:
    """Return the runs that failed, were excluded or are not finished."""
    found = report.get("provenance") or {}
    tables = [_left(found.get(kind) or [], title) for kind, title in LEFT.items()]
    return [table for table in tables if table is not None]


def compared_tables(report: Report) -> list[PlainTable]:
    """Return versions of software, and the runs that are compared."""
    found = report.get("provenance") or {}
    return [table for table in (_versions(found), _runs(found)) if table is not None]


def _others(report: Report) -> PlainTable | None:
    rows = [
        [
            r["arm"],
            str(r["seeds"]),
            percent(r["mean"]),
            points(r["difference"]),
            interval(r["interval"], 100),
            short(r["p"]),
            short(r["p_holm"]),
            r["outcome"],
        ]
        for r in _rows(report, "others")
    ]
    head = ["arm", "seeds", "its mean", "treatment - arm", "95 % interval", "p", "Holm", "verdict"]
    return _table("treatment against every other arm, in points of percent", head, rows)


def _groups(report: Report) -> PlainTable | None:
    rows = [
        [
            r["group"],
            number(r["num_items"], 0),
            percent(r["treatment_mean"]),
            percent(r["control_mean"]),
            points(r["difference"]),
            interval(r["interval"], 100),
            short(r["p"]),
            short(r["p_holm"]),
            r["outcome"],
        ]
        for r in _rows(report, "groups")
    ]
    head = ["group", "items", "treatment", "control", "difference", "95 % interval", "p", "Holm"]
    head.append("verdict")
    return _table(
        "treatment against control by part of the split, in points of percent", head, rows
    )


def _crossed(report: Report) -> PlainTable | None:
    items = report.get("items")
    if not items or not items.get("crossed"):
        return None
    found = items["crossed"]
    row = [
        number(items["num_items"], 0),
        str(items["num_seeds"]),
        points(found["mean"]),
        interval(found["interval"], 100),
        points(found["standard_error"]).lstrip("+"),
    ]
    head = ["items", "seeds", "difference", "95 % interval", "standard error"]
    return _table("over other seeds and other items at once, in points of percent", head, [row])


def _mcnemar(report: Report) -> PlainTable | None:
    rows = [
        [
            str(r["seed"]),
            setting(r),
            number(r["only_treatment"], 0),
            number(r["only_control"], 0),
            short(r["p"]),
        ]
        for r in (report.get("items") or {}).get("mcnemar") or []
    ]
    head = ["seed", "setting", "treatment alone is right", "control alone is right", "McNemar's p"]
    return _table("pairs of runs, item by item", head, rows)


def _left(entries: Sequence[Any], title: str) -> PlainTable | None:
    rows = [
        [str(entry["run"]), str(entry["reason"])] if isinstance(entry, Mapping) else [str(entry)]
        for entry in entries
    ]
    head = ["run", "reason"] if rows and len(rows[0]) == 2 else ["run"]
    return _table(f"{title}: {len(rows)}", head, rows)


def _versions(provenance: Mapping[str, Any]) -> PlainTable | None:
    rows = [
        [name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for name, value in (provenance.get("versions") or {}).items()
    ]
    return _table("versions", ["name", "version"], rows)


def _runs(provenance: Mapping[str, Any]) -> PlainTable | None:
    runs = provenance.get("runs") or []
    rows = [[r["run_id"], r["arm"], str(r["seed"]), setting(r)] for r in runs]
    return _table(f"compared runs: {len(rows)}", ["run", "arm", "seed", "setting"], rows)


def _rows(report: Report, key: str) -> Sequence[Mapping[str, Any]]:
    return report.get(key) or []


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> PlainTable | None:
    return (title, head, rows) if rows else None
