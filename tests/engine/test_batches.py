"""Schedules show every example once an epoch in shapes that the data alone decides."""

import os
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from schemabank.common.errors import InputError
from schemabank.engine.batches import (
    EMPTY,
    WIDTH_MULTIPLE,
    Batch,
    Encoded,
    Schedule,
    collate,
    encode,
    encode_turns,
    fill_rows,
    plan_schedule,
    prepend,
)
from schemabank.tasks import gsm8k
from schemabank.tasks.sources import DATA_VARIABLE

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
MAX_PADDING = 0.15


def example(length: int, *, label_start: int = 1) -> Encoded:
    return Encoded(id=str(length), tokens=tuple(range(1, length + 1)), label_start=label_start)


@st.composite
def datasets(draw: st.DrawFn) -> tuple[list[Encoded], int, int]:
    """Examples, batch size and number of buckets."""
    sizes = draw(st.lists(st.tuples(st.integers(2, 90), st.integers(1, 89)), min_size=1))
    examples = [example(length, label_start=min(start, length - 1)) for length, start in sizes]
    return examples, draw(st.integers(1, 7)), draw(st.integers(1, 9))


def planned(data: tuple[list[Encoded], int, int]) -> Schedule:
    examples, batch_size, max_buckets = data
    return plan_schedule(examples, batch_size=batch_size, max_buckets=max_buckets, num_orders=3)


# Schedules.


@given(data=datasets(), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_an_epoch_shows_every_example_exactly_once(
    data: tuple[list[Encoded], int, int], seed: int, epoch: int
) -> None:
    examples, batch_size, _ = data
    schedule = planned(data)
    rows = schedule.rows(seed, epoch)
    assert len(rows) == schedule.steps_per_epoch == -(-len(examples) // batch_size)
    assert {len(row) for row in rows} == {batch_size}
    shown = [index for row in rows for index in row if index != EMPTY]
    assert sorted(shown) == list(range(len(examples)))
    assert sum(EMPTY in row for row in rows) == (len(examples) % batch_size > 0)


@given(data=datasets(), seed=st.integers(0, 100), epoch=st.integers(0, 7))
def test_every_row_fits_its_buckets_tokens_and_labels(
    data: tuple[list[Encoded], int, int], seed: int, epoch: int
) -> None:
    examples, _, max_buckets = data
    schedule = planned(data)
    assert len(schedule.buckets) <= max_buckets
    widths = [bucket.width for bucket in schedule.buckets]
    assert widths == sorted(set(widths))
    assert all(width % WIDTH_MULTIPLE == 0 for width in widths)
    assert widths[-1] < max(len(e.tokens) for e in examples) + WIDTH_MULTIPLE
    first = epoch * schedule.steps_per_epoch
    for step, row in enumerate(schedule.rows(seed, epoch), start=first):
        bucket = schedule.bucket(step)
        shown = [examples[index] for index in row if index != EMPTY]
        assert max(len(e.tokens) for e in shown) <= bucket.width
        assert max(e.num_labels for e in shown) <= bucket.num_labels


@given(data=datasets())
def test_examples_belong_to_the_narrowest_bucket_that_holds_them(
    data: tuple[list[Encoded], int, int],
) -> None:
    examples, _, _ = data
    schedule = planned(data)
    narrower = 0
    for bucket in schedule.buckets:
        for index in bucket.members:
            assert narrower < len(examples[index].tokens) <= bucket.width
        narrower = bucket.width
    assert sorted(i for b in schedule.buckets for i in b.members) == list(range(len(examples)))


@given(data=datasets(), seed=st.integers(0, 100))
def test_shapes_depend_on_the_data_and_members_on_seed_and_epoch(
    data: tuple[list[Encoded], int, int], seed: int
) -> None:
    schedule, again = planned(data), planned(data)
    assert schedule == again
    assert schedule.rows(seed, 3).tolist() == again.rows(seed, 3).tolist()


def test_a_seeds_batches_stay_what_they_are() -> None:
    """Of runs that were recorded; another draw would give them other results."""
    examples = [example(2 + i * i % 23) for i in range(11)]
    schedule = plan_schedule(examples, batch_size=3, max_buckets=3, num_orders=2)
    assert schedule.rows(5, 1).tolist() == [[0, 5, 1], [4, 8, 9], [6, 10, EMPTY], [7, 2, 3]]


def test_members_change_with_seed_and_epoch_while_shapes_do_not() -> None:
    examples = [example(2 + i % 60) for i in range(100)]
    schedule = plan_schedule(examples, batch_size=4, max_buckets=4, num_orders=2)
    epochs = [schedule.rows(*key).tolist() for key in ((1, 0), (1, 1), (2, 0), (2, 1))]
    assert all(a != b for a, b in combinations(epochs, 2))
    assert len(schedule.buckets) == 4
    shuffled = list(schedule.order(0))
    assert shuffled != sorted(shuffled), "widths come in random order"
    other = plan_schedule(examples, batch_size=5, max_buckets=4, num_orders=2)
    assert other.orders != schedule.orders


@given(data=datasets(), num_orders=st.integers(1, 4))
def test_every_epoch_has_the_same_shapes_and_orders_take_turns(
    data: tuple[list[Encoded], int, int], num_orders: int
) -> None:
    examples, batch_size, max_buckets = data
    schedule = plan_schedule(
        examples, batch_size=batch_size, max_buckets=max_buckets, num_orders=num_orders
    )
    epoch = schedule.steps_per_epoch
    assert schedule.cycle == num_orders * epoch
    steps = map(schedule.bucket, range(2 * schedule.cycle))
    shapes = [(bucket.width, bucket.num_labels) for bucket in steps]
    assert shapes[: schedule.cycle] == shapes[schedule.cycle :]
    found = [Counter(shapes[n * epoch : (n + 1) * epoch]) for n in range(num_orders)]
    assert all(of_epoch == found[0] for of_epoch in found)
    fewer = plan_schedule(examples, batch_size=batch_size, max_buckets=max_buckets, num_orders=1)
    assert fewer.orders == schedule.orders[:1], "the first epoch is the same however many follow"


def test_widths_of_one_epoch_say_nothing_of_the_next() -> None:
    """Rank correlations of the widths at a step, in all pairs of epochs; in the same order: 1."""
    examples = [example(20 + i * i % 397) for i in range(4000)]
    schedule = plan_schedule(examples, batch_size=4, max_buckets=20, num_orders=4)
    steps = range(schedule.cycle)
    widths = np.array([schedule.bucket(step).width for step in steps]).reshape(4, -1)
    found = spearmanr(widths, axis=1).statistic
    assert np.abs(found[~np.eye(4, dtype=bool)]).max() < 4 / widths.shape[1] ** 0.5
    other = plan_schedule(examples, batch_size=5, max_buckets=20, num_orders=4)
    assert other.orders != schedule.orders


def test_which_example_is_which_does_not_change_the_shapes() -> None:
    examples = [example(2 + i % 60) for i in range(100)]
    schedule, mirrored = (
        plan_schedule(order, batch_size=4, max_buckets=4, num_orders=2)
        for order in (examples, examples[::-1])
    )
    assert schedule.orders == mirrored.orders
    shapes = [[(b.width, b.num_labels) for b in s.buckets] for s in (schedule, mirrored)]
    assert shapes[0] == shapes[1]


@given(
    lengths=st.lists(st.integers(2, 100), min_size=1, max_size=30), max_buckets=st.integers(1, 6)
)
def test_bounds_are_the_best_ones(lengths: list[int], max_buckets: int) -> None:
    """No choice of as many bounds gives examples fewer positions."""
    widths = [-(-n // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for n in lengths]
    values = sorted(set(widths))

    def positions(bounds: tuple[int, ...]) -> int:
        return sum(min(bound for bound in bounds if bound >= width) for width in widths)

    best = min(
        positions((*inner, values[-1]))
        for count in range(min(max_buckets, len(values)))
        for inner in combinations(values[:-1], count)
    )
    schedule = plan_schedule(
        [example(n) for n in lengths], batch_size=2, max_buckets=max_buckets, num_orders=2
    )
    assert positions(tuple(bucket.width for bucket in schedule.buckets)) == best


def test_leftovers_move_up_to_the_next_wider_bucket() -> None:
    examples = [example(n) for n in (8, 8, 8, 16, 16, 16, 16, 24)]
    schedule = plan_schedule(examples, batch_size=3, max_buckets=3, num_orders=2)
    assert [b.width for b in schedule.buckets] == [8, 16, 24]
    assert Counter(schedule.order(0)) == {0: 1, 1: 1, 2: 1}
    rows = dict(zip(schedule.order(0), schedule.rows(0, 0).tolist(), strict=True))
    assert sorted(rows[0]) == [0, 1, 2]
    assert set(rows[1]) < {3, 4, 5, 6}
    (moved,) = {3, 4, 5, 6} - set(rows[1])
    assert rows[2] in ([moved, 7, EMPTY], [7, moved, EMPTY])


def test_padding_ratio_by_hand() -> None:
    examples = [example(n) for n in (5, 8, 3, 20)]
    schedule = plan_schedule(examples, batch_size=2, max_buckets=2, num_orders=2)
    assert [b.width for b in schedule.buckets] == [8, 20]
    assert schedule.padding_ratio(5 + 8 + 3 + 20) == 1 - 36 / (2 * 8 + 2 * 20)


@pytest.mark.parametrize("completion_only", [True, False])
@pytest.mark.parametrize("batch_size", [4, 8])
def test_padding_on_gsm8k_is_at_most_15_percent(
    batch_size: int, completion_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(os.environ.get(DATA_VARIABLE, SHARED_DATA))
    if not (folder / "gsm8k" / "train.jsonl.gz").is_file():
        pytest.skip(f"needs GSM8K in {DATA_VARIABLE}")
    monkeypatch.setenv(DATA_VARIABLE, str(folder))
    rows = gsm8k.load(validation_ratio=0.1, calculator_marks=False).train
    tokens = re.compile(r" ?[A-Za-z]{1,8}|\d|\s|[^\w\s]")
    encoded = [
        encode(
            range(len(tokens.findall(row.question)) + 5),
            range(len(tokens.findall(row.solution)) + 1),
            example_id=row.id,
            max_length=512,
            completion_only=completion_only,
        )
        for row in rows
    ]
    schedule = plan_schedule(encoded, batch_size=batch_size, max_buckets=8, num_orders=2)
    lengths = [len(e.tokens) for e in encoded]
    assert 100 < sum(lengths) / len(lengths) < 250, "the stand-in is no likely tokenizer"
    assert 0 <= schedule.padding_ratio(sum(lengths)) <= MAX_PADDING


# Examples.


def test_encode_joins_prompt_and_completion() -> None:
    options = {"example_id": "x/1", "max_length": 5}
    found = encode([1, 2], [3, 4, 5], completion_only=True, **options)
    assert found == Encoded(id="x/1", tokens=(1, 2, 3, 4, 5), label_start=2, cut=False)
    assert found.num_labels == 3
    whole = encode([1, 2], [3, 4, 5], completion_only=False, **options)
    assert (whole.label_start, whole.num_labels) == (1, 4)


def test_encode_cuts_on_the_right() -> None:
    found = encode([1, 2], [3, 4, 5], example_id="x", max_length=4, completion_only=True)
    assert (found.tokens, found.cut, found.num_labels) == ((1, 2, 3, 4), True, 2)


@pytest.mark.parametrize(
    ("prompt", "completion", "sentence"),
    [
        ([], [1], "example 'x/7' has an empty prompt: give it some text"),
        ([1], [], "example 'x/7' has an empty completion: give it some text"),
        (
            [1, 2, 3],
            [4],
            "example 'x/7': its prompt alone has 3 tokens, so the limit task.max_length = 3 cuts "
            "off its whole completion: allowed is at least 4, raise the limit or leave the "
            "example out",
        ),
    ],
)
def test_encode_refuses_examples_without_labels(
    prompt: list[int], completion: list[int], sentence: str
) -> None:
    with pytest.raises(InputError) as error:
        encode(prompt, completion, example_id="x/7", max_length=3, completion_only=True)
    assert str(error.value) == sentence


def test_a_prefix_stands_behind_the_beginning_token() -> None:
    plain = Encoded(id="x", tokens=(9, 1, 2, 3), label_start=3, cut=True)
    found = prepend(plain, [7, 8], after=1, in_loss=False)
    assert found == Encoded(id="x", tokens=(9, 7, 8, 1, 2, 3), label_start=5, cut=True)
    assert found.num_labels == plain.num_labels
    front = prepend(plain, [7, 8], after=0, in_loss=False)
    assert front.tokens == (7, 8, 9, 1, 2, 3)


def test_a_prefix_has_labels_where_the_loss_is_on_the_whole_text() -> None:
    plain = Encoded(id="x", tokens=(9, 1, 2), label_start=1)
    found = prepend(plain, [7, 8], after=1, in_loss=True)
    assert (found.tokens, found.label_start, found.num_labels) == ((9, 7, 8, 1, 2), 1, 4)


def test_gaps_move_with_a_prefix() -> None:
    plain = Encoded(id="x", tokens=(9, 1, 2, 3, 4), label_start=1, gaps=((2, 4),))
    found = prepend(plain, [7, 8], after=1, in_loss=False)
    assert [found.tokens[i] for i in found.labelled] == [1, 4]
    assert [plain.tokens[i] for i in plain.labelled] == [1, 4]


def test_turns_become_labels_with_gaps() -> None:
    pieces = [([1, 2], False), ([3], True), ([4, 5], True), ([6, 7], False), ([8], True)]
    options = {"example_id": "x", "completion_only": True}
    found = encode_turns(pieces, max_length=8, **options)
    assert found == Encoded(id="x", tokens=tuple(range(1, 9)), label_start=2, gaps=((5, 7),))
    assert (found.labelled.tolist(), found.num_labels) == ([2, 3, 4, 7], 4)
    for length, gaps in ((7, ((5, 7),)), (6, ((5, 6),)), (5, ())):
        cut = encode_turns(pieces, max_length=length, **options)
        assert (cut.tokens, cut.gaps, cut.cut) == (found.tokens[:length], gaps, True)
        assert cut.labelled.tolist() == [2, 3, 4]
    whole = encode_turns(pieces, max_length=8, example_id="x", completion_only=False)
    assert whole.labelled.tolist() == list(range(1, 8))
    single = encode_turns(pieces[:3], max_length=8, **options)
    assert single == encode([1, 2], [3, 4, 5], max_length=8, **options), "one turn is a completion"


# Batches.


def test_a_gap_has_no_label() -> None:
    row = Encoded(id="a", tokens=(11, 12, 13, 14, 15, 16), label_start=1, gaps=((2, 4), (5, 6)))
    batch = collate([[row]], width=8, num_labels=3)
    assert batch.labels.tolist() == [[[12, 15, 0]]]
    assert batch.positions.tolist() == [[[0, 3, 0]]]
    assert batch.weights.tolist() == [[[1, 1, 0]]]
    assert batch.tokens.tolist() == [[[11, 12, 13, 14, 15, 16, 0, 0]]]


def test_collate_by_hand() -> None:
    first = Encoded(id="a", tokens=(11, 12, 13, 14), label_start=2)
    second = Encoded(id="b", tokens=(21, 22), label_start=1)
    third = Encoded(id="c", tokens=(31, 32, 33, 34, 35), label_start=2)
    batch = collate([[first, None], [second, third]], width=6, num_labels=3, padding=5)
    assert batch.tokens.tolist() == [
        [[11, 12, 13, 14, 5, 5], [5, 5, 5, 5, 5, 5]],
        [[21, 22, 5, 5, 5, 5], [31, 32, 33, 34, 35, 5]],
    ]
    assert batch.real.tolist() == [
        [[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]],
    ]
    assert batch.positions.tolist() == [[[1, 2, 0], [0, 0, 0]], [[0, 0, 0], [1, 2, 3]]]
    assert batch.labels.tolist() == [[[13, 14, 0], [0, 0, 0]], [[22, 0, 0], [33, 34, 35]]]
    assert batch.weights.tolist() == [[[1, 1, 0], [0, 0, 0]], [[1, 0, 0], [1, 1, 1]]]
    assert batch.tokens.dtype == batch.positions.dtype == batch.labels.dtype == torch.int64
    assert batch.real.dtype == batch.weights.dtype == torch.float32


@given(data=datasets(), seed=st.integers(0, 100))
def test_a_label_is_the_token_after_its_position(
    data: tuple[list[Encoded], int, int], seed: int
) -> None:
    examples, _, _ = data
    schedule = planned(data)
    num_labels = 0.0
    for step, row in enumerate(schedule.rows(seed, 0)):
        bucket = schedule.bucket(step)
        shown = [None if index == EMPTY else examples[index] for index in row]
        batch = collate([shown], width=bucket.width, num_labels=bucket.num_labels)
        after = batch.tokens.gather(2, (batch.positions + 1).clamp(max=bucket.width - 1))
        labelled = batch.weights > 0
        assert torch.equal(after[labelled], batch.labels[labelled])
        num_labels += batch.weights.sum().item()
    assert num_labels == sum(e.num_labels for e in examples)


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([[example(3)]], width=8, num_labels=2)
    moved = batch.to(torch.device("meta"))
    for name in ("tokens", "real", "positions", "labels", "weights"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(batch, name).shape


def test_shapes_are_those_of_a_collated_batch() -> None:
    batch = collate([[example(3), None]] * 3, width=8, num_labels=2)
    shapes = Batch.shapes((3, 2), width=8, num_labels=2)
    assert list(shapes) == list(Batch.__dataclass_fields__)
    for name, (shape, dtype) in shapes.items():
        assert getattr(batch, name).shape == shape
        assert getattr(batch, name).dtype == dtype


@given(data=datasets(), seed=st.integers(0, 100))
def test_filling_again_leaves_nothing_of_what_was_there(
    data: tuple[list[Encoded], int, int], seed: int
) -> None:
    """Steps of one shape share their memory."""
    examples, _, _ = data
    schedule = planned(data)
    width, num_labels = schedule.buckets[-1].width, schedule.buckets[-1].num_labels
    used = collate([[None] * schedule.batch_size], width=width, num_labels=num_labels)
    arrays = {name: getattr(used, name).numpy() for name in Batch.__dataclass_fields__}
    for padding, row in enumerate(schedule.rows(seed, 0)):
        shown = [None if index == EMPTY else examples[index] for index in row]
        fill_rows(arrays, [shown], padding=padding)
        new = collate([shown], width=width, num_labels=num_labels, padding=padding)
        for name in arrays:
            assert torch.equal(getattr(used, name), getattr(new, name))
