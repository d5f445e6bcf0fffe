import os
from pathlib import Path

import pytest

from schemabank.common.cores import given_cores, processor_name

NEW = "0::/box/inner\n"
OLD = "5:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))


def cores(folder: Path, groups: str | None, **files: str) -> int:
    """``box__cpu.max="..."`` is what ``box/cpu.max`` says."""
    if groups is not None:
        (folder / "process").write_text(groups)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return given_cores(folder / "process", folder / "groups")


@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        (None, {}, 16),  # another system than Linux
        (NEW, {}, 16),
        (NEW, {"box__inner__cpu.max": "max 100000\n"}, 16),
        (NEW, {"box__inner__cpu.max": "200000 100000\n"}, 2),
        (NEW, {"box__inner__cpu.max": "150000 100000\n"}, 2),
        (NEW, {"box__inner__cpu.max": "10000 100000\n"}, 1),
        (NEW, {"box__inner__cpu.max": "6400000 100000\n"}, 16),
        (NEW, {"box__inner__cpu.max": "800000 100000\n", "box__cpu.max": "300000 100000\n"}, 3),
        (NEW, {"cpu.max": "400000 100000\n"}, 4),  # a container that sees its own group as the root
        (NEW, {"box__inner__cpu.max": "\n"}, 16),
        (OLD, {"cpu__box__cpu.cfs_quota_us": "-1\n", "cpu__box__cpu.cfs_period_us": "1000\n"}, 16),
        (OLD, {"cpu__box__cpu.cfs_quota_us": "2500\n", "cpu__box__cpu.cfs_period_us": "1000\n"}, 3),
        (OLD, {"cpu__cpu.cfs_quota_us": "5000\n", "cpu__cpu.cfs_period_us": "1000\n"}, 5),
        (OLD, {"memory__box__cpu.max": "1000 1000\n"}, 16),
        ("0::/a box (deleted)\n", {"cpu.max": "500000 100000\n"}, 5),
        ("0::/a box\n", {"a box__cpu.max": "500000 100000\n"}, 5),
        (
            "4:cpu:/a:b\n",
            {"cpu__a:b__cpu.cfs_quota_us": "7", "cpu__a:b__cpu.cfs_period_us": "1"},
            7,
        ),
    ],
)
def test_the_smallest_quota_of_a_group_counts(
    groups: str | None, files: dict[str, str], found: int, tmp_path: Path
) -> None:
    assert cores(tmp_path, groups, **files) == found


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    assert cores(tmp_path, None) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert cores(tmp_path, None) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores(tmp_path, None) == 1


def test_this_process_has_some() -> None:
    assert 1 <= given_cores() <= 16


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("processor\t: 0\nmodel name\t: Abacus 3: fast\n\nmodel name\t: other\n", "Abacus 3: fast"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", "arm"),
        (None, "arm"),
    ],
)
def test_a_processor_is_named_as_far_as_the_system_tells(
    text: str | None, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert processor_name(tmp_path / "cpuinfo") == found
