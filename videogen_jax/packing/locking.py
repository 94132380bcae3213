"""One process at a time for a folder."""

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

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # file systems that have no locks


@contextlib.contextmanager
def hold_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other processes that call this out of a folder while the block runs.

    The lock is the system's, on FOLDER/.lock: it ends with the process, however that ends, so none is ever left behind.
    Where a file system or Windows has none, nothing is kept out.

    Args:
      folder: is made if it is missing.
    Raises:
      ValueError: another process is in it, which is named.
    """
    path = pathlib.Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")
        with file:
            _lock(file, path)
            if not _is_there(file, path):  # its last owner has just deleted it
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(file, path):
    """Locks an open file, or raises ValueError saying who has done so."""
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
            f"{owner} is at work on {path.parent}: wait until it has finished, or end it."
        ) from None


def _is_there(file, path):
    """Says whether a name still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
