import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from schemabank.cli import main
from schemabank.cli.options import setting_keys, task_names
from schemabank.config.file import load_experiment
from schemabank.config.start import SCHEMA
from schemabank.config.task import TASK_NAMES
from schemabank.runs.effects import idle_in_experiment
from schemabank.tasks.records import load

Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def init(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Init:
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["schemabank", "init", *options])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.mark.parametrize("task", TASK_NAMES)
def test_every_task_gets_a_file_that_loads_and_whose_settings_all_count(
    task: str, init: Init
) -> None:
    Path("my.jsonl").write_text('{"question": "2 + 2", "answer": "4"}\n')
    options = ["--data", "my.jsonl"] if task == "records" else ["--task", task]
    code, out, err = init(*options, "--model", "a/b", "-o", "new/config.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "next: schemabank train new/config.yaml"
    config = load_experiment(Path("new/config.yaml"))
    assert (config.task.name, config.model.name) == (task, "a/b")
    assert idle_in_experiment(config) == []


def test_without_a_file_it_goes_to_stdout(init: Init) -> None:
    code, out, err = init()
    assert (code, err) == (0, "")
    assert list(Path().iterdir()) == []
    Path("c.yaml").write_text(out)
    assert load_experiment(Path("c.yaml")).task.name == "conditional"


def test_the_schema_of_the_first_line_lies_beside_the_file(init: Init) -> None:
    init("-o", "config.yaml")
    first = Path("config.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA}"
    schema = json.loads(Path(SCHEMA).read_text())
    assert {"arm", "train", "task"} <= set(schema["properties"])


def test_nothing_is_overwritten_unless_it_is_forced(init: Init) -> None:
    Path("config.yaml").write_text("mine\n")
    code, out, err = init("-o", "config.yaml")
    assert (code, out) == (2, "")
    said = (
        "'config.yaml' exists and is not overwritten: name another file with --out, or add --force"
    )
    assert err == f"schemabank: {said}\n"
    assert Path("config.yaml").read_text() == "mine\n"
    assert not Path(SCHEMA).exists()
    assert init("-o", "config.yaml", "--force")[0] == 0
    assert load_experiment(Path("config.yaml")).runs()


def test_a_schema_of_another_kind_is_not_overwritten_but_the_same_is_no_hindrance(
    init: Init,
) -> None:
    assert init("-o", "a.yaml")[0] == 0
    assert init("-o", "b.yaml")[0] == 0
    Path(SCHEMA).write_text("{}")
    code, _, err = init("-o", "c.yaml")
    assert code == 2
    assert f"'{SCHEMA}' exists and is not overwritten" in err
    assert Path(SCHEMA).read_text() == "{}"
    assert not Path("c.yaml").exists()


def test_a_folder_is_no_file_even_by_force(init: Init) -> None:
    Path("config.yaml").mkdir()
    code, _, err = init("-o", "config.yaml", "--force")
    assert code == 2
    assert (
        err
        == "schemabank: 'config.yaml' exists and is not overwritten: name another file with --out\n"
    )


def test_the_configuration_has_another_name_than_the_schema(init: Init) -> None:
    code, _, err = init("-o", SCHEMA)
    assert code == 2
    assert f"--out '{SCHEMA}' is the name of the JSON Schema" in err
    assert list(Path().iterdir()) == []


def test_the_next_command_can_be_pasted_and_moves_no_cursor(init: Init) -> None:
    code, out, _ = init("-o", "a b/\x1b[31mc.yaml")
    assert code == 0
    assert out.splitlines()[-1] == "next: schemabank train 'a b/ [31mc.yaml'"
    assert "\x1b" not in out


def test_a_link_is_replaced_and_what_it_leads_to_is_kept(init: Init) -> None:
    Path("target.yaml").write_text("mine\n")
    Path("config.yaml").symlink_to("target.yaml")
    assert init("-o", "config.yaml")[0] == 2
    assert init("-o", "config.yaml", "--force")[0] == 0
    assert not Path("config.yaml").is_symlink()
    assert Path("target.yaml").read_text() == "mine\n"


# Columns, and what comes of them: prompt, target, and what is not used.
FORMS = {
    "question answer": ("{question}\nAnswer: ", "{answer}", ""),
    "id context question answer": ("{context}\n{question}\nAnswer: ", "{answer}", "id"),
    "instruction input output": ("{instruction}\n{input}\nAnswer: ", "{output}", ""),
    "instruction context response category": (
        *("{instruction}\n{context}\nAnswer: ", "{response}", "category"),
    ),
    "prompt completion score context": ("{prompt}", "{completion}", "score, context"),
}


@pytest.mark.parametrize("row", FORMS)
@pytest.mark.parametrize("out", [(), ("-o", "config.yaml")])
def test_columns_are_put_into_the_prompt_or_named(
    out: tuple[str, ...], row: str, init: Init
) -> None:
    prompt, target, unused = FORMS[row]
    cells = {name: f"some {name}" for name in row.split()}
    Path("my.jsonl").write_text(f"{json.dumps(cells)}\n{json.dumps({**cells, 'input': None})}\n")
    code, text, err = init("--data", "my.jsonl", *out)
    assert (code, err) == (0, f"not used: {unused}\n" if unused else "")
    if not out:
        Path("config.yaml").write_text(text)
    task = load_experiment(Path("config.yaml")).task
    assert (task.prompt, task.records.target) == (prompt, target)
    whole = task.records.model_copy(update={"validation_ratio": 0, "test_ratio": 0})
    assert len(load(whole, prompt=prompt).train) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            '{"text": "a whole text"}',
            "--data 'my.jsonl' has the columns text: this is plain text, but what is trained here "
            "is the completion of a prompt, or a chat: divide each text into the columns prompt "
            "and completion, or train on whole texts with TRL's SFTTrainer",
        ),
        (
            '{"id": 1, "text": "a whole text"}',
            "--data 'my.jsonl' has the columns id, text: this is plain text, but what is trained "
            "here is the completion of a prompt, or a chat: divide each text into the columns "
            "prompt and completion, or train on whole texts with TRL's SFTTrainer; or, if one "
            "column answers another, name templates, such as --prompt 'Q: {question}' and --target "
            "'{answer}'",
        ),
        (
            '{"prompt": "a", "chosen": "b", "text": "c"}',
            "--data 'my.jsonl' has the columns prompt, chosen, text: this is plain text, but what "
            "is trained here is the completion of a prompt, or a chat: divide each text into the "
            "columns prompt and completion, or train on whole texts with TRL's SFTTrainer; or, if "
            "one column answers another, name templates, such as --prompt 'Q: {question}' and "
            "--target '{answer}'",
        ),
        (
            '{"text": "a whole text", "is_long": false}',
            "--data 'my.jsonl' has the columns text, is_long: this is plain text, but what is "
            "trained here is the completion of a prompt, or a chat: divide each text into the "
            "columns prompt and completion, or train on whole texts with TRL's SFTTrainer",
        ),
        (
            '{"input_ids": [1, 2], "labels": [1, 2]}',
            "--data 'my.jsonl' has the columns input_ids, labels: these are tokens, but what is "
            "trained here is the completion of a prompt, or a chat, both as text: give the texts "
            "that the tokens were made of, or take a trainer, which schemabank.trainer lets train "
            "by a method, too",
        ),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c"}',
            "--data 'my.jsonl' has the columns prompt, chosen, rejected: these are preferences, "
            "but what is trained here is the completion of a prompt, or a chat: TRL's DPOTrainer "
            "trains on preferences; to learn the chosen answers alone, give them as completions "
            "(--prompt '{prompt}' --target '{chosen}')",
        ),
    ],
)
def test_rows_for_other_training_are_refused_with_the_way_on(
    row: str, said: str, init: Init
) -> None:
    Path("my.jsonl").write_text(f"{row}\n")
    code, out, err = init("--data", "my.jsonl", "-o", "config.yaml")
    assert (code, out, err) == (2, "", f"schemabank: {said}\n")
    assert not Path("config.yaml").exists()


def test_the_way_on_from_preferences_works(init: Init) -> None:
    Path("my.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    code, text, err = init("--data", "my.jsonl", "--prompt", "{prompt}", "--target", "{chosen}")
    assert (code, err) == (0, "not used: rejected\n")
    assert 'target: "{chosen}"' in text


def test_a_chat_is_told_of_a_metric_for_free_text(init: Init) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    Path("my.jsonl").write_text(json.dumps({"messages": turns, "source": "x"}) + "\n")
    code, text, err = init("--data", "my.jsonl")
    assert (code, err) == (0, "not used: source\n")
    said = "# The task's own, exact_match, scores free text near 0: take f1 or rouge_l for it."
    assert f"  {said}\n  metric: null" in text


def test_bad_input_writes_nothing(init: Init) -> None:
    code, out, err = init("--task", "recrds", "-o", "config.yaml")
    assert (code, out) == (2, "")
    assert "did you mean 'records'" in err
    assert list(Path().iterdir()) == []


def test_a_shell_completes_settings_and_tasks() -> None:
    assert setting_keys("train.lea") == ["train.learning_rate="]
    assert "lora.r=" in setting_keys("lora.")
    assert "lora=" not in setting_keys("")
    assert task_names("gsm") == ["gsm8k", "gsm_symbolic"]
