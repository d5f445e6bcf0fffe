"""Values that lie in a file instead of memory: the same values, in the same order."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fulldisk import longest_file
from properties import examples
from schemabank.common.errors import InputError
from schemabank.common.stored import Codec, Stored, chosen, kept
from schemabank.engine.batches import ENCODED, Encoded
from schemabank.tasks.base import EXAMPLES, Example, Turn

TEXT = Codec(write=str.encode, read=bytes.decode, size=len)


@examples(50)
@given(values=st.lists(st.text(st.characters(exclude_categories=["Cs"]))), most=st.integers(0, 20))
def test_values_are_the_same_wherever_they_lie(values: list[str], most: int) -> None:
    found = kept(iter(values), TEXT, at_most=most)
    assert isinstance(found, Stored) == (sum(map(len, values)) > most)
    assert list(found) == values
    assert len(found) == len(values)
    assert [found[i] for i in range(-len(values), len(values))] == values * 2
    assert list(found[1:3]) == values[1:3]
    assert list(found[::-2]) == values[::-2]
    odd = list(range(1, len(values), 2))
    some = chosen(found, odd)
    assert list(some) == values[1::2]
    assert list(chosen(some, range(len(odd) - 1))) == values[1::2][:-1]
    with pytest.raises(IndexError):
        found[len(values)]


def test_values_are_not_kept_while_they_are_written() -> None:
    alive = 0

    class Value(str):
        __slots__ = ()

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def values() -> Iterator[str]:
        nonlocal alive
        for number in range(100):
            alive += 1
            assert alive <= 12
            yield Value(number)

    assert list(kept(values(), TEXT, at_most=10)) == list(map(str, range(100)))


def test_a_disk_without_room_is_named() -> None:
    with (
        longest_file(2**14),
        pytest.raises(InputError, match=r"temporary files '.*' cannot hold them .*set TMPDIR"),
    ):
        kept(("x" * 1000 for _ in range(100)), TEXT, at_most=10)


@pytest.mark.parametrize(
    "example",
    [
        Example("a", "q", "s", "a"),
        Example(
            *("ü/1", "q\n", "s", "a", {"a": "1", "b": "\u2028"}, "g", ("r", "s"), "c"),
            turns=(Turn("user", "x"), Turn("assistant", "y", learned=True)),
        ),
    ],
)
def test_examples_come_back(example: Example) -> None:
    found = EXAMPLES.read(EXAMPLES.write(example))
    assert found == example
    assert all(isinstance(turn, Turn) for turn in found.turns)


@pytest.mark.parametrize(
    "encoded",
    [
        Encoded("a", (1, 2, 2**31 - 1), 1),
        Encoded("records/train/ü", (1, 2, 3, 4, 5, 6), 2, cut=True, gaps=((3, 4), (5, 6))),
    ],
)
def test_tokens_come_back(encoded: Encoded) -> None:
    found = ENCODED.read(ENCODED.write(encoded))
    assert found == encoded
    assert found.labelled.tolist() == encoded.labelled.tolist()
    assert isinstance(found.cut, bool)
