"""
Do the runs of a study as Ray tasks, on this machine or on a cluster.

A task can be repeated any number of times: a finished run is skipped, and an interrupted one continues from its checkpoint.
So Ray only has to restart tasks whose worker has died. On a cluster, every machine must see the same checkout, results folder
and work folder under the same paths.
"""

import json
import logging
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from .arguments import resolve
from .progress import Progress
from .records import Folders, find_record, to_json, without_folders, write_atomically
from .run import PROGRESS, execute
from .study import Run, Study, StudyError, load_study

# Ray reads these when it is imported. Its own niceness for workers, 15, stops runs where others compute
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")
try:
    import ray
except ImportError as error:
    raise ImportError("Studies are run by Ray. Install it with: pip install -e '.[mujoco,dmc,ray]'") from error

#: Seconds between two checks of the runs' progress.
LOOK_EVERY = 1.0
#: A run without a note of its progress for so many seconds does not count as running: it was interrupted or stopped.
SILENT_AFTER = 120.0
#: Seconds that a run waits for another process to leave its folder. A process that was just killed is gone by then.
LOCK_SECONDS = 10.0
#: The outcome of a run that another process is working on.
ELSEWHERE = "elsewhere"
#: The tasks exchange very little data.
OBJECT_STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Resources:
    """
    The machines, cores and GPUs that a study uses.

    :param address: address of a Ray cluster, or "" for this machine alone
    :param cpus: cores that Ray may use on this machine; None for all
    :param cpus_per_run: cores that a run reserves (it computes on one)
    :param gpus_per_run: share of a GPU that a run reserves; above 0 it trains on the GPU
    :param retries: how often a run is restarted after its worker died
    """

    address: str = ""
    cpus: int | None = None
    cpus_per_run: float = 1.0
    gpus_per_run: float = 0.0
    retries: int = 3


def find_missing(study: Study, folders: Folders) -> list[Run]:
    """
    List the runs that are not finished.

    :param study: the study
    :param folders: the folders of files
    :return: the runs
    :raises StudyError: if the study's folder holds records of these names that were made with other settings or defaults
    """
    return [run for run in study.runs() if find_record(study, run, folders, resolve, adds_runs=True) is None]


def check_no_run_is_lost(study: Study, folders: Folders) -> None:
    """
    Check that the report will mention every finished run.

    :param study: the study that is about to be run
    :param folders: the folders of files
    :raises StudyError: if only the definition kept with the results asks for some finished run
    """
    kept = folders.study(study.name)
    if not kept.is_file():
        return
    asked = {run.name for run in study.runs()}
    lost = [run.name for run in load_study(kept).runs() if run.name not in asked and folders.record(study.name, run).exists()]
    if lost:
        raise StudyError(
            f"{kept} asks for {len(lost)} finished runs that this study leaves out, such as {lost[0]}, and would be "
            "overwritten. Give the smaller study a name of its own, with `includes` for what they share."
        )


def run_study(study: Study, folders: Folders, resources: Resources, only: Collection[str] = ()) -> bool:
    """
    Do all runs of a study that are not finished.

    :param study: the study
    :param folders: the folders of files
    :param resources: the machines, cores and GPUs to use
    :param only: do only these runs: labels of algorithms, or names of runs in which ``*`` stands for anything
        (``HalfCheetah-v4_*_seed1``); empty for all
    :return: whether these runs are all finished now
    :raises StudyError: if the study's folder holds records of other runs under the same names, the cluster can't be reached,
        or an entry of ``only`` matches no run
    """
    meant = {each: {run.name for run in study.runs() if run.label == each or fnmatchcase(run.name, each)} for each in only}
    if unknown := [each for each in only if not meant[each]]:
        raise StudyError(
            f"{study.name} has no algorithm or run {', '.join(unknown)}. Its algorithms are {', '.join(study.algorithms)}; "
            f"runs are named like {study.runs()[0].name}."
        )
    missing = find_missing(study, folders)
    n_runs = len(study.runs())
    n_done = n_runs - len(missing)
    print(f"{study.name}: {n_runs} runs, of which {n_done} are finished already")
    if only:
        asked = set().union(*meant.values())
        missing = [run for run in missing if run.name in asked]
    if not missing:
        return True
    _start_ray(resources)
    try:
        return _watch(study, missing, n_done, folders, resources)
    finally:
        ray.shutdown()


def _start_ray(resources: Resources) -> None:
    if resources.address:
        try:
            ray.init(address=resources.address, log_to_driver=False, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise StudyError(
                f"There is no way to the Ray cluster at {resources.address!r} ({error}). Is it up? If it asks for a token, "
                "Ray takes it from RAY_AUTH_TOKEN, with RAY_AUTH_MODE=token."
            ) from error
        return
    ray.init(
        address="local",  # otherwise Ray would join any cluster that runs on this machine
        num_cpus=resources.cpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _watch(study: Study, missing: Sequence[Run], n_done: int, folders: Folders, resources: Resources) -> bool:
    task = ray.remote(
        # A worker does one run, so that runs leave nothing behind for each other
        max_calls=1,
        max_retries=resources.retries,
        num_cpus=resources.cpus_per_run,
        num_gpus=resources.gpus_per_run,
    )(do_run)
    device = "cuda" if resources.gpus_per_run > 0 else "cpu"
    command = f"python -m studies {shlex.join(without_folders(sys.argv[1:]))}"
    pending = {task.remote(study.name, run, folders, device, command): run for run in missing}
    n_failed = n_elsewhere = 0
    with Progress(study.name, study.steps) as progress:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_EVERY)
            for reference in ready:
                run = pending.pop(reference)
                problem = _outcome(reference, study, run, folders)
                if problem == ELSEWHERE:
                    n_elsewhere += 1
                    progress.say(f"{run.name} is left to another process, which works on it")
                elif problem:
                    n_failed += 1
                    progress.say(f"{run.name} failed: {problem}. See {folders.failure(study.name, run)}")
                else:
                    n_done += 1
                    progress.say(f"{run.name} is finished")
            notes = {run.name: _read_note(folders.scratch(study.name, run) / PROGRESS) for run in pending.values()}
            steps = {name: note.step for name, note in notes.items() if note is not None}
            running = [name for name, note in notes.items() if note is not None and note.is_fresh]
            progress.show(n_done, n_failed, len(pending), steps, running)
    elsewhere = f", {n_elsewhere} left to other processes" if n_elsewhere else ""
    print(f"{study.name}: {n_done} runs finished, {n_failed} failed{elsewhere}")
    return n_failed == n_elsewhere == 0


def do_run(study: str, run: Run, folders: Folders, device: str, command: str) -> str:
    """
    Do a run in a process of its own, and write its record or its traceback.

    :param study: the study's name
    :param run: the run
    :param folders: the folders of files
    :param device: torch's name of the device
    :param command: the user's command, for the record
    :return: what went wrong in a few words, ``ELSEWHERE`` if another process does the run, or "" if it is finished
    """
    scratch = folders.scratch(study, run)
    try:
        with FileLock(scratch / "lock", timeout=LOCK_SECONDS):
            return _do_run_alone(study, run, folders, device, command)
    except Timeout:
        return ELSEWHERE


def _do_run_alone(study: str, run: Run, folders: Folders, device: str, command: str) -> str:
    record, failure, scratch = (where(study, run) for where in (folders.record, folders.failure, folders.scratch))
    if not record.exists():  # otherwise the worker died after writing it, or another process was faster
        try:
            write_atomically(record, to_json(execute(run, scratch, device, command)))
        except Exception as error:
            write_atomically(failure, traceback.format_exc())
            return f"{type(error).__name__}: {error}"
    failure.unlink(missing_ok=True)
    # Another process may just look at the lock in it, and network disks keep a file that is open
    shutil.rmtree(scratch, ignore_errors=True)
    return ""


def _outcome(reference: "ray.ObjectRef[str]", study: Study, run: Run, folders: Folders) -> str:
    try:
        return ray.get(reference)
    except ray.exceptions.LocalRayletDiedError as error:  # for example because all processes of the study were told to end
        raise StudyError("Ray has died. No run has failed: the same command goes on where it was.") from error
    except ray.exceptions.RayError as error:  # mostly because its worker died too often
        write_atomically(folders.failure(study.name, run), f"{type(error).__name__}: {error}\n")
        return f"{type(error).__name__}"


class _Note(NamedTuple):
    step: int
    is_fresh: bool


def _read_note(path: Path) -> _Note | None:
    """Read the progress of a run, if it has begun. Its folder can vanish at any moment, when the run ends."""
    try:
        return _Note(json.loads(path.read_text())["step"], time.time() - path.stat().st_mtime < SILENT_AFTER)
    except FileNotFoundError:
        return None
