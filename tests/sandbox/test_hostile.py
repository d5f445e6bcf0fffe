"""Hostile code scores nothing in the sandbox and harms nothing outside.

A fair part of the programs is run first, several at once; the tests then look at what came of each.
``make soak`` runs all of them one by one, and measures what each takes (``tests/hostile``).
"""

import ast
import json
import mmap
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import hostile
from hostile import campaign, kernelmemory, meter, page
from schemabank.common.cores import given_cores
from schemabank.sandbox import REASONS, CheckResult

HOSTILE_TIMEOUT_S = 1.5
SAMPLE = [case for case in campaign.sample(campaign.cases()) if case.form != campaign.KERNEL]
Verdicts = dict[campaign.Case, tuple[CheckResult, float]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[campaign.World]:
    with campaign.world(tmp_path_factory.mktemp("outside")) as world:
        yield world


@pytest.fixture(scope="module")
def verdicts(world: campaign.World) -> Verdicts:
    def attack(case: campaign.Case) -> tuple[CheckResult, float]:
        began = time.monotonic()
        verdict = campaign.verdict(case, world, timeout_s=HOSTILE_TIMEOUT_S)
        return verdict, time.monotonic() - began

    with ThreadPoolExecutor(2 * given_cores()) as pool:
        return dict(zip(SAMPLE, pool.map(attack, SAMPLE), strict=True))


@pytest.mark.alone
def test_every_program_was_run(verdicts: Verdicts) -> None:
    """The first test, which runs them: programs have a second and a half each."""
    assert len(verdicts) == len(SAMPLE) > 80


@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: f"{case.kind}-{case.name}-{case.form}")
def test_a_hostile_program_scores_nothing(verdicts: Verdicts, case: campaign.Case) -> None:
    verdict, took_s = verdicts[case]
    assert not verdict.passed
    assert verdict.reason in REASONS
    assert took_s < HOSTILE_TIMEOUT_S + 15


@pytest.mark.alone  # it looks at all processes, also those that tests beside it kill
@pytest.mark.usefixtures("verdicts")
def test_hostile_programs_do_no_harm(world: campaign.World) -> None:
    assert world.harm() == []
    children = psutil.Process().children(recursive=True)
    assert [child for child in children if child.name() == "bwrap"] == []
    orphans = [p for p in psutil.process_iter(["ppid", "cmdline"]) if p.info["ppid"] == 1]
    assert not [p for p in orphans if "/sandbox" in " ".join(p.info["cmdline"] or [])]


def test_hostile_programs_are_many_and_compile() -> None:
    every = [source for own in campaign.programs().values() for source in own.values()]
    own = [source for kind in kernelmemory.PROGRAMS.values() for source in kind.values()]
    assert len(every) > 200
    assert len({*every, *own}) == len(every) + len(own) > 270
    for source in every:
        if source != hostile.PROGRAMS["exhausting"]["nested brackets"]:
            ast.parse(source)


def test_homes_are_looked_for_where_they_are(
    world: campaign.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program names a home of the machine on which it was written."""
    every = [source for own in campaign.programs().values() for source in own.values()]
    assert not [source for source in every if "/root" in source]
    monkeypatch.setenv("HOME", str(tmp_path))
    case = campaign.Case("reading", "home folders", campaign.FUNCTION)
    (tmp_path / ".netrc").touch()
    found: dict[str, object] = {}
    exec(world.source(case), found)  # noqa: S102 -- outside, where it is to see something
    assert found["WORKED"] is True
    assert str(tmp_path) in world.source(case)
    assert pwd.getpwuid(0).pw_dir in world.source(case)
    assert campaign.is_contained(case, campaign.verdict(case, world).reason)


def test_the_protocol_is_what_fails_forgers(world: campaign.World) -> None:
    for name in (
        "answers ahead",
        "answers twice",
        "replays an old reply",
        "says a word after the right answer",
        "replies with another kind of bytes",
    ):
        case = campaign.Case("forging", name, campaign.FUNCTION)
        assert campaign.verdict(case, world).reason == "protocol", name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("objects in objects without end", "protocol"),
        ("hashes that are objects without end", "reply too large"),
        ("arguments of an exception without end", "protocol"),
        ("a name whose hash is another each time", "protocol"),
    ],
)
def test_no_reply_ends_the_judge(world: campaign.World, name: str, reason: str) -> None:
    """That would be an error of the sandbox, which ends a whole evaluation."""
    case = campaign.Case("forging", name, campaign.FUNCTION)
    assert campaign.verdict(case, world).reason == reason


@pytest.mark.alone
def test_harm_is_seen(tmp_path: Path) -> None:
    with campaign.world(tmp_path) as world:
        assert world.harm() == []
        (tmp_path / "new.txt").touch()
        assert world.harm() == ["files outside: ['new.txt', 'secret.txt']"]


@pytest.mark.alone
def test_a_meter_sees_memory_that_is_shared() -> None:
    """Of this process no limit counts it, and it is gone with the last mapping."""
    found = []
    for _ in range(30):  # others of this machine may give back as much in that moment
        with meter.machine().measured() as growth:
            memory = mmap.mmap(-1, 256 * 2**20)
            memory.write(b"x" * len(memory))
            time.sleep(0.1)
        memory.close()
        found.append(growth.most_mib)
        if found[-1] > 200:
            return
        time.sleep(0.5)
    pytest.fail(f"256 MiB were seen as {found}")


def test_the_page_says_what_the_record_says() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    now = page.PAGE.read_text(encoding="utf-8")
    assert page.made().text(now, record) == now
    assert page.made().check() == 0
    record["kinds"]["forging"]["survivors"] += 1
    assert page.made().text(now, record) != now
    with pytest.raises(ValueError, match="has no place for figures"):
        page.made().text("# Sandbox\n", record)


def test_the_record_is_of_these_programs_and_none_got_through() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    assert record["digest"] == campaign.digest(), "run `python -m tests.hostile run` and `record`"
    assert sum(own["runs"] for own in record["kinds"].values()) == len(campaign.cases())
    assert record["failed"] == []
    assert max(own["most_mib"] for own in record["kinds"].values()) <= 2 * record["memory_mib"]
    counts = {name: (own["number"], own["failed"]) for name, own in record["references"].items()}
    assert counts == {"HumanEval": (164, {}), "MBPP, sanitized": (427, {})}


def test_the_campaign_begins_as_the_makefile_calls_it() -> None:
    """By the name ``tests.hostile``, and without a path to the tests."""
    root = Path(__file__).parents[2]
    assert "python -m tests.hostile run" in (root / "Makefile").read_text(encoding="utf-8")
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "tests.hostile", "check"]
    ended = subprocess.run(command, cwd=root, env=others, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr.decode()


def test_a_row_that_is_bad_is_told() -> None:
    good = {"contained": True, "survivors": [], "harm": [], "memory_mib": 1000}
    assert not page.is_bad(good)
    for bad in (
        {"contained": False},
        {"survivors": ["7 bwrap"]},
        {"harm": ["a connection"]},
        {"memory_mib": 1025},
    ):
        assert page.is_bad(good | bad), bad
    assert page.is_bad({"references": {"HumanEval": {"number": 164, "failed": {"3": "timeout"}}}})
