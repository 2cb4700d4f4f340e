"""
Checkpoints of any off-policy algorithm, with sb3_flowrl's own machinery.
"""

from pathlib import Path

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import list_checkpoints
from sb3_flowrl.checkpoint.run_state import load_newest_run, save_run


class CheckpointAnyAlgorithm(ResumableCheckpointCallback):
    """
    sb3_flowrl's checkpoints for SB3's algorithms as well: the same files, written between the same episodes.

    Between two episodes FlowRL makes the last reset again, which leaves no trace in its run. SB3's algorithms don't keep what
    that takes, so that their environments are reset once more, as ``run_state.py`` tells: their next episode is another one
    than without checkpoints. Either way the run goes on in the same way whether it is interrupted or not. A checkpoint that
    can't be written ends the run with an error.
    """

    def _save(self) -> None:
        self.last_saved = self.num_timesteps
        before_step = self.model._generators_before_step if isinstance(self.model, FlowRL) else None
        save_run(self.model, self.folder, self.keep, before_step)

    def _on_training_end(self) -> None:
        self.lock.release()  # and no more, as the run's record is all that is wanted then


def resume(algorithm: type[OffPolicyAlgorithm], folder: Path, env: VecEnv, device: str) -> OffPolicyAlgorithm | None:
    """
    :param algorithm: the model's class
    :param folder: where the run's checkpoints are
    :param env: the environment, made and wrapped as the run's was
    :param device: where the networks are to be
    :return: the model as it was at the newest whole checkpoint, or None if there is no checkpoint
    :raises CheckpointError: if there are checkpoints, and none is whole
    """
    if not list_checkpoints(folder):
        return None
    return load_newest_run(algorithm, folder, env, device)
