"""Whether this machine has what runs need: packages, device, models, data, sandbox.

Nothing here asks a network, and no token is read. What is missing comes with the command that gets
it.
"""

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemabank import __version__
from schemabank.common.errors import InputError, first_line
from schemabank.common.extras import EXTRAS, install_command
from schemabank.config.settings import ModelSettings
from schemabank.models.embedded import EMBEDDED, installed_parts
from schemabank.sandbox import require_isolation

PACKAGE = "schemabank"
SHOWN = ("torch", "transformers", "peft")  # by themselves; all others are one line
OLDEST_PYTHON = (3, 11)
GIB = 2**30
# What tasks look for in the folder of SCHEMABANK_DATA: their names there, and the tasks.
DATA = {"gsm8k": "gsm8k", "humaneval": "humaneval", "mbpp": "humaneval"}
DATA |= {"narrativeqa": "narrativeqa", "books": "perplexity"}

State = Literal["ok", "absent", "missing"]


@dataclass(frozen=True)
class Readiness:
    """One thing that runs may need.

    Attributes:
        name: what it is.
        state: ``ok``; ``absent`` where only some runs need it; ``missing`` where training what
            ``schemabank init`` writes does.
        finding: what was found.
        mend: how to get it; empty where nothing is to be done.
    """

    name: str
    state: State
    finding: str
    mend: str = ""


@dataclass(frozen=True)
class Requirement:
    """A package that ours names among its requirements.

    Attributes:
        package: its name.
        oldest: its oldest version that will do, or nothing.
        extra: the optional extra that needs it; empty for all uses.
    """

    package: str
    oldest: str = ""
    extra: str = ""

    @property
    def wanted(self) -> str:
        """How pip is told."""
        return f"{self.package}>={self.oldest}" if self.oldest else self.package

    @property
    def installed(self) -> str | None:
        """The installed version, or ``None``."""
        return installed_version(self.package)

    @property
    def is_met(self) -> bool:
        """Whether it is installed and new enough."""
        found = self.installed
        return found is not None and _release(found) >= _release(self.oldest)


def examine_machine() -> list[Readiness]:
    """Find out what is there, in the order of a screen."""
    needed, extras = [r for r in requirements() if not r.extra], sorted_extras()
    looks: tuple[Callable[[], Iterator[Readiness]], ...] = (
        _python,
        lambda: _packages(needed),
        _devices,
        _models,
        _hub,
        _data,
        _sandbox,
        lambda: (_extra(name, own) for name, own in extras.items()),
    )
    return [found for look in looks for found in _looked(look)]


def is_ready(found: list[Readiness]) -> bool:
    """Whether ``schemabank train`` has all that it needs for what ``schemabank init`` writes."""
    return all(one.state != "missing" for one in found)


def requirements() -> list[Requirement]:
    """Return what the installed package asks for; nothing where it runs from a source tree."""
    try:
        lines = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    return [parse_requirement(line) for line in lines]


def installed_version(package: str) -> str | None:
    """Return the version of a package, or ``None`` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def parse_requirement(line: str) -> Requirement:
    """Read a requirement as our own metadata has them: a name, an oldest version, an extra."""
    pattern = r"([\w.-]+)(?:\[[\w,-]+\])?(?:>=([\w.]+))?(?:; extra == [\"']([\w-]+)[\"'])?"
    found = re.fullmatch(pattern, line)
    assert found is not None, line
    name, oldest, extra = found.groups(default="")
    return Requirement(name, oldest, extra)


def sorted_extras() -> dict[str, list[Requirement]]:
    """Return what each optional extra for users asks for, by its name."""
    found: dict[str, list[Requirement]] = {}
    for one in requirements():
        if one.extra in EXTRAS:
            found.setdefault(one.extra, []).append(one)
    return dict(sorted(found.items()))


def pip_command(needed: list[Requirement]) -> str:
    """Return the command that installs packages."""
    return shlex.join(["pip", "install", *(one.wanted for one in needed)])


def _looked(look: Callable[[], Iterator[Readiness]]) -> Iterator[Readiness]:
    """What a look finds, or which package it lacks; the command for that stands with the others."""
    try:
        yield from look()
    except PermissionError as error:  # of a cache or of data, which only some runs need
        yield Readiness("access", "absent", first_line(error), "make it readable, or name another")
    except (ImportError, OSError) as error:  # OSError: a library of torch that cannot be loaded
        package = getattr(error, "name", None)
        yield Readiness(
            f"package {package}" if package else "imports", "missing", first_line(error)
        )


def _python() -> Iterator[Readiness]:
    yield Readiness("SchemaBank", "ok", __version__)
    is_old = sys.version_info[:2] < OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    mend = f"use Python {oldest} or newer" if is_old else ""
    found = f"{platform.python_version()} in {sys.prefix}"
    yield Readiness("Python", "missing" if is_old else "ok", found, mend)


def _packages(needed: list[Requirement]) -> Iterator[Readiness]:
    known = {one.package: one for one in needed}
    for name in SHOWN:
        one = known.pop(name, Requirement(name))
        found = one.installed or "not installed"
        if one.is_met:
            yield Readiness(name, "ok", found)
        else:
            yield Readiness(name, "missing", found, pip_command([one]))
    lacking = [one for one in known.values() if not one.is_met]
    if lacking:
        yield Readiness("other packages", "missing", _versions(lacking), pip_command(lacking))
    elif known:
        yield Readiness("other packages", "ok", f"all {len(known)} that are required")


def _devices() -> Iterator[Readiness]:
    import psutil  # noqa: PLC0415 -- it may be missing

    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB of memory free"
    yield Readiness("CPU", "ok", f"{platform.machine()}, {cores} cores, {free}")
    import torch  # noqa: PLC0415 -- likewise, and it takes seconds

    if not torch.cuda.is_available():
        yield Readiness("GPU", "absent", "PyTorch sees none: runs train on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        try:
            free_bytes, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
        except RuntimeError as error:  # its memory is full, or another process has it for itself
            mend = f"free it, or train elsewhere: CUDA_VISIBLE_DEVICES hides GPU {index}"
            yield Readiness("GPU", "missing", f"GPU {index}: {first_line(error)}", mend)
        else:
            room = f"{free_bytes / GIB:.1f} of {total / GIB:.1f} GiB of memory free"
            yield Readiness("GPU", "ok", f"{name}, {room}")


def _models() -> Iterator[Readiness]:
    for name, model in EMBEDDED.items():
        try:
            size = sum(path.stat().st_size for path in installed_parts(name))
        except InputError:
            is_default = name == ModelSettings().name
            state: State = "missing" if is_default else "absent"
            yield Readiness(f"model {name}", state, "not installed", model.pip_command)
        else:
            found = f"{model.package}, {size / 2**20:.0f} MiB"
            yield Readiness(f"model {name}", "ok", found)


def _hub() -> Iterator[Readiness]:
    from huggingface_hub import constants  # noqa: PLC0415 -- it may be missing

    cache = Path(constants.HF_HUB_CACHE)
    there = len(list(cache.glob("models--*"))) if cache.is_dir() else 0
    where = f"{there} models in the cache {cache}"
    if constants.is_offline_mode():
        mend = "unset HF_HUB_OFFLINE to ask it for more"
        yield Readiness("hub", "absent", f"offline: HF_HUB_OFFLINE is set; {where}", mend)
    else:
        yield Readiness("hub", "ok", f"may be asked; {where}")


def _data() -> Iterator[Readiness]:
    from schemabank.tasks.sources import (  # noqa: PLC0415 -- needs the hub's library
        DATA_VARIABLE,
        data_folder,
    )

    folder = data_folder()
    if folder is None:
        found = f"{DATA_VARIABLE} is not set: data sets come from the hub"
        yield Readiness("data", "ok", found)
    elif not folder.is_dir():
        mend = f"set {DATA_VARIABLE} to a folder, or unset it"
        yield Readiness("data", "absent", f"{folder} in {DATA_VARIABLE} is no folder", mend)
    else:
        there = [name for name in DATA if (folder / name).is_dir()]
        tasks = ", ".join(dict.fromkeys(DATA[name] for name in there)) or "no task"
        lacks = [name for name in DATA if name not in there]
        said = f"; not there: {', '.join(lacks)}" if lacks else ""
        yield Readiness("data", "ok", f"{folder} has data for {tasks}{said}")


def _sandbox() -> Iterator[Readiness]:
    try:
        require_isolation()
    except InputError as error:
        yield Readiness("sandbox", "absent", str(error), "only the task humaneval needs it")
    else:
        yield Readiness("sandbox", "ok", "bubblewrap isolates code that a model wrote")


def _extra(name: str, needed: list[Requirement]) -> Readiness:
    lacking = [one for one in needed if not one.is_met]
    if lacking:
        return Readiness(f"extra {name}", "absent", _versions(lacking), install_command(name))
    return Readiness(f"extra {name}", "ok", _versions(needed))


def _versions(packages: list[Requirement]) -> str:
    return ", ".join(f"{one.package} {one.installed or 'not installed'}" for one in packages)


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version, such as (2, 11) of 2.11.0rc1+cpu."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
