"""
One run of a study: trained by rl_zoo3's ExperimentManager, evaluated, and resumed where it was interrupted.
"""

import argparse
import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch as th
from filelock import FileLock, Timeout
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flowrl import zoo

from .evaluation import Evaluate, Instruments, journal_of
from .records import Record, current_commit, describe_machine, write_atomically
from .resuming import CheckpointAnyAlgorithm, resume
from .study import Run

#: Environment steps after which a checkpoint is due; it waits for the end of the episode.
CHECKPOINT_EVERY = 5_000
#: Seconds between two notes of the progress.
NOTE_EVERY = 2.0
#: What is in a run's folder.
CHECKPOINTS, PROGRESS, SPECIFICATION = "checkpoints", "progress.json", "run.json"
#: How long a run waits for another process to leave its folder: one that has just been killed is gone by then.
LOCK_SECONDS = 10.0


class Manager(ExperimentManager):
    """
    rl_zoo3's manager; a model that was resumed goes on counting its steps, and an interrupted run isn't taken for finished.
    """

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: the model, new or resumed
        """
        assert model.env is not None
        try:
            remaining = self.n_timesteps - model.num_timesteps
            model.learn(remaining, callback=self.callbacks, reset_num_timesteps=False)
        finally:
            model.env.close()


def execute(run: Run, scratch: Path, device: str = "cpu", command: str = "") -> Record:
    """
    Do a run, or what is missing of it.

    :param run: what to do
    :param scratch: folder of this run alone, for its checkpoints; to be deleted when the run's record is safe
    :param device: torch's name of the device
    :param command: what the user typed, for the record
    :return: the run's record: specification, evaluations, hyperparameters as resolved, versions, times
    :raises RuntimeError: if another process works on the same run
    """
    zoo.register()
    for package in run.gym_packages:
        importlib.import_module(package)
    scratch.mkdir(parents=True, exist_ok=True)
    with only_process_in(scratch), open(scratch / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        discard_another_runs_checkpoints(run, scratch)
        th.set_num_threads(1)
        set_random_seed(run.seed)
        manager, model, hyperparameters = set_up(run, scratch, device)
        model = train(manager, model, run, scratch)
    return dict(
        run=run.specification(),
        hyperparameters={key: _as_plain_data(value) for key, value in hyperparameters.items()},
        **{key: round(value, 1) if isinstance(value, float) else value for key, value in journal_of(model).items()},
        n_updates=model._n_updates,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        device=str(model.device),
        threads=th.get_num_threads(),
        **describe_machine(),
    )


def discard_another_runs_checkpoints(run: Run, scratch: Path) -> None:
    """
    Begin anew if what is left was made before the study file was changed.

    :param run: what to do
    :param scratch: the run's folder
    """
    note, specification = scratch / SPECIFICATION, run.specification()
    if note.exists() and json.loads(note.read_text()) != specification:
        shutil.rmtree(scratch / CHECKPOINTS, ignore_errors=True)
    write_atomically(note, json.dumps(specification))


def set_up(run: Run, scratch: Path, device: str) -> tuple[Manager, OffPolicyAlgorithm, dict[str, Any]]:
    """
    Have rl_zoo3 read its hyperparameters, put the study's over them, and make environment and model.

    :param run: what to do
    :param scratch: where the manager may write
    :param device: torch's name of the device
    :return: the manager, the fresh model, and the hyperparameters before they were made into objects
    """
    shutil.rmtree(scratch / "zoo", ignore_errors=True)  # what an interrupted run logged
    hyperparameters = dict(run.hyperparameters)
    if isinstance(buffer_class := hyperparameters.get("replay_buffer_class"), str):
        hyperparameters["replay_buffer_class"] = get_class_by_name(buffer_class)  # rl_zoo3 knows but its own by name
    manager = Manager(
        argparse.Namespace(),
        run.algo,
        run.env,
        log_folder=str(scratch / "zoo"),
        n_timesteps=run.steps,
        eval_freq=-1,  # as rl_zoo3's evaluations draw from the random numbers of training
        n_eval_envs=run.evaluation.episodes,
        hyperparams=hyperparameters,
        seed=run.seed,
        verbose=0,
        device=device,
    )
    experiment = manager.setup_experiment()
    assert experiment is not None  # it is only where hyperparameters are optimised
    model, resolved = experiment
    if not isinstance(model, OffPolicyAlgorithm):
        raise ValueError(f"{run.algo!r} is not an off-policy algorithm; checkpoints, and so studies, are of those alone.")
    return manager, model, resolved


def train(manager: Manager, model: OffPolicyAlgorithm, run: Run, scratch: Path) -> OffPolicyAlgorithm:
    """
    :param manager: from :func:`set_up`
    :param model: the fresh model
    :param run: what to do
    :param scratch: where the checkpoints are
    :return: the model at the end of the run; another one if it was resumed
    """
    checkpoints = scratch / CHECKPOINTS
    assert model.env is not None
    resumed = resume(type(model), checkpoints, model.env, str(model.device))
    if resumed is not None:
        model = resumed
        journal_of(model)["resumed_at"].append(model.num_timesteps)
    if (commit := current_commit()) not in journal_of(model)["commits"]:
        journal_of(model)["commits"].append(commit)
    evaluation_env = manager.create_envs(run.evaluation.episodes, eval_env=True)
    instruments = make_instruments(run, manager) if run.diagnose else None
    manager.callbacks += [
        Evaluate(run, evaluation_env, note_progress(scratch), instruments),
        CheckpointAnyAlgorithm(checkpoints, CHECKPOINT_EVERY, keep=1),
    ]
    try:
        manager.learn(model)
    finally:
        evaluation_env.close()
    return model


def make_instruments(run: Run, manager: Manager) -> Instruments:
    """
    :param run: what to do
    :param manager: makes the environment in which FlowRL's values are compared with returns
    :return: what measures the run, whenever it is evaluated
    """
    if run.algo != "flowrl":
        return Instruments(run.evaluation.every)
    env = manager.create_envs(1, eval_env=True).unwrapped
    assert isinstance(env, DummyVecEnv)
    return Instruments(run.evaluation.every, env.envs[0])


def note_progress(scratch: Path) -> Callable[[int], None]:
    """
    :param scratch: the run's folder
    :return: what is to be told the number of steps done; now and then it writes it into ``progress.json``, with the process id
    """
    due = 0.0

    def tell(step: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            write_atomically(scratch / PROGRESS, json.dumps(dict(step=step, pid=os.getpid())))
            due = time.monotonic() + NOTE_EVERY

    return tell


@contextlib.contextmanager
def only_process_in(folder: Path) -> Iterator[None]:
    """
    Keep other processes out of a folder.

    :param folder: a run's folder
    :raises RuntimeError: if another process is in it, and stays there
    """
    try:
        lock = FileLock(folder / "lock").acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise RuntimeError(f"Another process works on the run in {folder}. Wait for it, or end it.") from None
    with lock:
        yield


def _as_plain_data(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
