"""Owns the choice of the program within a completion: which part of the text is run.

A base model writes on where the prompt ends; a chat model writes a sentence, a fence and a whole
function. Both forms are recognised, and nothing is repaired: the chosen text runs unchanged.
EvalPlus (github.com/evalplus/evalplus) takes the longest text that parses; here tokens tell,
because the parser can crash on what a model wrote.
"""

import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import suppress

# Where a completion goes on to something else; HumanEval's begin inside a function's body, and
# the first of its stops are those of Chen et al. (who let prose after a solution fail it).
STOPS = {
    "humaneval": ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n@", "\n```"),
    "mbpp": ("\nassert ", "\nprint(", "\nif __name__", "\n```"),
}
INDENT = " " * 4
OUTSIDE_STATEMENTS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

DEFINITION = re.compile(r"^(?:def|class)\b", re.MULTILINE)
FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$", re.MULTILINE
)
PYTHON = re.compile(r"(?:python|py)?[0-9.]*(?:\W.*)?", re.IGNORECASE)  # or no language at all
INDENTED = re.compile(r"\s*?^(?: {2}|\t)[ \t]*\S", re.MULTILINE)  # one blank may be the prompt's
LEAVING = re.compile(r"^(?:return|yield)\b", re.MULTILINE)
DECLARING = re.compile(r"(?:async\s+def|def|class|import)\b|from\s+\S+\s+import\b|@")
DEFINING = re.compile(rf"{DECLARING.pattern}|\w+(?:\s*:.*)?\s*=(?!=)")
# A sentence: a capital letter, and nothing that makes its word a name in code.
PROSE = re.compile(r"\s*[*>]{0,3}[A-Z][\w'’]*(?![\w'’]|\s*[=(\[]|\.\w|\s*,\s*\w+\s*=)")


def body_or_function(completion: str, entry_point: str) -> str:
    """Return what a completion of HumanEval's prompt has of a solution.

    That is the body of the function that the prompt begins, or the whole function once more: see
    :func:`defines`. A fence counts where the completion does not begin with the body itself.
    """
    if INDENTED.match(completion):
        return cut(completion, "humaneval")
    block = _fenced_program(completion, [entry_point])
    text = completion if block is None else block
    if defines(text, entry_point):
        return _with_definitions(text, entry_point)
    if block is not None and not INDENTED.match(block) and LEAVING.search(block):
        text = "".join(INDENT + line for line in block.splitlines(keepends=True))
    return cut(text, "humaneval")


def module(completion: str, called: Sequence[str]) -> str:
    """Return what a completion of MBPP's prompt has of a program.

    Args:
        completion: what a model wrote.
        called: names that the tests call; the first fence that defines one of them counts.
    """
    block = _fenced_program(completion, called)
    text = completion if block is None else block
    if PROSE.match(text):
        starts = [start for start, line in _first_column_lines(text) if DEFINING.match(line)]
        text = text[starts[0] :] if starts else text
    return cut(text, "mbpp")


def defines(text: str, name: str) -> bool:
    """Return whether a text defines a function of this name in the first column."""
    return _definition_of(name).search(text) is not None


def cut(completion: str, kind: str) -> str:
    """Return a completion up to where it goes on to something else than was asked."""
    ends = [completion.find(stop) for stop in STOPS[kind]]
    begun = DEFINITION.search(completion) if kind == "mbpp" else None
    if begun is not None:  # the next problem's docstring
        ends.append(completion.find('\n"""', begun.end()))
    kept = completion[: min((end for end in ends if end >= 0), default=None)]
    return _first_block(kept) if kind == "humaneval" else kept


def _definition_of(name: str) -> re.Pattern[str]:
    return re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b", re.MULTILINE)


def _begins_with_program(completion: str, names: Sequence[str]) -> bool:
    """Whether a program stands in front of the first fence, which then only ends it."""
    fence = FENCE.search(completion)
    before = completion if fence is None else completion[: fence.start()]
    if any(defines(before, name) for name in names):
        return True
    return bool(before.strip()) and not PROSE.match(before) and bool(DEFINITION.search(before))


def _fenced_program(completion: str, names: Sequence[str]) -> str | None:
    """The first fence that defines one of the names, else the first that may hold Python.

    ``None`` without such a fence, and where a program stands in front of the first one.
    """
    if _begins_with_program(completion, names):
        return None
    blocks = [text for language, text in _fenced(completion) if PYTHON.fullmatch(language)]
    defining = [text for text in blocks if any(defines(text, name) for name in names)]
    return next(iter([*defining, *blocks]), None)


def _fenced(completion: str) -> Iterator[tuple[str, str]]:
    """Language and text of every fence, without its own indentation; the last may lack its end."""
    opened: re.Match[str] | None = None
    for fence in FENCE.finditer(completion):
        if opened is None:
            opened = fence
        elif fence["mark"].startswith(opened["mark"]) and not fence["info"].strip():
            yield _fence_content(opened, completion[opened.end() + 1 : fence.start()])
            opened = None
    if opened is not None:
        yield _fence_content(opened, completion[opened.end() + 1 :])


def _fence_content(opened: re.Match[str], text: str) -> tuple[str, str]:
    indent = re.compile(rf"^[ \t]{{0,{len(opened['indent'])}}}", re.MULTILINE)
    return opened["info"].strip(), indent.sub("", text)


def _with_definitions(text: str, name: str) -> str:
    """The function with what is defined around it: no sentence before, no example behind.

    What stands before the function counts from the first line that defines or imports something;
    behind it, up to the first statement that does not.
    """
    found = _definition_of(name).search(text)
    assert found is not None
    first = next(start for start, line in _first_column_lines(text) if DEFINING.match(line))
    kept, function = text[first:], found.start() - first
    line_starts = [0, *(match.end() for match in re.finditer("\n", kept))]
    for row in _statement_rows(kept):
        if line_starts[row] > function and not DECLARING.match(kept, line_starts[row]):
            return kept[: line_starts[row]]
    return kept


def _first_column_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that begin in the first column, with where they start."""
    for match in re.finditer(r"^\S.*", text, re.MULTILINE):
        yield match.start(), match.group()


def _statement_rows(text: str) -> list[int]:
    """Rows, from 0, at which a statement begins in the first column, up to where tokens break."""
    rows: list[int] = []
    is_new = True
    for token in _program_tokens(text):
        if token.type == tokenize.NEWLINE:
            is_new = True
        elif is_new and token.type not in OUTSIDE_STATEMENTS:
            is_new = False
            if token.start[1] == 0:
                rows.append(token.start[0] - 1)
    return rows


def _first_block(text: str) -> str:
    """Return the text up to the line after its first indented block, or all if there is none.

    Tokens tell, because a line within brackets or a string may begin anywhere; the parser would
    tell too, but can crash on what a model wrote.
    """
    lines = text.split("\n")
    for token in _program_tokens(text):
        row, column = token.start
        if token.type == tokenize.DEDENT and column == 0 and any(lines[row - 1 :]):
            return "\n".join(lines[: row - 1])
    return text


def _program_tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of a program, up to where it is broken."""
    with suppress(tokenize.TokenError, SyntaxError):
        yield from tokenize.generate_tokens(io.StringIO(text).readline)
