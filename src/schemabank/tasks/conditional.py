"""Owns the task conditional: generated questions, each governed by one known if-then rule.

A question holds a word and four numbers. What kind of thing the word names decides what is asked of
the numbers (an animal: the first one; a tool: the smallest), which no question says, so a model has
to learn condition and operation from examples. The rule's id stands beside each example, and
whether schemas specialise can be measured against it.

Nothing is downloaded: every example follows from the settings.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from operator import itemgetter
from random import Random

from schemabank.common.errors import InputError
from schemabank.tasks.base import Example, TaskData, check_at_least
from schemabank.tasks.task import Task

# Any list of numbers belongs to one split by its hash alone; the rest is for training. So no
# question can stand in two splits, whatever their sizes.
SHARES = {"test": 0.1, "validation": 0.1}
NUM_NUMBERS = 4
# Of the questions of a rule at most this share is drawn, so that new ones are found quickly.
MAX_DRAWN_RATIO = 0.5

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


@dataclass(frozen=True)
class Rule:
    """If the word names ``condition``, the answer is ``operation`` of the numbers.

    Attributes:
        condition: kind of thing with its article, ``an animal``.
        operation: in words, ``the first number plus one``.
        pick: takes the numbers and returns the one that the operation starts from.
        step: what is added to it.
        words: words, parted by blanks, that name such a thing and nothing of another rule's kind.
    """

    condition: str
    operation: str
    pick: Callable[[Sequence[int]], int]
    step: int
    words: str


RULES = (
    Rule(
        "an animal",
        "the first number",
        itemgetter(0),
        0,
        "horse cow dog cat sheep goat lion tiger wolf fox bear rabbit mouse elephant giraffe "
        "zebra monkey camel donkey frog snake eagle owl dolphin",
    ),
    Rule(
        "a fruit",
        "the last number",
        itemgetter(-1),
        0,
        "apple banana pear grape cherry strawberry raspberry blueberry pineapple mango melon "
        "apricot papaya watermelon grapefruit nectarine blackberry cranberry pomegranate fig "
        "guava lychee tangerine coconut",
    ),
    Rule(
        "a tool",
        "the smallest number",
        min,
        0,
        "hammer screwdriver wrench saw drill pliers chisel shovel axe rake spade crowbar "
        "hacksaw mallet clamp pickaxe hoe sickle chainsaw trowel sander wheelbarrow scissors "
        "lawnmower",
    ),
    Rule(
        "a country",
        "the largest number",
        max,
        0,
        "France Germany Spain Italy Portugal Sweden Norway Finland Denmark Poland Canada Mexico "
        "Brazil Argentina Peru Egypt Kenya Nigeria India Japan Thailand Vietnam Australia Greece",
    ),
    Rule(
        "a vehicle",
        "the second number",
        itemgetter(1),
        0,
        "car bus truck train bicycle motorcycle tram van taxi ambulance tractor scooter airplane "
        "helicopter boat ship ferry submarine yacht canoe limousine minivan rocket trolley",
    ),
    Rule(
        "a piece of clothing",
        "the first number plus one",
        itemgetter(0),
        1,
        "shirt jacket trousers skirt dress sweater coat hat scarf socks gloves jeans blouse "
        "hoodie shorts pyjamas cardigan raincoat mittens vest boots sandals leggings swimsuit",
    ),
    Rule(
        "a musical instrument",
        "the last number minus one",
        itemgetter(-1),
        -1,
        "piano guitar violin flute trumpet cello clarinet saxophone harp drums trombone oboe "
        "banjo accordion harmonica tuba bassoon mandolin ukulele xylophone tambourine bagpipes "
        "lute viola",
    ),
    Rule(
        "a profession",
        "the third number",
        itemgetter(2),
        0,
        "doctor teacher lawyer nurse engineer farmer baker carpenter plumber electrician "
        "journalist architect dentist surgeon pilot butcher accountant librarian firefighter "
        "waiter hairdresser pharmacist mechanic tailor",
    ),
    Rule(
        "a part of the body",
        "the second number plus one",
        itemgetter(1),
        1,
        "arm leg knee elbow shoulder nose ear mouth finger toe neck ankle wrist stomach heart "
        "lung liver kidney tongue chin forehead hip eyebrow thumb",
    ),
    Rule(
        "a piece of furniture",
        "the third number minus one",
        itemgetter(2),
        -1,
        "table chair sofa bed desk wardrobe bookshelf cupboard armchair stool bench couch "
        "dresser nightstand cabinet bookcase sideboard cradle hammock recliner futon ottoman "
        "footstool mattress",
    ),
    Rule(
        "a drink",
        "the smallest number minus one",
        min,
        -1,
        "water milk tea coffee juice lemonade beer wine whisky vodka cocoa cider champagne soda "
        "cola espresso cappuccino gin rum brandy smoothie milkshake tequila cognac",
    ),
    Rule(
        "a colour",
        "the largest number plus one",
        max,
        1,
        "red blue green yellow purple pink black white grey brown turquoise beige crimson "
        "magenta scarlet indigo maroon teal cyan lavender navy lilac khaki mauve",
    ),
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
        show_rule: begin each question with its rule, a control in which nothing is left to learn
            about conditions.
        data_seed: seed of all draws.

    A split does not depend on the sizes of the others, and a smaller one is the beginning of a
    larger one; a rule's questions do not depend on the number of rules. The fields are ``rule``
    (``rule-3``, counted from 0), ``template`` (the wording's number) and ``word``.
    """
    check_at_least(0, train_size=train_size, validation_size=validation_size, test_size=test_size)
    check_at_least(0, data_seed=data_seed)
    _check_settings(num_rules, held_out_ratio)
    decks = _Decks(
        num_rules=num_rules,
        held_out_ratio=held_out_ratio,
        show_rule=show_rule,
        data_seed=data_seed,
    )
    test = decks.draw("test", "seen", test_size)
    if held_out_ratio > 0:
        test += decks.draw("test", "held_out", test_size)
    train = decks.draw("train", "all", train_size)
    return TaskData(train, decks.draw("validation", "all", validation_size), test)


@dataclass(frozen=True)
class _Decks:
    """Draws the questions of each split, group and rule from a stream of their own."""

    num_rules: int
    held_out_ratio: float
    show_rule: bool
    data_seed: int

    def draw(self, split: str, group: str, size: int) -> list[Example]:
        lists = [numbers for numbers in _number_lists() if _split_of(numbers) == split]
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
        words = _part(RULES[number].words.split(), self.held_out_ratio, is_held_out)
        templates = _part(TEMPLATES, self.held_out_ratio, is_held_out)
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
            yield self._example(
                f"conditional/{path}/{count * self.num_rules + number}",
                number=number,
                template=templates[template],
                word=words[word],
                numbers=lists[numbers],
                group=group,
            )

    def _example(
        self,
        id_: str,
        *,
        number: int,
        template: str,
        word: str,
        numbers: tuple[int, ...],
        group: str,
    ) -> Example:
        rule = RULES[number]
        question = template.format(word=word, numbers=" ".join(map(str, numbers)))
        shown = f"If the word names {rule.condition}, answer {rule.operation}. "
        picked = rule.pick(numbers)
        answer = str(picked + rule.step)
        worked = f"{picked} {'+' if rule.step > 0 else '-'} {abs(rule.step)} = {answer}"
        return Example(
            id=id_,
            question=shown + question if self.show_rule else question,
            solution=(
                f"The word names {rule.condition}, so the answer is {rule.operation}: "
                f"{worked if rule.step else answer}.\n#### {answer}"
            ),
            answer=answer,
            fields={
                "rule": f"rule-{number}",
                "template": str(TEMPLATES.index(template)),
                "word": word,
            },
            group=group,
        )


def _number_lists() -> Iterator[tuple[int, ...]]:
    """Yield every list of different digits from 1 to 9; the smallest and the largest are unique."""
    return permutations(range(1, 10), NUM_NUMBERS)


def _split_of(numbers: tuple[int, ...]) -> str:
    digest = hashlib.sha256(f"conditional/{numbers}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SHARES.items():
        position -= share
        if position < 0:
            return split
    return "train"


def _part(items: Sequence[str], held_out_ratio: float, is_held_out: bool) -> list[str]:
    """Return the items that are held out, or the others, in their order."""
    ranked = sorted(items, key=lambda item: hashlib.sha256(item.encode()).digest())
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
    lambda settings: load(**settings.conditional.model_dump()), meaning="rule", wording="template"
)
