"""Records in ``results/`` are those of the configurations in ``configs/`` as they stand.

Which are not is listed in ``results/README.md``, and the list is exact: a record that goes stale
fails here, and so does one that was made anew and is still listed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from schemabank.config.file import config_hash, load_experiment, run_id
from schemabank.config.settings import RunConfig
from schemabank.config.task import TaskSettings
from schemabank.methods.schemabank.bank import Routing
from schemabank.runs.inputs import DATA, data_digest, recorded_in
from schemabank.runs.loading import resolved
from schemabank.tasks.catalog import load_task

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
TAGS: dict[str, list[str]] = {"rule-tags": [], "no-tags": ["tags.tagger=none"]}


@pytest.fixture(autouse=True)
def _a_cpu_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records were made on one, and ``model.dtype: auto`` is float32 on others."""
    monkeypatch.setattr("schemabank.models.basemodel._has_native_bfloat16", lambda _: True)


def runs_of(config: str, overrides: Sequence[str] = ()) -> list[RunConfig]:
    experiment = load_experiment(ROOT / "configs" / config, overrides)
    return resolved(experiment.runs(), torch.device("cpu"))


@cache
def digest(task: TaskSettings) -> str:
    return data_digest(load_task(task))


def is_of(record: dict[str, Any], run: RunConfig) -> bool:
    """Whether a result names a run's settings and the data that they give."""
    same_data = recorded_in(record).get(DATA) == digest(run.task)
    return record.get("config_hash") == config_hash(run) and same_data


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def stale_quickstart() -> Iterator[Path]:
    runs = {run_id(run): run for run in runs_of("quickstart.yaml")}
    for path in sorted((RESULTS / "quickstart").iterdir()):
        if path.stem not in runs or not is_of(read(path), runs[path.stem]):
            yield path


def stale_routing() -> Iterator[Path]:
    for name, overrides in TAGS.items():
        (run,) = runs_of("conditional/routing.yaml", overrides)
        report = RESULTS / "routing" / f"{name}.json"
        same_data = recorded_in(read(report)).get(DATA) == digest(run.task)
        if read(report)["run"] != run_id(run) or not same_data:
            yield report
        for routing in get_args(Routing):
            path = RESULTS / "routing" / f"{name}-{routing}.json"
            asked = run.eval.model_copy(update={"routing": routing})
            if not is_of(read(path), run.model_copy(update={"eval": asked})):
                yield path


def stale_learning_rates() -> Iterator[Path]:
    """Rows name their runs and data, as ``benchmarks/tune_learning_rates.py`` writes them."""
    (task, *_) = {run.task for run in runs_of("quickstart.yaml")}
    for path in sorted((RESULTS / "learning_rates").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        named = all({"run", "inputs"} <= row.keys() for row in rows)
        is_drawn = rows[0]["task"] == task.name
        if not named or (is_drawn and any(recorded_in(r).get(DATA) != digest(task) for r in rows)):
            yield path


def listed() -> list[str]:
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([\w/.-]+)` \|", page.partition("## Stale records")[2], re.MULTILINE)


def test_the_quickstarts_records_are_those_of_its_configuration() -> None:
    names = {run_id(run) for run in runs_of("quickstart.yaml")}
    assert {path.stem for path in (RESULTS / "quickstart").iterdir()} == names
    assert list(stale_quickstart()) == []


def test_the_list_of_stale_records_is_exact() -> None:
    found = [*stale_learning_rates(), *stale_quickstart(), *stale_routing()]
    assert listed() == sorted(str(path.relative_to(RESULTS)) for path in found)


@pytest.mark.parametrize(
    "change",
    [
        {"train": {"learning_rate": 3e-3}},
        {"task": {"gsm_symbolic": {"data_seed": 1}}},
        {"eval": {"split": "validation"}},
    ],
)
def test_a_configuration_that_changes_makes_its_record_stale(change: dict[str, Any]) -> None:
    (run,) = (run for run in runs_of("quickstart.yaml") if run.arm == "lora")
    record = read(RESULTS / "quickstart" / f"{run_id(run)}.json")
    assert is_of(record, run)
    other = RunConfig.model_validate(merged(run.model_dump(), change))
    assert not is_of(record, other)
    assert not is_of({**record, "inputs": recorded_in(record) | {DATA: "sha256:0"}}, run)


def merged(tree: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {
        **tree,
        **{k: merged(tree[k], v) if isinstance(v, dict) else v for k, v in change.items()},
    }
