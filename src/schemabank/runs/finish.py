"""What follows a cohort's training: evaluate, write, check."""

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from schemabank.adapters.export import Probe, check_with_peft, probe
from schemabank.adapters.peftcheck import FIELD as PEFT_CHECK
from schemabank.adapters.peftcheck import PeftCheck
from schemabank.common.durations import Stopwatch
from schemabank.common.failure import FAILING, Failure, failure_of
from schemabank.common.waiting import waiting
from schemabank.common.writing import write_json, write_lines
from schemabank.config.file import config_hash, run_id
from schemabank.config.settings import EvalSettings, RunConfig
from schemabank.engine.cohort import Cohort
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.bank import Routing
from schemabank.runs.answers import recalling
from schemabank.runs.evaluate import Procedure
from schemabank.runs.fairness import TEACHER_STEPS
from schemabank.runs.folder import ADAPTER, COST, PREDICTIONS, RESULT, tell_left
from schemabank.runs.forms import Answers, evaluate_forms
from schemabank.runs.inputs import recorded_versions
from schemabank.runs.itemscores import save_item_scores
from schemabank.runs.kept import MadeWith, made_with
from schemabank.runs.loading import device_name
from schemabank.runs.members import Member, Outcome
from schemabank.runs.training import Context, names_of
from schemabank.runs.turns import seated
from schemabank.tasks.catalog import metric_of
from schemabank.tasks.scoring.scores import METRICS, ItemRecord, score_names, summaries

MOST_SKIPS = 20  # whose examples a result names; metrics.jsonl has them all


@dataclass(frozen=True)
class Took:
    """How long a cohort has trained, and within that, as later in its evaluation, compiled."""

    training_s: float
    compiling: Stopwatch


def finish_runs(
    members: Sequence[Member],
    cohort: Cohort | None,
    stack: AdapterStack,
    context: Context,
    *,
    took: Took,
    planned: Sequence[RunConfig],
) -> list[Outcome]:
    """Evaluate runs that have trained, close their folders, and take everything off the model.

    As many as there are slots are evaluated at once, and closed before the next ones. What a call
    that is interrupted has evaluated, the next one does not evaluate again, and it goes on with
    what of a run was kept.

    Args:
        members: the runs with their folders.
        cohort: that trained them; ``None`` for runs that train nothing.
        stack: its stack, which is removed.
        context: what all runs share.
        took: how long training took.
        planned: these runs and those of their cohort that are finished already.
    """
    outcomes = list[Outcome]()
    made = made_with(context.inputs, planned, context.base.model.device)
    trained_s, compiled_s = took.training_s, took.compiling.took_s
    for part in seated(members, stack, cohort):
        began, before_s = time.monotonic(), took.compiling.took_s
        evaluated = _evaluated(part, stack, context, made)
        turns = len(members) / len(part)
        cost = _cost(
            trained_s,
            (time.monotonic() - began) * turns,
            compiling_s=compiled_s + (took.compiling.took_s - before_s) * turns,
            num_runs=len(members),
            slots=stack.num_slots,
            context=context,
        )
        with stack.lifted(), waiting("checking the adapter with stock PEFT", context.reporter.note):
            for member, done in zip(part, evaluated, strict=True):
                training = None if cohort is None else _summary_of(member, cohort, len(outcomes))
                outcomes.append(_close(member, done, training, cost, context))
    stack.remove()
    return outcomes


def result_of(
    run: RunConfig,
    evaluation: EvalSettings,
    answers: Answers,
    *,
    training: Mapping[str, object] | None,
    inputs: Mapping[str, str],
) -> dict[str, object]:
    """Return the contents of ``result.json``: the same bytes for the same computation."""
    metric, records = METRICS[metric_of(run.task)], answers.records
    return {
        "arm": run.arm,
        "seed": run.seed,
        "config_hash": config_hash(run),
        "model": run.model.name,
        "dtype": run.model.dtype,
        "task": run.task.name,
        "split": evaluation.split,
        "few_shot": evaluation.few_shot,
        "prompt_form": answers.form,
        "prompt_forms": dict(answers.forms),
        "routing": evaluation.routing,
        "max_new_tokens": evaluation.max_new_tokens,
        "num_samples": evaluation.num_samples,
        "temperature": evaluation.temperature,
        "top_p": evaluation.top_p,
        "sampling_seed": evaluation.sampling_seed,
        "batch_size": evaluation.batch_size,
        "padding_side": "right",
        "inputs": dict(inputs),
        "versions": recorded_versions(),
        "training": training,
        "metric": metric_of(run.task),
        "scores": [*score_names(records, metric), *(f"pass@{k}" for k in evaluation.pass_at)],
        "groups": summaries(records, metric, pass_at=evaluation.pass_at),
    }


def _summary_of(member: Member, cohort: Cohort, index: int) -> dict[str, Any]:
    """What a result says of a run's training."""
    training = _training_summary(cohort, index)
    if member.rescaled is not None:
        training["rescale"] = member.rescaled.row()
    if member.run.num_teachers:
        training[TEACHER_STEPS] = member.run.num_teachers * training["num_steps"]
    return training


def _training_summary(cohort: Cohort, index: int) -> dict[str, Any]:
    slot = cohort.slots[index]
    groups = slot.course.trained_groups
    skipped = [
        {"step": step, "examples": list(slot.examples(step))} for step in slot.skipped[:MOST_SKIPS]
    ]
    return {
        "num_steps": slot.num_steps,
        "num_examples": len(cohort.data.examples),
        "num_skipped_steps": len(slot.skipped),
        **({"skipped_steps": skipped} if skipped else {}),
        "num_lora_updates": slot.num_updates["lora"],
        "num_updates": {name: slot.num_updates[name] for name in sorted(groups)},
        "num_trained_parameters": sum(
            cohort.stack.num_weights(name, slot.run.lora, slot.run.method.settings)
            for name in cohort.stack.groups
            if name in groups
        ),
        "failure": None if slot.failure is None else slot.failure.row(),
    }


@dataclass(frozen=True)
class _Evaluated:
    """A run's answers, and what it computes for a short text, to be compared with stock PEFT."""

    answers: Answers
    probe: Probe | PeftCheck | None


def _evaluated(
    members: Sequence[Member], stack: AdapterStack, context: Context, made: MadeWith
) -> Sequence[_Evaluated | None]:
    """Evaluate the runs in the first slots, as far as any is left that can be.

    What goes wrong fails these runs, and none that have other turns.
    """
    if all(member.failure is not None for member in members):
        return [None] * len(members)
    try:
        return _evaluate(members, stack, context, made)
    except FAILING as error:
        size, setting = members[0].run.eval.batch_size, context.slots_setting
        for member in members:
            if failure_of(error).kind == "memory":
                member.fail(_too_many(size, stack.num_slots, setting, error))
            else:
                member.fail_with(error)
        return [None] * len(members)


def _too_many(batch_size: int, slots: int, slots_setting: str, error: Exception) -> Failure:
    """Return the failure of runs whose questions do not fit, with what to lower."""
    if batch_size == slots == 1:
        many = "one question of a single run does not fit"
        lower = "eval.max_new_tokens or use a larger device"
    else:
        many = f"so many questions at once for each of {slots} runs do not fit"
        lower = " or ".join(["it"] * (batch_size > 1) + [slots_setting] * (slots > 1))
    return Failure(
        "memory",
        f"eval.batch_size is {batch_size}, but {many} into the device's memory: lower {lower} "
        f"({error})",
    )


def _evaluate(
    members: Sequence[Member], stack: AdapterStack, context: Context, made: MadeWith
) -> list[_Evaluated]:
    """Evaluate the runs in the first slots; write their predictions."""
    runs = [member.run for member in members]
    settings = runs[0].evaluation()
    items = context.asked_of(runs[0])
    routing: Routing = next((r.eval.routing for r in runs if r.uses("bank")), "off")
    for run in runs:
        context.reporter.run_state(run_id(run), "evaluating")
    how = Procedure.of(runs[0].task, settings, routing=routing)
    title = f"evaluate {names_of(runs)}"
    recall = recalling(members, stack, how, made, context.reporter.note)
    answers = evaluate_forms(
        stack, context.base, items, how, context.reporter, title=title, recalling=recall
    )
    probes = probe(stack, context.base) if runs[0].trains else [None] * len(answers)
    done = [_Evaluated(*pair) for pair in zip(answers, probes, strict=True)][: len(members)]
    for member, each in zip(members, done, strict=True):
        member.write(partial(_write_predictions, each.answers.records, member.run))
        member.fail(_not_finite(each.answers.records))
    return done


def _write_predictions(records: Sequence[ItemRecord], run: RunConfig, folder: Path) -> None:
    metric = METRICS[metric_of(run.task)]
    rows = [asdict(record) for record in records]
    write_lines(folder / PREDICTIONS, rows)
    if metric.decodes and metric.primary is not None:
        save_item_scores(folder, rows, metric.primary)


def _not_finite(records: Sequence[ItemRecord]) -> Failure | None:
    """Return the failure of a run whose weights are too large to compute with."""
    lost = [record.id for record in records if not math.isfinite(record.gold_nll_with_end)]
    if not lost:
        return None
    said = f"no finite likelihood for {len(lost)} of {len(records)} items, {lost[0]} the first"
    return Failure("diverged", f"{said}: train at a lower learning rate")


def _close(
    member: Member,
    done: _Evaluated | None,
    training: Mapping[str, object] | None,
    cost: Mapping[str, object],
    context: Context,
) -> Outcome:
    """Check the adapter with stock PEFT and give the folder its name, or say why it failed."""
    run = member.run
    member.write(lambda folder: write_json(folder / COST, cost))
    if member.failure is not None or done is None:
        return member.failed()
    result = result_of(
        run, run.evaluation(), done.answers, training=training, inputs=context.inputs
    )
    if done.probe is not None:
        check = check_with_peft(member.claim.path / ADAPTER, context.base, done.probe)
        context.reporter.note(f"{run.arm} seed {run.seed}: the adapter {check.said}")
        result[PEFT_CHECK] = check.row()
    member.write(lambda folder: write_json(folder / RESULT, result))
    if member.failure is None:
        member.write(lambda _: member.claim.complete())
        tell_left(member.claim.final, context.reporter.note)
    return member.failed() if member.failure else Outcome(member.claim.path, result)


def _cost(
    trained_s: float,
    evaluated_s: float,
    *,
    compiling_s: float,
    num_runs: int,
    slots: int,
    context: Context,
) -> dict[str, object]:
    """Device, launcher, wall-clock of the whole cohort and the process's peak memory so far.

    Of the evaluation it is what it takes if all runs take as long as those beside this one.
    Compiling is part of both, as far as this process has done it.
    """
    cost: dict[str, object] = {
        "device": device_name(context.base.model.device),
        "launcher": context.launched.launcher,
        "workers": context.launched.workers,
        "runs_in_cohort": num_runs,
        "slots": slots,
        "training_s": round(trained_s, 1),
        "evaluation_s": round(evaluated_s, 1),
        "compiling_s": round(compiling_s, 1),
        "peak_host_memory_gib": round(_peak_memory_gib(), 2),
    }
    if torch.cuda.is_available():
        cost["peak_device_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return cost


def _peak_memory_gib() -> float:
    """Largest resident size of this process; the kernel counts KiB, on macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
