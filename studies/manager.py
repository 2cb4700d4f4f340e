"""
Set up rl_zoo3's ExperimentManager for a run of a study.
"""

import argparse
from pathlib import Path

from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_flowrl import FlowRL, zoo

from .study import Run


class Manager(ExperimentManager):
    """
    rl_zoo3's manager, for runs that can be resumed.

    A resumed model continues to count its steps, and an interrupted run does not count as finished.
    """

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train a model for the steps that are left.

        :param model: the model, new or resumed
        """
        assert model.env is not None
        try:
            remaining = self.n_timesteps - model.num_timesteps
            model.learn(remaining, callback=self.callbacks, reset_num_timesteps=False)
        finally:
            model.env.close()


def make_manager(run: Run, scratch: Path = Path(), device: str = "cpu") -> Manager:
    """
    Make rl_zoo3's manager for a run.

    :param run: the run
    :param scratch: folder that the manager may write to
    :param device: torch's name of the device
    :return: the manager
    """
    hyperparameters = dict(run.hyperparameters)
    if isinstance(buffer_class := hyperparameters.get("replay_buffer_class"), str):
        hyperparameters["replay_buffer_class"] = get_class_by_name(buffer_class)  # rl_zoo3 only knows its own classes by name
    return Manager(
        argparse.Namespace(),
        run.algo,
        run.env,
        log_folder=str(scratch / "zoo"),
        n_timesteps=run.steps,
        eval_freq=-1,  # rl_zoo3's evaluations would draw from the random numbers of training
        n_eval_envs=run.evaluation.episodes,
        hyperparams=hyperparameters,
        seed=run.seed,
        verbose=0,
        device=device,
        # FlowRL and algorithms derived from it use this package's file, all others rl_zoo3's own
        config=str(zoo.hyperparams_file()) if issubclass(ALGOS[run.algo], FlowRL) else None,
    )
