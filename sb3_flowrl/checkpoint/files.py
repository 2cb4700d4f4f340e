"""
Checkpoints on disk: folders that are either complete or not there, whenever the process dies.

A checkpoint is written into a temporary folder, flushed to the disk, and renamed. Its manifest holds the size and the SHA-256
of every file, so that a damaged one is noticed and the one before it used. What is in the files is up to ``run_state.py``.

One process at a time writes to a folder, see ``folder_lock.py``; others may read meanwhile.
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

import sb3_flowrl
from sb3_flowrl.checkpoint.lock import FolderLock, FolderLockedError

#: Version of the folder's layout.
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)-step-(\d+)")
_UNFINISHED = ".unfinished-"

#: Writes one file of a checkpoint.
FileWriter = Callable[[BinaryIO], object]

T = TypeVar("T")

#: How often to look for the newest checkpoint when those found are removed by the process that writes them.
_ATTEMPTS = 20

#: Size and checksum of files that this process has read, by what the file system says of them: a large replay buffer takes
#: long to read.
_known_files: dict[tuple[int, int, int, int], dict[str, int | str]] = {}
#: Nanoseconds after which a file that is written again is sure to get another time of modification.
_TIMES_DIFFER_AFTER = 100_000_000


class CheckpointError(RuntimeError):
    """
    A checkpoint can't be written, or none can be loaded.
    """


def write_checkpoint(
    folder: str | Path,
    num_timesteps: int,
    files: dict[str, FileWriter],
    keep: int,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write a checkpoint; afterwards it is complete on the disk, or, if this raises or is killed, all is as it was before.

    :param folder: where the checkpoints are; made if need be. One process at a time may write to it
    :param num_timesteps: environment steps done, for the name
    :param files: what writes each file
    :param keep: how many of the run's newest whole checkpoints stay, this one included, at least 1. Those of other runs stay
    :param description: what else the manifest says, as JSON; the run's name is its ``"run"``
    :return: the checkpoint's own folder
    :raises CheckpointError: if the disk is full, the folder read-only, something can't be pickled, another process is writing
        to the folder, or the like
    """
    folder = resolve_folder(folder)
    description = dict(description or {})
    unfinished = None
    with contextlib.ExitStack() as lock:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(lock_folder(folder))
            for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            name = f"checkpoint-{_next_number(folder):06d}-step-{num_timesteps}"
            unfinished = folder / f"{_UNFINISHED}{name}"
            unfinished.mkdir()
            entries = {file_name: _write_file(unfinished / file_name, writer) for file_name, writer in files.items()}
            manifest = {
                "format_version": FORMAT_VERSION,
                "sb3_flowrl": sb3_flowrl.__version__,
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
            is_the_disks = isinstance(error, OSError)
            raise CheckpointError(
                f"The checkpoint of step {num_timesteps} could not be written to {folder}: "
                f"{getattr(error, 'strerror', None) or error if is_the_disks else repr(error)}. "
                "The checkpoints that were there are untouched. "
                + (
                    "Make room, or choose another folder."
                    if is_the_disks
                    else "Something in the run can't be pickled, or copied."
                )
            ) from error
        _remove_old(folder, keep, description.get("run"))
    return folder / name


def resolve_folder(folder: str | Path) -> Path:
    """
    :param folder: a run's folder as the user gives it
    :return: its absolute path, which stays the same when the process changes its working directory; ``~`` is the home folder
    :raises CheckpointError: for the home folder of an unknown user
    """
    try:
        return Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise CheckpointError(f"The folder {folder} can't be found: {error} Give its path without ~.") from error


def lock_folder(folder: Path) -> FolderLock:
    """
    Keep other processes from writing to a folder, until the lock is released or this process ends.

    :param folder: where the checkpoints are, which must exist
    :return: the lock
    :raises CheckpointError: if another process holds it
    """
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except FolderLockedError as error:
        raise CheckpointError(
            f"Checkpoints can't be written to {folder}: another run is writing there ({error}). Give each run a folder of its "
            "own, or end that process first."
        ) from None
    return lock


def check_writable(folder: str | Path) -> None:
    """
    :param folder: where checkpoints are to be; made if need be
    :raises CheckpointError: if nothing can be written there
    """
    folder = resolve_folder(folder)
    probe = folder / f"{_UNFINISHED}probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.mkdir(exist_ok=True)  # it may be left of a process that was killed
        with contextlib.suppress(FileNotFoundError):  # the process that writes here has cleared it away
            probe.rmdir()
    except OSError as error:
        raise CheckpointError(f"No checkpoint can be written to {folder}: {error.strerror or error}.") from error


def find_checkpoint(folder: str | Path) -> Path:
    """
    Find the newest checkpoint that is whole. One that is not is passed over with a warning.

    :param folder: where the checkpoints are
    :return: the checkpoint's own folder
    :raises CheckpointError: if there is none
    """
    for _ in range(_ATTEMPTS):
        problems: list[str] = []
        for path in reversed(list_checkpoints(folder)):
            problem = _find_damage(path)
            if problem is None:
                for other in problems:
                    warnings.warn(f"{other} The one before it, {path.name}, is used instead.")
                return path
            if not path.exists():  # the process that writes here has replaced it by a newer one
                break
            problems.append(problem)
        else:
            raise CheckpointError(" ".join([f"There is no complete checkpoint in {folder}.", *problems]))
    raise _removed_too_fast(folder)


def read_newest(folder: str | Path, read: Callable[[Path], T]) -> T:
    """
    Read the newest checkpoint that is whole, also while a run that goes on replaces it by newer ones.

    :param folder: where the checkpoints are
    :param read: reads a checkpoint, given its own folder
    :return: what it returned
    :raises CheckpointError: if there is none
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
        f"Another process replaces the checkpoints in {folder} faster than they can be read. Wait for it to end, or save more "
        "rarely, or keep more of them."
    )


def list_checkpoints(folder: str | Path) -> list[Path]:
    """
    :param folder: where the checkpoints are
    :return: the checkpoints' own folders, oldest first, none if the folder does not exist
    """
    paths = resolve_folder(folder).glob("checkpoint-*")
    return sorted((path for path in paths if _NAME.fullmatch(path.name)), key=_number)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """
    :param path: a checkpoint's own folder
    :return: its manifest, or None if that can't be read
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
    :param path: a file
    :param trust: whether the checksum may be the one of when this process read the file before, if it has not changed since
    :return: the file's size and checksum
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
    if os.name == "nt":  # can't be done there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):  # nor on some file systems
            raise
    finally:
        os.close(descriptor)


def _find_damage(path: Path, trust: bool = False) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format_version"] != FORMAT_VERSION:
            return (
                f"{path} has format version {manifest['format_version']}, made by sb3_flowrl {manifest['sb3_flowrl']}; "
                f"this sb3_flowrl {sb3_flowrl.__version__} reads version {FORMAT_VERSION}."
            )
        for name, entry in manifest["files"].items():
            if _describe(path / name, trust) != entry:
                return f"{path / name} is damaged: its checksum is not the one in the manifest."
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{path} is damaged: {error!r}."
    return None


def _remove_old(folder: Path, keep: int, run: str | None) -> None:
    """Remove the checkpoints of a run that are older than its newest ``keep`` whole ones."""
    n_whole = 0
    for path in reversed(list_checkpoints(folder)):
        manifest = read_manifest(path)
        if manifest is not None and manifest.get("run") != run:
            continue
        if n_whole < keep:
            n_whole += _find_damage(path, trust=True) is None
            continue
        # Renamed first, so that one half removed never looks like a checkpoint
        doomed = folder / f"{_UNFINISHED}{path.name}"
        try:
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(f"The old checkpoint {path} could not be removed: {error.strerror or error}.")
