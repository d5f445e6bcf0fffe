"""A report for the eye: tables for the terminal, and a page in Markdown.

Everything here is made from the contents of ``report.json``; shares are printed as percent. Titles
and heads hold no names of arms, which are anybody's text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schemabank.table import PlainTable

Report = Mapping[str, Any]
MARKS = re.compile(r"([\\`*_{}\[\]<>#|])")


def tables(report: Report) -> list[PlainTable]:
    """Return arms, differences, effect sizes, ratios and peaks: title, head and rows."""
    found = [_arms(report), _differences(report), _effects(report), _ratios(report)]
    if report["peaks"]["seeds"]:
        found.append(_peaks(report))
    return found


def verdict(report: Report) -> str:
    """Return the primary contrast's verdict, with what it is about."""
    primary = report["primary"]
    return (
        f"{report['treatment']} against {report['control']}, {primary['contrast']} "
        f"({primary['test']}, {primary['chosen_by']}): {primary['verdict']['sentence']}"
    )


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


def text(report: Report) -> str:
    """Return what stands below the tables in a terminal."""
    lines = [f"verdict: {verdict(report)}", ""]
    lines += [f"{len(report['warnings'])} warnings", *_bullets(warning_lines(report))]
    if report["claims"]:
        lines += ["", claims_title(report), *_bullets(claim_lines(report))]
    return "".join(f"{line}\n" for line in lines)


def page(report: Report) -> str:
    """Return the report as Markdown; names from the table are escaped."""
    source = report["table"]
    lines = [
        f"# {_escaped(report['treatment'])} against {_escaped(report['control'])}",
        "",
        f"From {_escaped(source['name'])}, {source['num_rows']} rows, sha256 {source['sha256']}.",
        "",
        _escaped(verdict(report)),
        "",
        f"Holm's adjustment covers {_escaped(report['primary']['holm_covers'])}.",
    ]
    for title, head, rows in tables(report):
        lines += ["", f"## {_escaped(title)}", "", *_markdown(head, rows)]
    lines += ["", "## Warnings", "", *_items(warning_lines(report))]
    if report["claims"]:
        lines += ["", f"## {claims_title(report)}", "", *_items(claim_lines(report))]
    return "\n".join(lines) + "\n"


def listed(lines: Sequence[str]) -> str:
    """Return lines as a Markdown list."""
    return "".join(f"{line}\n" for line in _items(lines))


def _arms(report: Report) -> PlainTable:
    rows = [
        [
            at["arm"],
            _epochs(at),
            str(at["summary"]["num_seeds"]),
            _percent(at["summary"]["mean"]),
            _percent(at["summary"]["sd"]),
            _number(at["summary"]["cv"]),
            _interval(at["summary"]["interval"], 100),
        ]
        for at in report["arms"]
    ]
    rows += [
        [
            r["arm"],
            r["epochs"],
            "reference",
            _percent(r["score"]),
            "",
            "",
            _interval(r["interval"], 100),
        ]
        for r in report["references"]
    ]
    head = ["arm", "epochs", "seeds", "mean", "sd", "cv", "95 % interval, %"]
    return "arms, over seeds; references, over items", head, rows


def _differences(report: Report) -> PlainTable:
    rows = []
    for c in _contrasts(report):
        paired, welch = c["paired"], c["welch"]
        own = paired["difference"] if paired else {"mean": None, "interval": None, "p": None}
        rows.append(
            [
                _epochs(c),
                str(len(c["seeds"])),
                _points(own["mean"]),
                _interval(own["interval"], 100),
                _p(own["p"]),
                _p(paired and paired["p_holm"]),
                _p(paired and paired["sign_flip"]["p"]),
                _points(welch["difference"]["mean"]),
                _interval(welch["difference"]["interval"], 100),
                _p(welch["difference"]["p"]),
                _p(welch["p_holm"]),
                _p(welch["label_permutation"]["p"]),
                c["verdict"]["outcome"],
            ]
        )
    head = ["epochs", "pairs", "paired", "95 % interval", "p", "Holm", "sign flips"]
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
                _epochs(c),
                _number(welch["g"]["corrected"]),
                _interval(welch["g"]["interval"]),
                _number(d_z["corrected"]),
                _interval(d_z["interval"]),
                _number(wins["probability"]),
                _interval(wins["interval"]),
                _points(paired and paired["detectable"]).lstrip("+"),
                _points(welch["detectable"]).lstrip("+"),
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
            _epochs(c),
            _number(c["ratio"]["ratio"]),
            _interval(c["ratio"]["interval"])
            or ("unbounded" if c["ratio"]["bounded"] is False else ""),
            _number(c["sd_ratio"]["ratio"]),
            _interval(c["sd_ratio"]["interval"]),
            _p(c["sd_ratio"]["p"]),
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
            _number(row["ratio"]),
        ]
        for row in found["seeds"]
    ]
    means = _percent(found["mean_treatment"]), _percent(found["mean_control"])
    rows.append(["all", means[0], "", means[1], "", _number(found["ratio_of_means"])])
    head = ["seed", "treatment", "epochs", "control", "epochs", "ratio"]
    return "peaks over epochs, chosen on the scores shown", head, rows


def _peak(peak: Mapping[str, Any]) -> tuple[str, str]:
    return _percent(peak["score"]), ", ".join(peak["epochs"])


def _contrasts(report: Report) -> Iterator[Mapping[str, Any]]:
    yield from report["contrasts"]
    yield report["pooled"]


def _epochs(row: Mapping[str, Any]) -> str:
    return "mean over all" if row["epochs"] is None else str(row["epochs"])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}%"


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _interval(ends: Sequence[float] | None, scale: float = 1) -> str:
    return "" if ends is None else f"{scale * ends[0]:.2f} to {scale * ends[1]:.2f}"


def _bullets(lines: Sequence[str]) -> list[str]:
    return [f"- {' '.join(line.split())}" for line in lines]


def _items(lines: Sequence[str]) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines] or ["None."]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[_escaped(cell) for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def _escaped(text: str) -> str:
    """Return anybody's text as it stands: no markup, one line."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))
