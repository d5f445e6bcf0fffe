"""The record of campaigns, and the figures of docs/reliability.md, which are made from it."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults import campaigns, cluster, inputs, numbers, outputs
from faults.world import STEPS
from madepages import MadePage, Record, read_rows

ROOT = Path(__file__).parents[2]
RECORD, PAGE = ROOT / "results" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN = "<!-- faults: made by `python -m tests.faults record` from results/reliability.json -->\n"
END = "<!-- end of faults -->\n"
WIDTH = 120
WHILE_WRITING = (
    ". Training goes on while one is written, and the steps of that time are among them, too."
)
TITLES = {
    campaigns.KILLS: "kills",
    campaigns.DEVICE: "kills on a GPU",
    campaigns.OPERATIONS: "file operations that fail",
    campaigns.POWER: "power losses",
    campaigns.INPUTS: "harmed inputs",
    campaigns.TEXTS: "texts of others in reports",
    campaigns.NAN: "numbers that are not finite",
    campaigns.LONG: "suites of 300 runs, killed every few seconds",
    campaigns.CLUSTER: "harm to a Ray cluster",
}
CASES = {campaigns.INPUTS: f" batches of {inputs.BATCH}", campaigns.TEXTS: " pages"}
PLACES = {
    "beginning": "it began",
    "evaluation": "it evaluated runs",
    "recovering": "it went on after another kill, before its first step",
    "report": "it wrote a report",
    "save": "it saved a run",
    "started": "it ran as a user starts it, which does not tell where it is",
    "training": "it trained",
}
ORDERS = {
    "all": "all",
    "any": "anything, in any order",
    "names in order": "names up to one moment, contents in any order",
}


def write(work: Path) -> int:
    """Write the record from the journals in a folder, and the page from the record."""
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in campaigns.NUMBERS:
        files = sorted(work.glob(f"{name.replace(' ', '-')}-[0-9]*-[0-9]*.jsonl"))
        rows = {row["seed"]: row for file in files for row in read_rows(file)}
        if rows:
            known = [file.with_suffix(".machine.json") for file in files]
            where = [json.loads(path.read_text()) for path in known if path.exists()]
            record[name] = campaigns.summary(name, [*rows.values()]) | (where[0] if where else {})
    made().write(record)
    return 0


def made() -> MadePage:
    """Return the page with its record."""
    return MadePage(RECORD, PAGE, BEGIN, END, _figures)


def _figures(record: Record) -> Iterator[str]:
    rows = []
    for name in campaigns.NUMBERS:
        own = record.get(name)
        kept = ["not run yet", "", "", "", ""]
        if own is not None:
            wanted = campaigns.NUMBERS[name]
            part = f" of {wanted:,}" if own["cases"] < wanted else ""
            cases = f"{own['cases']:,}{part}{CASES.get(name, '')}"
            where = [own.get(key, "") for key in ("device", "date", "source")]
            kept = [cases, f"{own['kept']:,}", *where]
        rows.append([TITLES[name], *kept])
    yield from _table(["campaign", "cases", "all promises kept", "on", "date", "source"], rows)
    written = {
        campaigns.KILLS: _of_kills,
        campaigns.DEVICE: _of_kills,
        campaigns.OPERATIONS: _of_operations,
        campaigns.POWER: _of_power,
        campaigns.INPUTS: _of_inputs,
        campaigns.TEXTS: _of_texts,
        campaigns.NAN: _of_numbers,
        campaigns.LONG: _of_long,
        campaigns.CLUSTER: _of_cluster,
    }
    for name, figures in written.items():
        if name in record:
            yield f"### {TITLES[name][0].upper()}{TITLES[name][1:]}"
            yield ""
            yield from figures(record[name])


def _of_kills(own: Record) -> Iterator[str]:
    stages = ", ".join(f"{number} in stage {n}" for n, number in own["by_stage"].items())
    yield from _paragraph(
        f"{own['kills']} kills. By the last step that had ended, {stages} of the curriculum, and "
        f"{own['in_later_epochs']} after the first epoch. {own['in_search']} came in a search for "
        f"learning rates. With a checkpoint after every {STEPS} "
        f"steps, a kill cost a run at most {own['most_steps_lost']} steps that had ended"
        + (WHILE_WRITING if own["most_steps_lost"] > STEPS + 1 else ".")
    )
    if again := own.get("most_answers_again"):
        yield from _paragraph(
            f"With answers kept after every {STEPS}, a run that was being evaluated gave at most "
            f"{again} of them again."
        )
    rows = [[PLACES[place], f"{number:,}"] for place, number in own["by_place"].items()]
    yield from _table(["killed while", "kills"], rows)


def _of_operations(own: Record) -> Iterator[str]:
    ends = own["by_end"]
    yield from _paragraph(
        f"{own['met']:,} runs met a fault; in the others nothing was left that could meet it. "
        f"{ends.get('went on', 0):,} went on and ended with the right bytes. "
        f"{ends.get('said so', 0):,} ended with a sentence, and the next call ended with those "
        "bytes."
    )
    for head, counts in (("fault", own["by_fault"]), ("operation", own["by_operation"])):
        yield from _table([head, "runs"], [[name, f"{n:,}"] for name, n in counts.items()])


def _of_power(own: Record) -> Iterator[str]:
    yield from _paragraph(
        f"{own['states']:,} different states of the disk; {own['in_saves']:,} of the cases lie "
        f"within a save. From {own['gone_on_to_the_end']} the program went on to its end, "
        "with the right bytes."
    )
    rows = [[ORDERS[name], f"{number:,}"] for name, number in own["by_order"].items()]
    yield from _table(["of what had not been waited for, there is", "cases"], rows)


def _of_inputs(own: Record) -> Iterator[str]:
    yield from _paragraph(
        f"{own['inputs']:,} harmed inputs, each read by a reader of its kind. What was no valid "
        "result was an `InputError`; no process crashed, and nothing was executed. The slowest "
        f"took {own['slowest_s']:.1f} s of a processor; a batch of {inputs.BATCH} took at most "
        f"{own['most_growth_mib']:,} MiB of memory more."
    )
    columns = {"inputs": "cases", "read": "read", "refused": "refused"}
    yield from _table_of_counts("kind", columns, own["by_kind"])


def _of_texts(own: Record) -> Iterator[str]:
    yield from _paragraph(
        f"{own['fields']} fields, of which each met at least {own['fewest_payloads']} of "
        f"{own['payloads']} payloads: {own['shown']:,} times one stood in an output that shows its "
        "field, and it was text in all of them. Names that stand in several places, such as an "
        "arm's, are fields, too."
    )
    columns = {"number": "payloads"} | {name: name for name in outputs.OUTPUTS}
    yield from _table_of_counts("payloads for", columns, own["by_kind"])


def _of_numbers(own: Record) -> Iterator[str]:
    yield from _paragraph(
        f"{own['cases']} of {numbers.NUMBER} cases: a kind of run ({', '.join(own['runs'])}), a "
        "place, once or from a step on. No spoilt run ended as if nothing had been, and all of "
        f"{own['neighbours']:,} neighbours had the bits of a cohort that nothing spoils."
    )
    columns = {name: name for name in ("cases", "left the step out", "failed")}
    yield from _table_of_counts("where", columns, own["by_place"])


def _of_long(own: Record) -> Iterator[str]:
    yield from _paragraph(
        f"{own['kills']} kills in {own['cases']} suites of {own['runs_a_case']} runs, and as many "
        "restarts; every suite came to its end with the bytes of one that nobody disturbed. "
        f"{own['runs_again']} runs were finished twice. Of {own['steps']:,} steps, "
        f"{own['steps_again']:,} were taken again, those since a run's last checkpoint: a kill "
        f"cost a run at most {own['most_steps_lost']}."
    )
    yield from _paragraph(
        "The undisturbed call does all runs in one process. After its first third, when all is "
        "loaded, it needs:"
    )
    head = ["runs at once", "memory at first, MiB", "at the end", "at most", "KiB more a run"]
    rows = [
        [
            at_once,
            *(f"{needed[name]:.1f}" for name in ("first_mib", "last_mib", "most_mib", "kib_a_run")),
            "{} to {}".format(*needed["files"]),
            f"{needed['files_a_run']:.3f}",
        ]
        for at_once, needed in own["needed"].items()
    ]
    yield from _table([*head, "open files", "more a run"], rows)


def _of_cluster(own: Record) -> Iterator[str]:
    cases = own["by_case"]
    if (harmed := cases.get("0")) is not None:
        twice = sum(number > 1 for number in harmed["claims"].values())
        yield from _paragraph(
            "Four CPU workers on `configs/miniature/suite.yaml`, cut to fit two cores "
            f"(`{' '.join(cluster.CUT)}`). One worker was killed in the middle of a cohort, one "
            f"was stopped until another had its work, after {harmed['silent_s']} s, and the driver "
            f"was killed and started again. Until then {twice} of {len(harmed['claims'])} parts "
            f"had been claimed twice; {harmed['workers']} processes took part in all. Of "
            f"{harmed['steps']} steps {harmed['steps_again']} were taken again, each of a process "
            "that was lost. No run was finished twice. The files are those of `--launch local`, "
            "byte for byte."
        )
    if (poisoned := cases.get("1")) is not None:
        most = max(poisoned["claims"].values())
        yield from _paragraph(
            f"In a suite of two runs at a time, some end their process at step {cluster.AT_STEP} "
            f"every time. Their part is given up at the claim {most}, with the reason, and all "
            "other runs come to the same files as ever."
        )


def _paragraph(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH)
    yield ""


def _table_of_counts(
    first: str, columns: Mapping[str, str], counts: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    """A row for each name, with its counts: ``columns`` gives a column's title and its count."""
    rows = [[name, *(f"{own[key]:,}" for key in columns.values())] for name, own in counts.items()]
    yield from _table([first, *columns], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
