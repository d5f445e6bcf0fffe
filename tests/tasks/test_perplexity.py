"""Books: splits, windows that end with the same targets, and what is too short."""

import gzip
import json
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.config.task import PerplexitySettings
from schemabank.tasks import TaskData
from schemabank.tasks.perplexity import items, load
from tiny import tiny_tokenizer

SETTINGS = {"windows": (20, 60), "num_targets": 8, "windows_per_book": 3, "leave_out": ()}


def write(folder: Path, books: dict[str, tuple[str, str | None]]) -> Path:
    (folder / "text").mkdir(parents=True)
    lines = []
    for book_id, (text, split) in books.items():
        file = f"text/{book_id}.txt.gz"
        (folder / file).write_bytes(gzip.compress(text.encode()))
        lines.append(json.dumps({"book_id": book_id, "file": file, "narrativeqa_set": split}))
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{i}\n\n" if i % 7 == 0 else f"w{i}" for i in range(start, start + count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    books = {f"book-{i}": (words(430, 1000 * i), [None, "valid", "test"][i % 3]) for i in range(12)}
    return write(tmp_path / "books", books)


def loaded(folder: Path, **changes: object) -> TaskData:
    return load(PerplexitySettings(path=str(folder), **{**SETTINGS, **changes}))


def test_a_book_is_in_one_split_and_pieces_are_its_text(folder: Path) -> None:
    data = loaded(folder, validation_ratio=0.4)
    assert [e.cluster for e in data.test] == ["book-2", "book-5", "book-8", "book-11"]
    splits = [{e.cluster for e in data.split(s)} for s in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 12
    assert all(splits)
    own = [e for e in data.train if e.cluster == data.train[0].cluster]
    assert [e.id for e in own] == [f"books/{own[0].cluster}/{i}" for i in range(2)]
    number = int(own[0].cluster.removeprefix("book-"))
    text = " ".join(e.question + e.solution for e in own)
    assert words(430, 1000 * number).startswith(text)
    assert len(text.split(" ")) == 400


def test_a_larger_share_for_validation_keeps_a_smaller_one(folder: Path) -> None:
    few, many = (
        {e.cluster for e in loaded(folder, validation_ratio=r).validation} for r in (0.2, 0.6)
    )
    assert few < many


def test_the_same_targets_end_every_window(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    books = loaded(folder).test
    settings = PerplexitySettings(**SETTINGS)
    found = items(books, settings, tokenizer)
    assert len(found) == len(books) * 3 * 2
    assert {i.group for i in found} == {"20 tokens", "60 tokens"}
    for short, long in zip(found[::2], found[1::2], strict=True):
        assert short.target_tokens == long.target_tokens
        assert len(short.target_tokens) == 8
        assert len(short.prompt_tokens) + 8 == 20
        assert len(long.prompt_tokens) + 8 == 60
        assert long.prompt_tokens[-12:] == short.prompt_tokens
        assert not short.has_end
    tokens = tuple(tokenizer(books[0].question, add_special_tokens=False)["input_ids"])
    first, last = found[1], found[5]
    assert first.prompt_tokens + first.target_tokens == tokens[:60]
    assert last.target_tokens == tokens[-8:]


@pytest.mark.parametrize("num_words", [60, 70, 100, 430])
def test_no_target_is_scored_twice(tmp_path: Path, num_words: int) -> None:
    folder = write(
        tmp_path / "b", {"one": (" ".join("abcdefgh"[i % 8] for i in range(num_words)), "test")}
    )
    settings = PerplexitySettings(**(SETTINGS | {"windows_per_book": 50}))
    books = loaded(folder).test
    tokenizer = tiny_tokenizer()
    length = len(tokenizer(books[0].question, add_special_tokens=False)["input_ids"])
    found = items(books, settings, tokenizer)
    assert len(found) == 2 * min(50, 1 + (length - 60) // 8)
    # Distinct places that are at least a target apart, the first and the last among them.
    assert len({i.id for i in found}) == len(found)


def test_a_book_that_is_too_short_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", {"tale": ("a b c", "test"), "long": (words(430), "test")})
    with pytest.raises(InputError, match=r"books/tale has \d tokens, .* asks for 60, .*'tale'"):
        items(loaded(folder).test, PerplexitySettings(**SETTINGS), tiny_tokenizer())
    rest = loaded(folder, leave_out=("tale",)).test
    assert len(items(rest, PerplexitySettings(**SETTINGS), tiny_tokenizer())) == 6


def test_targets_must_leave_room_for_a_context() -> None:
    with pytest.raises(ValueError, match="num_targets is 20, but a window has 20 tokens"):
        PerplexitySettings(windows=(20, 60), num_targets=20)


def test_windows_differ() -> None:
    with pytest.raises(ValueError, match="repeat"):
        PerplexitySettings(windows=(512, 512))


def test_a_beginning_token_stands_in_front_of_every_window(folder: Path) -> None:
    class Beginning:
        """A tokenizer that begins what it reads with token 1."""

        plain = tiny_tokenizer()

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            found = self.plain(text, add_special_tokens=False)["input_ids"]
            return {
                "input_ids": found if options.get("add_special_tokens") is False else [1, *found]
            }

        def decode(self, tokens: list[int]) -> str:
            return str(self.plain.decode(tokens))

    settings = PerplexitySettings(**SETTINGS)
    books = loaded(folder).test
    plain, begun = (items(books, settings, t) for t in (tiny_tokenizer(), Beginning()))
    for without, with_it in zip(plain, begun, strict=True):
        assert with_it.target_tokens == without.target_tokens
        assert with_it.prompt_tokens == (1, *without.prompt_tokens[1:])


def test_books_of_ones_own_are_plain_texts_with_a_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(430))
    (tmp_path / "b.txt").write_text(words(430, 500))
    rows = [{"book_id": "a", "file": "a.txt"}, {"book_id": "b", "file": "b.txt", "split": "test"}]
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = loaded(tmp_path, validation_ratio=0)
    assert {e.cluster for e in data.train} == {"a"}
    assert [e.cluster for e in data.test] == ["b"]


def test_where_the_books_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEMABANK_DATA", str(folder.parent))
    assert load(PerplexitySettings(**SETTINGS)) == loaded(folder)
    monkeypatch.delenv("SCHEMABANK_DATA")
    with pytest.raises(InputError, match="neither is set"):
        load(PerplexitySettings(**SETTINGS))
    with pytest.raises(InputError, match=r"holds no index.jsonl"):
        loaded(folder / "text")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"book_id": "x"}', '{"book_id": "book-0", "file": "f"}']
)
def test_a_bad_index_is_named(folder: Path, line: str) -> None:
    with (folder / "index.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match="line 13"):
        loaded(folder)


def test_a_damaged_book_is_named(folder: Path) -> None:
    (folder / "text" / "book-0.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"cannot read .*book-0.txt.gz"):
        loaded(folder)
