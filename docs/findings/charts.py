"""The charts of the pages of findings, as Vega-Lite."""

from collections.abc import Sequence

import altair
from judged import final_runs, judged, primary, treatment_against
from records import Suite

from schemabank.report.figures import Datum, Spec
from schemabank.report.sections import look
from schemabank.report.sections.forest import line, plot

# Of runs that a line is fitted to and that a chart shows; beyond, training suffered.
MOST_LOSS = 0.83
RENAMED = {"lora+": "lora+ 16"}  # arms of the first round, by what the second calls them
DOCUMENT = {
    "reproduce_smollm2": "SmolLM2, no end token",
    "reproduce_smollm2_end_token": "SmolLM2, end token",
    "reproduce_gemma": "Gemma 3, no end token",
    "reproduce_gemma_end_token": "Gemma 3, end token",
}
TUNED = {  # the model, and what sets a suite apart; those of two epochs on attention have controls
    "judge_smollm2": ("SmolLM2", "2 epochs"),
    "judge_smollm2_all_linear": ("SmolLM2", "all linear"),
    "judge_smollm2_6_epochs": ("SmolLM2", "6 epochs"),
    "judge_gemma": ("Gemma 3", "2 epochs"),
}
EQUAL = {
    "lora, equal updates": "equal updates",
    "lora, equal parameters": "equal weights",
}
LENGTHS = {  # arms of the fifth and sixth rounds, by what the chart of training length calls them
    "lora": "LoRA, 2 epochs",
    "distilled": "distilled, 2 epochs",
    "distilled, half labels": "distilled, 2 epochs",
    "distilled, one teacher": "distilled, 2 epochs",
    "lora, 6 epochs": "LoRA, 6 epochs",
    "lora, equal compute": "LoRA, 10 epochs",
    "lora, equal compute, dropout 0.2": "LoRA, 10 epochs, dropout 0.2",
    "swap": "swap, 10 epochs",
    "swap, late": "swap, 10 epochs",
    "swap, later": "swap, 10 epochs",
}
DROPOUTS = {  # of LoRA with ten epochs, by round and arm
    ("round_6", "lora, equal compute"): 0.05,
    ("round_6", "lora, equal compute, dropout 0.2"): 0.2,
    ("round_7", "lora"): 0.2,
    ("round_7", "lora, dropout 0.4"): 0.4,
    ("round_9", "lora"): 0.4,
    ("round_9", "lora, dropout 0.6"): 0.6,
}
ARMS = ("lora", "rslora", "lora+ 4", "lora+ 16", "lora+ 64")


def charts(suites: dict[str, Suite]) -> dict[str, Spec]:
    """Return the charts by the name of their files."""
    rounds = [suites["round_1"], suites["round_2"]]
    return {
        "schemabank-against-lora": schemabank_against_lora(suites),
        "loss-by-rate": loss_by_rate(rounds),
        "accuracy-by-loss": accuracy_by_loss(rounds),
        "accuracy-by-length": accuracy_by_length([suites["round_5"], suites["round_6"]]),
        "accuracy-by-dropout": accuracy_by_dropout([suites["round_6"], suites["round_7"]]),
    }


def schemabank_against_lora(suites: dict[str, Suite]) -> Spec:
    """Return SchemaBank less LoRA, in the document's experiment and in a fair comparison."""
    rows: list[Datum] = []
    for name, words in DOCUMENT.items():
        found = [own for own in judged(suites[name], "lora") if own.arm == "schemabank"]
        rows += [line(f"{words}, {own.setting or 2} epochs", own.adjusted) for own in found]
    for name, (model, setting) in TUNED.items():
        suite = suites[name]
        rows.append(line(f"{model}, tuned, {setting}", primary(suite)))
        rows += [
            line(f"{model}, tuned, {words}", treatment_against(suite, control))
            for control, words in EQUAL.items()
            if control in final_runs(suite).arms(trained=True)
        ]
    title = "SchemaBank less LoRA in correct answers, points of percent"
    return plot(rows, (), title=title, alt="SchemaBank less LoRA, with 95 % intervals")


def loss_by_rate(suites: Sequence[Suite]) -> Spec:
    """Return the loss of plain LoRA and its relatives against the learning rate of A."""
    rows: list[Datum] = [
        {"arm": name, "panel": "", "rate": tried.learning_rate, "loss": tried.gold_nll}
        for suite in suites
        for arm, candidates in suite.search.items()
        if (name := RENAMED.get(arm, arm)) in ARMS
        for tried in candidates
        if tried.gold_nll < MOST_LOSS
    ]
    rates = sorted({row["rate"] for row in rows})
    base = look.over(rows).encode(
        x=altair.X("rate:Q", title="learning rate of A (log scale)")
        .scale(type="log", nice=False, domain=[rates[0] / 1.25, rates[-1] * 1.25])
        .axis(format="~e", grid=False, values=rates, labelOverlap=True),
        y=altair.Y("loss:Q", title="loss on validation").scale(zero=False),
        color=look.colour(ARMS, look.POINTS),
    )
    means = base.encode(y=altair.Y("mean(loss):Q", title="loss on validation").scale(zero=False))
    layers = [
        means.mark_line(strokeWidth=2).encode(strokeDash=look.dash(ARMS, look.POINTS)),
        base.mark_point(filled=True, size=60).encode(shape=look.shape(ARMS)),
    ]
    return look.paneled(layers, rows, "Loss on validation by learning rate", ARMS)


def accuracy_by_loss(suites: Sequence[Suite]) -> Spec:
    """Return every run's accuracy against its loss."""
    rows: list[Datum] = [
        {
            "arm": suite.name.replace("_", " "),
            "panel": "",
            "loss": own["gold_nll"],
            "correct": 100 * own["correct"],
        }
        for suite in suites
        for own in map(suite.figures, suite.results.values())
        if own["gold_nll"] < MOST_LOSS
    ]
    names = list(dict.fromkeys(row["arm"] for row in rows))
    points = _points(rows, names)
    line = _by_loss(rows).transform_regression("loss", "correct").mark_line(color="currentColor")
    return look.paneled([line, points], rows, "Accuracy of every run by its loss", names)


def accuracy_by_length(suites: Sequence[Suite]) -> Spec:
    """Return every run's accuracy against its loss, by how long it trained and how."""
    rows: list[Datum] = [
        {
            "arm": LENGTHS[run["arm"]],
            "panel": "",
            "loss": own["gold_nll"],
            "correct": 100 * own["correct"],
        }
        for suite in suites
        for run in suite.manifest["tuning"]["runs"]
        for own in (suite.figures(suite.results[run["run_id"]]),)
    ]
    names = list(dict.fromkeys(LENGTHS.values()))
    return look.paneled(
        [_points(rows, names)], rows, "Accuracy of every run by its loss and length", names
    )


def accuracy_by_dropout(suites: Sequence[Suite]) -> Spec:
    """Return the accuracy of plain LoRA of ten epochs against its dropout, for every run."""
    rows: list[Datum] = [
        {
            "arm": f"learning rate {run['learning_rate']:g}",
            "panel": suite.name.replace("_", " "),
            "dropout": DROPOUTS[suite.name, run["arm"]],
            "correct": 100 * suite.figures(suite.results[run["run_id"]])["correct"],
        }
        for suite in suites
        for run in suite.manifest["tuning"]["runs"]
        if (suite.name, run["arm"]) in DROPOUTS
    ]
    rows.sort(key=lambda row: float(row["arm"].split()[-1]))
    names = list(dict.fromkeys(row["arm"] for row in rows))
    base = look.over(rows).encode(
        x=altair.X("dropout:Q", title="dropout of LoRA's input")
        .scale(nice=False, padding=12)
        .axis(format="~g", grid=False, values=sorted(set(DROPOUTS.values()))),
        y=altair.Y("correct:Q", title="correct, %").scale(zero=False),
        color=look.colour(names, look.POINTS),
    )
    means = base.encode(y=altair.Y("mean(correct):Q", title="correct, %").scale(zero=False))
    layers = [
        means.mark_line(strokeWidth=2).encode(strokeDash=look.dash(names, look.POINTS)),
        base.mark_point(filled=True, size=60).encode(shape=look.shape(names)),
    ]
    return look.paneled(layers, rows, "Accuracy of LoRA of ten epochs by its dropout", names)


def _by_loss(rows: Sequence[Datum]) -> altair.Chart:
    return look.over(rows).encode(
        x=altair.X("loss:Q", title="loss on validation").scale(zero=False),
        y=altair.Y("correct:Q", title="correct, %").scale(zero=False),
    )


def _points(rows: Sequence[Datum], names: Sequence[str]) -> altair.Chart:
    """A point for every run, in its arm's colour and shape."""
    marks = _by_loss(rows).mark_point(filled=True, size=45)
    return marks.encode(color=look.colour(names, look.POINTS), shape=look.shape(names))
