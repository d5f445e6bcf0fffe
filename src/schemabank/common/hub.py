"""Asking the Hugging Face hub, and why it gave no model or data set and what to do about it.

Its library asks six times for every file, and a hub that takes a call and says nothing keeps it
waiting for a minute each time. So one question comes first. If nobody answers that, the library is
told to do with its cache, for as long as this process and those that it starts live.
"""

import os
import ssl
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub import constants, errors

from schemabank.common.errors import first_line
from schemabank.common.writing import mend_or, refusal_of

ANSWER_S = 10.0  # for which an answer is waited
OFFLINE = "HF_HUB_OFFLINE"
# What the hub's answer means and how to mend it; a subclass stands before its parent.
CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (errors.GatedRepoError, "it is gated", "accept the terms on its page and set HF_TOKEN"),
    (errors.RepositoryNotFoundError, "none there is public", "correct the name or set HF_TOKEN"),
    (errors.RevisionNotFoundError, "no such revision", "correct the revision"),
    (errors.LocalEntryNotFoundError, "the hub cannot be reached", "check the network"),
    (errors.RemoteEntryNotFoundError, "no config.json in it", "give a transformers model"),
    (ConnectionError, "the hub cannot be reached", "check the network"),
)


@dataclass
class _Known:
    """What this process knows of the hub.

    Attributes:
        answers: whether it does; ``None``: nobody has asked.
    """

    answers: bool | None = None


_KNOWN = _Known()


def reach_hub() -> bool:
    """Ask the hub whether it is there, once in a process; if it is not, use its cache alone.

    Returns:
        Whether it is asked for what comes next. It is not where HF_HUB_OFFLINE forbids it, either.
    """
    if constants.is_offline_mode():
        return False
    if _KNOWN.answers is None:
        _KNOWN.answers = _answers(constants.ENDPOINT)
    if not _KNOWN.answers:
        constants.HF_HUB_OFFLINE = True
        os.environ[OFFLINE] = "1"  # for workers
        if datasets := sys.modules.get("datasets"):
            datasets.config.HF_HUB_OFFLINE = True
    return _KNOWN.answers


@dataclass(frozen=True)
class Cache:
    """Where a library puts what it gets from the hub.

    Attributes:
        setting: the variable that names it.
        place: its folder.
    """

    setting: str
    place: Path

    def mend(self, error: Exception) -> str | None:
        """Return what to do where this cache takes no file; ``None`` for any other error."""
        refusal = refusal_of(error, [self.place, *_places()])
        if refusal is None:
            return None
        room = f"let {self.setting} name a folder that has room and that you may write to"
        return mend_or(refusal, room)


def cause_and_mend(error: Exception, cache: Cache | None = None) -> tuple[str, str]:
    """Return why the hub gave no model or data set, and what to do about it.

    Args:
        error: what the hub's library raised.
        cache: where it was to be put; by default the folder of everything from the hub.
    """
    used = cache or own_cache()
    if mend := used.mend(error):
        return f"the cache in {used.place} cannot be written ({first_line(error)})", mend
    return _cause_elsewhere(error)


def own_cache() -> Cache:
    """Return the folder of everything from the hub, models among it."""
    return Cache("HF_HOME", Path(constants.HF_HOME))


def _places() -> tuple[Path, ...]:
    """Folders to which the hub's library writes, whatever is asked for."""
    return Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE), Path(constants.HF_XET_CACHE)


def _cause_elsewhere(error: Exception) -> tuple[str, str]:
    """Why the hub gave nothing, and what to do, where its cache has nothing to do with that."""
    cache = f"the cache in {constants.HF_HOME}"
    if _KNOWN.answers is False:
        cause = f"the hub {constants.ENDPOINT} did not answer within {ANSWER_S:g} s"
        mend = "check the network, or name a mirror in HF_ENDPOINT"
        return f"{cause} and {cache} does not hold it", mend
    if constants.is_offline_mode():
        cause = f"{OFFLINE} forbids asking the hub and {cache} does not hold it"
        return cause, f"correct the name or unset {OFFLINE}"
    asked = f"the hub {constants.ENDPOINT} was asked besides {cache}"
    for kind, cause, mend in CAUSES:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return f"{asked}: {cause}", mend
    return f"{asked}: {first_line(error)}", "mend that or try again later"


def _answers(address: str) -> bool:
    """Whether anything answers, whatever it says."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=ANSWER_S):  # noqa: S310 -- the user's
            return True
    except HTTPError:
        return True
    except URLError as error:  # of a certificate, the library has more to say
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError, HTTPException):  # ValueError: of an address that is none
        return False
