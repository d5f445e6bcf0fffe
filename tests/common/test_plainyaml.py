import time
from pathlib import Path

import pytest
import yaml

from schemabank.common.errors import InputError
from schemabank.common.plainyaml import parse_yaml
from schemabank.config.file import load_experiment


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("12:30", "12:30"),
        ("1:30.5", "1:30.5"),
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("on", "on"),
        ("no", "no"),
        ("True", True),
        ("~", None),
        ("7", 7),
        ("-1_000", -1000),
        ("1.0e-3", 1e-3),
        ("52e12345", "52e12345"),
        (".inf", float("inf")),
        ("=", "="),
        ("", None),
    ],
)
def test_plain_scalars_are_texts_numbers_truth_values_and_null(text: str, value: object) -> None:
    found, _ = parse_yaml(text, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["2024-01-01", "12:30", "on", "010", "52e12345", "1.5e3", "1e-4"])
def test_what_is_written_as_text_is_read_as_text(text: str) -> None:
    assert parse_yaml(yaml.safe_dump({"a": text}), "x")[0] == {"a": text}


def test_aliases_and_merges_save_writing() -> None:
    text = "a: &a {b: 1, c: [2]}\nd: {<<: *a, b: 3}\ne: [*a, *a]\n"
    value, lines = parse_yaml(text, "x")
    assert value == {
        "a": {"b": 1, "c": [2]},
        "d": {"b": 3, "c": [2]},
        "e": [{"b": 1, "c": [2]}] * 2,
    }
    assert (("d",), 2) in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object:os.system x", r"x:1 has the YAML tag .*python/object.*: remove it"),
        ("a: !!binary aGk=", "has the YAML tag .*binary"),
        ("!!set {a, b}", "has the YAML tag .*set"),
        ("a: !own b", "has the YAML tag !own"),
        ("a: &a [*a]", "nested more than 40 deep"),
        ("&a {b: *a}", "nested more than 40 deep"),
        ("[" * 50 + "]" * 50, "nested more than 40 deep"),
        ("[" * 5000 + "]" * 5000, "is not valid YAML|nested more than 40 deep"),
        ("a: " + "9" * 5000, r"is not valid YAML \(Exceeds the limit"),
        ("1: a", "has a key that is not text, 1:"),
        ("null: a", "has a key that is not text, null:"),
        ("[1]: a", "has a key that is not text, a list or a mapping"),
        ("a: *b", "is not valid YAML .*undefined alias"),
        ("a: b: c", "is not valid YAML"),
        ("a: [", "is not valid YAML"),
        ("--- 1\n--- 2", "is not valid YAML .*single document"),
        ("a: \x01", "is not valid YAML .*special characters"),
        ("a: !!int x", "is not valid YAML"),
    ],
)
def test_what_settings_do_not_need_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_yaml(text, "x")


def test_a_text_with_a_colon_is_told_to_stand_in_quotes() -> None:
    with pytest.raises(InputError, match=r"line 2, .*\): put a text with a colon in quotes$"):
        parse_yaml("task:\n  prompt: Q: {question}\n", "c.yaml")
    with pytest.raises(InputError, match=r"\): mend it there$"):
        parse_yaml("task: [", "c.yaml")


def test_a_bomb_of_aliases_is_refused_at_once() -> None:
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(12)]
    began = time.process_time()
    with pytest.raises(InputError, match="stands for more than 100000 values"):
        parse_yaml("\n".join(lines), "x")
    assert time.process_time() - began < 5


def test_an_endless_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has more than 1048576 bytes"):
        load_experiment(Path("/dev/zero"))
    (tmp_path / "x.yaml").write_text("# " + "x" * 2**20)
    with pytest.raises(InputError, match="has more than 1048576 bytes"):
        load_experiment(tmp_path / "x.yaml")
