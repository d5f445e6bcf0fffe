"""The solutions that come with HumanEval and sanitized MBPP: all of them have to pass."""

import gzip
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from schemabank.common.cores import given_cores
from schemabank.sandbox import CheckResult, check_asserts, check_function

DATA = Path(os.environ.get("SCHEMABANK_DATA") or Path(__file__).parents[3] / "shared" / "data")
ENOUGH = {"timeout_s": 30.0, "memory_mib": 1024}
Row = dict[str, Any]


def humaneval() -> list[Row]:
    """The problems of HumanEval."""
    with gzip.open(DATA / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sanitized_mbpp() -> list[Row]:
    """The problems of MBPP that were checked by hand."""
    with gzip.open(DATA / "mbpp" / "sanitized-mbpp.json.gz", "rt", encoding="utf-8") as file:
        rows: list[Row] = json.load(file)
    return rows


def check_humaneval(row: Row) -> CheckResult:
    """Check the solution of a problem of HumanEval."""
    source = row["prompt"] + row["canonical_solution"]
    return check_function(source, row["entry_point"], row["test"], prompt=row["prompt"], **ENOUGH)


def check_sanitized_mbpp(row: Row) -> CheckResult:
    """Check the solution of a problem of sanitized MBPP."""
    setup = "\n".join(row["test_imports"])
    return check_asserts(row["code"], row["test_list"], setup=setup, **ENOUGH)


def failures(check: Callable[[Row], CheckResult], rows: Sequence[Row]) -> dict[str, str]:
    """Why each that fails does, by its number."""
    with ThreadPoolExecutor(given_cores()) as pool:
        verdicts = list(pool.map(check, rows))
    return {
        str(row["task_id"]): verdict.reason
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.passed
    }
