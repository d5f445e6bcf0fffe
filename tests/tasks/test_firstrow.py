import gzip
import json
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.config.start import Start, starting_config
from schemabank.config.task import TaskSettings
from schemabank.tasks.firstrow import first_row, fitted_yaml

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROW = {"question": "2 + 2", "answer": "4"}


def rows(path: Path, *found: object) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found), encoding="utf-8")
    return str(path)


def task(start: Start) -> TaskSettings:
    return starting_config(fitted_yaml(start).text).task


def refusal(start: Start) -> str:
    with pytest.raises(InputError) as refused:
        fitted_yaml(start)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my.jsonl", json.dumps(ROW)),
        ("my.json", json.dumps([ROW])),
        ("my.csv", "question,answer\n2 + 2,4\n"),
        ("my.tsv", "question\tanswer\n2 + 2\t4\n"),
    ],
)
def test_every_format_that_is_trained_on_is_looked_into(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = task(Start(data=str(tmp_path / name)))
    assert (found.prompt, found.records.target) == ("{question}\nAnswer: ", "{answer}")
    assert found.records.path == str(tmp_path / name)


def test_a_folder_and_a_packed_file_are_looked_into(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')
    found = task(Start(data=str(tmp_path)))
    assert (found.prompt, found.records.target) == ("{prompt}", "{completion}")


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": CHAT}, "messages"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ("prompt", "completion")),
        ({"prompt": "a", "completion": "b"}, None),
    ],
)
def test_a_chat_is_found(row: object, messages: object, tmp_path: Path) -> None:
    found = task(Start(data=rows(tmp_path / "my.jsonl", row)))
    assert found.records.messages == messages


def test_a_configuration_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = rows(tmp_path / "my.jsonl", ROW)
    said = refusal(Start(data=data, prompt="Q: {question}", target="{antwort}"))
    assert "names {antwort}, which" in said
    assert "allowed are {question}, {answer}" in said
    assert "holds no column" in refusal(Start(data=data, prompt="Q: {question", target="{answer}"))
    assert task(Start(data=data, prompt="Q: {question}", target="{answer}")).prompt


def test_a_chat_that_cannot_be_learned_is_refused(tmp_path: Path) -> None:
    assert "role" in refusal(
        Start(data=rows(tmp_path / "my.jsonl", {"messages": [{"text": "Hi"}]}))
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("my.jsonl", "\n", "holds no row, allowed is at least one"),
        ("my.jsonl", "{}\n", "line 1 has no column, allowed is at least one"),
        ("my.jsonl", "a,b\n", "is not valid JSON"),
        ("my.jsonl", '{"frage": "x"}', "has the columns frage, none of which are known"),
        ("my.txt", "a\n", "does not say the file's format"),
    ],
)
def test_files_of_no_use_are_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert said in refusal(Start(data=str(tmp_path / name)))


@pytest.mark.parametrize(
    "data", ["no.csv", "./data", "a/b/c", "https://host/a", "/no/where", "~/x"]
)
def test_what_is_neither_here_nor_on_the_hub_is_refused(data: str) -> None:
    assert f"--data {data!r}: there is no such file or folder" in refusal(Start(data=data))


def test_the_hub_is_not_asked() -> None:
    assert first_row("openai/gsm8k") is first_row("squad") is None
    assert task(Start(data="openai/gsm8k")).records.path == "openai/gsm8k"


def test_books_are_not_rows() -> None:
    assert task(Start(task="perplexity", data="my books")).perplexity.path == "my books"


def test_a_task_that_is_misspelt_is_refused_first() -> None:
    assert "--task 'recrds'" in refusal(Start(task="recrds", data="no.csv"))


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        (ROW, ()),
        ({"context": "c", **ROW, "id": 1}, ("id",)),
        ({"prompt": "p", "completion": "c", "context": "x", "label": True}, ("context", "label")),
        ({"messages": CHAT, "tools": None, "system": "s", "source": "x"}, ("source",)),
        ({"context": {"title": ["t"]}, "passage": ["p"], **ROW}, ("context", "passage")),
        ({"context": True, "passage": False, "input": "i", **ROW}, ("context", "passage")),
        ({"input": True, "instruction": "a", "output": "b"}, ("input",)),
    ],
)
def test_columns_that_nothing_takes_are_named(
    row: object, unused: tuple[str, ...], tmp_path: Path
) -> None:
    assert fitted_yaml(Start(data=rows(tmp_path / "my.jsonl", row))).unused == unused


def test_a_dotted_name_takes_its_column(tmp_path: Path) -> None:
    row = {"q": {"text": "2 + 2", "by": "me"}, "a": "4", "b": "5"}
    start = Start(data=rows(tmp_path / "my.jsonl", row), prompt="Q: {q.text}", target="{a}")
    assert fitted_yaml(start).unused == ("b",)
