"""A run's routing from its folder to a report: every state of its training on the same examples."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from schemabank.adapters.files import load_adapter, load_bank, put_on
from schemabank.config.settings import RunConfig
from schemabank.config.task import TaskSettings
from schemabank.engine.stack import AdapterStack
from schemabank.methods.schemabank.attach import banks_of
from schemabank.methods.schemabank.tagging import embeddings
from schemabank.report.routing import measures
from schemabank.report.routing.collect import Choices, collect
from schemabank.report.routing.measures import Floats
from schemabank.report.routing.routed import (
    RoutedExamples,
    RoutingQuestion,
    make_routed,
    tags_of,
    why_no_tags,
)
from schemabank.runs.folder import ADAPTER, BANK
from schemabank.runs.loading import loaded_base, loaded_task, resolve_device
from schemabank.runs.members import stage_folder
from schemabank.runs.modelfit import check_items
from schemabank.runs.prepare import chosen_examples, items_of
from schemabank.runs.progress import Reporter
from schemabank.runs.saved import loaded_stack
from schemabank.tasks.catalog import split_of

START, END = "start", "end"
NUM_TOKENS, NUM_EXAMPLES = 8, 3  # typical ones of every schema
SHOWN_CHARACTERS = 160

Analysis = dict[str, object]
Row = dict[str, object]


def analyse(
    folder: Path,
    run: RunConfig,
    question: RoutingQuestion,
    reporter: Reporter,
    *,
    trained_on: TaskSettings,
) -> Analysis:
    """Route a task's examples through every state that a run kept, and measure what happens.

    Args:
        folder: a finished run of the arm ``schemabank``.
        run: its settings, with those changed that ask for other examples.
        question: what is asked.
        reporter: where progress goes.
        trained_on: the task that the run was trained on.

    Returns:
        The contents of ``routing.json``, which docs/routing.md describes.

    Raises:
        InputError: no bank, or a field that the data lacks.
    """
    bank = load_bank(folder / BANK)
    adapter = load_adapter(folder / ADAPTER)
    states = _kept_states(folder, run, reporter)
    split = question.split or split_of(run.task, run.eval.split)
    data = loaded_task(run.task, reporter.note)
    examples = chosen_examples(data, run.task, split=split, limit=question.limit)
    base = loaded_base(run, resolve_device(run.engine.device), reporter.note)
    alone = {"few_shot": 0, "num_samples": 1, "pass_at": (), "max_new_tokens": 1}
    settings = run.eval.model_copy(update=alone)
    items = items_of(examples, data, run.task, settings, base.tokenizer)
    check_items(items, settings, base)
    stack = loaded_stack(run, base, adapter, bank)

    def embed() -> dict[str, np.ndarray]:
        stack.initialise(0, run.seed)  # LoRA does nothing yet
        return embeddings(stack, base.tokenizer, data.train[: run.task.train_limit])

    try:
        tags = why_no_tags(run, items, examples, split=split, trained_on=trained_on)
        routed = make_routed(items, run, question, tags or tags_of(run, examples, embed))
        head: Analysis = {
            "run": folder.resolve().name,
            "model": run.model.name,
            "task": run.task.name,
            "split": split,
            "num_examples": len(items),
            "num_clusters": len({item.cluster for item in items if item.cluster}) or None,
            "num_tokens": len(routed.tokens.ids),
            "num_schemas": run.bank.num_schemas,
            "top_k": run.bank.top_k,
            "tagger": run.tags.tagger,
            "tags": routed.tags if isinstance(routed.tags, str) else run.tags.num_tags,
        }
        return head | _measure_states(
            routed, stack, run, states, tokenizer=base.tokenizer, reporter=reporter
        )
    finally:
        stack.remove()


def _kept_states(folder: Path, run: RunConfig, reporter: Reporter) -> dict[str, Path | None]:
    """Folders of the weights that a run kept, in the order of its training; the seed's have none.

    A stage that took no step left nothing, nor did one whose run was told to keep none.
    """
    kept = [stage_folder(folder, run, stage) for stage in run.stages()[:-1]]
    missing = [place.name for place in kept if not place.is_dir()]
    if missing:
        reporter.note(
            f"no weights were kept at the end of {', '.join(missing)}, so changes there are not "
            "shown: engine.keep_stages keeps them, unless a stage took no step"
        )
    return {START: None, **{p.name: p for p in kept if p.is_dir()}, END: folder}


def _load_state(stack: AdapterStack, run: RunConfig, state: Path | None) -> None:
    if state is None:
        stack.initialise(0, run.seed)
        return
    put_on(stack, 0, load_adapter(state / ADAPTER))
    banks_of(stack).load(0, load_bank(state / BANK))


def _measure_states(
    routed: RoutedExamples,
    stack: AdapterStack,
    run: RunConfig,
    states: Mapping[str, Path | None],
    *,
    tokenizer: PreTrainedTokenizerBase,
    reporter: Reporter,
) -> Analysis:
    """Route everything in every state; what is about examples comes from the last one."""
    layers: list[Row] = []
    information: list[Row] = []
    choices: dict[int, Choices] = {}
    profiles: dict[int, dict[str, Floats]] = {}
    for name, place in states.items():
        _load_state(stack, run, place)
        reporter.start(f"route {name}", len(routed.items))
        before, choices = choices, collect(stack, routed.items, reporter)
        reporter.finish()
        profiles = {layer: _profiles_by_place(routed, chosen) for layer, chosen in choices.items()}
        for layer, chosen in choices.items():
            row = {"state": name, "layer": layer}
            layers.append(row | _layer_row(routed, chosen, before.get(layer)))
            information += [row | found for found in _information_rows(routed, profiles[layer])]
    at_end = [
        ({"layer": layer, "place": place}, profile)
        for layer, own in profiles.items()
        for place, profile in own.items()
    ]
    return {
        "states": list(states),
        "layers": layers,
        "information": information,
        "reuse": [at | found for at, profile in at_end for found in _reuse_rows(routed, profile)],
        "by_value": [
            at | found for at, profile in at_end for found in _value_rows(routed, profile)
        ],
        "schemas": [
            {"layer": layer} | found
            for layer, chosen in choices.items()
            for found in _typical_rows(routed, chosen, tokenizer)
        ],
    }


def _layer_row(routed: RoutedExamples, chosen: Choices, before: Choices | None) -> Row:
    found = measures.layer_measures(chosen.shares, chosen.probability, chosen.entropy)
    row: Row = {
        "entropy": found.entropy,
        "effective_schemas": found.effective_schemas,
        "load_balance": found.load_balance,
        "dead": found.dead.tolist(),
        "usage": found.usage.tolist(),
        "probability": found.probability.tolist(),
        "changed": None if before is None else measures.changed(before.shares, chosen.shares),
    }
    if not isinstance(routed.tags, str):
        agreement = measures.tag_agreement(chosen.shares, routed.tokens.example_of, routed.tags)
        row |= {"tag_agreement": agreement[0], "tag_agreement_by_chance": agreement[1]}
    return row


def _profiles_by_place(routed: RoutedExamples, chosen: Choices) -> dict[str, Floats]:
    """Every example's choices at every place, ``(example, schema)``."""
    return {
        name: measures.profiles(
            chosen.shares[there], routed.tokens.example_of[there], len(routed.items)
        )
        for name, there in routed.places.items()
    }


def _information_rows(routed: RoutedExamples, profiles: Mapping[str, Floats]) -> Iterator[Row]:
    for place, profile in profiles.items():
        for field, values in routed.fields.items():
            found = measures.information(profile, values, routed.drawn)
            yield {"field": field, "place": place, **asdict(found)}


def _reuse_rows(routed: RoutedExamples, profile: Floats) -> Iterator[Row]:
    if routed.meanings is None:
        return
    found = measures.reuse(profile, routed.meanings, routed.wordings, routed.drawn)
    if found is not None:
        yield asdict(found)


def _value_rows(routed: RoutedExamples, profile: Floats) -> Iterator[Row]:
    for field, values in routed.fields.items():
        names, usage = measures.by_value(profile, values)
        yield {"field": field, "values": names, "usage": usage.tolist()}


def _typical_rows(
    routed: RoutedExamples, chosen: Choices, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Row]:
    """Each schema's most typical tokens and examples."""
    tokens = measures.typical(chosen.shares, routed.tokens.ids, count=NUM_TOKENS)
    num_items = len(routed.items)
    profile = measures.profiles(chosen.shares, routed.tokens.example_of, num_items)
    counts = Counter(routed.tokens.ids.tolist())
    for schema, kinds in enumerate(tokens):
        best = np.argsort(-profile[:, schema], kind="stable")[:NUM_EXAMPLES]
        yield {
            "schema": schema,
            "tokens": [
                {"text": tokenizer.decode([kind]), "times_as_often": ratio, "count": counts[kind]}
                for kind, ratio in kinds
            ],
            "examples": [
                {
                    "id": routed.items[i].id,
                    "share": float(profile[i, schema]),
                    "prompt": routed.items[i].prompt[-SHOWN_CHARACTERS:],
                }
                for i in best
                if profile[i, schema] > 0
            ],
        }
