"""Owns the task perplexity: how likely whole books are, after a short and after a long context.

The same target tokens, the last few of a window, are scored with a short and with a long window in
front of them, so that nothing but the context differs. Books come from a folder with
``index.jsonl``, a row a book with ``book_id``, ``file`` (plain or gzipped text) and, for those to
test on, ``split: test`` or ``narrativeqa_set: test``; a book is whole in one split.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schemabank.common.errors import InputError
from schemabank.common.files import json_lines, read_unpacked
from schemabank.config.task import PerplexitySettings
from schemabank.tasks.base import Example, Item, TaskData, hash_position
from schemabank.tasks.seams import beginning_tokens
from schemabank.tasks.sources import DATA_VARIABLE, data_folder
from schemabank.tasks.task import Task

if TYPE_CHECKING:  # transformers takes a second to import
    from transformers import PreTrainedTokenizerBase

PROMPT_WORDS, TARGET_WORDS = 50, 150  # of a training example
TEST_SET = "test"  # NarrativeQA's


def load(settings: PerplexitySettings) -> TaskData:
    """Load the books.

    Training examples are pieces of ``PROMPT_WORDS`` and ``TARGET_WORDS`` words; of the other splits
    an example is a whole book, with its id as cluster. Books that are no stories of NarrativeQA's
    test split are for training and, a share of them chosen by a hash, for validation.

    Raises:
        InputError: no such folder, or a file that is not as the index says.
    """
    folder = _books_folder(settings)
    train: list[Example] = []
    books: dict[str, list[Example]] = {"validation": [], "test": []}
    for book_id, file, is_test in _read_index(folder):
        if book_id in settings.leave_out:
            continue
        text = read_unpacked(folder / file)
        if is_test:
            books["test"].append(_whole_book(book_id, text))
        elif hash_position(book_id) < settings.validation_ratio:
            books["validation"].append(_whole_book(book_id, text))
        else:
            train += _training_pieces(book_id, text)
    return TaskData(train=train, validation=books["validation"], test=books["test"])


def items(
    books: Sequence[Example], settings: PerplexitySettings, tokenizer: "PreTrainedTokenizerBase"
) -> list[Item]:
    """Return what is scored: every target once in each window, grouped by window.

    Args:
        books: whole books.
        settings: windows, targets and how many a book.
        tokenizer: the base model's.

    Raises:
        InputError: a book with fewer tokens than the longest window.
    """
    found: list[Item] = []
    beginning = beginning_tokens(tokenizer)  # what training begins with, too
    for book in books:
        tokens = tokenizer(book.question, add_special_tokens=False, verbose=False)["input_ids"]
        longest = max(settings.windows)
        if len(tokens) < longest:
            raise InputError(
                f"{book.id} has {len(tokens):,} tokens, but task.perplexity.windows asks for "
                f"{longest:,}, and what is not there cannot be a context: allowed are books of at "
                f"least as many, add {book.cluster!r} to task.perplexity.leave_out or take shorter "
                "windows"
            )
        for number, end in enumerate(_window_ends(len(tokens), settings)):
            for window in settings.windows:
                start = end - settings.num_targets
                context = (*beginning, *tokens[end - window + len(beginning) : start])
                found.append(
                    Item(
                        id=f"{book.id}/{number}@{window}",
                        group=f"{window} tokens",
                        prompt=str(tokenizer.decode(list(context))),
                        prompt_tokens=context,
                        target_tokens=tuple(tokens[start:end]),
                        golds=(),
                        cluster=book.cluster,
                        has_end=False,
                    )
                )
    return found


def _window_ends(num_tokens: int, settings: PerplexitySettings) -> list[int]:
    """Where the windows of a book end: evenly over it, no target twice."""
    first = max(settings.windows)
    count = min(settings.windows_per_book, 1 + (num_tokens - first) // settings.num_targets)
    return [first + (num_tokens - first) * i // max(count - 1, 1) for i in range(count)]


def _books_folder(settings: PerplexitySettings) -> Path:
    if settings.path is not None:
        folder = Path(settings.path)
    elif (data := data_folder()) is not None:
        folder = data / "books"
    else:
        raise InputError(
            f"the books were looked for in task.perplexity.path and {DATA_VARIABLE}, and neither "
            "is set: set one to a folder with index.jsonl and text/ (the latter to the folder "
            "above it, which holds it as books/)"
        )
    if not (folder / "index.jsonl").is_file():
        raise InputError(
            f"{str(folder)!r} holds no index.jsonl: set task.perplexity.path to a folder of books"
        )
    return folder


def _read_index(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Id, file and whether it is for testing, of every book."""
    path = folder / "index.jsonl"
    seen: set[str] = set()
    for where, row in json_lines(path, finite=True):
        try:
            book_id, file = str(row["book_id"]), str(row["file"])
        except KeyError as error:
            raise InputError(
                f"{where} must be an object with book_id and file ({error!r}): mend it"
            ) from error
        if book_id in seen:
            raise InputError(f"{where} has the book {book_id!r} again: remove one")
        seen.add(book_id)
        yield book_id, file, TEST_SET in (row.get("split"), row.get("narrativeqa_set"))


def _whole_book(book_id: str, text: str) -> Example:
    return Example(id=f"books/{book_id}", question=text, solution="", answer="", cluster=book_id)


def _training_pieces(book_id: str, text: str) -> Iterator[Example]:
    """Cut a book into examples at spaces; question and solution joined are the text itself."""
    words = text.split(" ")
    size = PROMPT_WORDS + TARGET_WORDS
    for number in range(len(words) // size):
        start = number * size
        solution = " " + " ".join(words[start + PROMPT_WORDS : start + size])
        yield Example(
            id=f"books/{book_id}/{number}",
            question=" ".join(words[start : start + PROMPT_WORDS]),
            solution=solution,
            answer=solution,
            cluster=book_id,
        )


TASK = Task(
    lambda settings: load(settings.perplexity),
    prompt="{question}",
    metric="perplexity",
    ends=False,
    items=lambda books, settings, tokenizer: items(books, settings.perplexity, tokenizer),
)
