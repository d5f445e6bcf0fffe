"""Why the Hugging Face hub gave no model or data set, and what to do about it."""

from huggingface_hub import constants, errors

from schemabank.common.errors import first_line

# What the hub's answer means and how to mend it; a subclass stands before its parent.
CAUSES: tuple[tuple[type[Exception], str, str], ...] = (
    (errors.GatedRepoError, "it is gated", "accept the terms on its page and set HF_TOKEN"),
    (errors.RepositoryNotFoundError, "none there is public", "correct the name or set HF_TOKEN"),
    (errors.RevisionNotFoundError, "no such revision", "correct the revision"),
    (errors.LocalEntryNotFoundError, "the hub cannot be reached", "check the network"),
    (errors.RemoteEntryNotFoundError, "no config.json in it", "give a transformers model"),
    (ConnectionError, "the hub cannot be reached", "check the network"),
)


def cause_and_mend(error: Exception) -> tuple[str, str]:
    """Return why the hub gave no model or data set, and what to do about it."""
    cache = f"the cache in {constants.HF_HOME}"
    if constants.is_offline_mode():
        cause = f"HF_HUB_OFFLINE forbids asking the hub and {cache} does not hold it"
        return cause, "correct the name or unset HF_HUB_OFFLINE"
    asked = f"the hub {constants.ENDPOINT} was asked besides {cache}"
    for kind, cause, mend in CAUSES:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return f"{asked}: {cause}", mend
    return f"{asked}: {first_line(error)}", "mend that or try again later"
