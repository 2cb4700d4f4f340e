"""
Checkpoints on disk: folders that are either complete or absent, whenever the process dies.

A checkpoint is written to a temporary folder, flushed to the disk, and renamed. Its manifest holds the size and the SHA-256
of every file. They reveal a damaged checkpoint, and the previous one is used instead. ``run_state.py`` decides what the files
contain.

Only one process at a time can write to a folder, see ``lock.py``. Others may read it at the same time.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from sb3_flowrl.checkpoint.lock import FolderLock, FolderLockedError
from sb3_flowrl.version import __version__

#: Version of the folder's layout.
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)-step-(\d+)")
_UNFINISHED = ".unfinished-"

#: Writes one file of a checkpoint.
FileWriter = Callable[[BinaryIO], object]

T = TypeVar("T")

#: How often to look for the newest checkpoint if the writing process keeps removing the ones found.
_ATTEMPTS = 20

#: Size and checksum of files that this process has read. The key is the file's device, inode, size and modification time.
#: Reading a large replay buffer again would take long.
_known_files: dict[tuple[int, int, int, int], dict[str, int | str]] = {}
#: Nanoseconds after which writing a file again is sure to change its modification time.
_TIMES_DIFFER_AFTER = 100_000_000


class CheckpointError(RuntimeError):
    """
    Raised when a checkpoint can't be written, or none can be loaded.
    """


def write_checkpoint(
    folder: str | Path,
    num_timesteps: int,
    files: dict[str, FileWriter],
    keep: int,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write a checkpoint completely or not at all.

    If this raises or the process is killed, everything stays as it was before.

    :param folder: folder of the checkpoints, created if needed. Only one process at a time may write to it
    :param num_timesteps: environment steps done, for the checkpoint's name
    :param files: for each file name, the function that writes the file
    :param keep: number of the run's newest complete checkpoints to keep, at least 1. It includes this one. The checkpoints of
        other runs stay
    :param description: further entries of the manifest, as JSON; ``"run"`` is the name of the run
    :return: the checkpoint's own folder
    :raises CheckpointError: if another process is writing to the folder, or the checkpoint can't be written, for example
        because the disk is full, the folder is read-only or something can't be pickled
    """
    folder = resolve_folder(folder)
    description = dict(description or {})
    unfinished = None
    with contextlib.ExitStack() as lock:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(lock_folder(folder))
            for leftover in folder.glob(f"{_UNFINISHED}*"):  # a killed process left it
                shutil.rmtree(leftover, ignore_errors=True)
            name = f"checkpoint-{_next_number(folder):06d}-step-{num_timesteps}"
            unfinished = folder / f"{_UNFINISHED}{name}"
            unfinished.mkdir()
            entries = {file_name: _write_file(unfinished / file_name, writer) for file_name, writer in files.items()}
            manifest = {
                "format_version": FORMAT_VERSION,
                "sb3_flowrl": __version__,
                "num_timesteps": num_timesteps,
                **description,
                "files": entries,
            }
            _write_file(unfinished / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
            _flush_folder(unfinished)
            os.rename(unfinished, folder / name)
            _flush_folder(folder)
        except BaseException as error:
            if unfinished is not None:
                shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, CheckpointError) or not isinstance(error, Exception):  # such as KeyboardInterrupt
                raise
            is_disk_error = isinstance(error, OSError)
            raise CheckpointError(
                f"The checkpoint of step {num_timesteps} could not be written to {folder}: "
                f"{getattr(error, 'strerror', None) or error if is_disk_error else repr(error)}. "
                "Existing checkpoints are unchanged. "
                + (
                    "Free some disk space, or choose another folder."
                    if is_disk_error
                    else "Something in the run can't be pickled or copied."
                )
            ) from error
        _remove_old(folder, keep, description.get("run"))
    return folder / name


def resolve_folder(folder: str | Path) -> Path:
    """
    Return the absolute path of a folder.

    It stays valid when the process changes its working directory.

    :param folder: the folder as given by the user; ``~`` stands for the home folder
    :return: its absolute path
    :raises CheckpointError: for the home folder of an unknown user
    """
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise CheckpointError(f"The folder {folder} can't be found: {error} Give its path without ~.") from error


def lock_folder(folder: Path) -> FolderLock:
    """
    Keep other processes from writing to a folder until the lock is released or this process ends.

    :param folder: folder of the checkpoints, which must exist
    :return: the lock
    :raises CheckpointError: if another process holds the lock
    """
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except FolderLockedError as error:
        raise CheckpointError(
            f"Checkpoints can't be written to {folder}: another process has a run there ({error}). Give each run its own "
            "folder, or end that process first. A notebook holds the folder until its callback is deleted."
        ) from None
    return lock


def check_writable(folder: str | Path) -> None:
    """
    Check that checkpoints can be written to a folder.

    :param folder: folder of the checkpoints, created if needed
    :raises CheckpointError: if nothing can be written there
    """
    folder = resolve_folder(folder)
    probe = folder / f"{_UNFINISHED}probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir(exist_ok=True)  # a killed process may have left it
        with contextlib.suppress(FileNotFoundError):  # a process that writes here may have removed it
            probe.rmdir()
    except OSError as error:
        raise CheckpointError(f"No checkpoint can be written to {folder}: {error.strerror or error}.") from error


def find_checkpoint(folder: str | Path) -> Path:
    """
    Find the newest complete checkpoint.

    Damaged ones are skipped with a warning.

    :param folder: folder of the checkpoints
    :return: the checkpoint's own folder
    :raises CheckpointError: if there is no complete checkpoint
    """
    for _ in range(_ATTEMPTS):
        problems: list[str] = []
        for path in reversed(list_checkpoints(folder)):
            problem = _find_damage(path)
            if problem is None:
                for other in problems:
                    warnings.warn(f"{other} The older {path.name} is used instead.")
                return path
            if not path.exists():  # the writing process has replaced it by a newer one
                break
            problems.append(problem)
        else:
            if (Path(folder) / MANIFEST).is_file():
                problems.append(f"It is a checkpoint itself: pass its parent folder, {Path(folder).parent}.")
            raise CheckpointError(" ".join([f"There is no complete checkpoint in {folder}.", *problems]))
    raise _removed_too_fast(folder)


def read_newest(folder: str | Path, read: Callable[[Path], T]) -> T:
    """
    Read the newest complete checkpoint, even while a running process replaces it by newer ones.

    :param folder: folder of the checkpoints
    :param read: function that reads a checkpoint, given its own folder
    :return: the result of ``read``
    :raises CheckpointError: if there is no complete checkpoint
    """
    for _ in range(_ATTEMPTS):
        path = find_checkpoint(folder)
        try:
            return read(path)
        except Exception:
            if path.exists():
                raise
    raise _removed_too_fast(folder)


def _removed_too_fast(folder: str | Path) -> CheckpointError:
    return CheckpointError(
        f"Another process replaces the checkpoints in {folder} faster than they can be read. Wait for it to end, save less "
        "often, or keep more of them."
    )


def list_checkpoints(folder: str | Path) -> list[Path]:
    """
    List the checkpoints in a folder, damaged ones included.

    :param folder: folder of the checkpoints
    :return: the checkpoints' own folders, oldest first; empty if the folder does not exist
    """
    paths = resolve_folder(folder).glob("checkpoint-*")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=_number)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """
    Read the manifest of a checkpoint.

    :param path: the checkpoint's own folder
    :return: its manifest, or None if it can't be read
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _next_number(folder: Path) -> int:
    checkpoints = list_checkpoints(folder)
    return _number(checkpoints[-1]) + 1 if checkpoints else 0


def _write_file(path: Path, writer: FileWriter) -> dict[str, int | str]:
    with open(path, "wb") as file:
        writer(file)
        file.flush()
        os.fsync(file.fileno())
    return _describe(path)


def _describe(path: Path, trust: bool = False) -> dict[str, int | str]:
    """
    Return the size and the checksum of a file.

    :param path: the file
    :param trust: whether to reuse the checksum from when this process last read the file, if it has not changed since
    :return: the manifest's entry for the file
    """
    stat, now = path.stat(), time.time_ns()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if trust and key in _known_files:
        return _known_files[key]
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    description: dict[str, int | str] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    if now - stat.st_mtime_ns > _TIMES_DIFFER_AFTER:
        _known_files[key] = description
    return description


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows can't flush folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # some file systems can't either
            raise
    finally:
        os.close(descriptor)


def _find_damage(path: Path, trust: bool = False) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format_version"] != FORMAT_VERSION:
            return (
                f"{path} has format version {manifest['format_version']}, written by sb3_flowrl {manifest['sb3_flowrl']}. "
                f"This sb3_flowrl {__version__} reads version {FORMAT_VERSION}."
            )
        for name, entry in manifest["files"].items():
            if _describe(path / name, trust) != entry:
                return f"{path / name} is damaged: checksum mismatch."
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged: {error!r}."
    return None


def _remove_old(folder: Path, keep: int, run: str | None) -> None:
    """Remove the checkpoints of a run that are older than its newest ``keep`` complete ones."""
    n_complete = 0
    for path in reversed(list_checkpoints(folder)):
        manifest = read_manifest(path)
        if manifest is not None and manifest.get("run") != run:
            continue
        if n_complete < keep:
            n_complete += _find_damage(path, trust=True) is None
            continue
        # Rename it first, so that a half-removed folder never looks like a checkpoint
        doomed = folder / f"{_UNFINISHED}{path.name}"
        try:
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(f"The old checkpoint {path} could not be removed: {error.strerror or error}.")
