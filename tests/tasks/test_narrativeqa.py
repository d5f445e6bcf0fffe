"""NarrativeQA: its three sources, splits by document, and what is said when rows are wrong."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from schemabank.common.errors import InputError
from schemabank.tasks import narrativeqa
from schemabank.tasks.base import TaskData
from schemabank.tasks.narrativeqa import join_punctuation

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"

Rows = list[dict[str, Any]]


def load(**changes: Any) -> TaskData:  # noqa: ANN401
    settings = {"validation_ratio": 0.0, "natural_text": True, "max_summary_words": None}
    return narrativeqa.load(**(settings | changes))


def summaries(*ids: str, num_words: int = 5) -> Rows:
    return [
        {
            "document_id": id_,
            "kind": "movie",
            "title": f"Title {id_}",
            "wiki_url": f"http://en.wikipedia.org/wiki/{id_}",
            "summary": " ".join(["Mark", "s", *["car"] * (num_words - 3), "."]),
        }
        for id_ in ids
    ]


def questions(*ids: str, each: int = 2) -> Rows:
    return [
        {
            "question_id": f"{id_}-{number:03}",
            "document_id": id_,
            "question": f"Who is number {number} ?",
            "answers": [f"Mark s son {number} .", f"a son {number}"],
        }
        for id_ in ids
        for number in range(each)
    ]


def write_tokenised(folder: Path, **rows: Rows | str) -> None:
    """Write the four files; ``valid_questions="..."`` replaces the text or the rows of one."""
    files = {
        "valid_summaries": summaries("v0"),
        "valid_questions": questions("v0"),
        "test_summaries": summaries("t0"),
        "test_questions": questions("t0"),
        **rows,
    }
    (folder / "narrativeqa").mkdir(exist_ok=True)
    for name, content in files.items():
        lines = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        path = folder / "narrativeqa" / f"{name}.jsonl.gz"
        path.write_bytes(gzip.compress(lines.encode()))


def write_upstream(
    folder: Path, *, summary_file: str = "third_party/wikipedia/summaries.csv", **rows: Rows
) -> None:
    sets = {"r0": "train", "v0": "valid", "t0": "test"}
    default = {
        "documents": [
            {"document_id": id_, "set": s, "kind": "gutenberg", "wiki_title": f"Title {id_}"}
            for id_, s in sets.items()
        ],
        "summaries": [
            {
                "document_id": id_,
                "set": s,
                "summary": f'"{id_}\'s story", he said,\non two lines.',
                "summary_tokenized": f"{id_} s story , he said , on two lines .",
            }
            for id_, s in sets.items()
        ],
        "qaps": [
            {
                "document_id": id_,
                "set": s,
                "question": f"Who's {id_}, number {number}?",
                "answer1": f"A son, {number}",
                "answer2": f"the son {number}",
                "question_tokenized": f"Who s {id_} , number {number} ?",
                "answer1_tokenized": f"A son , {number}",
                "answer2_tokenized": f"the son {number}",
            }
            for id_, s in sets.items()
            for number in range(2)
        ],
    }
    base = folder / "narrativeqa"
    paths = {"documents": "documents.csv", "qaps": "qaps.csv", "summaries": summary_file}
    for name, content in (default | rows).items():
        path = base / paths[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, content[0])
            writer.writeheader()
            writer.writerows(content)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path))
    return tmp_path


def test_tokenised_rows_become_examples_in_natural_text(folder: Path) -> None:
    write_tokenised(folder)
    data = load()
    example = data.train[0]
    assert example.id == "narrativeqa/valid/v0-000"
    assert example.question == "Who is number 0?"
    assert example.answer == example.solution == "Mark's son 0."
    assert example.references == ("Mark's son 0.", "a son 0")
    assert example.fields == {
        "summary": "Mark's car car.",
        "title": "Title v0",
        "kind": "movie",
        "document": "v0",
    }
    assert (example.cluster, example.group) == ("v0", "all")
    assert data.validation == []
    assert [e.id for e in data.test] == ["narrativeqa/test/t0-000", "narrativeqa/test/t0-001"]


def test_tokenised_text_can_be_kept(folder: Path) -> None:
    write_tokenised(folder)
    example = load(natural_text=False).train[1]
    assert example.question == "Who is number 1 ?"
    assert example.references == ("Mark s son 1 .", "a son 1")
    assert example.fields["summary"] == "Mark s car car ."


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("Yes , ( he ) did ; no : ! ?", "Yes, (he) did; no:!?"),
        ("Mark s car , JAKE S CON", "Mark's car, JAKE'S CON"),
        ("Who s the Dr . s son ?", "Who's the Dr.'s son?"),
        ("the taxpayers ' money , Chris ' dad", "the taxpayers' money, Chris' dad"),
        ("She ca n't , wo n't and does n't", "She can't, won't and doesn't"),
        ("I m told they re sure he d say she ll go", "I'm told they're sure he'd say she'll go"),
        ("( 150,000 m ) of the labour d mole", "(150,000 m) of the labour d mole"),
        ("$ 400 or £ 5 , 80 % of Bomb # 20", "$400 or £5, 80% of Bomb #20"),
        ("so . . . . There [ was ] one", "so.... There [was] one"),
        ("a jury – apparently - left", "a jury – apparently - left"),
        (". A dot first", ". A dot first"),
        ("Already natural, isn't it? (Yes.)", "Already natural, isn't it? (Yes.)"),
        ("", ""),
    ],
)
def test_punctuation_joins_its_word(tokens: str, text: str) -> None:
    assert join_punctuation(tokens) == text
    assert join_punctuation(text) == text


def test_references_are_distinct_and_in_order(folder: Path) -> None:
    rows = questions("v0", each=3)
    for row, answers in zip(rows, [["Rome", "Rome "], ["ROME", "Rome"], ["", "Rome"]], strict=True):
        row["answers"] = answers
    write_tokenised(folder, valid_questions=rows)
    assert [e.references for e in load().train] == [("Rome",), ("ROME", "Rome"), ("Rome",)]


def test_validation_is_made_of_whole_documents_and_nested(folder: Path) -> None:
    ids = [f"v{i}" for i in range(200)]
    write_tokenised(folder, valid_summaries=summaries(*ids), valid_questions=questions(*ids))
    loaded = [load(validation_ratio=ratio) for ratio in (0, 0.1, 0.3)]
    for data in loaded:
        documents = [{e.cluster for e in split} for split in (data.train, data.validation)]
        assert not documents[0] & documents[1]
        assert documents[0] | documents[1] == set(ids)
        assert len(data.train) + len(data.validation) == 400
        assert {e.cluster for e in data.test} == {"t0"}
    small, large = ({e.cluster for e in data.validation} for data in loaded[1:])
    assert 8 < len(small) < 35
    assert small < large
    # A document's place does not depend on the others or on the order.
    write_tokenised(
        folder, valid_summaries=summaries(*ids[::-2]), valid_questions=questions(*ids[::-2])
    )
    half = {e.cluster for e in load(validation_ratio=0.1).validation}
    assert half == small & set(ids[::-2])


def test_long_summaries_are_left_out_but_never_cut(folder: Path) -> None:
    rows = summaries("v0", num_words=5) + summaries("v1", num_words=9)
    write_tokenised(folder, valid_summaries=rows, valid_questions=questions("v0", "v1"))
    assert {e.cluster for e in load(max_summary_words=4).train} == {"v0"}
    assert {e.cluster for e in load(max_summary_words=7).train} == {"v0", "v1"}
    assert {e.cluster for e in load(natural_text=False, max_summary_words=7).train} == {"v0"}
    with pytest.raises(InputError, match=r"max_summary_words 2 .* valid, .* has 3 words: raise"):
        load(max_summary_words=2)


@pytest.mark.parametrize("summary_file", ["third_party/wikipedia/summaries.csv", "summaries.csv"])
def test_upstreams_files_are_read_with_their_own_splits(folder: Path, summary_file: str) -> None:
    write_upstream(folder, summary_file=summary_file)
    write_tokenised(folder)
    data = load(validation_ratio=0.9)
    ids = [[e.id for e in split] for split in (data.train, data.validation, data.test)]
    assert ids == [
        [f"narrativeqa/{split}-000", f"narrativeqa/{split}-001"]
        for split in ("train/r0", "valid/v0", "test/t0")
    ]
    example = data.validation[1]
    assert example.question == "Who's v0, number 1?"
    assert example.references == ("A son, 1", "the son 1")
    assert example.fields["summary"] == '"v0\'s story", he said,\non two lines.'
    assert example.fields["kind"] == "gutenberg"
    tokenised = load(natural_text=False).validation[1]
    assert tokenised.id == example.id
    assert tokenised.question == "Who s v0 , number 1 ?"
    assert tokenised.answer == "A son , 1"
    assert tokenised.fields["summary"].endswith("on two lines .")


@pytest.mark.parametrize("missing", ["documents.csv", "third_party/wikipedia/summaries.csv"])
def test_an_incomplete_upstream_folder_is_refused(folder: Path, missing: str) -> None:
    write_upstream(folder)
    (folder / "narrativeqa" / missing).unlink()
    with pytest.raises(InputError, match=r"holds qaps\.csv, but not both documents\.csv and"):
        load()


def test_missing_files_are_all_named(folder: Path) -> None:
    write_tokenised(folder)
    (folder / "narrativeqa" / "test_summaries.jsonl.gz").unlink()
    (folder / "narrativeqa" / "valid_questions.jsonl.gz").unlink()
    with pytest.raises(InputError) as caught:
        load()
    base = f"{folder}/narrativeqa"
    for part in ("SCHEMABANK_DATA", f"{base}/qaps.csv", f"{base}/test_summaries", "hub"):
        assert part in str(caught.value)
    assert f"{base}/valid_questions.jsonl.gz" in str(caught.value)
    assert "test_questions" not in str(caught.value)


GOOD = questions("v0", each=1)[0]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (GOOD, "question_id 'v0-000' stands in valid a second time"),
        ({**GOOD, "question_id": "x", "answers": []}, r"no answer, \[\]"),
        ({**GOOD, "question_id": "x", "answers": ["", " "]}, "no answer"),
        ({**GOOD, "question_id": "x", "answers": None}, "no answer, None"),
        ({**GOOD, "question_id": "x", "question": " "}, "'question' must be a text"),
        ({**GOOD, "question_id": 7}, "'question_id' must be a text that is not blank, not 7"),
        ({**GOOD, "question_id": "x", "document_id": "t0"}, "'t0' has no summary in this split"),
        ({"question": "Who?"}, "'question_id' must be a text that is not blank, not None"),
        (["v0"], "must be an object with named columns"),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(folder: Path, bad: Any, problem: str) -> None:  # noqa: ANN401
    write_tokenised(folder, valid_questions=[GOOD, bad])
    with pytest.raises(InputError, match=rf"valid_questions\.jsonl\.gz line 2.*{problem}"):
        load()


def test_bad_summaries_are_named(folder: Path) -> None:
    write_tokenised(folder, test_summaries=summaries("t0", "t0"))
    with pytest.raises(InputError, match=r"test_summaries\.jsonl\.gz line 2: document_id 't0'"):
        load()
    write_tokenised(folder, test_summaries=[*summaries("t0"), *summaries("v0")])
    with pytest.raises(
        InputError, match="document 'v0' of NarrativeQA stands in valid and in test"
    ):
        load()
    write_tokenised(folder, test_summaries="{")
    with pytest.raises(InputError, match=r"test_summaries\.jsonl\.gz line 1 is not valid JSON"):
        load()
    write_tokenised(folder, test_questions="")
    with pytest.raises(InputError, match="split test holds no question"):
        load()


def test_a_broken_archive_is_refused(folder: Path) -> None:
    write_tokenised(folder)
    (folder / "narrativeqa" / "test_questions.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"test_questions\.jsonl\.gz cannot be read"):
        load()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"set": "dev"}, "set 'dev' is not one of train, valid, test"),
        ({"set": "test"}, "'r0' has no summary in this split"),
        ({"answer1": "", "answer2": ""}, "no answer"),
        ({"question": ""}, "'question' must be a text"),
    ],
)
def test_a_bad_upstream_row_is_named(folder: Path, row: dict[str, str], problem: str) -> None:
    good = {"document_id": "r0", "set": "train", "question": "Q?", "answer1": "a", "answer2": "b"}
    write_upstream(folder, qaps=[good, good | row])
    with pytest.raises(InputError, match=rf"qaps\.csv line 3: .*{problem}"):
        load()


def test_an_upstream_file_in_another_encoding_is_refused(folder: Path) -> None:
    write_upstream(folder)
    (folder / "narrativeqa" / "documents.csv").write_bytes(b"document_id,set\n\xff\xfe,train\n")
    with pytest.raises(InputError, match=r"documents\.csv cannot be read"):
        load()


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_validation_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="validation_ratio"):
        load(validation_ratio=ratio)


def test_max_summary_words_must_be_positive() -> None:
    with pytest.raises(InputError, match="max_summary_words 0 is below 1: use 1 or more"):
        load(max_summary_words=0)


def hub_rows(id_: str) -> Rows:
    summary = {"text": "Mark's car.", "tokens": ["Mark", "'s", "car", "."], "title": f"T {id_}"}
    return [
        {
            "document": {"id": id_, "kind": "movie", "summary": summary, "text": "The story."},
            "question": {"text": f"Who's {i}?", "tokens": ["Who", "'s", str(i), "?"]},
            "answers": [
                {"text": "Mark.", "tokens": ["Mark", "."]},
                {"text": "A boy", "tokens": ["A", "boy"]},
            ],
        }
        for i in range(2)
    ]


def test_the_hub_is_read_when_no_folder_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []
    ids = {"train": "r0", "validation": "v0", "test": "t0"}

    def load_dataset(name: str, *_names: None, **_options: None) -> Any:  # noqa: ANN401
        asked.append(name)
        return {s: datasets.Dataset.from_list(hub_rows(id_)) for s, id_ in ids.items()}

    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load(validation_ratio=0.5)
    assert asked == ["deepmind/narrativeqa"]
    assert [e.id for e in data.train] == ["narrativeqa/train/r0-000", "narrativeqa/train/r0-001"]
    assert [e.question for e in data.validation] == ["Who's 0?", "Who's 1?"]
    assert data.test[0].references == ("Mark.", "A boy")
    assert data.test[0].fields == {
        "summary": "Mark's car.",
        "title": "T t0",
        "kind": "movie",
        "document": "t0",
    }
    tokenised = load(natural_text=False).test[1]
    assert (tokenised.question, tokenised.answer) == ("Who 's 1 ?", "Mark .")
    assert tokenised.fields["summary"] == "Mark 's car ."


@pytest.mark.skipif(
    not (SHARED_DATA / "narrativeqa").is_dir(), reason=f"the real data is not in {SHARED_DATA}"
)
def test_the_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(SHARED_DATA))
    data = load(validation_ratio=0.1)
    assert (len(data.train), len(data.validation), len(data.test)) == (3018, 443, 10557)
    clusters = [{e.cluster for e in split} for split in (data.train, data.validation, data.test)]
    assert [len(c) for c in clusters] == [100, 15, 355]
    assert len(set.union(*clusters)) == 470
    everything = data.train + data.validation + data.test
    assert len({e.id for e in everything}) == len(everything)
    # Both answers are the same text, letter by letter.
    assert sum(len(e.references) == 1 for e in everything) == 436 + 63 + 1488
    assert not any(" ," in e.fields["summary"] or " ." in e.question for e in data.test)
    assert {e.fields["kind"] for e in everything} == {"gutenberg", "movie"}
    short = load(natural_text=False, validation_ratio=0.1, max_summary_words=600)
    assert (len(short.train), len(short.validation), len(short.test)) == (1250, 266, 4188)
