"""
Checkpoints on disk: folders that are either complete or not there, whenever the process dies.

A checkpoint is written into a temporary folder, flushed to the disk, and renamed. Its manifest holds the size and the SHA-256
of every file, so that a damaged one is noticed and the one before it used. What is in the files is up to ``run_state.py``.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import sb3_flowrl

#: Version of the folder's layout.
FORMAT_VERSION = 1

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)-step-(\d+)")
_UNFINISHED = ".unfinished-"

#: Writes one file of a checkpoint.
FileWriter = Callable[[BinaryIO], object]


class CheckpointError(RuntimeError):
    """
    A checkpoint can't be written, or none can be loaded.
    """


def write_checkpoint(folder: str | Path, num_timesteps: int, files: dict[str, FileWriter], keep: int) -> Path:
    """
    Write a checkpoint; afterwards it is complete on the disk, or, if this raises or is killed, all is as it was before.

    :param folder: where the checkpoints are; made if need be. One process at a time may write to it
    :param num_timesteps: environment steps done, for the name
    :param files: what writes each file
    :param keep: how many of the newest checkpoints stay, this one included, at least 1
    :return: the checkpoint's own folder
    :raises CheckpointError: if the disk is full, the folder read-only, something can't be pickled, or the like
    """
    folder = Path(folder)
    unfinished = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        name = f"checkpoint-{_next_number(folder):06d}-step-{num_timesteps}"
        unfinished = folder / f"{_UNFINISHED}{name}"
        unfinished.mkdir()
        entries = {file_name: _write_file(unfinished / file_name, writer) for file_name, writer in files.items()}
        manifest = dict(
            format_version=FORMAT_VERSION, sb3_flowrl=sb3_flowrl.__version__, num_timesteps=num_timesteps, files=entries
        )
        _write_file(unfinished / MANIFEST, lambda file: file.write(json.dumps(manifest, indent=1).encode()))
        _flush_folder(unfinished)
        os.rename(unfinished, folder / name)
        _flush_folder(folder)
    except BaseException as error:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
        if not isinstance(error, Exception):  # such as KeyboardInterrupt
            raise
        is_the_disks = isinstance(error, OSError)
        raise CheckpointError(
            f"The checkpoint of step {num_timesteps} could not be written to {folder}: "
            f"{getattr(error, 'strerror', None) or error if is_the_disks else repr(error)}. "
            "The checkpoints that were there are untouched. "
            + ("Make room, or choose another folder." if is_the_disks else "Something in the run can't be pickled, or copied.")
        ) from error
    _remove_all_but(folder, keep)
    return folder / name


def check_writable(folder: str | Path) -> None:
    """
    :param folder: where checkpoints are to be; made if need be
    :raises CheckpointError: if nothing can be written there
    """
    probe = Path(folder) / f"{_UNFINISHED}probe"
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        probe.mkdir(exist_ok=True)  # it may be left of a process that was killed
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
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        problem = _find_damage(path)
        if problem is None:
            for other in problems:
                warnings.warn(f"{other} The one before it, {path.name}, is used instead.")
            return path
        problems.append(problem)
    raise CheckpointError(" ".join([f"There is no complete checkpoint in {folder}.", *problems]))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """
    :param folder: where the checkpoints are
    :return: the checkpoints' own folders, oldest first, none if the folder does not exist
    """
    return sorted((path for path in Path(folder).glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=_number)


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


def _describe(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # can't be done there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find_damage(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format_version"] != FORMAT_VERSION:
            return (
                f"{path} has format version {manifest['format_version']}, made by sb3_flowrl {manifest['sb3_flowrl']}; "
                f"this sb3_flowrl {sb3_flowrl.__version__} reads version {FORMAT_VERSION}."
            )
        for name, entry in manifest["files"].items():
            if _describe(path / name) != entry:
                return f"{path / name} is damaged: its checksum is not the one in the manifest."
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path} is damaged: {error!r}."
    return None


def _remove_all_but(folder: Path, keep: int) -> None:
    for path in list_checkpoints(folder)[:-keep]:
        # Renamed first, so that one half removed never looks like a checkpoint
        doomed = folder / f"{_UNFINISHED}{path.name}"
        try:
            os.rename(path, doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(f"The old checkpoint {path} could not be removed: {error.strerror or error}.")
