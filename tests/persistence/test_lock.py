"""One process at a time holds the lock on a folder, and no longer than it lives."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_flowrl.checkpoint.lock import FolderLock, FolderLockedError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes")

HOLD = """
import os, pathlib, sys, time
from sb3_flowrl.checkpoint.lock import FolderLock
lock = FolderLock(pathlib.Path(sys.argv[1]))
lock.acquire()
if "orphan" in sys.argv and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
if "orphan" not in sys.argv:
    print("locked", flush=True)
sys.stdin.read()
"""


def hold_elsewhere(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def can_be_locked_elsewhere(folder: Path) -> bool:
    process = hold_elsewhere(folder)
    process.stdin.close()  # type: ignore[union-attr]
    return first_line(process) == "locked" and process.wait() == 0


def test_another_process_is_kept_out_and_told_which_holds_the_lock(tmp_path):
    process = hold_elsewhere(tmp_path)
    assert first_line(process) == "locked"
    with pytest.raises(FolderLockedError, match=f"process {process.pid} on "):
        FolderLock(tmp_path).acquire()
    process.communicate()
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_process_that_is_killed_ends_though_a_process_forked_from_it_lives_on(tmp_path):
    process = hold_elsewhere(tmp_path, "orphan")
    orphan = int(first_line(process))
    try:
        with pytest.raises(FolderLockedError):
            FolderLock(tmp_path).acquire()
        process.kill()
        process.wait()
        FolderLock(tmp_path).acquire()
        os.kill(orphan, 0)  # it does live on
    finally:
        os.kill(orphan, signal.SIGKILL)
        process.communicate()


def test_one_process_can_hold_it_several_times_until_all_are_released(tmp_path):
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire(), first.acquire(), second.acquire()
    first.release(), first.release()
    assert not can_be_locked_elsewhere(tmp_path)
    second.release()
    assert can_be_locked_elsewhere(tmp_path)


def test_a_lock_that_nobody_has_any_more_is_released(tmp_path):
    FolderLock(tmp_path).acquire()
    assert can_be_locked_elsewhere(tmp_path)


def test_a_forked_process_does_not_hold_what_it_was_forked_from_holds(tmp_path):
    with FolderLock(tmp_path) as lock:
        process = os.fork()
        if process == 0:
            lock.release()
            try:
                FolderLock(tmp_path).acquire()
            except FolderLockedError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(process, 0)[1] == 0
        assert not can_be_locked_elsewhere(tmp_path)


def test_a_folder_that_was_deleted_and_made_again_is_locked_again(tmp_path):
    old = FolderLock(tmp_path / "run")
    old.folder.mkdir()
    old.acquire()
    shutil.rmtree(old.folder)
    old.folder.mkdir()
    with FolderLock(tmp_path / "run"):
        old.release()
        assert not can_be_locked_elsewhere(tmp_path / "run")
    assert list(old.folder.iterdir()) == []


def test_a_lock_that_is_released_and_removed_while_another_process_opens_it_is_made_anew(tmp_path, monkeypatch):
    ours, theirs = FolderLock(tmp_path), FolderLock(tmp_path)
    ours.acquire()
    is_released = []

    def open_and_release(path, *arguments):
        file = open_file(path, *arguments)
        if not is_released and str(path).endswith(".lock"):
            is_released.append(True)
            os.unlink(path)
        return file

    open_file = os.open
    ours.release()
    monkeypatch.setattr(os, "open", open_and_release)
    theirs.acquire()
    assert is_released and not can_be_locked_elsewhere(tmp_path)


def test_without_locks_in_the_file_system_it_warns_and_goes_on(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=r"has no locks \(No locks available\)"):
        FolderLock(tmp_path).acquire()
