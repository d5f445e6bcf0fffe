"""A run's routing from its folder to a report: every state of its training on the same examples."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from schemabank.cohort.stack import AdapterStack
from schemabank.config import RunConfig
from schemabank.errors import InputError
from schemabank.experiment import load_base, resolve_device
from schemabank.export import load_adapter, load_bank
from schemabank.prepare import check_positions, chosen_examples, items_of
from schemabank.progress import Reporter
from schemabank.routing import measures
from schemabank.routing.collect import Bools, Choices, Tokens, collect, tokens_of
from schemabank.routing.measures import Floats
from schemabank.rundir import ADAPTER, BANK
from schemabank.runner import stage_folder
from schemabank.saved import loaded_stack
from schemabank.tagging import embeddings, make_tagger
from schemabank.tasks import Example, Item
from schemabank.tasks.catalog import TASKS, load_task

START, END = "start", "end"
EXAMPLES_A_VALUE = 4  # at least, on average, for a column to be related to schemas unasked
NUM_TOKENS, NUM_EXAMPLES = 8, 3  # typical ones of every schema
SHOWN_CHARACTERS = 160

Report = dict[str, object]
Row = dict[str, object]


@dataclass(frozen=True)
class Question:
    """What is asked of a run's router.

    Attributes:
        split: ``train``, ``validation`` or ``test``; ``None``: what the run is evaluated on.
        limit: first examples of every group.
        fields: columns of the data to relate to schemas; none: all with few enough values.
        meaning: column that is the same for examples of one meaning; ``None``: the task's own.
        wording: column that tells how an example is said; ``None``: the task's own.
    """

    split: str | None = None
    limit: int = 256
    fields: tuple[str, ...] = ()
    meaning: str | None = None
    wording: str | None = None


@dataclass(frozen=True)
class Subject:
    """What is routed.

    Attributes:
        items: the examples as questions.
        tokens: their tokens.
        tags: ``(example, schema)``, 1 for an example's tags, or why there are none.
        fields: the columns that are related to schemas, each with the examples' values.
        meanings, wordings: of every example; ``None`` where nothing says so.
    """

    items: Sequence[Item]
    tokens: Tokens
    tags: Floats | str
    fields: Mapping[str, Sequence[str]]
    meanings: Sequence[str] | None
    wordings: Sequence[str] | None

    def places(self) -> dict[str, Bools]:
        """Which tokens to look at: those of a place that every example has."""
        tokens = self.tokens
        everywhere = {
            "all tokens": np.ones_like(tokens.answers),
            "answer": tokens.answers,
            "target": tokens.in_target,
        }
        return {
            name: chosen
            for name, chosen in everywhere.items()
            if len(np.unique(tokens.example_of[chosen])) == len(self.items)
        }


def analyse(folder: Path, run: RunConfig, question: Question, reporter: Reporter) -> Report:
    """Route a task's examples through every state that a run kept, and measure what happens.

    Args:
        folder: a finished run of the arm ``schemabank``.
        run: its settings, with those changed that ask for other examples.
        question: what is asked.
        reporter: where progress goes.

    Returns:
        The contents of ``routing.json``, which docs/routing.md describes.

    Raises:
        InputError: no bank, or a column that the data lacks.
    """
    bank = load_bank(folder / BANK)
    states = _states(folder, run, reporter)
    split = question.split or run.eval.split
    data = load_task(run.task)
    examples = chosen_examples(data, run.task, split=split, limit=question.limit)
    base = load_base(run, resolve_device(run.engine.device))
    settings = run.eval.model_copy(update={"few_shot": 0, "num_samples": 1, "pass_at": ()})
    items = items_of(examples, data, run.task, settings, base.tokenizer)
    check_positions(items, settings, base.model)
    fields = _fields(items, question.fields)
    meanings, wordings = _paraphrases(items, run, question)
    stack = loaded_stack(run, base, folder / ADAPTER, bank)
    try:
        subject = Subject(
            items=items,
            tokens=tokens_of(items),
            tags=_tags(
                run,
                items,
                examples,
                data.train[: run.task.train_limit],
                stack=stack,
                tokenizer=base.tokenizer,
            ),
            fields=fields,
            meanings=meanings,
            wordings=wordings,
        )
        head: Report = {
            "run": folder.resolve().name,
            "model": run.model.name,
            "task": run.task.name,
            "split": split,
            "num_examples": len(items),
            "num_tokens": len(subject.tokens.ids),
            "num_schemas": run.bank.num_schemas,
            "top_k": run.bank.top_k,
            "tagger": run.tags.tagger,
            "tags": subject.tags if isinstance(subject.tags, str) else run.tags.num_tags,
        }
        return head | _measured(
            subject, stack, run, states, tokenizer=base.tokenizer, reporter=reporter
        )
    finally:
        stack.remove()


def _states(folder: Path, run: RunConfig, reporter: Reporter) -> dict[str, Path | None]:
    """Folders of the weights that a run kept, in the order of its training; the seed's have none.

    A stage that took no step left nothing, nor did one whose run was told to keep none.
    """
    kept = {s.name: stage_folder(folder, run, s) for s in run.curriculum[:-1]}
    there: dict[str, Path | None] = {n: place for n, place in kept.items() if place.is_dir()}
    if len(there) < len(kept):
        missing = ", ".join(name for name in kept if name not in there)
        reporter.note(
            f"nothing was kept at the end of {missing}, so what changed there is not shown: "
            "engine.keep_stages keeps it"
        )
    return {START: None, **there, END: folder}


def _load_state(stack: AdapterStack, run: RunConfig, state: Path | None) -> None:
    if state is None:
        stack.initialise(0, run.seed)
        return
    _, tensors = load_adapter(state / ADAPTER)
    stack.load_lora(0, tensors)
    stack.load_bank(0, load_bank(state / BANK))


def _fields(items: Sequence[Item], asked_for: Sequence[str]) -> dict[str, list[str]]:
    """Columns to relate to schemas: those asked for, or all that have few enough values."""
    columns = dict.fromkeys(name for item in items for name in item.fields)
    if asked_for:
        return {name: _column(items, name) for name in asked_for}
    most = len(items) / EXAMPLES_A_VALUE
    common = [name for name in columns if all(name in item.fields for item in items)]
    values = {name: _column(items, name) for name in common}
    return {name: found for name, found in values.items() if 1 < len(set(found)) <= most}


def _column(items: Sequence[Item], name: str) -> list[str]:
    for item in items:
        if name not in item.fields:
            known = ", ".join(sorted(item.fields)) or "none"
            raise InputError(
                f"example {item.id!r} has no column {name!r}: allowed are its columns, {known}"
            )
    return [item.fields[name] for item in items]


def _paraphrases(
    items: Sequence[Item], run: RunConfig, question: Question
) -> tuple[list[str] | None, list[str] | None]:
    """What examples mean and how they are said, as far as columns tell."""
    task = TASKS[run.task.name]
    names = (question.meaning or task.meaning, question.wording or task.wording)
    meanings, wordings = (None if name is None else _column(items, name) for name in names)
    return meanings, wordings


def _tags(
    run: RunConfig,
    items: Sequence[Item],
    examples: Sequence[Example],
    trained: Sequence[Example],
    *,
    stack: AdapterStack,
    tokenizer: PreTrainedTokenizerBase,
) -> Floats | str:
    """Tags of every example as the training would give them, or why there are none."""
    if run.tags.tagger in {"none", "random"}:
        return f"the tagger {run.tags.tagger!r} gives an example no tags of its own"
    if [item.id for item in items] != [example.id for example in examples]:
        return f"what {run.task.name} asks are no examples, which alone have tags"
    if run.tags.tagger == "cluster" and not {e.id for e in examples} <= {e.id for e in trained}:
        return "the tagger 'cluster' knows training examples only: take the split train"

    def embed() -> dict[str, np.ndarray]:
        stack.initialise(0, run.seed)  # LoRA does nothing yet
        return embeddings(stack, tokenizer, trained)

    tagger = make_tagger(run.tags, run.bank, run.seed, embed)
    rng = np.random.default_rng(0)
    tagged = np.zeros((len(examples), run.bank.num_schemas))
    for row, example in zip(tagged, examples, strict=True):
        row[list(tagger(example, rng=rng))] = 1
    return tagged


def _measured(
    subject: Subject,
    stack: AdapterStack,
    run: RunConfig,
    states: Mapping[str, Path | None],
    *,
    tokenizer: PreTrainedTokenizerBase,
    reporter: Reporter,
) -> Report:
    """Route everything in every state; what is about examples comes from the last one."""
    layers: list[Row] = []
    information: list[Row] = []
    before: dict[int, Choices] = {}
    choices: dict[int, Choices] = {}
    for name, place in states.items():
        _load_state(stack, run, place)
        reporter.start(f"route {name}", len(subject.items))
        before, choices = choices, collect(stack, subject.items, reporter)
        reporter.finish()
        for layer, chosen in choices.items():
            row = {"state": name, "layer": layer}
            layers.append(row | _layer(subject, chosen, before.get(layer)))
            information += [row | found for found in _information(subject, chosen)]
    at_end = [(layer, _profiles(subject, chosen)) for layer, chosen in choices.items()]
    return {
        "states": list(states),
        "layers": layers,
        "information": information,
        "reuse": [
            {"layer": layer, "place": place} | found
            for layer, profiles in at_end
            for place, profile in profiles.items()
            for found in _reuse(subject, profile)
        ],
        "by_value": [
            {"layer": layer, "place": place} | found
            for layer, profiles in at_end
            for place, profile in profiles.items()
            for found in _by_value(subject, profile)
        ],
        "schemas": [
            {"layer": layer} | found
            for layer, chosen in choices.items()
            for found in _typical(subject, chosen, tokenizer)
        ],
    }


def _layer(subject: Subject, chosen: Choices, before: Choices | None) -> Row:
    found = measures.layer_measures(chosen.log_probs, chosen.shares)
    row: Row = {
        "entropy": found.entropy,
        "effective_schemas": found.effective_schemas,
        "load_balance": found.load_balance,
        "dead": found.dead.tolist(),
        "usage": found.usage.tolist(),
        "probability": found.probability.tolist(),
        "changed": None if before is None else measures.changed(before.shares, chosen.shares),
    }
    if not isinstance(subject.tags, str):
        agreement = measures.tag_agreement(chosen.shares, subject.tokens.example_of, subject.tags)
        row |= {"tag_agreement": agreement[0], "tag_agreement_by_chance": agreement[1]}
    return row


def _profiles(subject: Subject, chosen: Choices) -> dict[str, Floats]:
    """Every example's choices at every place, ``(example, schema)``."""
    return {
        name: measures.profiles(
            chosen.shares[there], subject.tokens.example_of[there], len(subject.items)
        )
        for name, there in subject.places().items()
    }


def _information(subject: Subject, chosen: Choices) -> Iterator[Row]:
    for place, profile in _profiles(subject, chosen).items():
        for field, values in subject.fields.items():
            found = measures.information(profile, values)
            yield {"field": field, "place": place, **asdict(found)}


def _reuse(subject: Subject, profile: Floats) -> Iterator[Row]:
    if subject.meanings is None:
        return
    found = measures.reuse(profile, subject.meanings, subject.wordings)
    if found is not None:
        yield asdict(found)


def _by_value(subject: Subject, profile: Floats) -> Iterator[Row]:
    for field, values in subject.fields.items():
        names, usage = measures.by_value(profile, values)
        yield {"field": field, "values": names, "usage": usage.tolist()}


def _typical(
    subject: Subject, chosen: Choices, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Row]:
    """Each schema's most typical tokens and examples."""
    tokens = measures.typical(chosen.shares, subject.tokens.ids, count=NUM_TOKENS)
    num_items = len(subject.items)
    profile = measures.profiles(chosen.shares, subject.tokens.example_of, num_items)
    counts = Counter(subject.tokens.ids.tolist())
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
                    "id": subject.items[i].id,
                    "share": float(profile[i, schema]),
                    "prompt": subject.items[i].prompt[-SHOWN_CHARACTERS:],
                }
                for i in best
                if profile[i, schema] > 0
            ],
        }
