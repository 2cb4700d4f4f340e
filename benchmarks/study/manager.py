"""
rl_zoo3's ExperimentManager, told what a study says of a run.
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


def make_manager(run: Run, scratch: Path = Path(), device: str = "cpu") -> Manager:
    """
    :param run: what to do
    :param scratch: where the manager may write once it is used
    :param device: torch's name of the device
    :return: rl_zoo3's manager, told what the study says
    """
    hyperparameters = dict(run.hyperparameters)
    if isinstance(buffer_class := hyperparameters.get("replay_buffer_class"), str):
        hyperparameters["replay_buffer_class"] = get_class_by_name(buffer_class)  # rl_zoo3 knows but its own by name
    return Manager(
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
        # Of an algorithm derived from FlowRL, too; of all others rl_zoo3's own
        config=str(zoo.hyperparams_file()) if issubclass(ALGOS[run.algo], FlowRL) else None,
    )
