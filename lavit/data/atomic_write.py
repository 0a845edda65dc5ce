"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a file so that no reader, and no crash, ever sees a part of it.

    Yields a file object on a temporary file in the folder of ``path``. When the block ends, the file is flushed to the
    disk (fsync) and renamed to ``path``, which replaces what was there; when the block raises, the temporary file is
    removed and ``path`` stays as it was. A link is followed, an existing file keeps its permissions.

    path: the folder must exist (FileNotFoundError). A device or pipe (``/dev/stdout``) is written to directly: it
        cannot be half-written in the sense meant here, and renaming over it would destroy it.
    mode: "wb" or "w" (UTF-8).
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode: expected 'w' or 'wb', got {mode!r}")
    encoding = None if "b" in mode else "utf-8"
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"path: expected a file to write, got the folder {path}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {target.parent} of {target.name} does not exist")
    if target.exists() and not target.is_file():
        with open(target, mode, encoding=encoding) as file:
            yield file
        return
    # The name of the target helps whoever finds a leftover of a killed process; cut so that it stays a legal name.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        # os.open instead of tempfile: the permissions follow the umask like those of any other output.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, mode, encoding=encoding) as file:
            if target.exists():
                os.chmod(temporary, target.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the file system can (network mounts and Windows may refuse)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
