"""An inter-process lock on a folder."""

import contextlib
import errno
import os
import pathlib
import socket
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # on file systems without locks


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Locks a folder against other processes that call this function.

    Uses a system lock on FOLDER/.lock, which is released when the process ends in any way, so no stale lock remains.
    Without support by the file system or on Windows, it does nothing.

    Args:
      folder: created if it is missing.
    Raises:
      ValueError: another process, which is named, holds the lock.
    """
    path = pathlib.Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")
        with file:
            _lock(file, path)
            if not _is_same_file(file, path):  # its last owner has just deleted it
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def find_holder(folder: str | os.PathLike) -> str | None:
    """The process that holds the lock of a folder, in words; None if there is none, or locks are not supported."""
    path = pathlib.Path(folder) / ".lock"
    if fcntl is None or not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            return file.read() or "another process"
    return None


def _lock(file, path):
    """Locks an open file, or raises a ValueError that names the owner of the lock."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        file.seek(0)
        owner = file.read() or "another process"
        raise ValueError(
            f"{owner} is writing to {path.parent}: wait until it has finished, or stop it."
        ) from None


def _is_same_file(file, path):
    """Whether a path still refers to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
