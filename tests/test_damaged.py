"""Whatever is wrong with a file or a folder ends as an ``InputError``, or does no harm."""

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from damage import RAW, copies, each_changed
from schemabank.adapters.peftcheck import read_check
from schemabank.common.errors import InputError
from schemabank.common.tables import PlainTable, plain_table
from schemabank.config.file import load_experiment, overridden
from schemabank.config.settings import RunConfig
from schemabank.models.basemodel import load_base_model
from schemabank.report.command import Question, report
from schemabank.report.contents import report_json
from schemabank.report.page import tables, text
from schemabank.report.routing.report import heat_map_cells
from schemabank.report.routing.report import tables as routing_tables
from schemabank.runs.experiment import run_experiment
from schemabank.runs.fairness import unequal_arms
from schemabank.runs.folder import RESULT
from schemabank.runs.inputs import recorded_in
from schemabank.runs.saved import evaluate_saved, export_run
from schemabank.runs.stored import read_result, read_routing, read_suite
from schemabank.runs.tables import results_tables, skipped_lines
from schemabank.suites.execution import run_suite
from schemabank.suites.plan import plan_suite
from schemabank.suites.suite import load_suite
from tinyruns import Finished, Notes, write_model
from tinysuites import ran, tiny

pytestmark = [
    # Libraries warn of much that is odd in a damaged file and go on.
    pytest.mark.filterwarnings("ignore"),
]
FIXTURES = Path(__file__).parent / "fixtures"
NEW = {"lm_eval": "new", "inspect": "hf/new"}
LORA = {"lm_eval": "lora", "inspect": "hf/lora"}
SOAK = pytest.mark.soak
ANALYSIS = Path(__file__).parent.parent / "results" / "routing" / "rule-tags.json"
NESTED = ("result.json", "suite.json", "cost.json", "config.yaml")  # of which one value changes
Attempt = Callable[[Path], object]


def attempts(
    folder: Path,
    place: Path,
    count: int,
    seed: int,
    *attempted: Attempt,
    only: Sequence[str] = (),
) -> int:
    """Try things on damaged copies of a folder; return how many copies were refused."""
    refused = 0
    for copy, said in copies(folder, place, count, seed=seed, only=only):
        ended = []
        for attempt in attempted:
            try:
                attempt(copy)
            except InputError as error:
                ended.append(str(error))
            except Exception as error:
                raise AssertionError(f"{said}: {error!r}") from error
        assert all(len(text) < 2000 for text in ended), said
        refused += bool(ended)
    return refused


@pytest.mark.parametrize(("count", "seed"), [(40, 0), pytest.param(1000, 1, marks=SOAK)])
def test_a_damaged_model_folder(count: int, seed: int, tmp_path: Path) -> None:
    def load(folder: Path) -> None:
        load_base_model(str(folder), dtype=torch.float32, device=torch.device("cpu"))

    refused = attempts(write_model(tmp_path / "model"), tmp_path / "copies", count, seed, load)
    assert refused > count / 3


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(("count", "seed"), [(10, 0), pytest.param(600, 1, marks=SOAK)])
def test_a_damaged_run_folder(count: int, seed: int, finished: Finished, tmp_path: Path) -> None:
    def evaluated(folder: Path) -> None:
        evaluate_saved(folder, ["eval.limit=1", "eval.routing=on"], None, Notes())

    def exported(folder: Path) -> None:
        export_run(folder, tmp_path / f"out-{folder.name}", merge=False)

    run = finished.schemabank.folder
    assert attempts(run, tmp_path / "copies", count, seed, evaluated, exported) >= count / 10


def printed(*tables: PlainTable) -> None:
    """Print tables as the command line does, to a file that holds no half characters."""
    with Path(os.devnull).open("w", encoding="utf-8") as file:
        Console(file=file, width=200).print(*(plain_table(*table) for table in tables))


def shown(runs: Sequence[RunConfig], results: list[Mapping[str, Any]]) -> None:
    """Print what ``train`` prints of results."""
    with Path(os.devnull).open("w", encoding="utf-8") as file:
        Console(file=file, width=200).print(*results_tables(results))
        file.writelines([*skipped_lines(results), *unequal_arms(runs, results)])
    assert all(check.said for check in map(read_check, results) if check)


def reported(folder: Path) -> None:
    found = report(folder, Question(treatment="schemabank", control="lora"))
    printed(*tables(found))
    text(found).encode()
    json.dumps(report_json(found), ensure_ascii=False).encode()


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("count", "seed", "only"),
    [
        (6, 0, ()),
        (20, 0, NESTED),
        pytest.param(300, 1, (), marks=SOAK),
        pytest.param(1000, 1, NESTED, marks=SOAK),
    ],
)
def test_a_damaged_folder_of_runs(
    count: int, seed: int, only: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    experiment = load_experiment(finished.config)

    def again(folder: Path) -> None:
        outcomes = run_experiment(experiment, folder, Notes())
        assert len(outcomes) == 3
        shown(experiment.runs(), [o.result for o in outcomes if o.result is not None])

    place = tmp_path / "copies"
    refused = attempts(finished.out, place, count, seed, reported, again, only=only)
    assert refused >= (count / 3 if only else 0)


@pytest.mark.parametrize("arm", ["lora", "base", pytest.param("schemabank", marks=SOAK)])
def test_a_result_with_any_value_changed_is_refused_or_shown(
    arm: str, finished: Finished, tmp_path: Path
) -> None:
    runs = load_experiment(finished.config).runs()
    outcomes = (finished.base, finished.lora, finished.schemabank)
    whole: list[Mapping[str, Any]] = [read_result(o.folder / RESULT) for o in outcomes]
    at = [result["arm"] for result in whole].index(arm)
    sentences: list[str] = []
    path, count = tmp_path / RESULT, 0
    for changed, said in each_changed(dict(whole[at])):
        path.write_text(changed)
        count += 1
        try:
            found = read_result(path)
            shown(runs, [*whole[:at], found, *whole[at + 1 :]])
        except InputError as error:
            sentences.append(str(error))
        except Exception as error:
            raise AssertionError(said) from error
    assert len(sentences) > count / 2
    assert all(str(path) in sentence and len(sentence) < 1000 for sentence in sentences)


def a_small_analysis() -> dict[str, Any]:
    """The recorded analysis with a row or two of each kind, so that each value can be changed."""
    whole = read_routing(ANALYSIS)
    layer = {**whole["layers"][0], "usage": [0.25, 0.75], "probability": [0.5, 0.5], "dead": [0]}
    found = {row["state"]: row for row in whole["information"] if row["state"] in {"start", "end"}}
    by_value = {**whole["by_value"][0], "values": ["rule-2", "rule-10"], "usage": [[1, 0], [0, 1]]}
    return whole | {
        "states": list(found),
        "layers": [{**layer, "state": state, "changed": 0.5} for state in found],
        "information": list(found.values()),
        "reuse": whole["reuse"][:1],
        "by_value": [by_value],
        "schemas": [],
    }


def test_an_analysis_of_routing_with_any_value_changed_is_refused_or_shown(tmp_path: Path) -> None:
    path, count, sentences = tmp_path / "routing.json", 0, []
    whole = a_small_analysis()
    path.write_text(json.dumps(whole))
    assert read_routing(path) == whole
    for changed, said in each_changed(whole):
        path.write_text(changed)
        count += 1
        try:
            found = read_routing(path)
            printed(*routing_tables(found))
            assert recorded_in(found).keys() <= {"model", "tokenizer", "data", "adapter", "bank"}
            for rows, title, cells in heat_map_cells(found).values():
                parts = [rows, title, *(astuple(cell) for cell in cells)]
                json.dumps(parts, ensure_ascii=False, allow_nan=False).encode()
        except InputError as error:
            sentences.append(str(error))
        except Exception as error:
            raise AssertionError(said) from error
    assert len(sentences) > count / 2
    assert all(str(path) in sentence and len(sentence) < 1000 for sentence in sentences)


@pytest.mark.usefixtures("gsm8k")
@pytest.mark.parametrize(
    ("count", "seed", "only"),
    [
        (12, 0, NESTED),
        pytest.param(300, 1, (), marks=SOAK),
        pytest.param(600, 1, NESTED, marks=SOAK),
    ],
)
def test_a_damaged_suite_folder(
    count: int, seed: int, only: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    tune = {"factors": [0.5, 1.0], "seeds": [1001], "extend": 0}
    path = tiny(finished, tmp_path / "suite.yaml", grid={}, tune=tune)
    ran(path, tmp_path / "suite")

    def listed(folder: Path) -> None:
        plan = plan_suite(load_suite(path), folder, Notes(), with_cohorts=False)
        printed(*plan.tables())
        json.dumps(plan.rows(), ensure_ascii=False).encode()
        if plan.refusal is not None:
            raise plan.refusal

    def again(folder: Path) -> None:
        ended = run_suite(load_suite(path), folder, Notes())
        printed(*ended.tables())
        json.dumps([ended.rows(), ended.inequalities()], ensure_ascii=False).encode()

    place = tmp_path / "copies"
    refused = attempts(tmp_path / "suite", place, count, seed, listed, reported, again, only=only)
    assert refused >= (count / 4 if only else 0)


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(5000, 1, marks=SOAK)])
def test_a_damaged_configuration(count: int, seed: int, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "run.yaml").write_bytes(finished.config.read_bytes())
    refused = attempts(
        tmp_path / "whole",
        tmp_path / "copies",
        count,
        seed,
        lambda folder: load_experiment(folder / "run.yaml"),
    )
    assert refused > count / 3


@pytest.mark.parametrize("value", [raw.decode("latin-1") for raw in RAW if len(raw) < 10_000])
def test_a_damaged_override(value: str) -> None:
    with pytest.raises(InputError, match="--set"):
        overridden(RunConfig(arm="lora"), [f"train.learning_rate={value}"])


@pytest.mark.parametrize(("count", "seed"), [(100, 0), pytest.param(3000, 1, marks=SOAK)])
def test_a_damaged_table(count: int, seed: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    draw = random.Random(0)
    rows = [
        f"{arm},1,{seed_},{draw.random():.3f},100"
        for arm in ("lora", "schemabank")
        for seed_ in range(4)
    ]
    table = "arm,epochs,seed,score,n_items\n" + "\n".join(rows) + "\n"
    (tmp_path / "whole" / "table.csv").write_text(table)
    question = Question(treatment="schemabank", control="lora")
    attempts(
        tmp_path / "whole",
        tmp_path / "copies",
        count,
        seed,
        lambda folder: report(folder / "table.csv", question),
    )


@pytest.mark.parametrize("tool", ["lm_eval", "inspect"])
@pytest.mark.parametrize(("count", "seed"), [(150, 0), pytest.param(3000, 1, marks=SOAK)])
def test_damaged_results_of_other_tools(count: int, seed: int, tool: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(FIXTURES / tool, whole)

    def reported_on(folder: Path) -> None:
        found = report(folder, Question(treatment=NEW[tool], control=LORA[tool]))
        tables(found)
        text(found).encode()
        json.dumps(report_json(found), ensure_ascii=False, allow_nan=False).encode()

    reported_on(whole)
    assert attempts(whole, tmp_path / "copies", count, seed, reported_on) > count / 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"metric": float("inf")}, "metric"),
        ({"metric": "unheard"}, "metric"),
        ({"groups": {}}, "groups"),
        ({"groups": {"all": []}}, "groups.all"),
        ({"groups": {"all": {"num_items": True}}}, r"groups\.all\.num_items"),
        ({"scores": ["strange"]}, r"scores .*begins with \['correct'\]"),
        ({"scores": ["correct", "strange"]}, r"groups\.all\.strange \(it is missing"),
        ({"versions": {"torch": []}}, r"versions\.torch"),
        ({"temperature": [0]}, "temperature"),
        ({"training": {"num_steps": "many"}}, r"training\.num_steps"),
    ],
)
def test_a_result_of_another_shape_is_named(
    change: dict[str, object], named: str, finished: Finished, tmp_path: Path
) -> None:
    result = json.loads((finished.lora.folder / "result.json").read_text())
    assert read_result(finished.lora.folder / "result.json") == result
    (tmp_path / "result.json").write_text(json.dumps(result | change))
    with pytest.raises(InputError, match=rf"lacks a usable {named}"):
        read_result(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        ({}, "contrast"),
        ({"contrast": None, "runs": {}}, "runs"),
        ({"contrast": "lora", "runs": []}, "contrast"),
        (
            {
                "contrast": None,
                "runs": [{"run_id": "../x", "arm": "lora", "seed": 1, "settings": {}}],
            },
            r"runs\.0\.run_id .* names of folders beside it",
        ),
        ({"contrast": None, "runs": [], "tuning": {"split": "validation"}}, r"tuning\.runs"),
    ],
)
def test_a_suite_of_another_shape_is_named(
    manifest: dict[str, object], named: str, tmp_path: Path
) -> None:
    (tmp_path / "suite.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"is no list of a suite's runs \({named}"):
        read_suite(tmp_path / "suite.json")
