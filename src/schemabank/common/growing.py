"""The SHA-256 of the beginnings of a file that grows, such as a log."""

import hashlib
from pathlib import Path

READ_AT_ONCE = 2**20  # bytes


class GrowingDigest:
    """The SHA-256 of the beginnings of a file that grows: what was read once is not read again.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._found = path, 0, hashlib.sha256()

    def of(self, size: int) -> str:
        """Return the digest of its first bytes, or of all that there are.

        Args:
            size: how many.

        Raises:
            OSError: it cannot be read.
        """
        if size < self._read:
            self._read, self._found = 0, hashlib.sha256()
        with self._path.open("rb") as file:
            file.seek(self._read)
            while part := file.read(min(READ_AT_ONCE, size - self._read)):
                self._found.update(part)
                self._read += len(part)
        return self._found.hexdigest()
