"""A checkpoint is whole on disk, or not there."""

import errno
import json
import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint import files
from sb3_flowrl.checkpoint.files import CheckpointError, check_writable, find_checkpoint, list_checkpoints, write_checkpoint
from tests.persistence.runs import drift_envs, make_model


def write(folder: Path, step: int, keep: int = 2, content: bytes = b"content") -> Path:
    return write_checkpoint(folder, step, {"one": lambda file: file.write(content), "two": lambda file: file.write(b"")}, keep)


def test_the_newest_are_kept_also_when_another_run_begins_in_the_same_folder(tmp_path):
    paths = [write(tmp_path, step) for step in (5_000, 10_000, 100, 100)]
    assert list_checkpoints(tmp_path) == paths[-2:] == sorted(tmp_path.iterdir())
    assert find_checkpoint(tmp_path) == paths[-1]


def _flip_bit(path: Path) -> None:
    data = bytearray((path / "one").read_bytes())
    data[3] ^= 1
    (path / "one").write_bytes(data)


def _set_version(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))


DAMAGES = {
    "flipped bit": (_flip_bit, "checksum"),
    "truncated": (lambda path: os.truncate(path / "one", 2), "checksum"),
    "missing file": (lambda path: (path / "two").unlink(), "damaged: FileNotFoundError"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "damaged: FileNotFoundError"),
    "manifest of something else": (lambda path: (path / "manifest.json").write_text("[1]"), "damaged: TypeError"),
    "nested manifest": (lambda path: (path / "manifest.json").write_text("[" * 10**6), "damaged: RecursionError"),
    "half a manifest": (lambda path: os.truncate(path / "manifest.json", 30), "damaged: JSONDecodeError"),
    "other version": (_set_version, "format version 2.* reads version 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path):
    spoil, message = DAMAGES[damage]
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    spoil(new)
    with pytest.warns(UserWarning, match=f"{message}.* The older {old.name} is used instead"):
        assert find_checkpoint(tmp_path) == old
    spoil(old)
    with pytest.raises(CheckpointError, match=f"There is no complete checkpoint in {tmp_path}.*{message}"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(damage, tmp_path):
    older, old, new = (write(tmp_path, step) for step in (1, 2, 3))
    older = write(tmp_path, 1)
    spoil, _ = DAMAGES[damage]
    spoil(older)
    newest = write(tmp_path, 4)
    assert list_checkpoints(tmp_path) == [new, older, newest]
    assert not old.exists()
    assert list_checkpoints(tmp_path)[-1] == newest and write(tmp_path, 5).exists()
    assert not older.exists() and not new.exists()


def test_damage_at_the_very_moment_of_writing_is_noticed(tmp_path):
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    written_at = (new / "one").stat().st_mtime_ns
    _flip_bit(new)
    os.utime(new / "one", ns=(written_at, written_at))
    assert [old, new, write(tmp_path, 3)] == list_checkpoints(tmp_path)


def test_a_large_file_is_not_read_again_at_each_checkpoint(tmp_path, monkeypatch):
    first = write(tmp_path, 1)
    for path in first.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    write(tmp_path, 2)
    monkeypatch.setattr(files, "open", lambda path, mode: pytest.fail(f"{path} is read"), raising=False)
    assert files._find_damage(first, trust=True) is None
    os.utime(first / "one", (1_000_000_001, 1_000_000_001))
    with pytest.raises(pytest.fail.Exception, match="one is read"):
        files._find_damage(first, trust=True)


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_passed_over_for_the_newer_one(tmp_path, monkeypatch):
    model = make_model(drift_envs(1)).learn(40)
    model.save_checkpoint(tmp_path, keep=1)
    load, describe = FlowRL.load, files._describe
    todo = ["while its files are checked", "while they are loaded"]

    def replace(moment: str) -> None:
        if moment in todo:
            todo.remove(moment)
            model.learn(20, reset_num_timesteps=False).save_checkpoint(tmp_path, keep=1)

    def describe_and_replace(path, *args):
        if path.name == "run_state.pkl" and path.parent.name.startswith("checkpoint-000000"):
            replace("while its files are checked")
        return describe(path, *args)

    def replace_and_load(path, *args, **kwargs):
        replace("while they are loaded")
        return load(path, *args, **kwargs)

    monkeypatch.setattr(files, "_describe", describe_and_replace)
    monkeypatch.setattr(FlowRL, "load", replace_and_load)
    assert FlowRL.load_checkpoint(tmp_path, drift_envs(1)).num_timesteps == 80
    assert todo == []

    def always_replace(*args, **kwargs):
        todo.append("while they are loaded")
        return replace_and_load(*args, **kwargs)

    monkeypatch.setattr(FlowRL, "load", always_replace)
    monkeypatch.setattr(model, "learn", lambda *_, **__: model)
    with pytest.raises(CheckpointError, match=r"replaces the checkpoints .* faster than they can be read"):
        FlowRL.load_checkpoint(tmp_path, drift_envs(1))


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(CheckpointError, match=r"There is no complete checkpoint in .*nowhere"):
        FlowRL.load_checkpoint(tmp_path / "nowhere", "Pendulum-v1")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB, or where that takes rights that we have not, a limit on files of 4 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode == 0:
        yield folder, 20_000, "No space left on device"
        subprocess.run(["umount", folder], check=True)
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limits[1]))
        yield folder, 2_000, "File too large"
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_and_the_old_checkpoint_stays(small_disk):
    folder, fits, message = small_disk
    old = write(folder, 1, content=b"x" * fits)
    with pytest.raises(CheckpointError, match=f"step 2 could not be written to .*: {message}"):
        write(folder, 2, content=b"x" * 5 * fits)
    assert find_checkpoint(folder) == old
    assert list(folder.iterdir()) == [old]
    assert write(folder, 3, content=b"x" * fits).exists()


def test_training_goes_on_when_the_disk_is_full(small_disk):
    folder = small_disk[0]
    model = make_model(drift_envs(1), policy_kwargs=dict(net_arch=[64, 64]))
    with pytest.warns(UserWarning, match="Training continues, and the next attempt is in 20 steps"):
        model.learn(60, callback=ResumableCheckpointCallback(folder, 20))
    assert model.num_timesteps == 60 and list(folder.iterdir()) == []


def test_an_interrupt_while_saving_leaves_nothing_behind(tmp_path):
    old = write(tmp_path, 1)

    def interrupted(file) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, 2, {"file": interrupted}, keep=2)
    assert list(tmp_path.iterdir()) == [old]


def test_a_probe_that_a_killed_process_left_hinders_nobody(tmp_path):
    (tmp_path / ".unfinished-probe").mkdir()
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    model = make_model()
    with pytest.raises(CheckpointError, match=r"No checkpoint can be written to .*file.*: Not a directory|File exists"):
        model.learn(60, callback=ResumableCheckpointCallback(tmp_path / "file", 20))
    with pytest.raises(CheckpointError, match=r"No checkpoint can be written to .*file.below: Not a directory"):
        model.save_checkpoint(tmp_path / "file" / "below")
    assert model.num_timesteps == 0


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EIO"])
def test_folders_that_the_file_system_cannot_flush_get_checkpoints_all_the_same(name, tmp_path, monkeypatch):
    def flush(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr(os, "fsync", flush)
    if name == "EIO":  # which means that the disk is broken
        with pytest.raises(CheckpointError, match="Input/output error"):
            write(tmp_path, 1)
    else:
        assert write(tmp_path, 1) == find_checkpoint(tmp_path)


def test_a_relative_folder_stays_where_it_is_when_the_process_changes_its_own(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    callback = ResumableCheckpointCallback("run", 20)

    def change(*_) -> bool:
        os.chdir(tmp_path / "elsewhere")
        return True

    make_model(drift_envs(1)).learn(40, callback=[callback, ConvertCallback(change)])
    assert len(list_checkpoints(tmp_path / "run")) == 2 and list((tmp_path / "elsewhere").iterdir()) == []


def test_the_home_folder_is_what_a_tilde_means(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_model(drift_envs(1)).learn(20, callback=ResumableCheckpointCallback("~/run", 20))
    assert list_checkpoints("~/run") == [find_checkpoint("~/run")] == list((tmp_path / "run").iterdir())
    FlowRL.load_checkpoint("~/run", drift_envs(1)).save_checkpoint("~/other")
    check_writable("~/third")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", "third"}
    with pytest.raises(CheckpointError, match=r"The folder ~nobody-of-that-name/run can't be found"):
        ResumableCheckpointCallback("~nobody-of-that-name/run", 20)


def test_a_read_only_folder(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    old = write(folder, 1)
    if os.geteuid() == 0:  # who may write to any folder, but not to a file system that is read-only
        if subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True).returncode != 0:
            pytest.skip("no right to mount")
    else:
        folder.chmod(0o555)
    try:
        with pytest.raises(CheckpointError, match=r"Read-only file system|Permission denied"):
            write(folder, 2)
        assert find_checkpoint(folder) == old
    finally:
        subprocess.run(["umount", folder], check=True) if os.geteuid() == 0 else folder.chmod(0o755)


def test_what_is_no_run_or_keeps_nothing_is_refused_before_any_work(tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match="keep=0 must be an integer of at least 1"):
        model.save_checkpoint(tmp_path / "run", keep=0)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="this model has no environment to run in"):
        FlowRL.load(tmp_path / "model").save_checkpoint(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", [dict(save_freq=0), dict(save_freq=10, keep=0)])
def test_callback_arguments(argument, tmp_path):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        ResumableCheckpointCallback(tmp_path, **argument)
