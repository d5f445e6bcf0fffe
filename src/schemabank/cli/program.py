"""The program itself: its commands by name, its help, and how an error ends it."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from schemabank import __version__
from schemabank.cli import doctor, reports, saved, start, talking, training
from schemabank.common.errors import FailedRunsError, InputError, printable
from schemabank.common.garbage import look_no_more_at_the_end
from schemabank.common.quiet import quiet_libraries

NAME = "schemabank"
# By the panel of the help in which they stand.
COMMANDS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "Start": {
        "init": start.init,
        "doctor": doctor.doctor,
        "config-schema": start.config_schema,
    },
    "Train": {
        "train": training.train,
        "suite": training.suite,
    },
    "Look at results": {
        "eval": saved.evaluate,
        "report": reports.report,
        "power": reports.power,
        "routing": saved.routing,
        "score": saved.score,
    },
    "Use what was trained": {
        "chat": talking.chat,
        "export": saved.export,
    },
}

app = typer.Typer(
    help="LoRA adapters trained with sparse routing as a curriculum, compared with plain LoRA.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _commands in COMMANDS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Handle options of the program itself."""
    if version:
        sys.stdout.write(f"{NAME} {__version__}\n")
        raise typer.Exit


def main(program: Callable[[], object] | None = None) -> None:
    """Run a program (ours) and turn our exceptions into exit codes; typer handles its own."""
    look_no_more_at_the_end()
    try:
        with quiet_libraries(), _ending_when_terminated():
            (program or _ours)()
    except InputError as error:
        _fail(error, 2)
    except FailedRunsError as error:
        _fail(error, 3)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == NAME:
            raise
        mend = "`schemabank doctor` says how to get it"
        _fail(RuntimeError(f"the package {error.name!r} is not installed: {mend}"), 1)
    except (MemoryError, RuntimeError, OSError) as error:
        from schemabank.common.memory import with_memory_named

        _fail(with_memory_named(error), 1)


@contextmanager
def _ending_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the program as an interrupt does: the cursor comes back, locks go."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _terminated(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _ours() -> None:
    # Named here, since `python -m schemabank` would give help and completion another name.
    app(prog_name=NAME)


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"{NAME}: {printable(' '.join(str(error).split()))}\n")
    sys.exit(code)
