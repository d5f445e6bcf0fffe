"""Owns the task conditional: generated questions, each governed by one known if-then rule.

A question holds a word and four numbers. What kind of thing the word names decides what is asked of
the numbers (an animal: the first one; a tool: the smallest), which no question says, so a model has
to learn condition and operation from examples. The rule's id stands beside each example, and
whether schemas specialise can be measured against it.

Nothing is downloaded: every example follows from the settings.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, permutations
from operator import itemgetter
from pathlib import Path
from random import Random

from schemabank.common.errors import InputError
from schemabank.common.files import read_text
from schemabank.tasks.base import Example, TaskData, check_at_least, hash_position, text_hash
from schemabank.tasks.task import Task

# Any list of numbers belongs to one split by its hash alone; the rest is for training. So no
# question can stand in two splits, whatever their sizes.
SHARES = {"test": 0.1, "validation": 0.1}
NUM_NUMBERS = 4
# Of the questions of a rule at most this share is drawn, so that new ones are found quickly.
MAX_DRAWN_RATIO = 0.5
# Words are drawn from all that name such a thing, and a model that misreads one does so in every
# wording: so the word and not the word in a wording. Rules and wordings are few and crossed with
# words; they count as fixed, and what is found holds for these.
CLUSTER = "word"

TEMPLATES = (
    "The word is {word} and the numbers are {numbers}. What is the answer?",
    "For {word}: {numbers}. What comes out?",
    "Take {numbers} and the word {word}. What is the result?",
    "What does {word} make of {numbers}?",
    "Someone says {word} and lists {numbers}. What is the reply?",
    "Numbers {numbers}, keyword {word}. Which answer is right?",
    "You read {word} next to {numbers}. What do you say?",
    "What do you get from {numbers} when the word is {word}?",
)


# For each condition, the words that name such a thing and nothing of another rule's kind.
WORDS = dict(
    line.split(": ") for line in read_text(Path(__file__).with_name("conditional.txt")).splitlines()
)


@dataclass(frozen=True)
class Rule:
    """If the word names ``condition``, the answer is ``operation`` of the numbers.

    Attributes:
        condition: kind of thing with its article, ``an animal``.
        operation: in words, ``the first number plus one``.
        pick: takes the numbers and returns the one that the operation starts from.
        step: what is added to it.
    """

    condition: str
    operation: str
    pick: Callable[[Sequence[int]], int]
    step: int = 0

    @property
    def words(self) -> list[str]:
        """Words that name such a thing."""
        return WORDS[self.condition].split()


RULES = (
    Rule("an animal", "the first number", itemgetter(0)),
    Rule("a fruit", "the last number", itemgetter(-1)),
    Rule("a tool", "the smallest number", min),
    Rule("a country", "the largest number", max),
    Rule("a vehicle", "the second number", itemgetter(1)),
    Rule("a piece of clothing", "the first number plus one", itemgetter(0), 1),
    Rule("a musical instrument", "the last number minus one", itemgetter(-1), -1),
    Rule("a profession", "the third number", itemgetter(2)),
    Rule("a part of the body", "the second number plus one", itemgetter(1), 1),
    Rule("a piece of furniture", "the third number minus one", itemgetter(2), -1),
    Rule("a drink", "the smallest number minus one", min, -1),
    Rule("a colour", "the largest number plus one", max, 1),
)


def load(
    *,
    train_size: int,
    validation_size: int,
    test_size: int,
    num_rules: int,
    held_out_ratio: float,
    show_rule: bool,
    data_seed: int,
) -> TaskData:
    """Draw the three splits, each of exactly the size asked for.

    Args:
        train_size: training examples.
        validation_size: validation examples, of the same words and wordings with other numbers.
        test_size: test examples of the group ``seen`` (likewise), and as many again of the group
            ``held_out``, whose words and wordings both never occur in training, unless none are
            held out.
        num_rules: how many of `RULES` govern the examples, in turn, so they are balanced.
        held_out_ratio: share of each rule's words and of the wordings held out, rounded up, by a
            fixed rule: the first in the order of their SHA-256, so a larger share holds out all of
            a smaller one.
        show_rule: begin each question with its rule: a control in which there are no conditions
            to learn.
        data_seed: seed of all draws.

    A split does not depend on the sizes of the others, and a smaller one is the beginning of a
    larger one; a rule's questions do not depend on the number of rules. The fields are ``rule``
    (``rule-3``, counted from 0), ``template`` (the wording's number) and ``word``, which is also
    the cluster.
    """
    check_at_least(0, train_size=train_size, validation_size=validation_size, test_size=test_size)
    check_at_least(0, data_seed=data_seed)
    _check_settings(num_rules, held_out_ratio)
    draws = _Draws(num_rules, held_out_ratio, show_rule, data_seed)
    test = draws.split("test", "seen", test_size)
    if held_out_ratio > 0:
        test += draws.split("test", "held_out", test_size)
    train = draws.split("train", "all", train_size)
    validation = draws.split("validation", "all", validation_size)
    return TaskData(train, validation, test, cluster_field=CLUSTER)


@dataclass(frozen=True)
class _Draws:
    """Draws the questions of each split, group and rule from a stream of their own."""

    num_rules: int
    held_out_ratio: float
    show_rule: bool
    data_seed: int

    def split(self, split: str, group: str, size: int) -> list[Example]:
        """Draw a split's examples of a group."""
        # Different digits, so that the smallest and the largest are unique.
        lists = [n for n in permutations(range(1, 10), NUM_NUMBERS) if _split_of(n) == split]
        path = split if group == "all" else f"{split}/{group}"
        streams = [
            self._examples(path, group, number, lists, math.ceil(size / self.num_rules))
            for number in range(self.num_rules)
        ]
        return [next(streams[index % self.num_rules]) for index in range(size)]

    def _examples(
        self, path: str, group: str, number: int, lists: list[tuple[int, ...]], most: int
    ) -> Iterator[Example]:
        """Yield a rule's examples; ``most`` is how many will be asked for."""
        is_held_out = group == "held_out"
        words = _held_out_or_not(RULES[number].words, self.held_out_ratio, is_held_out)
        templates = _held_out_or_not(TEMPLATES, self.held_out_ratio, is_held_out)
        num_questions = len(words) * len(templates) * len(lists)
        if most > num_questions * MAX_DRAWN_RATIO:
            allowed = int(num_questions * MAX_DRAWN_RATIO)
            raise InputError(
                f"{most} examples of one rule were asked for in {path} of conditional, which "
                f"allows {allowed}: lower its size"
            )
        draws = _distinct(Random(f"conditional/{self.data_seed}/{path}/{number}"), num_questions)
        for count, draw in enumerate(islice(draws, most)):
            rest, word = divmod(draw, len(words))
            numbers, template = divmod(rest, len(templates))
            question = self._question(number, templates[template], words[word], lists[numbers])
            id_ = f"conditional/{path}/{count * self.num_rules + number}"
            yield replace(question, id=id_, group=group)

    def _question(self, number: int, template: str, word: str, numbers: tuple[int, ...]) -> Example:
        """Return an example that has no id and no group yet."""
        rule = RULES[number]
        question = template.format(word=word, numbers=" ".join(map(str, numbers)))
        shown = f"If the word names {rule.condition}, answer {rule.operation}. "
        picked = rule.pick(numbers)
        answer = str(picked + rule.step)
        worked = f"{picked} {'+' if rule.step > 0 else '-'} {abs(rule.step)} = {answer}"
        return Example(
            id="",
            question=shown + question if self.show_rule else question,
            solution=(
                f"The word names {rule.condition}, so the answer is {rule.operation}: "
                f"{worked if rule.step else answer}.\n#### {answer}"
            ),
            answer=answer,
            fields={
                "rule": f"rule-{number}",
                "template": str(TEMPLATES.index(template)),
                CLUSTER: word,
            },
            cluster=word,
        )


def _split_of(numbers: tuple[int, ...]) -> str:
    position = hash_position(f"conditional/{numbers}")
    for split, share in SHARES.items():
        position -= share
        if position < 0:
            return split
    return "train"


def _held_out_or_not(items: Sequence[str], held_out_ratio: float, is_held_out: bool) -> list[str]:
    """Return the items that are held out, or the others, in their order."""
    ranked = sorted(items, key=text_hash)
    num_held_out = math.ceil(held_out_ratio * len(items))
    chosen = set(ranked[:num_held_out] if is_held_out else ranked[num_held_out:])
    return [item for item in items if item in chosen]


def _distinct(generator: Random, stop: int) -> Iterator[int]:
    """Yield different numbers below ``stop``, which must be well more than are taken."""
    drawn: set[int] = set()
    while True:
        draw = generator.randrange(stop)
        if draw not in drawn:
            drawn.add(draw)
            yield draw


def _check_settings(num_rules: int, held_out_ratio: float) -> None:
    if not 1 <= num_rules <= len(RULES):
        raise InputError(f"num_rules {num_rules} is outside 1 to {len(RULES)}: use for instance 8")
    if not 0 <= held_out_ratio < 1 or math.ceil(held_out_ratio * len(TEMPLATES)) == len(TEMPLATES):
        raise InputError(
            f"held_out_ratio {held_out_ratio} must lie in [0, 1) and leave at least one of "
            f"{len(TEMPLATES)} wordings for training: use for instance 0.25"
        )


TASK = Task(
    lambda settings: load(**settings.conditional.model_dump()),
    meaning="rule",
    wording="template",
    cluster=CLUSTER,
)
