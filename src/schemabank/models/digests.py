"""Digests of a base model and of its tokenizer: a commit of the hub, or the contents of files."""

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from huggingface_hub import cached_assets_path

from schemabank.common.files import sha256
from schemabank.common.writing import whole_file
from schemabank.models.files import Located

MODEL, TOKENIZER = "model", "tokenizer"
OF_MODEL = ("*.safetensors", "config.json", "generation_config.json", "*.index.json")
OF_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
DIGEST = re.compile("[0-9a-f]{64}")
HASHED_EVERY_TIME = 2**20  # bytes; hashes of larger files are kept


def model_digests(located: Located) -> dict[str, str]:
    """Return what identifies a base model and its tokenizer.

    A model of the hub is identified by its commit, a folder by the contents of its files.

    Args:
        located: where it is.
    """
    folder = Path(located.path)
    if not folder.is_dir():
        commit = f"{located.path}@{located.revision}"
        return {MODEL: commit, TOKENIZER: commit}
    return {MODEL: files_digest(folder, OF_MODEL), TOKENIZER: files_digest(folder, OF_TOKENIZER)}


def files_digest(folder: Path, patterns: Iterable[str]) -> str:
    """Return the SHA-256 of some files' names and contents."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    found = hashlib.sha256()
    for path in sorted(files):
        found.update(f"{path.name} {_file_digest(path)}\n".encode())
    return f"sha256:{found.hexdigest()}"


def _file_digest(path: Path) -> str:
    """The SHA-256 of a file; that of a large one is kept until the file changes.

    The kernel sets a file's time of change, which no program can set back, so that even a file that
    is overwritten in place and given its old date is read again.
    """
    real = path.resolve()
    stat = real.stat()
    if stat.st_size <= HASHED_EVERY_TIME:
        return sha256(real)
    said = [str(real), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    kept = _cache_file(hashlib.sha256(json.dumps(said).encode()).hexdigest())
    if kept is None:
        return sha256(real)
    with suppress(OSError, UnicodeDecodeError):
        if DIGEST.fullmatch(digest := kept.read_text(encoding="ascii")):
            return digest
    digest = sha256(real)
    _keep_digest(kept, digest)
    return digest


def _cache_file(key: str) -> Path | None:
    """Where a digest is kept; ``None`` where the user's cache cannot be made or entered."""
    try:
        return cached_assets_path("schemabank", namespace="digests", subfolder="sha256") / key
    except (OSError, ValueError):  # ValueError: a file stands where a folder of the cache should
        return None


def _keep_digest(path: Path, digest: str) -> None:
    """Write a digest to the cache, if the cache can be written."""
    with suppress(OSError), whole_file(path) as partial:
        partial.write_text(digest, encoding="ascii")
