"""What ``import schemabank`` offers by name."""

import ast
from pathlib import Path

import pytest

import schemabank
from schemabank.config.settings import RunConfig, Settings

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


@pytest.mark.parametrize("name", schemabank.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(schemabank, name) is not None


def test_type_checkers_know_the_same_names_from_the_same_places() -> None:
    tree = ast.parse(Path(schemabank.__file__).read_text(encoding="utf-8"))
    (typing,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {
        alias.name: str(node.module).removeprefix("schemabank.")
        for node in typing.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {n: schemabank._HOMES.get(n, "config.settings") for n in schemabank.__all__}
    assert told == homes


def test_every_section_of_a_run_can_be_annotated_and_is_on_the_page() -> None:
    fields = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    found = {"curriculum": schemabank.StageSettings}
    found |= {n: k for n, k in fields.items() if isinstance(k, type) and issubclass(k, Settings)}
    page = PAGE.read_text(encoding="utf-8")
    for name, kind in found.items():
        assert getattr(schemabank, kind.__name__) is kind
        assert f"| `{name}` | `{kind.__name__}` |" in page
    assert page.count("Settings` |") == len(found)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = schemabank.Trainer
