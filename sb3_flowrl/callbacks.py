"""
A callback that makes a run resumable.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stable_baselines3.common.callbacks import BaseCallback

from sb3_flowrl.checkpoint import CheckpointError, check_writable
from sb3_flowrl.checks import check_positive_int
from sb3_flowrl.run_state import is_between_episodes

if TYPE_CHECKING:
    from sb3_flowrl.flowrl import FlowRL


class ResumableCheckpointCallback(BaseCallback):
    """
    Save checkpoints from which ``FlowRL.load_checkpoint`` goes on bit for bit, see ``FlowRL.save_checkpoint``.

    A checkpoint is due every ``save_freq`` steps, and taken when next all environments end an episode together, before the
    next rollout. Where that does not happen for another ``save_freq`` steps, it is taken all the same, and the episodes under
    way end there. One more is taken when training ends. A checkpoint that can't be written is warned about and tried again
    when the next is due; training goes on.

    :param folder: where the checkpoints are
    :param save_freq: environment steps, of all environments together, between checkpoints
    :param keep: how many of the newest checkpoints stay
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving a checkpoint
    :raises CheckpointError: when training starts, if nothing can be written to the folder
    """

    model: "FlowRL"

    def __init__(self, folder: str | Path, save_freq: int, keep: int = 2, verbose: int = 0):
        super().__init__(verbose)
        check_positive_int("save_freq", save_freq)
        check_positive_int("keep", keep)
        self.folder, self.save_freq, self.keep = Path(folder), save_freq, keep

    def _on_training_start(self) -> None:
        check_writable(self.folder)
        self.last_saved = self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # The only moment at which all of a step is done: its transition is stored, and its updates are made
        waiting = self.num_timesteps - self.last_saved
        if waiting >= 2 * self.save_freq or (waiting >= self.save_freq and is_between_episodes(self.model)):
            self._save()

    def _on_training_end(self) -> None:
        if self.num_timesteps > self.last_saved:
            self._save()

    def _save(self) -> None:
        self.last_saved = self.num_timesteps
        try:
            path = self.model.save_checkpoint(self.folder, self.keep)
        except CheckpointError as error:
            warnings.warn(f"{error} Training goes on, and tries again in {self.save_freq} steps.")
            return
        if self.verbose >= 2:
            print(f"Saving resumable checkpoint to {path}")
