"""GSM8K: parsing, the carved validation split, and what is said when the data is not there."""

import gzip
import json
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks import gsm8k

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
CLIPS = {
    "question": "How many clips did Natalia sell?",
    "answer": "She sold 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}


def numbered_rows(start: int, stop: int) -> list[dict[str, str]]:
    return [
        {"question": f"How much is {i}?", "answer": f"It is {i}.\n#### {i}"}
        for i in range(start, stop)
    ]


def write_folder(
    folder: Path, *, train: list[dict[str, str]] | str, test: list[dict[str, str]] | str
) -> None:
    (folder / "gsm8k").mkdir(exist_ok=True)
    for split, rows in {"train": train, "test": test}.items():
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "gsm8k" / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path))
    return tmp_path


def test_a_row_becomes_an_example_without_calculator_marks(folder: Path) -> None:
    write_folder(folder, train=[CLIPS], test=numbered_rows(0, 2))
    data = gsm8k.load(validation_ratio=0.0, calculator_marks=False)
    (example,) = data.train
    assert example.id == "gsm8k/train/0"
    assert example.solution == "She sold 48/2 = 24.\nIn all 48+24 = 72.\n#### 72"
    assert example.answer == "72"
    assert example.fields == {"operations": "addition,division"}
    assert [e.id for e in data.test] == ["gsm8k/test/0", "gsm8k/test/1"]
    assert data.test[1].fields == {"operations": ""}


def test_calculator_marks_can_be_kept(folder: Path) -> None:
    write_folder(folder, train=[CLIPS], test=numbered_rows(0, 1))
    (example,) = gsm8k.load(validation_ratio=0.0, calculator_marks=True).train
    assert example.solution == CLIPS["answer"]
    assert example.answer == "72"


@pytest.mark.parametrize(
    ("mark", "operations"),
    [
        ("<<-5*2=-10>>", "multiplication"),
        ("<<3*(-5)=-15>>", "multiplication"),
        ("<<(3+4)-5=2>>", "addition,subtraction"),
        ("<<10-.5=9.5>>", "subtraction"),
        ("<<5=5>>", ""),
    ],
)
def test_a_sign_is_no_subtraction(folder: Path, mark: str, operations: str) -> None:
    row = {"question": "How much?", "answer": f"It is {mark}1.\n#### 1"}
    write_folder(folder, train=[row], test=numbered_rows(0, 1))
    (example,) = gsm8k.load(validation_ratio=0.0, calculator_marks=False).train
    assert example.fields["operations"] == operations


def test_answer_stays_as_the_data_writes_it(folder: Path) -> None:
    row = {"question": "How much?", "answer": "Much.\n#### -1,200 "}
    write_folder(folder, train=[row], test=numbered_rows(0, 1))
    (example,) = gsm8k.load(validation_ratio=0.0, calculator_marks=False).train
    assert example.answer == "-1,200"
    assert example.solution.endswith("\n#### -1,200")


def test_validation_is_nested_and_keeps_upstream_ids(folder: Path) -> None:
    write_folder(folder, train=numbered_rows(0, 1000), test=numbered_rows(1000, 1010))
    loaded = [gsm8k.load(validation_ratio=ratio, calculator_marks=False) for ratio in (0, 0.1, 0.3)]
    none, small, large = ({e.id for e in data.validation} for data in loaded)
    assert none == set()
    assert 70 < len(small) < 130
    assert 250 < len(large) < 350
    assert small < large
    for data in loaded:
        ids = {e.id for e in data.train} | {e.id for e in data.validation}
        assert ids == {f"gsm8k/train/{i}" for i in range(1000)}
        assert len(data.train) + len(data.validation) == 1000
        assert all(e.id == f"gsm8k/train/{e.answer}" for e in data.train + data.validation)


def test_validation_membership_depends_on_the_question_alone(folder: Path) -> None:
    rows = numbered_rows(0, 200)
    write_folder(folder, train=rows, test=numbered_rows(1000, 1001))
    forward = gsm8k.load(validation_ratio=0.2, calculator_marks=False).validation
    write_folder(folder, train=rows[::-1], test=numbered_rows(1000, 1001))
    backward = gsm8k.load(validation_ratio=0.2, calculator_marks=True).validation
    assert [e.question for e in forward] == [e.question for e in backward][::-1]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 7])
def test_validation_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="validation_ratio"):
        gsm8k.load(validation_ratio=ratio, calculator_marks=False)


@pytest.mark.parametrize(
    "bad_line",
    [
        '{"question": "q", ',
        '{"question": "q", "answer": NaN}',
        '["q", "a"]',
        '{"question": "q"}',
        '{"question": "q", "answer": 5}',
        '{"question": "q", "answer": "no mark"}',
        '{"question": "q", "answer": "#### "}',
        '{"question": "q", "answer": "#### 5 #### 6"}',
    ],
)
def test_malformed_line_is_named_by_its_number(folder: Path, bad_line: str) -> None:
    good = json.dumps(CLIPS)
    write_folder(folder, train=f"{good}\n{bad_line}\n{good}\n", test=numbered_rows(0, 1))
    with pytest.raises(InputError, match=r"train\.jsonl\.gz line 2\b"):
        gsm8k.load(validation_ratio=0.0, calculator_marks=False)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"x" * 5000)[:-12], gzip.compress(b"")[:10] + b"\xff" * 40],
    ids=["text", "cut", "damaged"],  # an archive begins with the time at which it was made
)
def test_broken_archive_is_refused(folder: Path, content: bytes) -> None:
    write_folder(folder, train=[CLIPS], test=numbered_rows(0, 1))
    (folder / "gsm8k" / "test.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"test\.jsonl\.gz cannot be read"):
        gsm8k.load(validation_ratio=0.0, calculator_marks=False)


def test_a_question_in_both_splits_is_refused(folder: Path) -> None:
    write_folder(folder, train=numbered_rows(0, 3), test=numbered_rows(2, 4))
    with pytest.raises(InputError, match="gsm8k/test/0 asks the same question as gsm8k/train/2"):
        gsm8k.load(validation_ratio=0.0, calculator_marks=False)


def test_missing_files_are_all_named(folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        gsm8k.load(validation_ratio=0.0, calculator_marks=False)
    for part in ("SCHEMABANK_DATA", f"{folder}/gsm8k/train.jsonl.gz", "test.jsonl.gz", "hub"):
        assert part in str(caught.value)


def test_hub_is_read_when_no_folder_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str, revision: None) -> dict[str, list[dict[str, str]]]:
        asked.append((*names, revision))
        return {"train": [CLIPS], "test": numbered_rows(0, 2)}

    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = gsm8k.load(validation_ratio=0.0, calculator_marks=False)
    assert asked == [("openai/gsm8k", "main", None)]
    assert [e.answer for e in data.train] == ["72"]
    assert [e.answer for e in data.test] == ["0", "1"]


def test_bad_hub_row_is_named_by_its_split_and_index(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"train": [CLIPS, {"question": "q"}], "test": numbered_rows(0, 2)}
    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", lambda *_names, **_options: rows)
    with pytest.raises(InputError, match="openai/gsm8k train row 1 must be an object"):
        gsm8k.load(validation_ratio=0.0, calculator_marks=False)


@pytest.mark.skipif(
    not (SHARED_DATA / "gsm8k").is_dir(), reason=f"the real data is not in {SHARED_DATA}"
)
def test_the_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(SHARED_DATA))
    data = gsm8k.load(validation_ratio=0.1, calculator_marks=False)
    assert len(data.train) + len(data.validation) == 7473
    assert len(data.validation) == 742
    assert len(data.test) == 1319
    everything = data.train + data.validation + data.test
    assert len({e.question for e in everything}) == len(everything)
    assert len({e.id for e in everything}) == len(everything)
    assert not any("<<" in e.solution or ">>" in e.solution for e in everything)
    assert all(e.solution.splitlines()[-1] == f"#### {e.answer}" for e in everything)
    assert all(e.answer.replace(",", "").lstrip("-").isdigit() for e in everything)
    assert sum("," in e.answer for e in everything) == 79 + 14
    # 113 solutions have no marks, and the marks of 101 more compute nothing, such as <<30=30>>.
    assert sum(e.fields["operations"] == "" for e in everything) == 113 + 101
