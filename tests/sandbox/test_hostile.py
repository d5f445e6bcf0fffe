"""Hostile code scores nothing in the sandbox and harms nothing outside.

All programs are run first, several at once; the tests then look at what came of each.
"""

import ast
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import hostile
from hostile import SORT_ASSERTS, SORT_TEST
from schemabank.common.cores import given_cores
from schemabank.sandbox import REASONS, CheckResult, check_function, run_program

TESTS = Path(__file__).parents[1]
NUM_WORKERS = given_cores()
HOSTILE_TIMEOUT_S = 1.5

CASES = [(kind, name) for kind, programs in hostile.PROGRAMS.items() for name in programs]
# Within one process an object that equals everything does pass its own assertions.
PROGRAM_CASES = [(kind, name) for kind, name in CASES if kind != "equal objects"]
# What a function may not, a program may not: a third of them shows it, `make soak` the others.
FIRST = PROGRAM_CASES[::3]


@dataclass
class World:
    """What hostile programs reach for, and what became of them."""

    outside: Path
    server: socket.socket
    verdicts: dict[tuple[Any, ...], tuple[CheckResult, float]]


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[World]:
    programs = PROGRAM_CASES if "soak" in request.config.option.markexpr else FIRST
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCHEMABANK_SECRET", "secret")
        port = server.getsockname()[1]

        def attack(case: tuple[str, str, bool]) -> tuple[CheckResult, float]:
            kind, name, whole = case
            source = hostile.PROGRAMS[kind][name]
            for mark, value in {"outside": outside, "port": port, "tests": TESTS}.items():
                source = source.replace("{" + mark + "}", str(value))
            began = time.monotonic()
            if whole:
                program = "\n".join([source, *SORT_ASSERTS])
                verdict = run_program(program, timeout_s=HOSTILE_TIMEOUT_S, memory_mib=512)
            else:
                verdict = check_function(
                    source, "sort_numbers", SORT_TEST, timeout_s=HOSTILE_TIMEOUT_S, memory_mib=512
                )
            return verdict, time.monotonic() - began

        cases = [(*case, False) for case in CASES] + [(*case, True) for case in programs]
        with ThreadPoolExecutor(2 * NUM_WORKERS) as pool:
            verdicts = dict(zip(cases, pool.map(attack, cases), strict=True))
        yield World(outside, server, verdicts)


@pytest.mark.alone
def test_every_program_was_run(world: World) -> None:
    """The first test, which makes the world: programs have a second and a half each."""
    assert len(world.verdicts) in {len(CASES) + len(some) for some in (FIRST, PROGRAM_CASES)}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_hostile_function_scores_nothing(world: World, kind: str, name: str) -> None:
    verdict, took_s = world.verdicts[kind, name, False]
    assert not verdict.passed
    assert verdict.reason in REASONS
    assert took_s < HOSTILE_TIMEOUT_S + 15


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(*case, marks=() if case in FIRST else pytest.mark.soak)
        for case in PROGRAM_CASES
    ],
)
def test_a_hostile_program_scores_nothing(world: World, kind: str, name: str) -> None:
    verdict, took_s = world.verdicts[kind, name, True]
    assert not verdict.passed
    assert verdict.reason in REASONS
    assert took_s < HOSTILE_TIMEOUT_S + 15


@pytest.mark.alone  # it looks at all processes, also those that tests beside it kill
def test_hostile_programs_do_no_harm(world: World) -> None:
    assert [path.name for path in world.outside.iterdir()] == ["secret.txt"]
    assert (world.outside / "secret.txt").read_text(encoding="utf-8") == "secret"
    world.server.setblocking(False)
    with pytest.raises(BlockingIOError):
        world.server.accept()
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if child.name() == "bwrap"] == []
    orphans = [p for p in psutil.process_iter(["ppid", "cmdline"]) if p.info["ppid"] == 1]
    assert not [p for p in orphans if "/sandbox" in " ".join(p.info["cmdline"] or [])]


def test_hostile_programs_are_many_and_compile() -> None:
    assert len(CASES) == 91
    assert len(hostile.PROGRAMS) == 9
    assert {kind for kind, _ in FIRST} == {kind for kind, _ in PROGRAM_CASES}
    for kind, name in CASES:
        if name != "nested brackets":
            ast.parse(hostile.PROGRAMS[kind][name])


def test_the_protocol_is_what_fails_forgers(world: World) -> None:
    reasons = {name: world.verdicts["forging", name, False][0].reason for name in hostile.FORGING}
    caught = ["answers ahead", "answers twice", "writes to every descriptor"]
    caught += ["says a word after the right answer", "replies with another kind of bytes"]
    assert {reasons[name] for name in caught} == {"protocol"}
