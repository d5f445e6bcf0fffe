"""From a file of one's own to an adapter, a score and its evaluation again, on a tiny model."""

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from transformers import AutoTokenizer

from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment
from schemabank.runs.experiment import run_experiment
from schemabank.runs.members import Outcome
from schemabank.runs.saved import evaluate_saved
from schemabank.runs.tables import results_tables
from tinyruns import Notes, write_model

ROOT = Path(__file__).parents[2]
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model, 40 rows about 5 documents and a configuration of a few lines."""
    write_model(tmp_path / "model")
    data = [
        {
            "sum": f"{i}+{i % 5}=",
            "result": str(i + i % 5),
            "page": f"page {i % 5}",
            "tag": "abc"[i % 3],
        }
        for i in range(40)
    ]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return tmp_path


def config(place: Path, **task: object) -> Path:
    path = place / "mine.yaml"
    tree = {
        "arm": ["base", "lora", "schemabank"],
        "model": {"name": str(place / "model"), "dtype": "float32"},
        "task": {
            "name": "records",
            "prompt": "{sum}",
            "records": {"path": str(place / "sums.jsonl"), "target": "{result}", "test_ratio": 0.3},
            **task,
        },
        "tags": {"tagger": "field", "field": "tag"},
        "train": {"max_steps": 6},
        "eval": {"split": "test", "max_new_tokens": 4, "batch_size": 4},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def trained(path: Path, out: Path) -> list[Outcome]:
    outcomes = run_experiment(load_experiment(path, ()), out, Notes())
    assert [o.failure for o in outcomes] == [None] * 3
    return outcomes


def records_of(outcome: Outcome) -> list[dict[str, object]]:
    text = (outcome.folder / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("metric", ["numeric", "exact_match", "f1", "rouge_l", "none"])
def test_every_metric_scores_a_file_of_ones_own(place: Path, metric: str) -> None:
    (_, lora, _) = trained(config(place, metric=metric), place / "runs")
    assert lora.result is not None
    summary = lora.result["groups"]["all"]
    assert lora.result["metric"] == metric
    for name in lora.result["scores"]:
        scored = [r["scores"][name] for r in records_of(lora)]
        assert summary[name] == pytest.approx(sum(scored) / len(scored))
    assert summary["num_items"] == len(records_of(lora)) > 4


def test_several_samples_of_an_item_give_pass_at_k(place: Path) -> None:
    path = config(place, metric="numeric")
    tree = yaml.safe_load(path.read_text())
    tree["eval"] |= {"num_samples": 4, "temperature": 1.0, "pass_at": [1, 4]}
    path.write_text(yaml.safe_dump(tree))
    (_, lora, _) = trained(path, place / "runs")
    assert lora.result is not None
    summary = lora.result["groups"]["all"]
    rows = records_of(lora)
    assert lora.result["scores"][-2:] == ["pass@1", "pass@4"]
    assert len(rows) == 4 * summary["num_items"] == summary["num_samples"] * summary["num_items"]
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * summary["num_items"]
    first = [str(row["completion"]) for row in rows[:4]]
    assert len(set(first)) > 1
    assert len({row["gold_nll"] for row in rows[:4]}) == 1
    assert summary["pass@1"] == pytest.approx(summary["correct"])
    assert summary["pass@4"] >= summary["pass@1"]
    (again,) = evaluate_saved(lora.folder, [], place / "again", Notes())
    assert records_of(again) == rows
    with pytest.raises(InputError, match="allowed are the metrics numeric, exact_match, choice"):
        evaluate_saved(lora.folder, ["task.metric=f1"], place / "graded", Notes())


def test_items_of_one_document_are_a_cluster(place: Path) -> None:
    path = config(place, metric="f1")
    tree = yaml.safe_load(path.read_text())
    tree["task"]["records"]["cluster"] = "page"
    path.write_text(yaml.safe_dump(tree))
    (base, _, _) = trained(path, place / "runs")
    assert {r["cluster"] for r in records_of(base)} <= {f"page {i}" for i in range(5)}


def test_a_chat_template_wraps_the_prompt_in_training_and_evaluation(place: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(place / "model")
    reporter = Notes()
    path = config(place, chat_template=True)
    outcomes = run_experiment(load_experiment(path, ()), place / "runs", reporter)
    for outcome in outcomes:
        prompts = [str(r["prompt"]) for r in records_of(outcome)]
        assert all(p.startswith("<user>") and p.endswith("=<assistant>") for p in prompts)
    first = next(i for i, line in enumerate(reporter.lines) if line.startswith("example records/"))
    assert "<user>" in reporter.lines[first + 1]
    assert "<assistant>" in reporter.lines[first + 1]


def test_a_chat_template_that_is_not_there_is_refused(place: Path) -> None:
    path = config(place, chat_template=True)
    with pytest.raises(InputError, match="the tokenizer has no chat template"):
        run_experiment(load_experiment(path, ()), place / "runs", Notes())
    assert not (place / "runs").exists()


def test_a_run_knows_its_data_by_its_content(place: Path) -> None:
    path = config(place)
    (_, lora, _) = trained(path, place / "runs")
    again = run_experiment(load_experiment(path, ()), place / "runs", Notes())
    assert all(outcome.reused for outcome in again)
    (outcome,) = evaluate_saved(lora.folder, ["eval.limit=2"], None, Notes())
    assert len(records_of(outcome)) == 2
    with (place / "sums.jsonl").open("a") as file:
        file.write(json.dumps({"sum": "9+9=", "result": "18", "page": "x", "tag": "a"}) + "\n")
    with pytest.raises(InputError, match="has changed since it was first used"):
        evaluate_saved(lora.folder, ["eval.limit=3"], None, Notes())
    evaluate_saved(lora.folder, ["eval.limit=3", "task.records.digest=null"], None, Notes())
    (place / "other.jsonl").write_text(
        "".join(json.dumps({"sum": f"{i}+7=", "result": str(i + 7)}) + "\n" for i in range(30))
    )
    elsewhere = [f"task.records.path={place / 'other.jsonl'}", "task.records.cluster=null"]
    (other,) = evaluate_saved(lora.folder, elsewhere, None, Notes())
    assert all("+7=" in str(r["prompt"]) for r in records_of(other))
    anew = trained(path, place / "runs")
    assert not any(outcome.reused for outcome in anew), "other data, another run"


def test_a_gold_that_no_completion_can_match_is_found_before_training(place: Path) -> None:
    path = config(place, metric="choice")
    with pytest.raises(InputError, match=r"records/train/\d+: gold '\d+' is not a choice"):
        run_experiment(load_experiment(path, ()), place / "runs", Notes())
    assert not (place / "runs").exists()


def test_the_configuration_in_the_docs_runs_as_printed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    printed = text.partition("<!-- config -->")[2].partition("```yaml\n")[2].partition("```")[0]
    assert 0 < len(printed.splitlines()) < 15
    monkeypatch.chdir(place)
    (place / "mine.yaml").write_text(printed)
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(60)]
    (place / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny = [f"model.name={place / 'model'}", "train.num_train_epochs=1", "eval.max_new_tokens=4"]
    outcomes = run_experiment(load_experiment(Path("mine.yaml"), tiny), Path("runs"), Notes())
    assert [o.failure for o in outcomes] == [None] * 3
    assert (outcomes[2].folder / "adapter" / "adapter_model.safetensors").is_file()


def test_a_moved_file_is_the_same_data(place: Path) -> None:
    trained(config(place), place / "runs")
    (place / "sums.jsonl").rename(place / "moved.jsonl")
    path = config(place)
    path.write_text(path.read_text().replace("sums.jsonl", "moved.jsonl"))
    again = run_experiment(load_experiment(path, ()), place / "runs", Notes())
    assert all(outcome.reused for outcome in again)


def test_a_group_with_brackets_is_shown_as_it_is(place: Path) -> None:
    path = config(place)
    rows = [json.loads(line) for line in (place / "sums.jsonl").read_text().splitlines()]
    (place / "sums.jsonl").write_text(
        "".join(json.dumps(row | {"part": "[/math]"}) + "\n" for row in rows)
    )
    tree = yaml.safe_load(path.read_text())
    tree["task"]["records"]["group"] = "part"
    path.write_text(yaml.safe_dump(tree))
    (base, _, _) = trained(path, place / "runs")
    console = Console(width=200, file=io.StringIO())
    console.print(*results_tables([base.result or {}]))
    assert "[/math]" in console.file.getvalue()


def test_a_task_of_likelihoods_has_its_own_metric_alone(place: Path) -> None:
    books = place / "books"
    books.mkdir()
    for name in ("a", "b", "c"):
        (books / f"{name}.txt").write_text(" ".join(f"{name}{i}" for i in range(400)))
    splits = {"a": "train", "b": "test", "c": "test"}
    lines = [{"book_id": n, "file": f"{n}.txt", "split": s} for n, s in splits.items()]
    (books / "index.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = config(place)
    tree = yaml.safe_load(path.read_text())
    sizes = {"path": str(books), "windows": [16, 48], "num_targets": 4, "validation_ratio": 0}
    tree["task"] = {"name": "perplexity", "perplexity": sizes, "max_length": 2048}
    tree["arm"], tree["tags"] = ["base", "lora"], {"tagger": "none"}
    path.write_text(yaml.safe_dump(tree))
    outcomes = run_experiment(load_experiment(path, ()), place / "runs", Notes())
    for outcome in outcomes:
        assert outcome.result is not None
        groups = outcome.result["groups"]
        assert list(groups) == ["16 tokens", "48 tokens"]
        assert groups["16 tokens"]["num_tokens"] == groups["48 tokens"]["num_tokens"] == 2 * 4 * 4
        table = results_tables([outcome.result])
        assert len(table) == 1
    for metric in ("f1", "none"):
        with pytest.raises(InputError, match="perplexity allows only 'perplexity'"):
            run_experiment(load_experiment(path, [f"task.metric={metric}"]), place / "x", Notes())
