"""Where tasks find their data: what the hub does not give is said in one way by all of them."""

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from huggingface_hub import errors

from schemabank.common import waiting as waits
from schemabank.common.errors import InputError
from schemabank.common.quiet import DATASETS, TQDM
from schemabank.config.task import PerplexitySettings, RecordsSettings
from schemabank.tasks import gsm8k, humaneval, narrativeqa, perplexity, records
from schemabank.tasks.sources import data_folder, load_data_set

OF_HUB: dict[str, Callable[[], object]] = {
    "openai/gsm8k": lambda: gsm8k.load(validation_ratio=0.1, calculator_marks=False),
    "deepmind/narrativeqa": lambda: narrativeqa.load(
        validation_ratio=0.1, natural_text=True, max_summary_words=None
    ),
    "google-research-datasets/mbpp": humaneval.load,
    "someone/sums": lambda: records.load(RecordsSettings(path="someone/sums"), prompt="{a}"),
}
IN_FOLDER = {
    **{name: load for name, load in OF_HUB.items() if name != "someone/sums"},
    "books": lambda: perplexity.load(PerplexitySettings()),
}


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("SCHEMABANK_DATA", raising=False)


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception, cause: type[Exception]) -> None:
    """Let the hub's library fail as it does: with an error of its own that has a cause."""

    def load_dataset(*_arguments: object, **_options: object) -> None:
        raise error from cause.__new__(cause)  # their constructors want an HTTP response

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


MISSING = datasets.exceptions.DatasetNotFoundError("Dataset 'a' doesn't exist on the Hub")
REFUSALS = {
    "missing": (
        MISSING,
        errors.RepositoryNotFoundError,
        "none there is public: correct the name or set HF_TOKEN, or",
    ),
    "gated": (MISSING, errors.GatedRepoError, "it is gated: accept the terms on its page and"),
    "revision": (
        MISSING,
        errors.RevisionNotFoundError,
        "no such revision: correct the revision, or",
    ),
    "network": (
        ConnectionError("Couldn't reach it (ConnectError)"),
        OSError,
        "the hub cannot be reached: check the network, or",
    ),
    "configuration": (
        ValueError("BuilderConfig 'b' not found. Available: ['main']"),
        KeyError,
        "BuilderConfig 'b' not found. Available: ['main']: mend that or try again later, or",
    ),
}


@pytest.mark.parametrize("hub_id", OF_HUB)
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_the_hub_does_not_give_is_said_in_one_way(
    hub_id: str, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, cause, said = REFUSALS[refusal]
    refuse(monkeypatch, error, cause)
    asked = f" and on the Hugging Face hub as {hub_id!r}, but the hub https://"
    with pytest.raises(InputError, match=f"{re.escape(asked)}.*: {re.escape(said)}"):
        OF_HUB[hub_id]()


@pytest.mark.parametrize("hub_id", OF_HUB)
def test_offline_says_so(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(monkeypatch, ConnectionError("Couldn't reach it (OfflineModeIsEnabled)"), OSError)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE forbids .* unset HF_HUB_OFFLINE, or "):
        OF_HUB[hub_id]()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_runs_out_is_no_fault_of_the_data_set(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, error, type(error))
    with pytest.raises(type(error), match="allocate"):
        load_data_set("a/b", sought="It was looked for here", otherwise="make it")


def test_whoever_waits_hears_for_which_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def load_dataset(*_arguments: object, **_options: object) -> None:
        outer = waits._OUTER.get()
        assert outer is not None
        said.append(outer.what[-1])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with waits.waiting("loading the data", said.append):
        load_data_set("a/b", sought="It was looked for here", otherwise="make it")
    assert said == ["loading a/b from the Hugging Face hub"]


@pytest.mark.parametrize("name", IN_FOLDER)
def test_an_empty_variable_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no task reads the folder it happens to run in."""
    monkeypatch.setenv("SCHEMABANK_DATA", "")
    assert data_folder() is None
    refuse(monkeypatch, ConnectionError("no route"), OSError)
    sentence = "neither is set" if name == "books" else "(not set) and on the Hugging Face hub"
    with pytest.raises(InputError, match=re.escape(sentence)):
        IN_FOLDER[name]()
    monkeypatch.setenv("SCHEMABANK_DATA", "/there")
    assert data_folder() == Path("/there")


@pytest.mark.parametrize("on_terminal", [False, True])
def test_bars_of_data_sets_appear_on_terminals_only(
    on_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_arguments: object, **_options: object) -> bool:
        return datasets.is_progress_bar_enabled()

    for name in (DATASETS, TQDM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    assert load_data_set("a/b", sought="it was sought", otherwise="write it") == on_terminal
    assert datasets.is_progress_bar_enabled()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        PermissionError(errno.EACCES, "Permission denied", "/some/cache/a"),
        OSError("Not enough disk space. Needed: 5 GB"),
    ],
)
def test_a_cache_that_cannot_be_written_is_named(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_dataset(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/some/cache")
    has_room = not isinstance(error, PermissionError) and error.errno != errno.EROFS
    mend = "make the folder writable, or " if isinstance(error, PermissionError) else ""
    said = (
        r"as 'someone/sums', but the cache in /some/cache cannot be written \(.*\): "
        rf"{'free some space, or ' if has_room else mend}let HF_DATASETS_CACHE name a folder"
    )
    with pytest.raises(InputError, match=said):
        OF_HUB["someone/sums"]()
