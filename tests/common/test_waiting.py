"""What takes long is announced, what is quick is not, and nothing of it is left behind."""

import re
import threading
import time

import pytest

from schemabank.common.waiting import waiting

LIMIT_S = 30.0  # for a machine that has much else to do; nothing waits so long


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speak after hundredths of a second."""
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 0.02)


class Heard(list[str]):
    """Notes, in their order."""

    def wait_for(self, count: int) -> None:
        """Stand still until there are so many."""
        end = time.monotonic() + LIMIT_S
        while len(self) < count:
            assert time.monotonic() < end, self
            time.sleep(0.001)


def no_watcher_is_left(before: set[threading.Thread]) -> bool:
    """Whether all threads were there before."""
    return set(threading.enumerate()) <= before


def test_what_stands_still_says_what_it_waits_for_and_how_long_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 0.05)
    times: list[float] = []
    heard = Heard()

    def note(text: str) -> None:
        times.append(time.monotonic())
        heard.append(text)

    before = set(threading.enumerate())
    began = time.monotonic()
    with waiting("compiling a step of 4 x 128 tokens", note):
        heard.wait_for(3)
    said = re.compile(r"still compiling a step of 4 x 128 tokens, \d+ s so far")
    assert all(said.fullmatch(text) for text in heard)
    pauses = [b - a for a, b in zip([began, *times], times, strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2), strict=False))
    assert no_watcher_is_left(before)


def test_seconds_are_those_since_the_wait_began() -> None:
    heard = Heard()
    with waiting("loading", heard.append) as wait:
        wait.since -= 90
        heard.wait_for(1)
        while not heard[-1].startswith("still loading, 9"):  # the first word may come before
            heard.wait_for(len(heard) + 1)


def test_what_is_quick_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 60.0)
    before = set(threading.enumerate())
    heard = Heard()
    began = time.monotonic()
    for _ in range(20):
        with waiting("loading", heard.append):
            pass
    assert time.monotonic() - began < LIMIT_S, "the watcher does not hold anybody up"
    assert heard == []
    assert no_watcher_is_left(before)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_passes_and_ends_the_watch(kind: type[BaseException]) -> None:
    before = set(threading.enumerate())
    heard = Heard()

    def fail() -> None:
        with waiting("loading", heard.append):
            heard.wait_for(1)
            raise kind("as it was")

    with pytest.raises(kind, match="as it was"):
        fail()
    assert no_watcher_is_left(before)
    with waiting("something else", heard.append):
        heard.clear()
        heard.wait_for(1)
    assert heard[0].startswith("still something else"), "nothing remains of the first"


def test_within_another_wait_one_clock_tells_the_innermost() -> None:
    heard = Heard()
    with waiting("checking", heard.append):
        with waiting("loading", lambda _: pytest.fail("two clocks would say everything twice")):
            heard.wait_for(1)
        said = len(heard)
        heard.wait_for(said + 1)
    assert heard[0].startswith("still loading")
    assert heard[-1].startswith("still checking")


def test_who_goes_on_is_not_mentioned_however_long_it_takes_in_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("schemabank.common.waiting.FIRST_S", 1.0)
    heard = Heard()
    with waiting("waiting for the next step", heard.append) as wait:
        for _ in range(60):
            time.sleep(0.02)
            wait.goes_on()
        assert heard == []
        heard.wait_for(1)
    assert heard == ["still waiting for the next step, 1 s so far"]


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_nobody_listening_ends_the_watch_and_not_the_work(error: type[Exception]) -> None:
    asked: list[str] = []

    def closed(text: str) -> None:
        asked.append(text)
        raise error

    with waiting("loading", closed):
        end = time.monotonic() + LIMIT_S
        while not asked:
            assert time.monotonic() < end
            time.sleep(0.001)
    assert len(asked) == 1


def test_threads_wait_each_for_themselves() -> None:
    heard: dict[str, Heard] = {name: Heard() for name in ("one", "other")}

    def stand_still(name: str) -> None:
        with waiting(name, heard[name].append):
            heard[name].wait_for(1)

    threads = [threading.Thread(target=stand_still, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: lines[0].split(",")[0] for name, lines in heard.items()} == {
        "one": "still one",
        "other": "still other",
    }
