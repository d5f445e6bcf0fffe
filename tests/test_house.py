"""How the code is laid out: who asks which method a run has."""

import ast
from pathlib import Path

from schemabank.config import METHODS

SOURCE = Path(__file__).parents[1] / "src" / "schemabank"


def names_asked(tree: ast.AST) -> list[str]:
    """Comparisons of an arm with a method's name."""
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        and "arm" in ast.unparse(node)
        and any(isinstance(x, ast.Constant) and x.value in METHODS for x in ast.walk(node))
    ]


def test_nobody_asks_for_a_method_by_its_name() -> None:
    found = {
        path.name: asked
        for path in SOURCE.rglob("*.py")
        if (asked := names_asked(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_a_question_for_a_name_is_found() -> None:
    asked = ["run.arm == 'base'", "row['arm'] != 'lora'", "run.arm in {'lora', 'schemabank'}"]
    assert names_asked(ast.parse("\n".join([*asked, "x = 'base'", "'lora' in stage.train"]))) == (
        asked
    )
