"""Results of PEFT's method comparison: one JSON file a run, with its accuracy on the test split.

The format is that of ``method_comparison/MetaMathQA/results`` in
https://github.com/huggingface/peft/tree/0a179c1e8659ab4f7df0369b9b03943cfe470ff1
It has no scores of single items, so that runs are compared over seeds alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.files import read_json
from schemabank.report.reading.itemresults import FLOAT_DIGITS, as_score
from schemabank.report.reading.places import ResultFile
from schemabank.report.reading.table import ScoreRow, ScoreTable

PEFT = "PEFT's method comparison"
SCORE = "test accuracy"


def is_peft_result(tree: Mapping[str, object]) -> bool:
    """Whether what a JSON file holds is such a result."""
    return "run_info" in tree and "train_info" in tree


def read_peft_results(name: str, files: Sequence[ResultFile]) -> ScoreTable:
    """Read runs as rows of a table: an arm is an experiment, such as ``lora/llama-3.2-3B-rank32``.

    Raises:
        InputError: a file is malformed or of a run that failed, or two are of one arm and seed.
    """
    rows: list[ScoreRow] = []
    seen: dict[tuple[str, str | None], Path] = {}
    for line, file in enumerate(files, start=1):
        row = _row(read_json(file.path), file, line)
        first = seen.setdefault((row.arm, row.seed), file.path)
        if first != file.path:
            raise InputError(
                f"{first} and {file.path} are both of {row.arm!r}, seed {row.seed}: allowed is one "
                "run a seed, move one of the files away"
            )
        rows.append(row)
    said = json.dumps([[row.arm, row.seed, str(row.exact)] for row in rows])
    digest = hashlib.sha256(said.encode()).hexdigest()
    return ScoreTable(name, digest, tuple(rows), "", tool=PEFT)


def _row(tree: Mapping[str, Any], file: ResultFile, line: int) -> ScoreRow:
    run, trained = tree["run_info"], tree["train_info"]
    run, trained = (own if isinstance(own, dict) else {} for own in (run, trained))
    status, config = trained.get("status"), run.get("train_config")
    if status != "success":
        raise InputError(
            f"{str(file.path)!r} has the status {status!r:.60}, allowed is 'success': move the "
            "file away"
        )
    name = run.get("experiment_name")
    seed = config.get("seed") if isinstance(config, dict) else None
    is_number = isinstance(seed, int) and not isinstance(seed, bool)
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or not is_number:
        raise InputError(
            f"{str(file.path)!r} has the experiment_name {name!r:.60} and the seed {seed!r:.60}, "
            "allowed are a name that can be printed and a whole number: restore the file"
        )
    metrics = trained.get("metrics")
    metrics = metrics if isinstance(metrics, list) else []
    scores = [own[SCORE] for own in metrics if isinstance(own, dict) and SCORE in own]
    if len(scores) != 1:
        raise InputError(
            f"{str(file.path)!r} has {len(scores)} values of {SCORE!r} among its metrics, allowed "
            "is one: restore the file"
        )
    score = Fraction(as_score(scores[0], str(file.path)))
    return ScoreRow(file.arm or name, "", file.seed or str(seed), score, FLOAT_DIGITS, None, line)
