"""Data of the user's own: columns, splits, and every way in which a file can be wrong."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from properties import examples
from schemabank.common.errors import InputError
from schemabank.common.stored import Stored
from schemabank.config.file import run_id
from schemabank.config.settings import RunConfig
from schemabank.config.task import RecordsSettings, TaskSettings
from schemabank.runs.inputs import data_digest as digest_of_examples
from schemabank.runs.loading import resolved
from schemabank.tasks import TaskData, records
from schemabank.tasks.base import Turn
from schemabank.tasks.catalog import load_task
from schemabank.tasks.records import data_digest, load, recognised

PROMPT = "Q: {question}\nA: "


def rows(count: int, start: int = 0) -> list[dict[str, object]]:
    return [
        {"question": f"What is {i} + 1?", "answer": str(i + 1), "kind": ["odd", "even"][i % 2]}
        for i in range(start, start + count)
    ]


def write(path: Path, content: list[dict[str, object]]) -> Path:
    lines = "".join(json.dumps(row) + "\n\n" for row in content)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


def loaded(path: Path, prompt: str = PROMPT, **changes: object) -> TaskData:
    return load(RecordsSettings(path=str(path), **changes), prompt=prompt)


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.jsonl.gz"])
def test_columns_become_prompt_target_and_fields(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, rows(300))
    data = loaded(path, target=" {answer}!", group="kind", cluster="kind")
    assert len(data.train) + len(data.validation) + len(data.test) == 300
    everything = [*data.train, *data.validation, *data.test]
    example = next(e for e in everything if e.id == "records/train/7")
    assert example.question == "Q: What is 7 + 1?\nA: "
    assert (example.solution, example.answer) == (" 8!", "8!")
    assert example.fields == {"question": "What is 7 + 1?", "answer": "8", "kind": "even"}
    assert (example.group, example.cluster, example.golds) == ("even", "even", ("8!",))


def test_splits_are_carved_by_a_hash_of_the_prompt(tmp_path: Path) -> None:
    one = loaded(write(tmp_path / "one.jsonl", rows(300)))
    more = loaded(write(tmp_path / "more.jsonl", rows(400)[::-1]))
    assert 15 <= len(one.validation) <= 45
    assert 15 <= len(one.test) <= 45
    for split in ("train", "validation", "test"):
        few, many = ({e.question for e in d.split(split)} for d in (one, more))
        assert few <= many, "more rows move none"
    twice = loaded(write(tmp_path / "twice.jsonl", [*rows(100), *rows(100)]))
    for split in ("train", "validation", "test"):
        questions = [e.question for e in twice.split(split)]
        assert all(questions.count(q) == 2 for q in questions), "equal prompts never part"


@examples(30)
@given(st.floats(0, 0.49), st.floats(0, 0.49))
def test_shares_are_as_asked_for(
    tmp_path_factory: pytest.TempPathFactory, validation: float, test: float
) -> None:
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    data = loaded(write(path, rows(400)), validation_ratio=validation, test_ratio=test)
    for split, ratio in (("validation", validation), ("test", test)):
        # Five standard deviations of a share of 400.
        assert abs(len(data.split(split)) / 400 - ratio) <= 0.125


def test_a_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(20))
    write(tmp_path / "dev.jsonl.gz", rows(5, start=20))
    data = loaded(tmp_path, validation_split="dev", test_ratio=0)
    assert [len(data.split(s)) for s in ("train", "validation", "test")] == [20, 5, 0]
    assert data.validation[0].id == "records/validation/0"
    with pytest.raises(InputError, match=r"no eval.jsonl .* \(dev.jsonl.gz, train.jsonl\)"):
        loaded(tmp_path, test_split="eval")


def test_a_data_set_of_the_hub_is_its_named_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    nested = [
        row | {"answers": {"text": [row["answer"], "x"]}, "when": datetime(2020, 1, 1, tzinfo=UTC)}
        for row in rows(12)
    ]
    found = DatasetDict(train=Dataset.from_list(nested[:9]), dev=Dataset.from_list(nested[9:]))
    asked = []

    def load_dataset(*args: object, **options: object) -> DatasetDict:
        asked.append((args, options))
        return found

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    name = "someone/sums"
    settings = RecordsSettings(
        path=name, config="main", revision="abc", test_split="dev", validation_ratio=0
    ).model_copy(update={"references": "answers.text"})
    data = load(settings, prompt=PROMPT)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert data.test[0].golds == ("10", "x"), "columns of an object are columns"
    assert data.test[0].fields["when"].startswith("2020-01-01"), "as a CSV file has it"
    assert asked[0] == ((name, "main"), {"revision": "abc"})
    with pytest.raises(InputError, match=r"validation_split is 'val', .* 'train', 'dev'"):
        load(settings.model_copy(update={"validation_split": "val"}), prompt=PROMPT)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_splits_with_the_usual_names_are_used_without_being_named(
    tmp_path: Path, suffix: str
) -> None:
    write(tmp_path / "train.jsonl", rows(50))
    write(tmp_path / f"test{suffix}", rows(7, start=60))
    data = loaded(tmp_path)
    assert len(data.test) == 7
    assert len(data.train) + len(data.validation) == 50
    assert data.validation
    write(tmp_path / f"validation{suffix}", rows(5, start=80))
    assert [len(loaded(tmp_path).split(s)) for s in ("train", "validation", "test")] == [50, 5, 7]


def test_numbers_are_spelt_without_exponents(tmp_path: Path) -> None:
    content = [{"question": "q", "answer": value} for value in (1e16, 1e-7, 2.5)]
    path = write(tmp_path / "n.jsonl", content)
    data = loaded(path, validation_ratio=0, test_ratio=0)
    assert [e.answer for e in data.train] == ["10000000000000000", "0.0000001", "2.5"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "q", "answer": "1"}\r\n')
    (example,) = loaded(path, validation_ratio=0, test_ratio=0).train
    assert example.question == "Q: q\nA: "


def test_columns_may_have_any_name_of_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "n.jsonl", [{"вопрос": "q", "answer-1": "1"}])
    options = {"target": "{answer-1}", "validation_ratio": 0, "test_ratio": 0}
    (example,) = loaded(path, prompt="{вопрос}", **options).train
    assert (example.question, example.answer) == ("q", "1")


def test_references_are_a_text_or_a_list(tmp_path: Path) -> None:
    content = [{"q": "a", "t": "x", "refs": ["x", "y"]}, {"q": "b", "t": "z", "refs": "z"}]
    path = write(tmp_path / "r.jsonl", content)
    options = {"target": "{t}", "references": "refs", "validation_ratio": 0, "test_ratio": 0}
    data = loaded(path, prompt="{q}", **options)
    assert [e.golds for e in data.train] == [("x", "y"), ("z",)]
    for bad, message in (
        ([], "no references in column 'refs'"),
        ([" "], "no references"),
        (None, "no references"),
        ({"text": ["x"]}, r"an object in column 'refs' .*of its own columns \(text\)"),
    ):
        broken = write(tmp_path / "b.jsonl", [content[0] | {"refs": bad}])
        with pytest.raises(InputError, match=f"line 1 has {message}"):
            loaded(broken, prompt="{q}", **options)


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    row = {"question": 5, "answer": 3, "no": None, "deep": {"a": [1, "ü"]}, "flag": True}
    (example,) = loaded(write(tmp_path / "n.jsonl", [row]), validation_ratio=0, test_ratio=0).train
    assert example.question == "Q: 5\nA: "
    assert example.fields["deep"] == '{"a": [1, "ü"]}'
    assert "no" not in example.fields


@pytest.mark.parametrize("name", ["question", "answer", "id", "group", "cluster", "right"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1], "a list"),
        ({"a": 1}, "an object"),
        (True, "a truth value"),
        (float("nan"), "no number"),
        (float("inf"), "no number"),
    ],
)
def test_what_is_no_text_and_no_number_is_refused_where_it_is_used(
    name: str, value: object, said: str
) -> None:
    """As a data set of the hub has it; a file's line with NaN is refused before."""
    row = {"question": "q", "answer": "a", "id": "i", "group": "g", "cluster": "c", "right": "r"}
    row[name] = [value] if name == "right" and isinstance(value, list) else value
    settings = RecordsSettings(
        path="x", id="id", group="group", cluster="cluster", references="right"
    )
    with pytest.raises(InputError, match=rf"row 3 has {said}.* in column '{name}'"):
        records.Form(settings, PROMPT, list(row)).example(("row 3", row), "0")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have_are_refused_by_line_and_column(
    value: str, tmp_path: Path
) -> None:
    path = tmp_path / "n.jsonl"
    path.write_text(f'{{"question": "q", "answer": 1}}\n{{"question": "r", "answer": {value}}}\n')
    with pytest.raises(InputError, match=r"n\.jsonl line 2 holds no finite number in 'answer'"):
        loaded(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is not valid JSON"),
        ("[1]", r"line 3 must be an object .* not \[1\]"),
        ('{"answer": "1"}', r"\{question\}, which .*line 3 lacks: allowed are \{answer\}"),
        ('{"question": null, "answer": "1"}', r"\{question\}, which .*line 3 lacks"),
        ('{"question": "q"}', r"'\{answer\}' names \{answer\}, which .*line 3 lacks"),
        ('{"question": "q", "answer": " "}', "line 3 has an empty target"),
        ('{"question": "\\ud800", "answer": "1"}', "line 3 holds text that is not valid Unicode"),
        ('{"question": ' + "1" * 5000 + "}", "line 3 is not valid JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", rows(1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        loaded(path)


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_optional_part_of_a_prompt_may_be_empty_or_null(
    empty: str | None, tmp_path: Path
) -> None:
    found = [
        {"instruction": "Sum", "input": "1 2", "output": "3"},
        {"instruction": "Greet", "input": empty, "output": "Hi"},
    ]
    path = write(tmp_path / "alpaca.jsonl", found)
    own = RecordsSettings(path=str(path), target="{output}", validation_ratio=0, test_ratio=0)
    prompts = [e.question for e in load(own, prompt="{instruction}\n{input}\nAnswer: ").train]
    assert prompts == ["Sum\n1 2\nAnswer: ", f"Greet\n{empty or ''}\nAnswer: "]
    (_, second) = load(own, prompt="{instruction}\n{input}\nAnswer: ").train
    assert second.fields["input"] == (empty or "")
    with pytest.raises(InputError, match=r"names \{input\}, which .*line 3 lacks|empty target"):
        load(own.model_copy(update={"target": "{input}"}), prompt="{instruction} {input}")


@pytest.mark.parametrize("inner", [{"meta": {"ctx": None}}, {"meta": None}])
def test_an_optional_part_in_an_object_may_be_null_but_not_missing(
    inner: dict[str, object], tmp_path: Path
) -> None:
    first, rest = {"q": "Sum", "meta": {"ctx": "1"}, "a": "1"}, {"q": "Greet", "a": "Hi"}
    path = write(tmp_path / "a.jsonl", [first, inner | rest])
    own = RecordsSettings(path=str(path), target="{a}", validation_ratio=0, test_ratio=0)
    found = load(own, prompt="{q}\n{meta.ctx}").train
    assert [e.question for e in found] == ["Sum\n1", "Greet\n"]
    assert found[1].fields["meta.ctx"] == "", "prompts are filled from the fields again"
    for prompt, target in (("{meta.ctx}", "{a}"), ("{q} {meta.ctx}", "{meta.ctx}")):
        with pytest.raises(InputError, match=r"names \{meta\.ctx\}, which .*line 3 lacks"):
            load(own.model_copy(update={"target": target}), prompt=prompt)
    for other in ({"meta": {}}, {"meta": "x"}, {"meta": []}, {}):
        path = write(
            tmp_path / "b.jsonl", [{"q": "Sum", "meta": {"ctx": "1"}, "a": "1"}, other | rest]
        )
        with pytest.raises(InputError, match=r"names \{meta\.ctx\}, which .*line 3 lacks"):
            load(own.model_copy(update={"path": str(path)}), prompt="{q}\n{meta.ctx}")


@pytest.mark.parametrize("column", ["id", "group", "cluster"])
def test_a_named_column_must_be_there(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "rows.jsonl", rows(2))
    message = f"line 1 has no column 'nowhere', which task.records.{column} names: .*'kind'"
    with pytest.raises(InputError, match=message):
        loaded(path, **{column: "nowhere"})


def test_ids_are_distinct_and_no_prompt_is_in_two_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(30))
    with pytest.raises(InputError, match=r"the id 'even' occurs twice|the id 'odd' occurs twice"):
        loaded(path, id="kind")
    write(tmp_path / "train.jsonl", rows(30))
    write(tmp_path / "test.jsonl.gz", rows(2, start=29))
    with pytest.raises(InputError, match=r"records/test/0 in test has the same prompt as .* train"):
        loaded(tmp_path, test_split="test", validation_ratio=0)


def test_a_file_cannot_be_split_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(2))
    with pytest.raises(InputError, match=r"test_split is 'test', but .* is one file"):
        loaded(path, test_split="test")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read after line 0"):
        loaded(path)


def test_data_that_changed_since_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", rows(30))
    digest = data_digest(RecordsSettings(path=str(path)))
    moved = write(tmp_path / "moved.jsonl.gz", rows(30))
    assert data_digest(RecordsSettings(path=str(moved))) == digest
    assert loaded(path, digest=digest) == loaded(path)
    write(path, rows(31))
    with pytest.raises(InputError, match=r"has changed since .* set task.records.digest to null"):
        loaded(path, digest=digest)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "records"}, "no data is named: set records.path"),
        (
            {"records": {"validation_ratio": 0.5, "test_ratio": 0.5}},
            "leave nothing to train on",
        ),
        ({"chat_template": True}, "allowed is loss"),
    ],
)
def test_settings_that_do_not_go_together(task: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({"arm": "lora", "task": task, "tags": {"delivery": "prefix"}})


def test_prompts_that_differ_in_case_and_blanks_alone_are_set_aside_together(
    tmp_path: Path,
) -> None:
    spellings = ("How many are {}?", "how many are  {}?", "How many are {}? ", "HOW MANY ARE {}?")
    given = [
        {"question": text.format(i), "answer": str(i), "kind": "a"}
        for i in range(60)
        for text in spellings
    ]
    path = write(tmp_path / "sums.jsonl", given)
    data = loaded(path, validation_ratio=0.3, test_ratio=0.3)
    splits = [{e.answer for e in data.split(name)} for name in ("train", "validation", "test")]
    assert sum(map(len, splits)) == 60
    assert all(splits)


# Columns that say themselves what they are.

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def task(path: Path, **changes: object) -> TaskSettings:
    records = {"path": str(path), "validation_ratio": 0, "test_ratio": 0}
    own = changes.pop("records", {})
    assert isinstance(own, dict)
    return TaskSettings.model_validate({"name": "records", "records": records | own, **changes})


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": CHAT, "kind": "a"}, "messages"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            "conversations",
        ),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, ("prompt", "completion")),
    ],
)
def test_a_chat_is_recognised_by_its_column(
    tmp_path: Path, row: dict[str, object], messages: object
) -> None:
    path = write(tmp_path / "c.jsonl", [row])
    known = recognised(task(path))
    assert (known.records.messages, known.prompt, known.chat_template) == (messages, None, True)
    assert recognised(known) == known
    (example,) = load_task(known).train
    assert example.turns == (Turn("user", "Hi"), Turn("assistant", "Hello", learned=True))
    assert (example.question, example.solution, example.golds) == ("Hi", "Hello", ("Hello",))
    assert set(example.fields) == set(row) - {"messages", "conversations", "prompt", "completion"}
    assert load_task(task(path)).train == [example]


def test_prompt_and_completion_need_no_template(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"prompt": "Hi {x}", "completion": " Hello "}])
    known = recognised(task(path))
    assert (known.prompt, known.records.target) == ("{prompt}", "{completion}")
    assert (known.records.messages, known.chat_template) == (None, False)
    (example,) = load_task(task(path)).train
    assert (example.question, example.solution, example.answer) == ("Hi {x}", " Hello ", "Hello")


@pytest.mark.parametrize(
    "changes",
    [{}, {"prompt": "{question}"}, {"records": {"target": "{answer}!"}}],
)
def test_columns_that_the_templates_name_go_first(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    row = {"question": "q", "answer": "a", "messages": CHAT, "prompt": "x", "completion": "y"}
    settings = task(write(tmp_path / "c.jsonl", [row]), **changes)
    assert recognised(settings) == settings
    assert not load_task(settings).train[0].turns


def test_a_chat_in_a_column_of_another_name_is_named(tmp_path: Path) -> None:
    row = {"data": {"talk": CHAT}, "meta": {"id": "x1"}, "right": ["Hello", "Hey"]}
    path = write(tmp_path / "c.jsonl", [row])
    own = {"messages": "data.talk", "id": "meta.id", "references": "right", "group": "meta.id"}
    (example,) = load_task(task(path, records=own)).train
    assert (example.id, example.group, example.golds) == ("x1", "x1", ("Hello", "Hey"))
    assert len(example.turns) == 2
    with pytest.raises(
        InputError, match=r"None in column 'data\.tlak' \(task\.records\.messages\)"
    ):
        load_task(task(path, records={"messages": "data.tlak"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{question}"}, "prompt and records.target, templates over columns, have no"),
        ({"records": {"messages": "m", "target": "{a}"}}, "templates over columns, have no effect"),
    ],
)
def test_templates_beside_a_chat_are_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(tmp_path, **({"records": {"messages": "m"}} | changes))


def test_settings_of_chats_are_refused_where_there_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", rows(3))
    with pytest.raises(
        InputError, match=r"turns is 'last', but the data has no column with a chat"
    ):
        recognised(task(path, records={"turns": "last"}))


def test_dotted_names_fill_templates(tmp_path: Path) -> None:
    content = [
        {"q": {"text": f"{i}?", "by": None}, "answers": {"text": [str(i), "x"]}} for i in (1, 2)
    ]
    path = write(tmp_path / "c.jsonl", content)
    options = {"target": "{answers.text.0}!", "references": "answers.text"}
    own = options | {"validation_ratio": 0, "test_ratio": 0}
    data = loaded(path, prompt="{q.text} {{q.by}}", **own)
    assert [e.question for e in data.train] == ["1? {q.by}", "2? {q.by}"]
    assert [(e.solution, e.golds) for e in data.train] == [("1!", ("1", "x")), ("2!", ("2", "x"))]
    assert data.train[0].fields["q.text"] == "1?", "prompts are filled from the fields again"
    with pytest.raises(InputError, match=r"names \{q\.by\}, which .*line 1 lacks"):
        loaded(path, prompt="{q.by}", **own)
    with pytest.raises(InputError, match=r"line 1 has a list, .* in column 'answers\.text', which"):
        loaded(path, prompt="{q.text}", target="{answers.text}")


def test_what_was_read_before_there_were_other_formats_has_the_same_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed with the version before: they are in the folders of users' runs."""
    content = [
        {"question": f"What is {i}+1? ü", "answer": i + 1, "deep": {"b": [1, None], "a": 0.5}}
        | ({"extra": i} if i % 3 else {})
        for i in range(40)
    ]
    write(tmp_path / "train.jsonl", content[:30])
    write(tmp_path / "test.jsonl", content[30:])
    settings = RecordsSettings(path=str(tmp_path))
    assert (
        data_digest(settings) == "a5ce32a2525c79eb648c04b6c3e7693468c904298849721b227032f92880090b"
    )
    data = load(settings, prompt="Q {question} {{x}}")
    assert (
        digest_of_examples(data)
        == "sha256:d27404491bcc3551ee4e5e47dc6722b9fbd4792bd36c035a14cc50eb1eb5a263"
    )
    run = RunConfig.model_validate({"arm": "lora", "task": task(tmp_path).model_dump()})
    # On a CPU without it, `auto` is float32, and the id another one.
    monkeypatch.setattr("schemabank.models.basemodel._has_native_bfloat16", lambda _: True)
    (run,) = resolved([run], torch.device("cpu"))
    assert run_id(run) == "lora-seed42-44d774f063"


# Data that is larger than what is kept in memory.


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_BYTES", 2000)


def test_examples_in_a_file_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "r.jsonl", rows(200))
    in_memory = loaded(path, group="kind")
    monkeypatch.setattr(records, "MOST_BYTES", 2000)
    in_file = loaded(path, group="kind")
    for split in ("train", "validation", "test"):
        assert isinstance(in_file.split(split), Stored)
        assert list(in_file.split(split)) == in_memory.split(split)
    assert digest_of_examples(in_file) == digest_of_examples(in_memory)


@pytest.mark.usefixtures("small_memory")
def test_examples_in_a_file_are_split_and_checked_alike(tmp_path: Path) -> None:
    test_prompts_that_differ_in_case_and_blanks_alone_are_set_aside_together(tmp_path)
    test_ids_are_distinct_and_no_prompt_is_in_two_splits(tmp_path)


def test_texts_with_the_same_number_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every text's hash were the same, which is found by comparing the texts themselves."""
    path = write(tmp_path / "r.jsonl", [*rows(60), *rows(20)])
    expected = loaded(path)
    monkeypatch.setattr(records, "_number", lambda _text: 7)
    assert loaded(path) == expected
    test_ids_are_distinct_and_no_prompt_is_in_two_splits(tmp_path)
