"""The form in which the untouched model is asked: with whole prompts, or with trimmed ones.

Trained arms learn to continue whatever a prompt ends with. An untouched model has seen "answer is"
and " 18" as tokens. A prompt that ends in a blank ("answer is ") splits its text in another way
than the texts that it was trained on, which costs it several nats an answer. As the reference of a
comparison it is asked in both forms, and the better one is shown: an advantage to it, by intent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Literal

from schemabank.common.waiting import waiting
from schemabank.engine.execute import default_executor
from schemabank.engine.stack import AdapterStack
from schemabank.models.basemodel import BaseModel
from schemabank.runs.evaluate import Procedure, evaluate
from schemabank.runs.progress import Reporter
from schemabank.runs.recall import Recall
from schemabank.tasks import Item
from schemabank.tasks.scoring.scores import ItemRecord, Metric

Form = Literal["whole", "trimmed"]
Items = Mapping[Form, Sequence[Item]]
Recalling = Callable[[Form, Sequence[Item]], Recall]
"""Returns what is known of an evaluation in one of the forms."""


@dataclass(frozen=True)
class Answers:
    """A run's records in the form that serves it better.

    Attributes:
        records: one an item and sample.
        form: of the prompts.
        forms: the means in every form, by form, group and name; empty if there was only one form.
    """

    records: list[ItemRecord]
    form: Form
    forms: Mapping[str, Mapping[str, Mapping[str, float]]]


def evaluate_forms(
    stack: AdapterStack,
    base: BaseModel,
    items: Items,
    how: Procedure,
    reporter: Reporter,
    *,
    title: str,
    recalling: Recalling = lambda _form, _items: Recall(),
) -> list[Answers]:
    """Evaluate every slot's adapter in every form, and report progress.

    Args:
        stack: the adapters.
        base: the model they sit on.
        items: the same questions in each form.
        how: decoding and metric.
        reporter: where progress goes.
        title: what is evaluated.
        recalling: returns what is known from an earlier call; by default nothing.

    Returns:
        One a slot.
    """
    found: dict[Form, list[list[ItemRecord]]] = {}
    for form, asked in items.items():
        reporter.start(title if form == "whole" else f"{title}, prompts {form}", len(asked))
        recall = recalling(form, asked)
        found[form] = _evaluate_form(stack, base, asked, how, reporter, recall=recall)
        reporter.finish()
    return [
        better({form: slots[slot] for form, slots in found.items()}, how.metric)
        for slot in range(stack.num_slots)
    ]


def better(found: Mapping[Form, list[ItemRecord]], metric: Metric) -> Answers:
    """Choose the form with the better score; of equal ones, that with the likelier gold targets."""

    def worth(form: Form) -> tuple[float, float]:
        means = _group_means(found[form], metric)
        return means.get(str(metric.primary), 0.0), -means["gold_nats"]

    form = max(found, key=worth)
    groups = list(dict.fromkeys(record.group for record in found[form]))
    forms: dict[str, Mapping[str, Mapping[str, float]]] = {
        name: {g: _group_means([r for r in records if r.group == g], metric) for g in groups}
        for name, records in found.items()
    }
    return Answers(found[form], form, forms if len(forms) > 1 else {})


def _group_means(records: Sequence[ItemRecord], metric: Metric) -> dict[str, float]:
    """The mean primary score, where there is one, and mean nats of a gold target.

    Nats are of a whole target with its end token, not of a token, since the forms split the same
    text into different tokens.
    """
    name = str(metric.primary)
    scores = [r.scores[name] for r in records if name in r.scores]
    means = {name: fsum(scores) / len(scores)} if scores else {}
    nats = fsum(r.gold_nll_with_end * r.gold_tokens for r in records)
    return means | {"gold_nats": nats / len(records)}


def _evaluate_form(
    stack: AdapterStack,
    base: BaseModel,
    items: Sequence[Item],
    how: Procedure,
    reporter: Reporter,
    *,
    recall: Recall,
) -> list[list[ItemRecord]]:
    """Evaluate as :func:`evaluate` does, compiled where that is possible."""
    with waiting("completing and scoring items", reporter.note) as wait:

        def advance(done: int) -> None:
            wait.goes_on()
            reporter.advance(done, "")

        executor = default_executor(stack.model.device, explain=reporter.note)
        return evaluate(stack, base, items, how, advance=advance, executor=executor, recall=recall)
