"""Runs and adapters that lie on disk: evaluate them again, or export them."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is public

from schemabank.adapters.config import PROVENANCE
from schemabank.adapters.export import check_with_peft, probe, save_merged
from schemabank.adapters.files import (
    Adapter,
    load_adapter,
    load_bank,
    load_card,
    model_card,
    put_on,
    write_adapter,
)
from schemabank.adapters.peftcheck import PeftCheck
from schemabank.common.errors import InputError
from schemabank.common.files import inside, read_text
from schemabank.common.folders import check_new, new_folder
from schemabank.common.waiting import Note, waiting
from schemabank.common.writing import write_json, write_lines
from schemabank.config.file import load_run, overridden, to_yaml
from schemabank.config.settings import RunConfig
from schemabank.engine.stack import AdapterStack
from schemabank.methods import method_of
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.bank import Routing
from schemabank.models.architecture import auto_class
from schemabank.models.basemodel import BaseModel
from schemabank.runs.effects import idle_in_evaluation, sentences
from schemabank.runs.evaluate import Procedure
from schemabank.runs.finish import result_of
from schemabank.runs.folder import BANK, CONFIG, PREDICTIONS, RESULT, is_finished
from schemabank.runs.forms import Items, evaluate_forms
from schemabank.runs.inputs import (
    DATA,
    INPUTS,
    Digests,
    adapter_digests,
    check_clusters,
    check_same,
    check_used_again,
    data_digest,
    recorded_beside,
    recorded_in,
)
from schemabank.runs.loading import (
    announce_decoding,
    loaded_base,
    loaded_task,
    resolve_device,
    resolved,
)
from schemabank.runs.located import asked_of_evaluation, locate
from schemabank.runs.members import Outcome, finished_outcome
from schemabank.runs.modelfit import check_items
from schemabank.runs.prepare import prompt_forms
from schemabank.runs.progress import Reporter
from schemabank.tasks.catalog import check_extras


def evaluate_saved(
    folder: Path,
    overrides: Sequence[str],
    out: Path | None,
    reporter: Reporter,
    *,
    routings: Sequence[Routing] = (),
) -> list[Outcome]:
    """Evaluate a run or a plain LoRA adapter.

    The default place for a result is inside ``folder``, under a name that is a hash of all
    settings; a result that is there already is reused.

    Args:
        folder: a run, an exported adapter, or an adapter that PEFT wrote.
        overrides: ``a.b=value`` settings on top of the run's own.
        out: folder to write, with several routings a folder for each inside; must not exist.
        reporter: where progress goes.
        routings: evaluate once with each; empty: with the run's own.

    Returns:
        One outcome a routing.

    Raises:
        InputError: no such run or adapter, no bank to route with, or a bad setting.
    """
    run, adapter = asked_of_evaluation(folder, overrides)
    (run,) = resolved([run], resolve_device(run.engine.device), note=reporter.note)
    if out is not None:
        check_new(out)
    found = check_used_again(folder, adapter, run, overrides, reporter.note)
    outcomes: dict[Path, Outcome | None] = {}
    pending: dict[Path, RunConfig] = {}
    asked = [_with_routing(run, routing) for routing in routings or (run.eval.routing,)]
    for sentence in sentences(idle_in_evaluation(overrides, asked)):
        reporter.note(sentence)
    for routed in asked:
        place = _result_folder(routed, folder, out, several=len(routings) > 1)
        outcomes[place] = _find_reused(routed, place, found, reporter) if out is None else None
        if outcomes[place] is None:
            pending[place] = routed
    if pending:
        outcomes |= _evaluate_all(pending, folder, adapter, reporter)
    return [outcome for outcome in outcomes.values() if outcome is not None]


def _with_routing(run: RunConfig, routing: Routing) -> RunConfig:
    return run.model_copy(update={"eval": run.eval.model_copy(update={"routing": routing})})


def _result_folder(run: RunConfig, folder: Path, out: Path | None, *, several: bool) -> Path:
    if out is None:
        return folder / "evals" / _evaluation_id(run)
    return out / f"routing-{run.eval.routing}" if several else out


def _find_reused(run: RunConfig, place: Path, found: Digests, reporter: Reporter) -> Outcome | None:
    if not is_finished(place):
        return None
    outcome = finished_outcome(run, place)
    check_clusters(place, run.task.name, mend="name a new folder with --out")
    mend = "restore it, or name a new folder with --out"
    check_same(recorded_in(outcome.result or {}), found, place, mend=mend)
    reporter.note(f"reused: {place} (same settings, finished)")
    return outcome


def _evaluate_all(
    pending: Mapping[Path, RunConfig], folder: Path, adapter: Path | None, reporter: Reporter
) -> dict[Path, Outcome]:
    """Evaluate settings that differ in routing alone; check all before any is computed."""
    routed = any(run.eval.routing != "off" for run in pending.values())
    bank = load_bank(folder / BANK) if routed else None
    weights = None if adapter is None else load_adapter(adapter)
    for place in pending:
        check_new(place)
    run = next(iter(pending.values()))
    check_extras(run.task)
    data = loaded_task(run.task, reporter.note)
    base = loaded_base(run, resolve_device(run.engine.device), reporter.note)
    items = prompt_forms(data, run, run.eval, base.tokenizer)
    for asked in items.values():
        check_items(asked, run.eval, base)
    announce_decoding(run, base, reporter)
    stack = loaded_stack(run, base, weights, bank)
    inputs = {**base.digests, DATA: data_digest(data), **adapter_digests(adapter)}
    return {
        place: _evaluate_one(own, stack, base, items, place=place, inputs=inputs, reporter=reporter)
        for place, own in pending.items()
    }


def _evaluate_one(
    run: RunConfig,
    stack: AdapterStack,
    base: BaseModel,
    items: Items,
    *,
    place: Path,
    inputs: Digests,
    reporter: Reporter,
) -> Outcome:
    """Evaluate once, and write the folder of the result."""
    with new_folder(place) as partial:
        how = Procedure.of(run.task, run.eval, routing=run.eval.routing)
        title = f"evaluate routing {run.eval.routing}"
        (answers,) = evaluate_forms(stack, base, items, how, reporter, title=title)
        result = result_of(run, run.eval, answers, training=None, inputs=inputs)
        (partial / CONFIG).write_text(to_yaml(run), encoding="utf-8")
        write_lines(partial / PREDICTIONS, map(asdict, answers.records))
        write_json(partial / RESULT, result)
    return Outcome(place, result)


def export_run(
    folder: Path,
    out: Path,
    *,
    merge: bool,
    base_name: str | None = None,
    note: Note = lambda _: None,
) -> PeftCheck:
    """Write a run's adapter, or with ``merge`` the whole model in float32, and check it.

    Args:
        folder: a trained run.
        out: folder to write; must not exist.
        merge: write the whole model.
        base_name: what an adapter's files call the base model; by default as the run did.
        note: told what takes long.

    Returns:
        How the logits of the written adapter or model compare with the run's. If stock PEFT or
        float64 cannot run the model, the adapter is written without a check: it is the user's, and
        there is no sign that it is wrong.

    Raises:
        InputError: ``folder`` is no trained run, ``out`` exists, PEFT cannot merge the adapter, or
            the base model is called what the hub calls none.
        RuntimeError: the logits differ by more than rounding explains; nothing is kept.
    """
    run, adapter = locate(folder)
    if adapter is None:
        raise InputError(
            f"{str(folder)!r} has no adapter to export (its arm is {run.arm!r}): allowed are runs "
            "of other arms"
        )
    weights = load_adapter(adapter)
    check_new(out)
    _check_name(base_name, weights, merge=merge, note=note)
    check_used_again(folder, adapter, run, [], note, with_data=False)
    exact = overridden(run, ["model.dtype=float32"])
    base = loaded_base(exact, resolve_device("cpu"), note)
    with waiting("writing and checking", note), new_folder(out) as partial:
        stack = loaded_stack(run, base, weights, None)
        (expected,) = probe(stack, base)
        stack.remove()
        if merge:
            check = _write_merged(partial, weights, base)
        else:
            _write_checked(partial, adapter, weights, base, base_name)
            check = check_with_peft(partial, base, expected)
        if check.is_made and not check.agrees:
            what = "merged model" if merge else "adapter"
            raise RuntimeError(f"the {what} for {str(out)!r} {check.said}")
    return check


def _check_name(name: str | None, adapter: Adapter, *, merge: bool, note: Note) -> None:
    """Check what the base model is to be called; say where it is called by a path."""
    before = adapter.config.base_name
    if name is None:
        if not merge and before and Path(before).is_absolute():
            note(
                f"the adapter's files call the base model {before!r}, which means nothing to "
                "others: --base-model NAME writes its id on the hub"
            )
        return
    if merge:
        raise InputError(f"--base-model {name!r} is for an adapter: a merged model names none")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"--base-model {name!r:.200} is no id of the hub: allowed is such as Qwen/Qwen2-0.5B"
        ) from error


def _write_checked(
    out: Path, folder: Path, adapter: Adapter, base: BaseModel, base_name: str | None
) -> None:
    """Write what was read of an adapter's folder, and no other files of the folder.

    Where the base model is to be called otherwise, all files call it so.
    """
    before, config = adapter.config.base_name, adapter.config
    if base_name is not None:
        config = replace(config, base_name=base_name)
        adapter = replace(adapter, config=config)
    card = load_card(folder)
    if card is not None and base_name and before:
        card = card.replace(before, base_name)
    if card is None:
        name = config.base_name or "its base model"
        training, loader = "Exported by SchemaBank.", auto_class(base.model.config).__name__
        card = model_card(name, config.settings, training=training, loader=loader)
    write_adapter(out, adapter, card=card)
    if (folder / PROVENANCE).exists():
        provenance = inside(folder, PROVENANCE)
        run, text = load_run(provenance), read_text(provenance)
        if base_name is not None:
            text = to_yaml(overridden(run, [f"model.name={base_name}"]))
        (out / PROVENANCE).write_text(text, encoding="utf-8")
    if recorded := recorded_beside(folder):
        write_json(out / INPUTS, recorded)


def _write_merged(out: Path, adapter: Adapter, base: BaseModel) -> PeftCheck:
    """Merge the adapter that was read. PEFT might read its folder in another way than we do."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "adapter")
        copy.mkdir()
        write_adapter(copy, adapter, card="")
        return save_merged(out, copy, base)


def loaded_stack(
    run: RunConfig, base: BaseModel, adapter: Adapter | None, bank: dict[str, torch.Tensor] | None
) -> AdapterStack:
    """Put an adapter from disk and a bank on a model, as a stack of one slot."""
    settings = run.lora if adapter is None else adapter.config.settings
    stack = AdapterStack(
        base.model,
        lora=[settings],
        attach=method_of(run).attach([run]) if bank is not None else (),
        adapters=adapter is not None,
    )
    if adapter is not None:
        put_on(stack, 0, adapter)
    if bank is not None:
        banks_of(stack).load(0, bank)
    return stack


def _evaluation_id(run: RunConfig) -> str:
    settings = to_yaml(run.model_copy(update={"engine": type(run.engine)()}))
    digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
    return f"{run.task.name}-{run.eval.split}-routing-{run.eval.routing}-{digest}"
