"""The examples that are routed, and what is known of them: tags, fields, meanings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from schemabank.common.errors import InputError, did_you_mean
from schemabank.config.settings import RunConfig
from schemabank.config.task import TaskSettings
from schemabank.methods.schemabank.tagging import Embed, make_tagger
from schemabank.report.routing.collect import Bools, Tokens, tokens_of
from schemabank.report.routing.measures import Drawn, Floats
from schemabank.tasks import Example, Item
from schemabank.tasks.catalog import TASKS, same_training

EXAMPLES_A_VALUE = 4  # at least, on average, for a field to be related to schemas unasked
LONGEST_VALUE = 60  # characters, likewise


@dataclass(frozen=True)
class RoutingQuestion:
    """What is asked of a run's router.

    Attributes:
        split: ``train``, ``validation`` or ``test``; ``None``: what the run is evaluated on.
        limit: first examples of every group.
        fields: fields of the data to relate to schemas; none: all with few and short values.
        meaning: field that is the same for examples of one meaning; ``None``: the task's own.
        wording: field that tells how an example is said; ``None``: the task's own.
    """

    split: str | None = None
    limit: int = 256
    fields: tuple[str, ...] = ()
    meaning: str | None = None
    wording: str | None = None


@dataclass(frozen=True)
class RoutedExamples:
    """What is routed.

    Attributes:
        items: the examples as questions.
        tokens: their tokens.
        tags: ``(example, schema)``, 1 for an example's tags, or why there are none.
        fields: those that are related to schemas, each with the examples' values.
        meanings, wordings: of every example; ``None`` where nothing says so.
        drawn: how the examples were drawn.
    """

    items: Sequence[Item]
    tokens: Tokens
    tags: Floats | str
    fields: Mapping[str, Sequence[str]]
    meanings: Sequence[str] | None
    wordings: Sequence[str] | None
    drawn: Drawn

    @cached_property
    def places(self) -> dict[str, Bools]:
        """By place, which tokens belong to it; only places that every example has."""
        tokens = self.tokens
        places = {"prompt": ~tokens.in_target, "answer": tokens.answers, "target": tokens.in_target}
        return {
            name: chosen
            for name, chosen in places.items()
            if len(np.unique(tokens.example_of[chosen])) == len(self.items)
        }


def make_routed(
    items: Sequence[Item], run: RunConfig, question: RoutingQuestion, tags: Floats | str
) -> RoutedExamples:
    """Put together what is known of the examples.

    Raises:
        InputError: a field that the data lacks, or a wording without a meaning.
    """
    meanings, wordings = _paraphrases(items, run, question)
    clusters = [item.cluster or item.id for item in items]
    return RoutedExamples(
        items=items,
        tokens=tokens_of(items),
        tags=tags,
        fields=_chosen_fields(items, question.fields),
        meanings=meanings,
        wordings=wordings,
        drawn=Drawn(clusters, strata=[item.group for item in items]),
    )


def _chosen_fields(items: Sequence[Item], asked_for: Sequence[str]) -> dict[str, list[str]]:
    """Fields to relate to schemas: those asked for, or all that have few enough values."""
    columns = dict.fromkeys(name for item in items for name in item.fields)
    if asked_for:
        return {name: _field_values(items, name) for name in asked_for}
    most = len(items) / EXAMPLES_A_VALUE
    common = [name for name in columns if all(name in item.fields for item in items)]
    chosen: dict[str, list[str]] = {}
    parted: set[tuple[int, ...]] = set()
    for name in common:
        found = _field_values(items, name)
        numbers = {value: i for i, value in enumerate(dict.fromkeys(found))}
        parts = tuple(numbers[value] for value in found)
        is_short = all(len(value) <= LONGEST_VALUE for value in numbers)
        if 1 < len(numbers) <= most and is_short and parts not in parted:  # not another's twin
            parted.add(parts)
            chosen[name] = found
    return chosen


def _field_values(items: Sequence[Item], name: str) -> list[str]:
    for item in items:
        if name not in item.fields:
            known = ", ".join(sorted(item.fields)) or "none"
            raise InputError(
                f"example {item.id!r} has no field {name!r}{did_you_mean(name, item.fields)}: "
                f"allowed are its fields, {known}"
            )
    return [item.fields[name] for item in items]


def _paraphrases(
    items: Sequence[Item], run: RunConfig, question: RoutingQuestion
) -> tuple[list[str] | None, list[str] | None]:
    """Each example's meaning and its wording; ``None`` where no field tells."""
    task = TASKS[run.task.name]
    if question.wording and not (question.meaning or task.meaning):
        raise InputError(
            f"--wording is {question.wording!r}, but nothing says what examples mean: allowed is "
            "one beside --meaning, name that field, too"
        )
    names = (question.meaning or task.meaning, question.wording or task.wording)
    meanings, wordings = (None if name is None else _field_values(items, name) for name in names)
    return meanings, wordings


def why_no_tags(
    run: RunConfig,
    items: Sequence[Item],
    examples: Sequence[Example],
    *,
    split: str,
    trained_on: TaskSettings,
) -> str | None:
    """Say why the examples have no tags that the router could have learned to follow."""
    tagger = run.tags.tagger
    if tagger in {"none", "random"}:
        return f"the tagger {tagger!r} gives an example no tags of its own"
    if run.tags.delivery == "prefix":
        return "tags were shown as text in front of the prompt, and no loss asked for them"
    by_training = tagger == "cluster" and split == "train"
    if run.task.name != trained_on.name or (
        by_training and not same_training(run.task, trained_on)
    ):
        return f"the run was trained on other data, {trained_on.name}"
    if tagger in {"cluster", "hash"} and split != "train":
        return f"tags of the tagger {tagger!r} mean nothing beyond training: take the split train"
    if [item.id for item in items] != [example.id for example in examples]:
        return f"what {run.task.name} asks are no examples, which alone have tags"
    return None


def tags_of(run: RunConfig, examples: Sequence[Example], embed: Embed) -> Floats:
    """Tags of every example as the training gives them, ``(example, schema)``."""
    tagger = make_tagger(run.tags, run.bank, run.seed, embed)
    rng = np.random.default_rng(0)
    tagged = np.zeros((len(examples), run.bank.num_schemas))
    for row, example in zip(tagged, examples, strict=True):
        row[list(tagger(example, rng=rng))] = 1
    return tagged
