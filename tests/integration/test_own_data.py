"""The short configurations in examples/own_data: from a file to an adapter and a score."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from architectures import tiny_architecture
from schemabank.common.errors import InputError
from schemabank.config.file import load_experiment, load_run
from schemabank.runs.experiment import run_experiment
from schemabank.runs.members import Outcome
from schemabank.runs.saved import evaluate_saved
from tinyruns import Notes, write_model

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_data"
MOST_LINES = 12
CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def chat(number: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": f"{number}+1?"},
        {"role": "assistant", "content": str(number + 1)},
        {"role": "user", "content": "and 1?"},
        {"role": "assistant", "content": str(number + 2)},
    ]


def write_csv(path: Path) -> None:
    lines = [f'"{i}+1, if ""+"" adds",{i + 1}' for i in range(40)]
    path.write_text("\n".join(["question,answer", *lines]))


def write_parquet(path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "completion": f" {i + 1}"} for i in range(40)]
    Dataset.from_list(rows).to_parquet(path)


def write_chats(path: Path) -> None:
    path.write_text("\n".join(json.dumps({"messages": chat(i)}) for i in range(40)))


def write_squad(path: Path) -> None:
    rows = [
        {
            "title": f"Article {i // 4}",
            "context": f"One more than {i} is {i + 1}.",
            "question": f"{i}+1?",
            "answers": {"text": [str(i + 1), f"{i + 1}."], "answer_start": [0, 0]},
        }
        for i in range(40)
    ]
    path.write_text(json.dumps({"version": "1", "data": rows}))


WRITERS: dict[str, Callable[[Path], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "chat": write_chats,
    "squad": write_squad,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trained(name: str, *overrides: str) -> tuple[Outcome, Notes]:
    tiny = ["model.name=model", "model.dtype=float32", "eval.max_new_tokens=4", "train.max_steps=3"]
    notes = Notes()
    experiment = load_experiment(EXAMPLES / f"{name}.yaml", [*tiny, *overrides])
    (outcome,) = run_experiment(experiment, Path("runs"), notes)
    assert outcome.failure is None
    assert (outcome.folder / "adapter" / "adapter_model.safetensors").is_file()
    return outcome, notes


def predictions(outcome: Outcome) -> list[dict[str, object]]:
    text = (outcome.folder / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_there_is_an_example_for_each() -> None:
    assert {path.stem for path in EXAMPLES.iterdir()} == set(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
def test_a_few_lines_lead_from_a_file_to_an_adapter(place: Path, name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= MOST_LINES
    path = place / yaml.safe_load(text)["task"]["records"]["path"]
    WRITERS[name](path)
    outcome, _ = trained(name)
    assert predictions(outcome)
    assert len(load_run(outcome.folder / "config.yaml").task.records.digest or "") == 64
    (again,) = evaluate_saved(outcome.folder, ["eval.limit=1"], None, Notes())
    assert len(predictions(again)) == 1
    same, _ = trained(name)
    assert same.reused
    path.unlink()
    WRITERS[name](path.with_suffix(f".moved{path.suffix}"))
    moved, _ = trained(name, f"task.records.path={path.stem}.moved{path.suffix}")
    assert moved.reused, "the rows count, not where they lie"


def test_columns_of_objects_are_the_prompt_the_target_and_the_references(place: Path) -> None:
    write_squad(place / "squad.json")
    outcome, _ = trained("squad")
    first = predictions(outcome)[0]
    golds = first["golds"]
    assert isinstance(golds, list)
    assert golds == [golds[0], f"{golds[0]}."]
    assert first["cluster"] == f"Article {(int(golds[0]) - 1) // 4}"
    assert f"is {golds[0]}.\n\nQuestion: " in str(first["prompt"])


def test_a_chat_learns_every_turn_and_is_asked_for_the_last(place: Path) -> None:
    write_chats(place / "chats.jsonl")
    outcome, notes = trained("chat")
    task = load_run(outcome.folder / "config.yaml").task
    assert (task.records.messages, task.prompt, task.chat_template) == ("messages", None, True)
    first = next(i for i, line in enumerate(notes.lines) if line.startswith("example records/"))
    shown = [line.strip().partition(" tokens:")[0] for line in notes.lines[first + 1 : first + 5]]
    assert [text.rpartition(" on ")[0] for text in shown] == ["no loss", "loss"] * 2
    item = predictions(outcome)[0]
    golds = item["golds"]
    assert isinstance(golds, list)
    number = int(golds[0]) - 2
    rendered = "".join(f"<|{m['role']}|>{m['content']}<|end|>\n" for m in chat(number)[:-1])
    assert item["prompt"] == rendered + "<|assistant|>"


def test_the_chats_in_the_docs_train_as_printed(place: Path) -> None:
    text = (EXAMPLES.parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    printed = text.partition("<!-- chats -->")[2].partition("```yaml\n")[2].partition("```")[0]
    assert 0 < len(printed.splitlines()) <= MOST_LINES
    (place / "mine.yaml").write_text(printed)
    write_chats(place / "chats.jsonl")
    tiny = ["model.name=model", "train.max_steps=2", "eval.max_new_tokens=4"]
    (outcome,) = run_experiment(load_experiment(Path("mine.yaml"), tiny), Path("runs"), Notes())
    assert outcome.failure is None


@pytest.mark.parametrize("name", ["gpt2", "mamba"])
def test_a_model_with_other_names_for_its_layers_needs_no_targets(place: Path, name: str) -> None:
    tiny_architecture(name).save_pretrained(place / "model")
    write_csv(place / "answers.csv")
    outcome, notes = trained("csv")
    (said,) = (line for line in notes.lines if line.startswith("LoRA is on "))
    config = json.loads((outcome.folder / "adapter" / "adapter_config.json").read_text())
    assert said.startswith(f"LoRA is on {', '.join(config['target_modules'])}, which ")
    (again,) = evaluate_saved(outcome.folder, ["eval.limit=1"], None, Notes())
    assert len(predictions(again)) == 1


def test_last_turns_alone_are_another_run(place: Path) -> None:
    write_chats(place / "chats.jsonl")
    (every, _), (last, notes) = trained("chat"), trained("chat", "task.records.turns=last")
    assert not last.reused
    assert every.folder != last.folder
    first = next(i for i, line in enumerate(notes.lines) if line.startswith("example records/"))
    assert notes.lines[first + 3].startswith("  last token")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.prompt=Q {question}", r"\{answer\}, which .* lacks"),
        ("task.target=final", "task.target is 'final', but a chat's target is the assistant's"),
        ("eval.few_shot=1", "eval.few_shot is 1"),
    ],
)
def test_settings_that_a_chat_does_not_use_are_refused(
    place: Path, override: str, said: str
) -> None:
    write_chats(place / "chats.jsonl")
    arm = ["arm=base"] if "few_shot" in override else []
    experiment = load_experiment(EXAMPLES / "chat.yaml", ["model.name=model", *arm, override])
    with pytest.raises(InputError, match=said):
        run_experiment(experiment, Path("runs"), Notes())


def test_a_prefix_of_tags_has_no_place_in_a_chat(place: Path) -> None:
    write_chats(place / "chats.jsonl")
    changes = ["arm=schemabank", "tags.tagger=hash", "tags.delivery=prefix", "model.name=model"]
    experiment = load_experiment(EXAMPLES / "chat.yaml", changes)
    with pytest.raises(InputError, match=r"a prefix has no place in task\.chat_template"):
        run_experiment(experiment, Path("runs"), Notes())


@pytest.mark.parametrize("name", ["csv", "chat"])
def test_what_lies_in_a_file_trains_the_same_adapter(
    place: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (
        place / yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["task"]["records"]["path"]
    )
    WRITERS[name](path)
    in_memory, _ = trained(name)
    expected = (in_memory.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    in_memory.folder.rename(place / "first")
    monkeypatch.setattr("schemabank.tasks.records.MOST_BYTES", 2000)
    monkeypatch.setattr("schemabank.runs.tokens.MOST_BYTES", 2000)
    in_file, _ = trained(name)
    assert not in_file.reused
    found = (in_file.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert found == expected
