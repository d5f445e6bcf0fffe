"""The command that talks with what was trained, a line at a time."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemabank.common.errors import InputError, printable
from schemabank.runs.progress import reporter

if TYPE_CHECKING:  # it imports torch
    from schemabank.runs.chatting import Conversation

RESET, QUIT = "/reset", "/quit"
PROMPT = "> "
KEPT = "\t\u200c\u200d"  # of an answer; both joiners stand within words and emoji
HINT = f"{RESET} forgets what was said; {QUIT} or Ctrl-D ends\n"


def chat(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_OR_ADAPTER", help="Folder of a run or a LoRA adapter.")
    ],
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the system turn says.")
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Complete every line by itself, without the chat template."),
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: the run's own.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="0 takes the likeliest token; default: the run's own."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model of an adapter that names none.")
    ] = None,
) -> None:
    """Talk with a run's adapter: ask and read answers, or pipe lines in."""
    from schemabank.runs.located import locate, named

    locate(run, named(model))
    from schemabank.runs.chatting import Manner, open_conversation

    options = {"max_new_tokens": max_new_tokens, "temperature": temperature}
    asked = {name: value for name, value in options.items() if value is not None}
    with reporter() as progress:
        manner = Manner(system, plain, asked)
        talk = open_conversation(run, manner, progress.note, model=model)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    converse(talk, typed() if is_terminal else _piped(), keeps_on=is_terminal)


def converse(talk: "Conversation", lines: Iterator[str], *, keeps_on: bool) -> None:
    """Answer lines until they end.

    Args:
        talk: answers.
        lines: what is asked, with commands among them.
        keeps_on: tell what cannot be answered and go on, where a person may ask otherwise.

    Raises:
        InputError: a line cannot be answered.
    """
    for number, line in enumerate(lines, start=1):
        command = line.strip()
        if command == QUIT:
            return
        if command == RESET:
            talk.reset()
        elif command:
            try:
                _answer(talk, line.rstrip("\r\n"), number)  # blanks at the end may be meant
            except InputError as error:
                if not keeps_on:
                    raise
                sys.stderr.write(f"{printable(str(error))}\n")
            except KeyboardInterrupt:
                if not keeps_on:
                    raise
                sys.stderr.write("\nstopped: question and answer are not kept\n")


def _answer(talk: "Conversation", text: str, number: int) -> None:
    try:
        said = talk.answer(text)
    except InputError as error:
        mend = f"; {RESET} forgets what was said before it" if talk.remembers else ""
        raise InputError(f"line {number} cannot be answered: {error}{mend}") from error
    sys.stdout.write("".join(f"{printable(line, KEPT)}\n" for line in said.split("\n")))
    sys.stdout.flush()  # another program may wait for it


def typed() -> Iterator[str]:
    """Yield the lines that a person types, with what the terminal offers to edit them."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 -- it makes input() edit
    sys.stderr.write(HINT)
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        except UnicodeDecodeError as error:
            raise _no_text(error) from error


def _piped() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise _no_text(error) from error


def _no_text(error: UnicodeDecodeError) -> InputError:
    return InputError(f"the input is no UTF-8 ({error}): convert it")
