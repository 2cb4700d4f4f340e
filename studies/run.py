"""
Do one run of a study: train it with rl_zoo3's ExperimentManager, evaluate it, and resume it if it was interrupted.
"""

import contextlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch as th
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_flowrl import FlowRL, zoo

from .arguments import describe, resolve
from .evaluation import Evaluate, Instruments, journal_of
from .manager import Manager, make_manager
from .records import Record, current_commit, describe_machine, differences, write_atomically
from .resuming import CheckpointAnyAlgorithm, resume
from .study import Run

#: Environment steps after which a checkpoint is due; it waits for the end of the episode.
CHECKPOINT_EVERY = 5_000
#: Seconds between two notes of the progress.
NOTE_EVERY = 2.0
#: Names of the files in a run's folder.
CHECKPOINTS, PROGRESS, SPECIFICATION = "checkpoints", "progress.json", "run.json"


def execute(run: Run, scratch: Path, device: str = "cpu", command: str = "") -> Record:
    """
    Do a run, or the rest of it.

    :param run: the run
    :param scratch: folder of this run alone, for its checkpoints; delete it when the run's record is safe. The policy of the
        best evaluation stays in the folder ``policies`` beside it
    :param device: torch's name of the device
    :param command: the user's command, for the record
    :return: the run's record: specification, arguments down to the defaults, evaluations, versions, times
    """
    zoo.register()
    for package in run.gym_packages:
        importlib.import_module(package)
    scratch.mkdir(parents=True, exist_ok=True)
    with open(scratch / "log.txt", "a") as log, contextlib.redirect_stdout(log):
        discard_another_runs_checkpoints(run, scratch, resolve(run))
        th.set_num_threads(1)
        set_random_seed(run.seed)
        manager, model, hyperparameters = set_up(run, scratch, device)
        model = train(manager, model, run, scratch)
    return dict(
        run=run.specification(),
        **describe(run, hyperparameters),
        **{key: round(value, 1) if isinstance(value, float) else value for key, value in journal_of(model).items()},
        n_updates=model._n_updates,
        finished=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        device=str(model.device),
        threads=th.get_num_threads(),
        **describe_machine(),
    )


def discard_another_runs_checkpoints(run: Run, scratch: Path, arguments: Record) -> None:
    """
    Delete the checkpoints if they were made before the definition, rl_zoo3's files or a default changed.

    :param run: the run
    :param scratch: the run's folder
    :param arguments: the arguments of the run's model
    """
    note, specification = scratch / SPECIFICATION, json.loads(json.dumps(dict(run=run.specification(), **arguments)))
    if note.exists():
        before = json.loads(note.read_text())
        if before["run"] != specification["run"] or differences(before, specification):
            print(f"The checkpoints of another run are discarded: {before} is now {specification}")
            shutil.rmtree(scratch / CHECKPOINTS, ignore_errors=True)
    write_atomically(note, json.dumps(specification))


def set_up(run: Run, scratch: Path, device: str) -> tuple[Manager, OffPolicyAlgorithm, dict[str, Any]]:
    """
    Make the environment and the model with rl_zoo3's hyperparameters, overridden by the study's.

    :param run: the run
    :param scratch: folder that the manager may write to
    :param device: torch's name of the device
    :return: the manager, the new model, and the hyperparameters before they were turned into objects
    """
    shutil.rmtree(scratch / "zoo", ignore_errors=True)  # the logs of an interrupted run
    manager = make_manager(run, scratch, device)
    experiment = manager.setup_experiment()
    assert experiment is not None  # it is None only if hyperparameters are optimized
    model, resolved = experiment
    if not isinstance(model, OffPolicyAlgorithm):
        raise ValueError(f"{run.algo!r} is not an off-policy algorithm. Studies need checkpoints, which only those have.")
    return manager, model, resolved


def train(manager: Manager, model: OffPolicyAlgorithm, run: Run, scratch: Path) -> OffPolicyAlgorithm:
    """
    Train and evaluate a model, from its newest checkpoint if there is one.

    :param manager: from :func:`set_up`
    :param model: the new model
    :param run: the run
    :param scratch: the run's folder
    :return: the model at the end of the run; not ``model`` if the run was resumed
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
        Evaluate(run, evaluation_env, note_progress(scratch), instruments, best_policy_of(scratch)),
        CheckpointAnyAlgorithm(checkpoints, CHECKPOINT_EVERY, keep=1),
    ]
    try:
        manager.learn(model)
    finally:
        evaluation_env.close()
    return model


def best_policy_of(scratch: Path) -> Path:
    """
    Return the path of the safe file for the policy of a run's best evaluation, which stays when the run is finished.

    :param scratch: the run's folder
    :return: the path
    """
    return scratch.parent / "policies" / f"{scratch.name}.safetensors"


def make_instruments(run: Run, manager: Manager) -> Instruments:
    """
    Make the instruments that measure a run at each evaluation.

    :param run: the run
    :param manager: makes the environment in which FlowRL's values are compared with returns
    :return: the instruments
    """
    if not issubclass(ALGOS[run.algo], FlowRL):
        return Instruments(run.evaluation.every)
    env = manager.create_envs(1, eval_env=True).unwrapped
    assert isinstance(env, DummyVecEnv)
    return Instruments(run.evaluation.every, env.envs[0])


def note_progress(scratch: Path) -> Callable[[int], None]:
    """
    Make a function that writes the progress of a run to ``progress.json`` from time to time, with the process id.

    :param scratch: the run's folder
    :return: the function; call it with the number of steps done
    """
    due = 0.0

    def tell(step: int) -> None:
        nonlocal due
        if time.monotonic() >= due:
            write_atomically(scratch / PROGRESS, json.dumps(dict(step=step, pid=os.getpid())))
            due = time.monotonic() + NOTE_EVERY

    return tell
