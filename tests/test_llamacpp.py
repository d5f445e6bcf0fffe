"""The comparison with llama.cpp: what it counts, and the table that the docs show of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import BENCHMARKS, load_tool

ROOT = BENCHMARKS.parent
llamacpp: Any = load_tool(BENCHMARKS / "llamacpp.py")
# It knows one answer, and says the end as llama.cpp does.
PROGRAM = f"""#!{sys.executable}
import sys
assert sys.argv[1:3] == ["-m", "a.gguf"] and sys.argv[-2] == "-p" and "-no-cnv" in sys.argv
print({{"one": " 1\\n [end of text]\\n\\n"}}.get(sys.argv[-1], "?"))
"""


def evaluated(folder: Path, temperature: float) -> Path:
    rows = [{"prompt": "one", "completion": " 1\n"}, {"prompt": "two", "completion": " 2"}]
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps({"temperature": temperature}))
    (folder / "predictions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_it_counts_completions_that_are_the_same(tmp_path: Path) -> None:
    program = tmp_path / "llama-completion"
    program.write_text(PROGRAM)
    program.chmod(0o700)
    answers = llamacpp.read_answers(evaluated(tmp_path / "run", 0.0))
    assert answers == {"one": " 1\n", "two": " 2"}
    assert llamacpp.same(program, ["-m", "a.gguf"], answers) == 1
    assert llamacpp.same(program, ["-m", "a.gguf"], {"one": " 1"}) == 0
    with pytest.raises(SystemExit, match=r"(?s)llama-completion ended with 1: .*AssertionError"):
        llamacpp.same(program, ["-m", "b.gguf"], answers)


def test_sampled_completions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"eval.temperature is 0.7: evaluate it with 0$"):
        llamacpp.read_answers(evaluated(tmp_path / "run", 0.7))


def test_the_table_of_the_docs_is_that_of_its_record() -> None:
    record = json.loads((ROOT / "results" / "llama_cpp.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "howto" / "llama-cpp.md").read_text(encoding="utf-8")
    shown = "\n".join(llamacpp.table(record))
    assert page.partition("<!-- llamacpp.py: results/llama_cpp.json -->\n")[2].startswith(shown)
    assert record["program"] in page
    assert f"{record['items']} prompts" in page
