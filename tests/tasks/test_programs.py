"""Right solutions in every form that models write, and what no form makes right."""

import gzip
import json
import os
from pathlib import Path

import pytest

from schemabank.config.task import HumanevalSettings
from schemabank.tasks import Item
from schemabank.tasks.humaneval import judge, load, taken
from schemabank.tasks.programs import body_or_function, module

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SCHEMABANK_DATA", ROOT.parent / "shared" / "data"))
ALLOWED = HumanevalSettings(run_untrusted_code=True)
WRONG_HELPER = "def half(x):\n    return 2\n\ndef total(items):\n    return 1\n"
CHECK = "def check(candidate):\n    pass\n\ndef total(items):\n    1\n"
PROMPT = (
    "from math import floor\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def total(items):\n    """Half the sum, rounded down."""\n'
)
BODY = (
    "    result = 0\n    for item in items:\n        result += item\n"
    "    return floor(half(result))\n"
)
WHOLE = PROMPT + BODY
ALONE = f"def total(items):\n{BODY}"
FIELDS = {
    "kind": "humaneval",
    "prompt": PROMPT,
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 4]) == half(4)\n",
}
FLAT = "".join(line[4:] for line in BODY.splitlines(keepends=True))
LATER_HELPER = (
    "LIMIT = 2\n\ndef total(items):\n    return floor(half(summed(items)))\n\n"
    "@staticmethod\ndef summed(items):\n    return sum(items)\n"
)

RIGHT = {
    "body alone": BODY,
    "whole function": WHOLE,
    "function without the prompt's imports": ALONE,
    "function, then an example": ALONE + "\n\nprint(total([1, 2]))\nassert total([1]) == 7\n",
    "function, then prose": ALONE + "\nIt's a sum (see above.\n",
    "function, then the main block": ALONE + '\nif __name__ == "__main__":\n    total(1)\n',
    "function, then a comment": ALONE + "\n# Example\ntotal(None)\n",
    "sentence, function": f"Here is the function:\n\n{ALONE}",
    "helper behind, decorated": LATER_HELPER,
    "fence, whole function": f"```python\n{WHOLE}```\n",
    "sentence, fence": f"Here it is:\n\n```python\n{WHOLE}```\nDone. It's {{simple}}.",
    "indented sentence, fence": f" Sure!\n```\n{ALONE}```",
    "fence, body": f"```python\n{BODY}```",
    "fence, body without its indentation": f"```python\n{FLAT}```",
    "fence of tildes": f"~~~py\n{ALONE}~~~\n",
    "fence of four": f"````python\n{ALONE}````\n",
    "fence in a list": "1. So:\n   ```python\n"
    + "".join(f"   {line}" for line in ALONE.splitlines(keepends=True))
    + "   ```\n2. Done",
    "fence without an end": f"```python\n{ALONE}",
    "fence in capitals": f"```Python3\n{ALONE}```",
    "fence with attributes": f"```python title=a.py\n{ALONE}```",
    "fence behind another language's": f"```bash\npip install x\n```\n```python\n{ALONE}```",
    "fence behind one with an example": f"```python\ntotal([1])\n```\n```python\n{ALONE}```",
    "fence with an example": f"```python\n{ALONE}\nprint(total(None))\n```",
    "fence, then another try": f"```python\n{ALONE}```\nOr:\n```python\ndef total(items): 1\n```",
    "body, then a fence's end": f"{BODY}```\nThis adds them up.\n```python\ntotal([1])\n```",
    "body, then the function again": f"{BODY}\n\ndef total(items):\n    return 1\n",
    "CRLF": f"```python\r\n{ALONE}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
}
WRONG = {
    "nothing": "",
    "an empty fence": "```python\n```",
    "prose": "I would add them up.",
    "a fence in another language": "```js\nfunction total(items) { return 2 }\n```",
    "the prompt again": f"```python\n{PROMPT}```",
    "a wrong function": "```python\ndef total(items):\n    return 3\n```",
    "another function": "```python\ndef totals(items): return 2\n```",
    "a helper replaced": f"```python\n{WRONG_HELPER}```",
    "a test of its own": f"```python\n{CHECK}```",
    "leaving early": "```python\nimport sys\n\ndef total(items):\n    sys.exit(0)\n```",
    "an equal to all": "```python\nclass A:\n    def __eq__(self, other):\n        return True\n\n"
    "def total(items):\n    return A()\n```",
}


def item(fields: dict[str, str]) -> Item:
    return Item("0", "g", "", (1,), (2,), golds=(), fields=fields)


def reasons(fields: dict[str, str], completions: dict[str, str]) -> dict[str, str]:
    judged = judge(ALLOWED, [(item(fields), text) for text in completions.values()])
    return dict(zip(completions, (verdict.reason for _, verdict in judged), strict=True))


def test_a_right_solution_passes_in_every_form() -> None:
    found = reasons(FIELDS, RIGHT)
    assert found == dict.fromkeys(RIGHT, "passed")


def test_no_form_makes_a_wrong_one_right() -> None:
    assert "passed" not in reasons(FIELDS, WRONG).values()


MBPP = {
    "kind": "mbpp",
    "tests": json.dumps(["assert set(add(1, 2)) == {3}", "assert add(2, 2) == [4]"]),
    "setup": "",
}
ADD = "def add(x, y):\n    return [x + y]\n"


def test_mbpp_is_read_in_every_form_too() -> None:
    right = {
        "code": ADD,
        "constants first": f"R = 3\nC, D = 3, 4\n{ADD}",
        "sentence": f"Here's how:\n\n{ADD}",
        "fence": f"```python\n{ADD}```",
        "sentence, fence": f"Sure! It's easy.\n\n```python\nimport math\n{ADD}```\nDone.",
        "fence behind an example": f"Like this:\n```\nadd(1)\n```\n```python\n{ADD}```",
        "fence, tests": f"```python\n{ADD}\nassert add(1, 1) == 7\n```",
        "code, then a fence's end": f"{ADD}```\nThat was it.\n```python\nadd()\n```",
        "capital name first": f"Pair = tuple\n{ADD}",
        "comment first": f"# Adds.\n{ADD}",
    }
    assert reasons(MBPP, right) == dict.fromkeys(right, "passed")
    wrong = {"prose": "Add them.", "fence": "```python\ndef add(x, y):\n    return [3]\n```"}
    assert "passed" not in reasons(MBPP, wrong).values()


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        (f"Here:\n```python\n{ALONE}```", ALONE),
        (f"```python\n{FLAT}```", BODY),
        (f"{BODY}\nThat's it", BODY),
    ],
)
def test_what_was_taken_is_what_is_recorded(completion: str, code: str) -> None:
    assert body_or_function(completion, "total").rstrip() == code.rstrip()


def test_long_completions_take_linear_time() -> None:
    for piece in (
        "```\n",
        "def total(x):\n",
        "    x\n",
        "A ",
        "x = (",
        "```python\nX\n",
        "\n",
        "~" * 9,
    ):
        text = piece * (50_000 // len(piece))
        body_or_function(text, "total")
        module(text, ["total"])


@pytest.mark.skipif(not (DATA / "mbpp").is_dir(), reason="needs MBPP and HumanEval")
def test_every_published_solution_is_found_in_a_chat_models_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(DATA))
    published = load().test
    assert len(published) == 164 + 257
    for example in published:
        fields, solution = example.fields, example.solution
        start = fields.get("prompt", "")
        answer = f"Here is the solution:\n\n```python\n{start}{solution}```\n\nIt's done."
        code = taken(answer, fields)
        assert solution.rstrip() in code.rstrip(), example.id
        assert code.rstrip().endswith(solution.rstrip()), example.id


@pytest.mark.skipif(not (DATA / "humaneval").is_dir(), reason="needs HumanEval")
def test_every_tenth_published_solution_passes_as_a_whole_function() -> None:
    lines = gzip.decompress((DATA / "humaneval/HumanEval.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in lines.split("\n") if line]
    chosen = [*rows[::10], *(rows[i] for i in (32, 38, 50))]  # the last three have helpers
    pairs = []
    for row in chosen:
        fields = {n: row[n] for n in ("prompt", "entry_point", "test")} | {"kind": "humaneval"}
        whole = row["prompt"] + row["canonical_solution"]
        pairs.append((item(fields), f"Sure:\n```python\n{whole}```\nDone."))
    assert [verdict.reason for _, verdict in judge(ALLOWED, pairs)] == ["passed"] * len(pairs)
