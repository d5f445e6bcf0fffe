"""Values of a row: dotted names lead into objects and lists."""

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks.columns import (
    check_scalar,
    column,
    dotted_in,
    is_null,
    references_in,
    text_in,
)

ROW: dict[str, object] = {
    "id": 7,
    "meta": {"id": "a", "more": {"deep": 1}, "none": None},
    "answers": {"text": ["Paris", "Paris, France"], "start": [3, 9]},
    "turns": [{"role": "user", "content": "x"}, {"role": "assistant"}, "y"],
    "a.b": {"c": "of the dotted column"},
    "a": {"b": {"c": "of the object"}, "x": "y"},
}
PLACE = ("row 1", ROW)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 7),
        ("meta.id", "a"),
        ("meta.more.deep", 1),
        ("meta.none", None),
        ("meta.none.deep", None),
        ("meta.id.deep", None),
        ("answers.text", ["Paris", "Paris, France"]),
        ("answers.text.1", "Paris, France"),
        ("answers.text.2", None),
        ("turns.content", ["x"]),
        ("turns.0.content", "x"),
        ("turns.nowhere", None),
        ("a.b.c", "of the dotted column"),
        ("a.x", "y"),
        ("nowhere.x", None),
    ],
)
def test_a_dotted_name_leads_into_a_column(name: str, value: object) -> None:
    assert column(ROW, name) == value


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("meta.none", True),
        ("meta.none.deep", True),
        ("no", True),
        ("no.deep", True),
        ("list.0", True),
        ("list.0.deep", True),
        ("meta.id", False),
        ("meta.nowhere", False),
        ("meta.id.deep", False),
        ("list.1", False),
        ("list.deep", False),
        ("a.nowhere", False),
        ("nowhere", False),
        ("nowhere.x", False),
    ],
)
def test_what_is_null_is_told_from_what_is_missing(name: str, found: bool) -> None:
    row = {**ROW, "no": None, "list": [None]}
    assert is_null(row, name) is found
    assert column(row, name) is None or not found


def test_dotted_names_of_a_template_are_those_that_lead_into_a_column() -> None:
    template = "{id} {meta.id} {answers.text.0} {nowhere.x} {{meta.more}} {a.b} {meta.id}"
    assert dotted_in(template, ROW) == ["meta.id", "answers.text.0"]


def test_what_is_no_text_is_refused_with_the_name_that_would_do() -> None:
    with pytest.raises(InputError, match=r"row 1 has a list, .* write answers\.text\.0 for its"):
        check_scalar(PLACE, "answers.text", "task.records.target")
    with pytest.raises(InputError, match=r"row 1 has an object, .* write meta\. and a name in it"):
        check_scalar(PLACE, "meta", "task.records.target")


def test_references_and_named_columns_may_be_dotted() -> None:
    assert references_in(PLACE, "answers.text") == ("Paris", "Paris, France")
    assert references_in(PLACE, "answers.start") == ("3", "9")
    assert text_in(PLACE, "id", "meta.id", otherwise="") == "a"
    with pytest.raises(InputError, match=r"row 1 has no references in column 'answers\.nowhere'"):
        references_in(PLACE, "answers.nowhere")
    with pytest.raises(InputError, match=r"row 1 has no column 'meta\.nowhere'"):
        text_in(PLACE, "group", "meta.nowhere", otherwise="")
