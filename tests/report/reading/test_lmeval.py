"""The lm-evaluation-harness's files: what is read, and what is refused by the name of its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluations import DATE, write_lm_eval
from schemabank.common.errors import InputError
from schemabank.report.reading.itemresults import TaskRun
from schemabank.report.reading.lmeval import is_results, read_run
from schemabank.report.reading.places import ResultFile

SCORES = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
SAMPLES = f"samples_gsm8k_{DATE}.jsonl"
Json = dict[str, Any]


def read(path: Path, metric: str | None = None, cluster_by: str | None = None) -> list[TaskRun]:
    return list(read_run(ResultFile(path, "lora", "1"), metric, cluster_by))


def edit(path: Path, change: Callable[[Json], object]) -> None:
    """Change a file of results, or the first line of one of samples."""
    first, end, rest = path.read_text(), "", ""
    if path.suffix == ".jsonl":
        first, end, rest = first.partition("\n")
    tree = json.loads(first)
    change(tree)
    path.write_text(json.dumps(tree) + end + rest)


def test_names_of_files() -> None:
    assert is_results(Path(f"x/results_{DATE}.json"))
    assert is_results(Path("results_2024-05-20T00-54-01.123.json"))
    assert not is_results(Path("results.json"))
    assert not is_results(Path("results_mine.json"))


def test_the_first_metric_and_filter_of_every_task(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES, "svamp": [0.5, 1.0]})
    first, second = read(path)
    assert (first.arm, first.seed, first.task) == ("lora", "1", "gsm8k")
    assert first.metric == "exact_match,strict-match"
    assert [item.score for item in first.items.values()] == SCORES
    assert second.mean == 0.75
    assert first.conditions["versions"] == "3.0"
    assert first.conditions["n-shot"] == "5"
    assert len({item.content for item in first.items.values()}) == len(SCORES)


@pytest.mark.parametrize("name", ["exact_match,flexible-extract", "exact_match"])
def test_another_filter(tmp_path: Path, name: str) -> None:
    (found,) = read(write_lm_eval(tmp_path, {"gsm8k": SCORES}), name)
    assert found.mean == (1.0 if "flexible" in name else 0.5)


def test_older_samples_name_no_filter(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"arc": SCORES})
    tree = json.loads(path.read_text())
    tree["results"]["arc"] = {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.2}
    path.write_text(json.dumps(tree))
    rows = [{"doc_id": n, "doc": {}, "acc": own} for n, own in enumerate(SCORES)]
    samples = tmp_path / f"samples_arc_{DATE}.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = read(path)
    assert (found.metric, found.mean) == ("acc,none", 0.5)
    assert {item.content for item in found.items.values()} == {""}


def test_groups_have_no_items_of_their_own(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"a": SCORES, "b": SCORES})

    def grouped(tree: Json) -> None:
        tree["results"]["both"] = {"alias": "both", "exact_match,strict-match": 0.5}
        tree["group_subtasks"]["both"] = ["a", "b"]

    edit(path, grouped)
    assert [run.task for run in read(path)] == ["a", "b"]


def test_clusters_by_a_field_of_the_documents(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    (found,) = read(path, cluster_by="topic")
    assert [item.cluster for item in found.items.values()] == ["t0"] * 3 + ["t1"] * 3
    with pytest.raises(InputError, match=r"line 1 has None as its 'x\.y', .*has question, answer"):
        read(path, cluster_by="x.y")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.pop("results"), "has no object 'results' of tasks"),
        (lambda tree: tree.update(results={"gsm8k": 1}), "has no object 'results' of tasks"),
        (lambda tree: tree["results"].update(x={"acc,none": 1}), "samples_x_.* is not beside it"),
        (
            lambda tree: tree["n-samples"]["gsm8k"].update(effective=7),
            "says that 7 items of 'gsm8k' were scored, but its samples have 6",
        ),
        (
            lambda tree: tree["results"]["gsm8k"].update({"exact_match,strict-match": 0.6}),
            "as 0.6, but its items have the mean 0.5",
        ),
        (
            lambda tree: tree["higher_is_better"]["gsm8k"].update(exact_match=False),
            r"no metric that can be compared: allowed are those .* \(none here; not exact_match\)",
        ),
    ],
)
def test_wrong_results(tmp_path: Path, change: Callable[[Json], object], words: str) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    edit(path, change)
    with pytest.raises(InputError, match=words) as error:
        read(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda row: row.pop("doc_id"), "line 1 has no doc_id"),
        (lambda row: row.pop("exact_match"), "line 1 has no metric 'exact_match'"),
        (lambda row: row.update(doc_id=1), "line 3 has the doc_id 1 .* a second time"),
        (lambda row: row.update(exact_match=[1, 2]), r"line 1 has the score \[1, 2\], allowed are"),
        (lambda row: row.update(exact_match=1.5), "line 1 has the score 1.5, allowed are numbers"),
        (lambda row: row.update(exact_match=-0.1), "line 1 has the score -0.1"),
        (lambda row: row.update(exact_match=float("nan")), "line 1 has the score nan"),
        (lambda row: row.update(exact_match="1"), "line 1 has the score '1'"),
        (lambda row: row.update(filter="other"), "have 5 for the filter 'strict-match'"),
    ],
)
def test_wrong_samples(tmp_path: Path, change: Callable[[Json], object], words: str) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    edit(tmp_path / SAMPLES, change)
    with pytest.raises(InputError, match=words):
        read(path)


def test_torn_files(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    samples = tmp_path / SAMPLES
    whole = samples.read_text()
    samples.write_text(whole[:-20])
    with pytest.raises(InputError, match="line 12 is not valid JSON"):
        read(path)
    samples.write_text("".join(whole.splitlines(keepends=True)[:-2]))
    with pytest.raises(InputError, match=r"says that 6 items .* its samples have 5"):
        read(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match="is not valid JSON"):
        read(path)


def test_a_metric_that_is_not_there(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    said = r"has no metric f1: .* \(exact_match,strict-match, exact_match,flexible-extract\)"
    with pytest.raises(InputError, match=said):
        read(path, "f1")


@pytest.mark.parametrize("name", ["a/b", "../gsm8k", "a\0b"])
def test_a_task_whose_name_is_no_files(tmp_path: Path, name: str) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    edit(path, lambda tree: tree["results"].update({name: tree["results"]["gsm8k"]}))
    with pytest.raises(InputError, match="allowed are names that a file may have"):
        read(path)


def test_settings_of_generation_are_conditions(tmp_path: Path) -> None:
    path = write_lm_eval(tmp_path, {"gsm8k": SCORES})
    own = {"temperature": 0.7, "do_sample": True}
    edit(path, lambda tree: tree["configs"]["gsm8k"].update(generation_kwargs=own))
    (found,) = read(path)
    assert '"temperature": 0.7' in found.conditions["generation_kwargs"]
