"""
Save and resume runs of any off-policy algorithm with the checkpoints of sb3_flowrl.
"""

from pathlib import Path

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_flowrl import FlowRL, ResumableCheckpointCallback
from sb3_flowrl.checkpoint.files import list_checkpoints
from sb3_flowrl.checkpoint.run_state import load_newest_run, save_run


class CheckpointAnyAlgorithm(ResumableCheckpointCallback):
    """
    Checkpoints for FlowRL and for SB3's algorithms: the same files, written between episodes.

    After a checkpoint, FlowRL repeats the last reset, which leaves no trace in its run. SB3's algorithms do not keep what that
    needs, so their environments are reset once more (see ``checkpoint/episodes.py``): their next episode differs from that of
    a run without checkpoints. Either way, a run continues the same whether it is interrupted or not. A checkpoint that cannot
    be written ends the run with an error.
    """

    def _save(self, subfolder: str = "") -> None:
        self.last_saved = self.num_timesteps
        before_step = self.model._generators_before_step if isinstance(self.model, FlowRL) else None
        save_run(self.model, self.folder / subfolder, self.keep, before_step)

    def _on_training_end(self) -> None:
        self.lock.release()  # without a last checkpoint: the run's record is all that is needed now


def resume(algorithm: type[OffPolicyAlgorithm], folder: Path, env: VecEnv, device: str) -> OffPolicyAlgorithm | None:
    """
    Load the newest intact checkpoint of a run.

    :param algorithm: the model's class
    :param folder: where the run's checkpoints are
    :param env: the environment, made and wrapped as the run's was
    :param device: device of the networks
    :return: the model at that checkpoint, or None if there is no checkpoint
    :raises CheckpointError: if there are checkpoints but none is intact
    """
    if not list_checkpoints(folder):
        return None
    return load_newest_run(algorithm, folder, env, device)
