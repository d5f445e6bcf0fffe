"""Owns the task NarrativeQA: questions on a story, answered from its plot summary.

Each question has two human answers, and about 30 questions share a summary, so an example's
cluster is its document. Paper: Kočiský et al., TACL 2018, arXiv 1712.07040.

Rows come from the first of these that is there:

- ``$SCHEMABANK_DATA/narrativeqa`` as https://github.com/google-deepmind/narrativeqa lays it out:
  ``qaps.csv``, ``documents.csv`` and ``summaries.csv``, there or in ``third_party/wikipedia``;
- the same folder with ``valid_questions.jsonl.gz``, ``valid_summaries.jsonl.gz`` and the same of
  ``test``, which hold tokenised text and no training split: ``valid`` is trained on;
- the Hugging Face hub, where ``SCHEMABANK_DATA`` is not set.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemabank.common.errors import InputError
from schemabank.common.files import csv_rows, json_lines
from schemabank.tasks import sources
from schemabank.tasks.base import (
    Example,
    TaskData,
    check_at_least,
    check_validation_ratio,
    set_aside,
)
from schemabank.tasks.task import Task

HUB_ID = "deepmind/narrativeqa"
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
SUMMARY_FILES = ("third_party/wikipedia/summaries.csv", "summaries.csv")

CLOSING = re.compile(r"(?<=\S) +(?=(?:[.,;:!?)\]}%]+|n't|')(?: |$))")
OPENING = re.compile(r"(?<!\S)([(\[{]) +(?=\S)|(?<!\S)([$£€#]) +(?=\d)")
POSSESSIVE = re.compile(r"(?<=[\w.)]) ([sS])(?= |$|[.,;:!?)])")
# Only after a pronoun: "150,000 m" and "the labour d mole" hold no contraction.
CONTRACTION = re.compile(
    r"\b(I|you|he|she|it|we|they|who|that|there) (ll|d|ve)(?!\S)|\b(I) (m)(?!\S)"
    r"|\b(you|we|they|who|there) (re)(?!\S)",
    re.IGNORECASE,
)


@dataclass
class _Upstream:
    """One of upstream's splits, filled while its rows are read."""

    name: str
    documents: dict[str, dict[str, str]] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    num_questions: Counter[str] = field(default_factory=Counter)  # of each document

    def add_document(self, where: str, id_: str, **texts: str) -> None:
        """Add a document with its ``summary``, ``title`` and ``kind``."""
        if id_ in self.documents:
            raise InputError(
                f"{where}: document_id {id_!r} stands there a second time: remove one of the rows"
            )
        self.documents[id_] = texts

    def add_question(
        self, where: str, document: str, text: str, answers: tuple[str, ...], id_: str | None = None
    ) -> None:
        """Add a question; without an ``id_`` of its own, a document's questions are counted."""
        if document not in self.documents:
            raise InputError(
                f"{where}: document_id {document!r} has no summary in this split: add it to the "
                f"summaries or remove the question"
            )
        id_ = id_ or f"{document}-{self.num_questions[document]:03}"
        self.num_questions[document] += 1
        if id_ in self.examples:
            raise InputError(
                f"{where}: question_id {id_!r} stands in {self.name} a second time: "
                f"remove the row or give it an id of its own"
            )
        self.examples[id_] = Example(
            id=f"narrativeqa/{self.name}/{id_}",
            question=text,
            solution=answers[0],
            answer=answers[0],
            fields={**self.documents[document], "document": document},
            references=answers,
            cluster=document,
        )


def load(*, validation_ratio: float, natural_text: bool, max_summary_words: int | None) -> TaskData:
    """Load NarrativeQA with its summaries.

    Args:
        validation_ratio: share of the documents of ``valid`` that become the validation split where
            the data has no training split; a document belongs to it by its id alone, and a larger
            share keeps all of a smaller one. With a training split it has no effect.
        natural_text: texts as people write them; else tokenised, ``Mark 's car .``. Where only
            tokenised text is there, `join_punctuation` restores most of it.
        max_summary_words: leave out questions whose summary has more words, in all splits; ``None``
            for no limit. No summary is ever cut.

    An id such as ``narrativeqa/valid/DOCUMENT-007`` names the split upstream and counts a
    document's questions, in whichever split it ends. ``answer`` and ``solution`` are the first
    answer, ``references`` the distinct ones, and the fields are ``summary``, ``title``, ``kind``
    (``gutenberg`` or ``movie``) and ``document``.
    """
    check_validation_ratio(validation_ratio)
    check_at_least(1, max_summary_words=max_summary_words)
    folder = sources.data_folder()
    splits = _folder_splits(folder / "narrativeqa", natural_text) if folder else _hub(natural_text)
    _check_disjoint(splits)
    examples = {split.name: _short_enough(split, max_summary_words) for split in splits}
    if "train" in examples:
        return TaskData(examples["train"], examples["valid"], examples["test"])
    train, validation = set_aside(examples["valid"], validation_ratio, by=lambda e: e.cluster)
    return TaskData(train, validation, examples["test"])


def join_punctuation(text: str) -> str:
    """Join the tokens of a text to what people write.

    ``Mark s car ( red ) .`` becomes ``Mark's car (red).``: punctuation joins its word, a lone ``s``
    is a possessive, and contractions get their apostrophe back after a pronoun. Quotation marks
    that the tokeniser dropped stay lost.
    """
    text = POSSESSIVE.sub(r"'\1", OPENING.sub(r"\1\2", CLOSING.sub("", text)))
    return CONTRACTION.sub(lambda match: "'".join(part for part in match.groups() if part), text)


def _short_enough(split: _Upstream, limit: int | None) -> list[Example]:
    """Return the examples whose summary has at most as many words."""
    lengths = {id_: len(texts["summary"].split()) for id_, texts in split.documents.items()}
    examples = split.examples.values()
    if not examples:
        raise InputError(
            f"NarrativeQA's split {split.name} holds no question: restore the original files"
        )
    kept = [e for e in examples if limit is None or lengths[e.cluster] <= limit]
    if not kept:
        shortest = min(lengths[example.cluster] for example in examples)
        raise InputError(
            f"max_summary_words {limit} leaves no question of NarrativeQA's split {split.name}, "
            f"whose shortest summary has {shortest} words: raise the limit"
        )
    return kept


def _folder_splits(folder: Path, natural_text: bool) -> list[_Upstream]:
    if (folder / "qaps.csv").is_file():
        return _upstream_splits(folder, natural_text)
    paths = {
        split: (folder / f"{split}_summaries.jsonl.gz", folder / f"{split}_questions.jsonl.gz")
        for split in ("valid", "test")
    }
    tokenised = [path for files in paths.values() for path in files]
    if not all(path.is_file() for path in tokenised):
        put = "put the files of https://github.com/google-deepmind/narrativeqa there"
        sources.check_files(
            "NarrativeQA", [folder / "qaps.csv", *tokenised], put=put, hub_id=HUB_ID
        )
    return [_tokenised_split(split, *files, natural_text) for split, files in paths.items()]


def _tokenised_split(name: str, summaries: Path, questions: Path, natural_text: bool) -> _Upstream:
    restore: Callable[[str], str] = join_punctuation if natural_text else str
    split = _Upstream(name)
    for where, row in json_lines(summaries):
        id_, kind, title, summary = _texts_in(where, row, "document_id", "kind", "title", "summary")
        split.add_document(where, id_, summary=restore(summary), title=title, kind=kind)
    for where, row in json_lines(questions):
        id_, document, text = _texts_in(where, row, "question_id", "document_id", "question")
        answers = tuple(map(restore, _answers_in(where, row.get("answers"))))
        split.add_question(where, document, restore(text), answers, id_)
    return split


def _upstream_splits(folder: Path, natural_text: bool) -> list[_Upstream]:
    suffix = "" if natural_text else "_tokenized"
    summary_files = [folder / name for name in SUMMARY_FILES if (folder / name).is_file()]
    if not summary_files or not (folder / "documents.csv").is_file():
        raise InputError(
            f"{folder} holds qaps.csv, but not both documents.csv and {' or '.join(SUMMARY_FILES)}:"
            f" put all three of https://github.com/google-deepmind/narrativeqa there"
        )
    summaries = {
        _text_in(where, row, "document_id"): _text_in(where, row, f"summary{suffix}")
        for where, row in csv_rows(summary_files[0])
    }
    splits = {name: _Upstream(name) for name in HUB_SPLITS}
    for where, row in csv_rows(folder / "documents.csv"):
        id_, kind, title = _texts_in(where, row, "document_id", "kind", "wiki_title")
        if id_ in summaries:
            split = splits[_split_name(where, row)]
            split.add_document(where, id_, summary=summaries[id_], title=title, kind=kind)
    for where, row in csv_rows(folder / "qaps.csv"):
        document, text = (_text_in(where, row, key) for key in ("document_id", f"question{suffix}"))
        answers = _answers_in(where, [row.get(f"answer{i}{suffix}") for i in (1, 2)])
        splits[_split_name(where, row)].add_question(where, document, text, answers)
    return [*splits.values()]


def _hub(natural_text: bool) -> list[_Upstream]:
    hub_data = sources.load_data_set(
        HUB_ID,
        sought=f"NarrativeQA was looked for in {sources.NOT_SET}",
        otherwise=f"set {sources.DATA_VARIABLE} to a folder with narrativeqa/qaps.csv and its "
        "companions",
    )
    return [
        _hub_split(split, hub_name, hub_data[hub_name], natural_text)
        for split, hub_name in HUB_SPLITS.items()
    ]


def _hub_split(name: str, hub_name: str, rows: Any, natural_text: bool) -> _Upstream:  # noqa: ANN401
    # Each row repeats its document's whole story, hundreds of kilobytes that nothing here reads.
    rows = rows.flatten().remove_columns("document.text")
    part = "text" if natural_text else "tokens"
    split = _Upstream(name)
    for where, row in sources.numbered_rows(HUB_ID, hub_name, rows):
        id_ = _text_in(where, row, "document.id")
        if id_ not in split.documents:
            split.add_document(
                where,
                id_,
                summary=_text_in(where, row, f"document.summary.{part}"),
                title=_text_in(where, row, "document.summary.title"),
                kind=_text_in(where, row, "document.kind"),
            )
        answers = _answers_in(where, [_joined(answer[part]) for answer in row["answers"]])
        split.add_question(where, id_, _text_in(where, row, f"question.{part}"), answers)
    return split


def _texts_in(where: str, row: Mapping[str, object], *keys: str) -> list[str]:
    return [_text_in(where, row, key) for key in keys]


def _text_in(where: str, row: Mapping[str, object], key: str) -> str:
    text = _joined(row.get(key))
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{where}: {key!r} must be a text that is not blank, not {text!r:.60}: restore the "
            f"original file"
        )
    return text.strip()


def _joined(text: object) -> object:
    """Return a list of tokens as one text, and anything else as it is."""
    if isinstance(text, list) and all(isinstance(token, str) for token in text):
        return " ".join(text)
    return text


def _answers_in(where: str, answers: object) -> tuple[str, ...]:
    """Return the distinct answers in their order; blank ones are left out."""
    texts = answers if isinstance(answers, list) else []
    distinct = dict.fromkeys(text.strip() for text in texts if isinstance(text, str))
    references = tuple(text for text in distinct if text)
    if not references:
        raise InputError(
            f"{where}: the question has no answer, {answers!r:.60}: give at least one text"
        )
    return references


def _split_name(where: str, row: Mapping[str, object]) -> str:
    name = _text_in(where, row, "set")
    if name not in HUB_SPLITS:
        raise InputError(
            f"{where}: set {name!r} is not one of {', '.join(HUB_SPLITS)}: restore the original "
            f"file"
        )
    return name


def _check_disjoint(splits: Iterable[_Upstream]) -> None:
    first: dict[str, str] = {}
    for split in splits:
        for id_ in split.documents:
            if id_ in first:
                raise InputError(
                    f"document {id_!r} of NarrativeQA stands in {first[id_]} and in {split.name}: "
                    f"restore the original files, whose splits share none"
                )
            first[id_] = split.name


TASK = Task(
    lambda settings: load(**settings.narrativeqa.model_dump()),
    prompt="{title}\n\n{summary}\n\nQuestion: {question}\nAnswer: ",
    metric="reading",
)
