"""What the arms wrote, item by item, side by side; an even choice of items where there are many."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from schemabank.common.errors import InputError
from schemabank.common.files import is_number, json_lines
from schemabank.report.plain import EPOCHS
from schemabank.report.reading.runs import ReportedRun, RunSet
from schemabank.runs.folder import PREDICTIONS
from schemabank.tasks.scoring.scores import METRICS

MOST_ITEMS = 300
MOST_SEEDS = 3
MOST_ARMS = 8
LONGEST_TEXT = 4_000  # characters of a prompt or completion

Flip = Literal["gained", "lost", "mixed", "both", "neither", "unpaired"]
FLIPPED = ("gained", "lost", "mixed")
NEEDED: Mapping[str, Any] = {
    "id": str,
    "group": str,
    "prompt": str,
    "golds": list,
    "completion": str,
    "extracted": str | None,
    "scores": dict,
    "stop_reason": str,
    "new_tokens": int,
}


@dataclass(frozen=True)
class Answer:
    """One completion; its text may be cut."""

    arm: str
    seed: int
    setting: str = field(metadata=EPOCHS)
    completion: str
    extracted: str | None
    score: float
    stop_reason: str
    new_tokens: int


@dataclass(frozen=True)
class Sample:
    """One item and what the arms answered.

    Attributes:
        id, group, prompt, golds: the item's.
        flip: over the seeds shown: whether the treatment scores above the control (gained), below
            it (lost), or alike, right (both) or not (neither); mixed where seeds disagree. Scores
            between right and wrong count as right where both arms have the same.
        answers: of the arms.
    """

    id: str
    group: str
    prompt: str
    golds: list[str]
    flip: Flip
    answers: list[Answer]


@dataclass(frozen=True)
class Shown:
    """What the samples are of.

    Attributes:
        num_items: in the group.
        shown: of these.
        seeds: whose answers are shown.
        setting: setting whose answers are shown.
        binary: whether an answer is right or wrong, and nothing between.
        without_predictions: runs of these seeds that keep no completions.
    """

    num_items: int
    shown: int
    seeds: list[int]
    setting: str = field(metadata=EPOCHS)
    binary: bool
    without_predictions: int


def find(
    runs: RunSet, group: str, treatment: str, control: str, setting: str
) -> tuple[Shown, list[Sample]]:
    """Return items of a group with the answers of every arm, of seeds that the contrast shares.

    Items that the arms do not answer alike come first, all others after them, each in their order.

    Args:
        runs: all of them.
        group: of items.
        treatment: arm.
        control: arm.
        setting: setting whose answers are shown; arms without it show the one that they have.

    Raises:
        InputError: predictions cannot be read.
    """
    seeds = _shared_seeds(runs, treatment, control, setting)
    chosen = _chosen_runs(runs, [treatment, control], setting, seeds)
    kept = [run for run in chosen if (run.folder / PREDICTIONS).exists()]
    answers = [(run, _read_predictions(run, group, runs.score)) for run in kept]
    ids = list(dict.fromkeys(name for _, own in answers for name in own))
    step = max(1, -(-len(ids) // MOST_ITEMS))
    binary = METRICS[runs.runs[0].result["metric"]].binary
    contrast = treatment, control
    found = [_sample(name, answers, runs.score, contrast, binary) for name in ids[::step]]
    found.sort(key=lambda sample: sample.flip not in FLIPPED)
    kept_seeds = {run.seed for run in kept if run.trained}
    shown = [seed for seed in seeds if seed in kept_seeds]
    return Shown(len(ids), len(found), shown, setting, binary, len(chosen) - len(kept)), found


def _shared_seeds(runs: RunSet, treatment: str, control: str, setting: str) -> list[int]:
    """The first seeds that both arms have; else the treatment's."""
    at = runs.by_place()
    first = [run.seed for run in at.get((treatment, setting), ())]
    second = {run.seed for run in at.get((control, setting), ())}
    shared = [seed for seed in first if seed in second]
    return (shared or first)[:MOST_SEEDS]


def _chosen_runs(
    runs: RunSet, contrast: Sequence[str], setting: str, seeds: Sequence[int]
) -> list[ReportedRun]:
    """Some seeds of some arms: the treatment first, the control second."""
    arms = dict.fromkeys([*contrast, *(run.arm for run in runs.runs)])
    found = []
    for arm in list(arms)[:MOST_ARMS]:
        own = [run for run in runs.runs if run.arm == arm]
        at = [run for run in own if run.setting == setting] or own
        here = [run for run in at if run.setting == at[0].setting]
        found += [run for run in here if run.seed in seeds or not run.trained] or here[:MOST_SEEDS]
    return found


def _read_predictions(run: ReportedRun, group: str, score: str) -> dict[str, Mapping[str, Any]]:
    """The first completion of every item."""
    path = run.folder / PREDICTIONS
    found: dict[str, Mapping[str, Any]] = {}
    for where, row in json_lines(path):
        wrong = _wrong_in(row, score)
        if wrong is not None:
            raise InputError(
                f"cannot read {where} ({wrong} is damaged): restore it, or move "
                "the run's folder away"
            )
        if row["group"] == group:
            found.setdefault(str(row["id"]), {name: row[name] for name in NEEDED if name != "id"})
    return found


def _wrong_in(row: Mapping[str, Any], score: str) -> str | None:
    """The name of the first value of a row that is of another kind."""
    for name, kind in NEEDED.items():
        if not isinstance(row.get(name), kind):
            return name
    if not all(isinstance(gold, str) for gold in row["golds"]):
        return "golds"
    if not is_number(row["new_tokens"]):
        return "new_tokens"
    return None if is_number(row["scores"].get(score)) else f"scores.{score}"


def _sample(
    name: str,
    answers: Sequence[tuple[ReportedRun, Mapping[str, Mapping[str, Any]]]],
    score: str,
    contrast: tuple[str, str],
    binary: bool,
) -> Sample:
    rows = [(run, own[name]) for run, own in answers if name in own]
    item = rows[0][1]
    return Sample(
        id=name,
        group=item["group"],
        prompt=_cut(item["prompt"]),
        golds=[_cut(gold) for gold in item["golds"]],
        flip=_flip(list(_pairs(rows, score, *contrast)), binary=binary),
        answers=[
            Answer(
                arm=run.arm,
                seed=run.seed,
                setting=run.setting,
                completion=_cut(row["completion"]),
                extracted=None if row["extracted"] is None else _cut(row["extracted"]),
                score=row["scores"][score],
                stop_reason=row["stop_reason"],
                new_tokens=row["new_tokens"],
            )
            for run, row in rows
        ],
    )


def _pairs(
    rows: Sequence[tuple[ReportedRun, Mapping[str, Any]]], score: str, treatment: str, control: str
) -> Iterator[tuple[float, float]]:
    """Scores of treatment and control for every seed that both have."""
    first = {run.seed: row["scores"][score] for run, row in rows if run.arm == treatment}
    others = [(run, row["scores"][score]) for run, row in rows if run.arm == control]
    for seed, own in first.items():
        for run, other in others:
            if run.seed == seed or not run.trained:
                yield own, other


def _flip(pairs: Sequence[tuple[float, float]], *, binary: bool) -> Flip:
    if not pairs:
        return "unpaired"
    gained = any(own > other for own, other in pairs)
    lost = any(own < other for own, other in pairs)
    if gained or lost:
        return "mixed" if gained and lost else "gained" if gained else "lost"
    right = [own == 1 if binary else own > 0 for own, _ in pairs]
    if any(right) and not all(right):
        return "mixed"
    return "both" if any(right) else "neither"


def _cut(text: str) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # a model may write half a surrogate
    left = len(text) - LONGEST_TEXT
    return text if left <= 0 else f"{text[:LONGEST_TEXT]} … ({left:,} characters more)"
