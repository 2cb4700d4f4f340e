"""
A lock on a folder that only one process at a time can hold, and that ends when the process ends, even if it is killed.

The operating system locks a file in the folder. The existence of a file alone would not be enough, because the file outlives
a killed process. On Unix the lock is a POSIX lock (``lockf``), not ``flock``. Forked processes, such as SubprocVecEnv's,
inherit a ``flock``, so one that outlives a killed run would keep the folder locked. POSIX locks belong to the process as a
whole, so this module counts the holders within a process.
"""

import errno
import json
import os
import socket
import sys
import threading
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = ".lock"
#: Errors of file systems without locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class FolderLockedError(RuntimeError):
    """
    Raised when another process holds the lock.
    """


@dataclass
class _Held:
    """This process's lock on a folder."""

    path: Path
    file: int
    process: int
    holders: int = 1

    def is_ours(self) -> bool:
        # A forked process has a copy of its parent's entry, and the folder may have been deleted since
        return self.process == os.getpid() and _is_at(self.path, self.file)


_held: dict[Path, _Held] = {}
_mutex = threading.RLock()


class FolderLock:
    """
    The lock on a folder.

    One process can hold several at a time. Other processes are kept out until the last one is released. This happens at the
    latest when the lock is garbage-collected, so training that ends with an exception leaves no lock behind.

    :param folder: the folder, which must exist when the lock is acquired
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._release: weakref.finalize[Any, Any] | None = None

    def acquire(self) -> None:
        """
        Take the lock, unless this object already holds it.

        :raises FolderLockedError: if another process holds the lock; the message names that process
        :raises OSError: if the lock file can't be created
        """
        if self._release is not None and self._release.alive:
            return
        path = self.folder.resolve() / LOCK_FILE
        with _mutex:
            held = _held.get(path)
            if held is not None:
                held.holders += 1  # before anything else, because a holder may be garbage-collected at any moment
            if held is None or not held.is_ours():
                held = _held[path] = _Held(path, _lock_file(path), os.getpid())
        self._release = weakref.finalize(self, _remove_holder, held)

    def release(self) -> None:
        """
        Release the lock if this object holds it.
        """
        if self._release is not None:
            self._release()

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _remove_holder(held: _Held) -> None:
    if held.process != os.getpid():  # a forked process has a copy of the object, but not the lock
        return
    with _mutex:
        held.holders -= 1
        if held.holders > 0:
            return
        if _held.get(held.path) is held:
            del _held[held.path]
        _unlock_file(held.path, held.file)


def _lock_file(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
            if _is_at(path, file):  # otherwise its last holder has removed it between our two calls
                _write_holder(file)
                return file
        except BlockingIOError as error:
            holder = _read_holder(file)
            os.close(file)
            raise FolderLockedError(holder) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _unlock_file(path: Path, file: int) -> None:
    try:
        if sys.platform == "win32":  # an open file can't be removed there
            os.close(file)
            os.unlink(path)
        else:
            if _is_at(path, file):
                os.unlink(path)
            os.close(file)
    except OSError:  # the folder may be gone, and on Windows another process may already use the file
        pass


def _lock(file: int) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(file, 1 << 20, os.SEEK_SET)  # lock a byte beyond the text, so that others can read the text
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise BlockingIOError(error.errno, error.strerror) from error
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"The file system has no locks ({error.strerror}). Make sure that no two processes write checkpoints to the same "
            "folder."
        )


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _write_holder(file: int) -> None:
    """Write who holds the lock, for the error messages of other processes."""
    try:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, json.dumps(dict(process=os.getpid(), host=socket.gethostname())).encode())
    except OSError:  # such as a full disk; the lock works without the text
        pass


def _read_holder(file: int) -> str:
    try:
        os.lseek(file, 0, os.SEEK_SET)
        holder = json.loads(os.read(file, 1_000))
        return f"process {holder['process']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
