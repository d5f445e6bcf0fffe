"""Owns the task gsm_symbolic: word problems drawn from 85 templates of the package reasoning_gym.

Each template yields many problems that differ in names and numbers, and some templates are held out
of training, so a test can tell new numbers from new kinds of problem. Paper: Mirzadeh et al.,
GSM-Symbolic, arXiv 2410.05229.

Templates use plain arithmetic without checks, so an item is skipped, and the next one drawn, when

- its answer is not a whole number from 0 up (half dollars, an age of −1 year);
- its text has a number of more than six decimals, the residue of binary fractions;
- its worked solution states a false ``a + b = c`` (or −, *, /), which is where a template cut off
  decimals on the way (``99 / 22 = 4``) and the answer is wrong.

A final answer ``#### 32.0`` is written ``#### 32``. Anything else irregular is an error.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any

from schemabank.common.errors import InputError
from schemabank.tasks.base import Example, TaskData, check_at_least, text_hash
from schemabank.tasks.task import Task

SUFFIX = " Give the result as your final answer. Do not include units."
ANSWER_MARK = "####"
# Item i of a stream uses Random(seed + i); streams this far apart never share an item's seed.
STREAM_STRIDE = 2**32
STREAMS = ("train", "validation", "test/seen", "test/held_out")
# So many draws in a row without a new question end the search: even the smallest template, drawn
# every 85th time, has then come up some 590 times in vain.
MAX_FRUITLESS_DRAWS = 50_000
FIRST_CHUNK = 4096

# So many draws of a template in a row with numbers of other splits: it has none left for this one.
MAX_TAKEN_DRAWS = 20
# Items of one template differ in names and numbers alone: a model solves most of them, or few.
CLUSTER = "template"

WHOLE_NUMBER = re.compile(r"\d+")
NUMBERS = re.compile(r"\d+(?:[.,:/]\d+)*")
LONG_DECIMAL = re.compile(r"\.\d{7}")
NUMBER = r"[$£€¥]?(\d+(?:\.\d+)?)"
# Two operands with nothing arithmetic around them; a percentage or a longer expression is no match.
EQUATION = re.compile(
    rf"(?<![\w.$£€¥+*/×÷=(-])(?<![+*/×÷=x-] ){NUMBER} ?([-+*/]) ?{NUMBER} ?= ?{NUMBER}"
    r"(?![\d%/]|\.\d| ?[-+*/×÷%])"
)
ROUNDING = Decimal("0.0051")  # solutions round money to cents


def load(
    *,
    train_size: int,
    validation_size: int,
    test_size: int,
    held_out_ratio: float,
    max_question_words: int | None,
    data_seed: int,
) -> TaskData:
    """Draw the three splits, each of exactly the size asked for.

    Args:
        train_size: training examples, from the templates that are not held out.
        validation_size: validation examples, from the same templates with other numbers.
        test_size: test examples of the group ``seen`` (the same templates, new numbers), and as
            many again of the group ``held_out`` unless no template is held out.
        held_out_ratio: share of templates held out, by a fixed rule: the first in the order of the
            SHA-256 of their names, so a larger share holds out all of a smaller one.
        max_question_words: longest question in words, ``None`` for no limit.
        data_seed: seed of all draws.

    No item has the same template and numbers as an item of another split: only its names would be
    new. A split does not depend on the sizes of the splits drawn after it (the order
    is test, validation, train), and a smaller one is the beginning of a larger one. The field
    ``template`` holds the template's number, which is also the cluster.
    """
    check_at_least(0, train_size=train_size, validation_size=validation_size, test_size=test_size)
    check_at_least(0, data_seed=data_seed)  # Random(-1) equals Random(1)
    check_at_least(1, max_question_words=max_question_words)
    seen, held_out = split_templates(_generator_module().tasks_ok, held_out_ratio)
    deck = _Deck(data_seed=data_seed, max_question_words=max_question_words)
    test = deck.draw("test/seen", test_size, templates=seen, group="seen")
    if held_out:
        test += deck.draw("test/held_out", test_size, templates=held_out, group="held_out")
    validation = deck.draw("validation", validation_size, templates=seen, group="all")
    train = deck.draw("train", train_size, templates=seen, group="all")
    return TaskData(train, validation, test, cluster_field=CLUSTER)


def split_templates(
    templates: Sequence[int], held_out_ratio: float
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the templates seen in training and the held-out ones."""
    num_held_out = round(held_out_ratio * len(templates)) if 0 <= held_out_ratio < 1 else -1
    if not 0 <= num_held_out < len(templates):
        raise InputError(
            f"held_out_ratio {held_out_ratio} must lie in [0, 1) and leave at least one of "
            f"{len(templates)} templates for training: use for instance 0.2"
        )
    ranked = sorted(templates, key=lambda template: text_hash(f"gsm_symbolic/{template}"))
    return frozenset(ranked[num_held_out:]), frozenset(ranked[:num_held_out])


def states_falsehood(steps: str) -> bool:
    """Return whether a worked solution holds a two-operand equation that is wrong."""
    return any(
        not _equation_holds(Decimal(left), operator, Decimal(right), Decimal(result))
        for left, operator, right, result in EQUATION.findall(steps)
    )


@dataclass
class _Deck:
    """Draws splits that share no question, and no template with its numbers."""

    data_seed: int
    max_question_words: int | None
    used_questions: set[str] = field(default_factory=set)
    owners: dict[tuple[int, tuple[str, ...]], str] = field(default_factory=dict)

    def draw(
        self, stream: str, size: int, *, templates: Collection[int], group: str
    ) -> list[Example]:
        seed = (self.data_seed * len(STREAMS) + STREAMS.index(stream)) * STREAM_STRIDE
        examples: list[Example] = []
        num_fruitless, fewest_words = 0, 0
        taken: Counter[int] = Counter()  # draws of a template whose numbers stand in other splits
        for template, item in _drawn(seed, templates) if size else ():
            text = _question_and_solution(template, item) if item else None
            if text is not None:
                num_words = len(text[0].split())
                fewest_words = min(fewest_words or num_words, num_words)
                if self._is_new(text[0], num_words):
                    if self._owns(stream, template, text[0]):
                        id_ = f"gsm_symbolic/{stream}/{len(examples)}"
                        examples.append(_example(id_, text, template, group))
                        num_fruitless = taken[template] = 0
                    else:
                        taken[template] += 1
                        self._check_left(stream, template, taken[template])
            if len(examples) == size:
                break
            num_fruitless += 1
            if num_fruitless > MAX_FRUITLESS_DRAWS:
                raise self._exhausted_error(stream, size, len(examples), fewest_words)
        return examples

    def _is_new(self, question: str, num_words: int) -> bool:
        too_long = self.max_question_words is not None and num_words > self.max_question_words
        if too_long or question in self.used_questions:
            return False
        self.used_questions.add(question)
        return True

    def _owns(self, stream: str, template: int, question: str) -> bool:
        """Whether a template with a question's numbers is, or becomes, this split's."""
        key = template, tuple(NUMBERS.findall(question))
        return self.owners.setdefault(key, stream) == stream

    def _check_left(self, stream: str, template: int, num_taken: int) -> None:
        if num_taken > MAX_TAKEN_DRAWS:
            raise InputError(
                f"gsm_symbolic's template {template} has no numbers left for {stream}: the splits "
                f"drawn before took them ({num_taken} draws in a row), and the numbers of an item "
                "may stand in one split only; lower test_size or validation_size"
            )

    def _exhausted_error(self, stream: str, size: int, found: int, fewest_words: int) -> InputError:
        limit = self.max_question_words
        if limit is not None and fewest_words > limit:
            return InputError(
                f"max_question_words {limit} leaves no template for {stream} of gsm_symbolic, "
                f"whose shortest question has {fewest_words} words: raise the limit"
            )
        cause = "" if limit is None else f" of at most {limit} words"
        mend = "" if limit is None else " or raise max_question_words"
        return InputError(
            f"gsm_symbolic yields only {found} of the {size} new questions{cause} asked for in "
            f"{stream}: lower its size{mend}"
        )


def _drawn(seed: int, templates: Collection[int]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield each draw's template and item, ``None`` where the template is not one of these."""
    module = _generator_module()
    start, stop = 0, FIRST_CHUNK
    while stop <= STREAM_STRIDE:
        # A data set draws all its templates at once; those of a larger one begin with the same.
        data = module.GSMSymbolicDataset(module.GSMSymbolicDatasetConfig(seed=seed, size=stop))
        for index in range(start, stop):
            template = data.task_indices[index]
            yield template, data[index] if template in templates else None
        start, stop = stop, 2 * stop


def _question_and_solution(template: int, item: dict[str, Any]) -> tuple[str, str, str] | None:
    """Return question, solution and answer in the usual form, ``None`` for an item to skip."""
    question, answer = item["question"], item["answer"]
    steps, _, marked = item["metadata"]["answer_cot"].rpartition(f"\n{ANSWER_MARK} ")
    if not question.endswith(SUFFIX) or not steps or not _same_number(marked, answer):
        raise InputError(
            f"reasoning_gym's gsm_symbolic template {template} no longer ends its question with "
            f"{SUFFIX!r} and its solution with '{ANSWER_MARK} {answer}' (it has {marked!r}): "
            f"install reasoning-gym 0.1.25, with which all templates were checked"
        )
    question = question.removesuffix(SUFFIX).strip()
    text = f"{question}\n{steps}"
    if not WHOLE_NUMBER.fullmatch(answer) or LONG_DECIMAL.search(text) or states_falsehood(steps):
        return None
    return question, f"{steps.strip()}\n{ANSWER_MARK} {answer}", answer


def _example(id_: str, text: tuple[str, str, str], template: int, group: str) -> Example:
    drawn_with = str(template)
    return Example(id_, *text, fields={CLUSTER: drawn_with}, group=group, cluster=drawn_with)


def _equation_holds(left: Decimal, operator: str, right: Decimal, result: Decimal) -> bool:
    if operator == "/":
        return right != 0 and abs(left / right - result) <= ROUNDING
    exact = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return abs(exact - result) <= ROUNDING


def _same_number(marked: str, answer: str) -> bool:
    try:
        return Decimal(marked) == Decimal(answer)
    except InvalidOperation:
        return False


def _generator_module() -> ModuleType:
    # The package imports all its generators, sympy and matplotlib (over a second): other tasks must
    # not pay for that. Importing a submodule alone is no faster, its parents come first.
    from reasoning_gym.arithmetic.gsm_symbolic import gsm_symbolic  # noqa: PLC0415

    assert isinstance(gsm_symbolic, ModuleType)
    return gsm_symbolic


TASK = Task(
    lambda settings: load(**settings.gsm_symbolic.model_dump()),
    cluster=CLUSTER,
    extra="gsm-symbolic",
)
