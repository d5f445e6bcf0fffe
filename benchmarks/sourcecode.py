"""Shared by the benchmarks: which code a record is of, told by the modules of the package."""

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "schemabank"


def source_digest(package: Path = PACKAGE) -> str:
    """The beginning of the SHA-256 of a package's modules, wherever they are installed."""
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(f"{path.relative_to(package).as_posix()}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:8]
