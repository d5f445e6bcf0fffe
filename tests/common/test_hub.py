"""One question to the hub before its library asks many; the servers are real ones."""

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from schemabank.common import hub
from schemabank.common.errors import InputError
from schemabank.models.files import locate


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def refusing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def absent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known of the hub, and what is changed is put back."""
    monkeypatch.setattr(hub, "_KNOWN", hub._Known())
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


def test_a_hub_that_refuses_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with refusing() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert hub.reach_hub()
    assert hub.reach_hub()  # though it is gone: it is asked once
    assert not constants.is_offline_mode()


@pytest.mark.parametrize("server", [silent, absent])
def test_without_a_hub_its_cache_is_used_at_once(
    server: "type[silent]", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    began = time.monotonic()
    with server() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(InputError) as raised:
            locate("someone/some-model", None)
        assert not hub.reach_hub()
    assert time.monotonic() - began < 10
    assert (
        f"the hub {address} did not answer within 0.5 s and the cache in {tmp_path} does not hold "
        "it; check the network, or name a mirror in HF_ENDPOINT, or use an embedded model."
    ) in str(raised.value)
    assert constants.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("address", ["no address", "http://", "ftp:x"])
def test_an_address_that_is_none_answers_nothing(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert not hub.reach_hub()


def test_a_cache_that_is_full_is_no_fault_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", "/some/cache")
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("it cannot be put there")
    wrapped.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/some/cache/hub/x")
    for error, mend in ((full, "free some space"), (wrapped, "make the folder writable")):
        cause, then = hub.cause_and_mend(error)
        assert cause == f"the cache in /some/cache cannot be written ({error})"
        assert then == (
            f"{mend}, or let HF_HOME name a folder that has room and that you may write to"
        )


@pytest.mark.parametrize("name", [None, "/some/model/config.json"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_what_may_not_be_read_or_connected_to_is_no_fault_of_the_cache(
    number: int, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", "/some/cache")
    monkeypatch.setattr(hub, "_KNOWN", hub._Known(answers=True))
    refused = PermissionError(number, "not permitted", *([] if name is None else [name]))
    cause, mend = hub.cause_and_mend(refused)
    assert cause == (
        f"the hub {constants.ENDPOINT} was asked besides the cache in /some/cache: {refused}"
    )
    assert mend == "mend that or try again later"


def test_who_forbids_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answers", lambda _: pytest.fail("it was asked"))
    assert not hub.reach_hub()
    assert "HF_HUB_OFFLINE forbids" in hub.cause_and_mend(OSError())[0]
