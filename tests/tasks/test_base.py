"""What tasks share: a validation split by hash, and checks of sizes."""

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks.base import Example, check_at_least, check_validation_ratio, set_aside

EXAMPLES = [Example(str(i), f"question {i // 2}", "", "") for i in range(400)]


def ids(examples: list[Example]) -> set[str]:
    return {example.id for example in examples}


def test_a_larger_share_keeps_what_a_smaller_one_set_aside() -> None:
    before: set[str] = set()
    for ratio in (0.0, 0.1, 0.3, 0.6):
        kept, aside = set_aside(EXAMPLES, ratio, by=lambda e: e.question)
        assert [e.id for e in EXAMPLES if e in kept] == [e.id for e in kept], "order stays"
        assert ids(kept) | ids(aside) == ids(EXAMPLES)
        assert len(kept) + len(aside) == len(EXAMPLES)
        assert before <= ids(aside)
        assert len(aside) == pytest.approx(400 * ratio, abs=60)
        before = ids(aside)


def test_examples_of_one_text_stay_together() -> None:
    kept, aside = set_aside(EXAMPLES, 0.5, by=lambda e: e.question)
    assert not {e.question for e in kept} & {e.question for e in aside}


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match=rf"validation_ratio {ratio} is outside \[0, 1\): use"):
        check_validation_ratio(ratio)


def test_the_first_number_that_is_too_small_is_named() -> None:
    check_at_least(1, a=1, b=None)
    with pytest.raises(InputError, match="b 0 is below 1: use 1 or more"):
        check_at_least(1, a=1, b=0, c=0)
