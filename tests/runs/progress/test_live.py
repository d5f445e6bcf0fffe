"""The live screen: what it shows, in which terminals, and that it leaves them as they were."""

import io
import json
import os
import pty
import re
import select
import signal
import struct
import tempfile
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from programs import started
from schemabank.engine.cohort import RunStep
from schemabank.runs.progress.live import LiveReporter
from tinyruns import SETTINGS, Finished

ESCAPE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")
SHOW_CURSOR = "\x1b[?25h"


def step(run: str, number: int, num_steps: int = 18, stage: str = "joint") -> RunStep:
    return RunStep(
        run=run,
        step=number,
        num_steps=num_steps,
        stage=stage,
        loss=0.25,
        total_loss=0.25,
        learning_rate=1e-3,
        grad_norm=1.0,
        num_tokens=10,
        skipped=False,
    )


def terminal(*, width: int = 80, height: int = 24, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(
        file=file, force_terminal=True, width=width, height=height, no_color=True, _environ={}
    )


def picture(reporter: LiveReporter, console: Console) -> list[str]:
    """What stands on the screen at this moment, drawn on another terminal of the same kind."""
    width, height = console.size
    other = terminal(width=width, height=height, encoding=console.encoding)
    with other.capture() as captured:
        other.print(reporter)
    return [line.rstrip() for line in ESCAPE.sub("", captured.get()).splitlines()]


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr("schemabank.runs.progress.live.time.monotonic", lambda: now[0])
    yield now
    monkeypatch.undo()


def some_runs(reporter: LiveReporter, now: list[float]) -> None:
    titles = {name: f"lora seed {n}, num_train_epochs=2" for n, name in enumerate("abcdef", 1)}
    reporter.runs(titles)
    reporter.run_state("a", "reused")
    reporter.run_state("b", "failed", "no finite gradient in 3 steps in a row")
    reporter.run_state("c", "finished", "correct 0.500 all")
    reporter.start("train 2 runs (2 lora)", 40)
    reporter.run_steps([step("d", 0), step("e", 8)])
    reporter.run_steps([step("d", 9)])
    now[0] += 5
    reporter.advance(5, "")
    now[0] += 5
    reporter.advance(5, "stage joint, loss 0.250, 1,234 tokens/s")


def test_every_run_has_a_line(frozen: list[float]) -> None:
    console = terminal(width=100)
    reporter = LiveReporter(console)
    some_runs(reporter, frozen)
    assert picture(reporter, console) == [
        "runs ━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌ 3/6 done",
        "train 2 runs (2 lora)",
        "     ━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 10/40, 0:30 left, stage joint, loss 0.250, 1,234 tokens/s",
        "lora seed 1, num_train_epochs=2 reused",
        "lora seed 2, num_train_epochs=2 failed     no finite gradient in 3 steps in a row",
        "lora seed 3, num_train_epochs=2 finished   correct 0.500 all",
        "lora seed 4, num_train_epochs=2 training   10/18 loss 0.250 joint",
        "lora seed 5, num_train_epochs=2 waiting",
        "lora seed 6, num_train_epochs=2 waiting",
    ]
    reporter.finish()
    reporter.run_state("d", "evaluating")
    reporter.start("evaluate lora seed 4", 6)
    shown = picture(reporter, console)
    assert "train 2 runs (2 lora)" not in shown, "one phase at a time among runs"
    assert "lora seed 4, num_train_epochs=2 evaluating" in shown
    reporter.close()


def test_where_lines_are_few_those_that_matter_come_first(frozen: list[float]) -> None:
    console = terminal(width=100, height=8)
    reporter = LiveReporter(console)
    some_runs(reporter, frozen)
    assert picture(reporter, console)[3:] == [
        "lora seed 4, num_train_epochs=2 training   10/18 loss 0.250 joint",
        "lora seed 2, num_train_epochs=2 failed     no finite gradient in 3 steps in a row",
        "and 2 waiting, 1 finished, 1 reused",
    ]
    reporter.close()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(("width", "height"), [(60, 20), (40, 10), (20, 3), (200, 5)])
def test_no_line_is_wider_and_no_picture_higher_than_the_terminal(
    encoding: str, width: int, height: int, frozen: list[float]
) -> None:
    console = terminal(width=width, height=height, encoding=encoding)
    reporter = LiveReporter(console)
    some_runs(reporter, frozen)
    reporter.runs({"g": "größe 数据 " * 9 + "seed 7", "h": "evil \x1b[2J\nname [red]x"})
    reporter.run_state("g", "failed", "long " * 50)
    shown = picture(reporter, console)
    assert max(map(cell_len, shown)) < width
    assert len(shown) < height
    text = "\n".join(shown)
    assert encoding == "utf-8" or text.isascii()
    assert "\x1b" not in text
    reporter.close()


def test_a_long_name_keeps_its_start_and_its_end(frozen: list[float]) -> None:
    console = terminal(width=60)
    reporter = LiveReporter(console)
    some_runs(reporter, frozen)
    reporter.runs({"g": "lora, all layers seed 7, train.num_train_epochs=2, bank.rank=16"})
    (line,) = [line for line in picture(reporter, console) if line.startswith("lora, all")]
    assert re.search(r"^lora, all l.*….*rank=16 waiting$", line)
    reporter.close()


def test_phases_without_runs_stay_on_the_screen(frozen: list[float]) -> None:
    console = terminal()
    reporter = LiveReporter(console)
    for title in ("route start", "route end"):
        reporter.start(title, 2)
        frozen[0] += 3
        reporter.advance(2, "")
        reporter.finish()
    assert picture(reporter, console) == [
        "route start",
        "     ━━━━━━━━━━━━━━━━━━━━ 2/2, 0:03 in all",
        "route end",
        "     ━━━━━━━━━━━━━━━━━━━━ 2/2, 0:03 in all",
    ]
    reporter.close()


def test_a_note_is_printed_and_no_text_moves_the_cursor() -> None:
    console = terminal()
    reporter = LiveReporter(console)
    with console.capture() as captured:
        reporter.note("first [bold]line\nsecond \x1b[2Jline")
    assert captured.get() == "first [bold]line\nsecond  [2Jline\n"


def write_suite(path: Path, model: Path, **suite: object) -> Path:
    """Two arms and two seeds on the tiny model."""
    defaults = {key: value for key, value in SETTINGS.items() if key != "arm"}
    defaults |= {"model": {"name": str(model), "dtype": "float32"}}
    arms = {"arms": {"lora": {}, "schemabank": {}}, "seeds": [1, 2]}
    path.write_text(yaml.safe_dump({"defaults": defaults, **arms, **suite}))
    return path


def on_a_terminal(
    arguments: list[str],
    data: Path,
    *,
    interrupt_at: str | None = None,
    number: int = signal.SIGINT,
) -> tuple[int | None, str, str]:
    """Run the program with stderr on a terminal of 60 by 16; return code, stdout, what it drew."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 16, 60, 0, 0))
    hidden = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"SCHEMABANK_DATA": str(data), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as out:
        process = started(arguments, environment, stdout=out.fileno(), stderr=slave)
        os.close(slave)
        drawn, asked, deadline = b"", False, time.monotonic() + 300
        while time.monotonic() < deadline:
            ready, _, _ = select.select([master], [], [], 0.2)
            try:
                drawn += os.read(master, 65536) if ready else b""
            except OSError:  # the other end was closed
                break
            if interrupt_at is not None and not asked and interrupt_at.encode() in drawn:
                assert process.pid is not None
                os.kill(process.pid, number)
                asked = True
        process.join(60)
        out.seek(0)
        printed = out.read().decode()
    os.close(master)
    return process.exitcode, printed, drawn.decode()


def test_a_suite_on_a_terminal_shows_its_runs(finished: Finished, tmp_path: Path) -> None:
    path = write_suite(tmp_path / "s.yaml", finished.model)
    command = ["suite", str(path), "--out", str(tmp_path / "runs"), "--json"]
    code, out, drawn = on_a_terminal(command, finished.data)
    assert code == 0, drawn
    assert len(json.loads(out)) == 4, "stdout has the result alone"
    last = ESCAPE.sub("", drawn).replace("\r", "").rsplit("runs ━", 1)[1]
    assert " 4/4 done" in last
    assert last.count(" finished ") == 4
    assert all(f"{arm} seed {n}" in last for arm in ("lora", "schemabank") for n in (1, 2))
    assert "training" in drawn
    assert "task: gsm8k" in drawn
    assert drawn.rindex(SHOW_CURSOR) > drawn.rindex("4/4 done")
    code, out, _ = on_a_terminal([*command, "--dry-run"], finished.data)
    assert (code, len(json.loads(out))) == (0, 4)


def test_a_run_that_fails_shows_and_the_code_stays(finished: Finished, tmp_path: Path) -> None:
    rates = {"train.learning_rate": [1e-3, 1e37]}
    path = write_suite(tmp_path / "s.yaml", finished.model, arms={"lora": {}}, grid=rates)
    command = ["suite", str(path), "--out", str(tmp_path / "runs")]
    code, _, drawn = on_a_terminal([*command, "--set", "train.max_steps=60"], finished.data)
    assert code == 3, drawn
    assert " failed " in ESCAPE.sub("", drawn).rsplit("runs ━", 1)[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_gives_the_terminal_back(
    number: int, code: int, finished: Finished, tmp_path: Path
) -> None:
    settings = ["arm=[lora, schemabank]", "train.max_steps=5000"]
    command = ["train", str(finished.config), "--out", str(tmp_path / "runs")]
    more = [word for setting in settings for word in ("--set", setting)]
    ended, _, drawn = on_a_terminal(
        [*command, *more], finished.data, interrupt_at="training", number=number
    )
    assert ended == code, drawn
    assert drawn.rstrip().rindex(SHOW_CURSOR) > drawn.rindex("training")
    assert "Traceback" not in drawn
