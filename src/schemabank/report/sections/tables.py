"""The tables and lines that every report has, whatever it was made from.

Everything here is made from the contents of ``report.json``. Titles and heads hold no names of
arms, which are anybody's text.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from schemabank.report.page.markup import printable
from schemabank.report.sections.cells import interval, number, percent, points, setting, short
from schemabank.report.sections.facttables import run_tables
from schemabank.tables import PlainTable

Report = Mapping[str, Any]
LONGEST_CELL = 60  # characters in a terminal
CELL_END = 20  # of them, from the end: names often differ there
TESTS = {"crossed": "over seeds and items"}  # in words, where the name is none


def tables(report: Report) -> list[PlainTable]:
    """Return all tables for the terminal: title, head and rows."""
    found = [arms(report), *contrast_tables(report), *run_tables(report)]
    return [(title, head, [list(map(_cell, row)) for row in rows]) for title, head, rows in found]


def arms(report: Report) -> PlainTable:
    """Return the arms over seeds, and the references over items."""
    several = len(report["contrasts"]) > 1
    rows = [
        [
            at["arm"],
            setting(at),
            str(at["summary"]["num_seeds"]),
            percent(at["summary"]["mean"]),
            percent(at["summary"]["sd"]),
            number(at["summary"]["cv"]),
            interval(at["summary"]["interval"], 100),
        ]
        for at in report["arms"]
        if several or at["epochs"] is not None
    ]
    rows += [
        [
            r["arm"],
            r["epochs"],
            "reference",
            percent(r["score"]),
            "",
            "",
            interval(r["interval"], 100),
        ]
        for r in report["references"]
    ]
    head = ["arm", "epochs", "seeds", "mean", "sd", "cv", "95 % interval, %"]
    return "arms, over seeds; references, over items", head, rows


def contrast_tables(report: Report) -> list[PlainTable]:
    """Return differences, effect sizes, ratios and, over several settings, peaks."""
    found = [_differences(report), _effects(report), _ratios(report)]
    if report["peaks"]["seeds"] and len(report["contrasts"]) > 1:
        found.append(_peaks(report))
    return found


def verdict(report: Report) -> str:
    """Return the primary contrast's verdict, with what it is about."""
    primary = report["primary"]
    test = TESTS.get(primary["test"], primary["test"])
    return (
        f"{report['treatment']} against {report['control']}, {primary['contrast']} "
        f"({test}, {primary['chosen_by']}): {primary['verdict']['sentence']}"
    )


def other_verdicts(report: Report) -> list[str]:
    """Return what seeds alone say, and the compared part as one of several, where known.

    Neither is the verdict; where one is another than that, its line says so first.
    """
    primary = report["primary"]
    found = [("Other seeds on these very items", primary.get("over_seeds"))]
    groups = report.get("groups") or []
    own = next((row for row in groups if row["group"] == report.get("group")), None)
    if own is not None and own["outcome"] != primary["verdict"]["outcome"]:
        found.append((f"As one of {len(groups)} parts of the split, adjusted by Holm", own))
    return [
        f"{_differs(primary, verdict)}{what}: {verdict['sentence']}"
        for what, verdict in found
        if verdict is not None
    ]


def _differs(primary: Mapping[str, Any], verdict: Mapping[str, Any]) -> str:
    same = verdict["outcome"] == primary["verdict"]["outcome"]
    return "" if same else "Not the same as the verdict. "


def warning_lines(report: Report) -> list[str]:
    """Return one line a warning, its id first."""
    return [f"{found['id']}: {found['sentence']}" for found in report["warnings"]]


def claim_lines(report: Report) -> list[str]:
    """Return one line a claim that does not follow, with where it stands."""
    return [
        f"{claim['sentence']} ({claim['where']})"
        for claim in report["claims"]
        if not claim["follows"]
    ]


def claims_title(report: Report) -> str:
    """Return how many claims were checked and how many do not follow."""
    return f"{len(claim_lines(report))} of {len(report['claims'])} claims do not follow"


def claims_table(report: Report) -> PlainTable:
    """Return every claim that was checked."""
    rows = [
        [
            claim["statistic"],
            claim["arm"],
            ", ".join(claim["epochs"]),
            claim["seed"],
            claim["value"],
            "follows" if claim["follows"] else "does not follow",
            claim["where"],
        ]
        for claim in report["claims"]
    ]
    head = ["statistic", "arm", "epochs", "seed", "printed", "verdict", "where"]
    return "all claims that were checked", head, rows


def _cell(text: str) -> str:
    """Anybody's text in a terminal; of a long one the start and the end."""
    shown = printable(text)
    if len(shown) <= LONGEST_CELL:
        return shown
    return f"{shown[: LONGEST_CELL - CELL_END - 1]}…{shown[-CELL_END:]}"


def _differences(report: Report) -> PlainTable:
    rows = []
    for c in _contrasts(report):
        paired, welch, crossed = c["paired"], c["welch"], c["crossed"]
        nothing = {"mean": None, "interval": None, "p": None}
        own, both = (found["difference"] if found else nothing for found in (paired, crossed))
        rows.append(
            [
                setting(c),
                str(len(c["seeds"])),
                points(both["mean"]),
                interval(both["interval"], 100),
                short(both["p"]),
                short(crossed and crossed["p_holm"]),
                points(own["mean"]),
                interval(own["interval"], 100),
                short(own["p"]),
                short(paired and paired["p_holm"]),
                short(paired and paired["sign_flip"]["p"]),
                points(welch["difference"]["mean"]),
                interval(welch["difference"]["interval"], 100),
                short(welch["difference"]["p"]),
                short(welch["p_holm"]),
                short(welch["label_permutation"]["p"]),
                c["verdict"]["outcome"],
            ]
        )
    head = ["epochs", "pairs", "over seeds and items", "95 % interval", "p", "Holm"]
    head += ["paired", "95 % interval", "p", "Holm", "sign flips"]
    head += ["Welch", "95 % interval", "p", "Holm", "labels", "verdict"]
    return "treatment against control: differences in points of percent", head, rows


def _effects(report: Report) -> PlainTable:
    rows = []
    for c in _contrasts(report):
        paired, welch = c["paired"], c["welch"]
        d_z = paired["d_z"] if paired else {"corrected": None, "interval": None}
        wins = (paired or welch)["outperformance"]
        rows.append(
            [
                setting(c),
                number(welch["g"]["corrected"]),
                interval(welch["g"]["interval"]),
                number(d_z["corrected"]),
                interval(d_z["interval"]),
                number(wins["probability"]),
                interval(wins["interval"]),
                points(paired and paired["detectable"]).lstrip("+"),
                points(welch["detectable"]).lstrip("+"),
            ]
        )
    head = ["epochs", "Hedges' g", "95 % interval", "d_z", "95 % interval", "wins", "95 % interval"]
    head += ["paired detects", "Welch detects"]
    return (
        "treatment against control: effect sizes; differences found at 80 % power, in points",
        head,
        rows,
    )


def _ratios(report: Report) -> PlainTable:
    rows = [
        [
            setting(c),
            number(c["ratio"]["ratio"]),
            interval(c["ratio"]["interval"])
            or ("unbounded" if c["ratio"]["bounded"] is False else ""),
            number(c["sd_ratio"]["ratio"]),
            interval(c["sd_ratio"]["interval"]),
            short(c["sd_ratio"]["p"]),
        ]
        for c in _contrasts(report)
    ]
    head = ["epochs", "means", "95 % interval", "sds", "95 % interval", "p"]
    return "treatment over control: ratios", head, rows


def _peaks(report: Report) -> PlainTable:
    found = report["peaks"]
    rows = [
        [
            row["seed"],
            *(part for arm in ("treatment", "control") for part in _peak(row[arm])),
            number(row["ratio"]),
        ]
        for row in found["seeds"]
    ]
    means = percent(found["mean_treatment"]), percent(found["mean_control"])
    rows.append(["all", means[0], "", means[1], "", number(found["ratio_of_means"])])
    head = ["seed", "treatment", "epochs", "control", "epochs", "ratio"]
    return "peaks over epochs, chosen on the scores shown", head, rows


def _peak(peak: Mapping[str, Any]) -> tuple[str, str]:
    return percent(peak["score"]), ", ".join(peak["epochs"])


def _contrasts(report: Report) -> Iterator[Mapping[str, Any]]:
    """All settings, and their mean where there are several."""
    yield from report["contrasts"]
    if len(report["contrasts"]) > 1:
        yield report["pooled"]
