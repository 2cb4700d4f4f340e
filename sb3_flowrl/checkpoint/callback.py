"""
A callback that makes a run resumable.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_flowrl.checkpoint.episodes import is_between_episodes
from sb3_flowrl.checkpoint.files import CheckpointError, check_writable, list_checkpoints, lock_folder, resolve_folder
from sb3_flowrl.checkpoint.lock import FolderLock
from sb3_flowrl.checkpoint.run_identity import check_folder, episode_limit, identity_of
from sb3_flowrl.checkpoint.run_state import check_savable
from sb3_flowrl.checks import check_positive_int

if TYPE_CHECKING:
    from sb3_flowrl.flowrl import FlowRL

#: Folder in the folder of a run's checkpoints, for the run's state when a callback stopped it.
STOPPED = "stopped"


class ResumableCheckpointCallback(BaseCallback):
    """
    Save checkpoints from which ``FlowRL.load_checkpoint`` continues a run bit for bit.

    A checkpoint is due every ``save_freq`` steps. It is saved between two rollouts, the next time that all environments end an
    episode together. One more is saved when training ends. If a checkpoint can't be written, the callback warns, training
    continues, and it tries again when another is due. See ``FlowRL.save_checkpoint`` for what a checkpoint holds.

    If another callback stops the run, the last checkpoint goes into the folder ``stopped`` in ``folder``, unless it is the
    run's first. A callback stops a run within a step, and usually within an episode, so a run that continues from there is not
    the run that never stopped. ``FlowRL.load_checkpoint(folder, ...)`` continues from the checkpoint before, and repeats the
    steps since then bit for bit.

    If the environments don't all end an episode together within another ``save_freq`` steps, the checkpoint is saved anyway.
    Unfinished episodes are then truncated, as a time limit would do. A warning says so the first time. From then on, such a
    checkpoint waits until every environment has ended an episode since the last checkpoint, so that each of them can finish
    episodes. Checkpoints may then be as far apart as the longest episodes. If episodes never end, the next checkpoint is saved
    when training ends. If all episodes have the same length, a ``save_freq`` of at least this length times the number of
    environments avoids all this.

    The folder belongs to one run. While that run trains, no other process can write to the folder. A newly started run is
    refused, and so is one with other arguments.

    :param folder: folder of the run's checkpoints
    :param save_freq: environment steps between checkpoints, counted over all environments
    :param keep: number of newest complete checkpoints to keep
    :param verbose: Verbosity level: 0 for no output, 2 for a line about each saved checkpoint
    :raises CheckpointError: when training starts, if the folder can't be written to, another process writes there, it holds
        another run's checkpoints, or something in the run can't be pickled
    """

    model: "FlowRL"

    def __init__(self, folder: str | Path, save_freq: int, keep: int = 2, verbose: int = 0):
        super().__init__(verbose)
        check_positive_int("save_freq", save_freq)
        check_positive_int("keep", keep)
        self.folder, self.save_freq, self.keep = resolve_folder(folder), save_freq, keep

    def _on_training_start(self) -> None:
        check_writable(self.folder)
        self.lock: FolderLock = lock_folder(self.folder)
        try:
            check_folder(self.model, self.folder)
            check_savable(self.model)
        except BaseException:
            self.lock.release()
            raise
        self.last_saved = self.num_timesteps
        # Which environments have ended an episode since the last checkpoint
        self.have_ended = np.zeros(self.model.n_envs, dtype=bool)

    def _on_step(self) -> bool:
        self.have_ended |= self.locals["dones"]
        return True

    def _on_rollout_start(self) -> None:
        # Only here is a step complete: its transition is stored and its updates are done
        waiting = self.num_timesteps - self.last_saved
        if waiting < self.save_freq:
            return
        if not is_between_episodes(self.model):
            run = identity_of(self.model)
            if waiting < 2 * self.save_freq or (run.has_cut_episodes and not self.have_ended.all()):
                return
            if not run.has_cut_episodes:
                run.has_cut_episodes = True
                self._warn_of_cut()
        self._save()
        self.have_ended[:] = False

    def _on_training_end(self) -> None:
        if self.num_timesteps > self.last_saved:
            was_stopped = self.num_timesteps < self.model._total_timesteps
            self._save(STOPPED if was_stopped and list_checkpoints(self.folder) else "")
        self.lock.release()

    def _warn_of_cut(self) -> None:
        n_envs = self.model.n_envs
        lengths = [int(info["l"]) for info in self.model.ep_info_buffer or ()]
        assert self.model.env is not None
        length = max([episode_limit(self.model.env) or 0, *lengths])
        if self.have_ended.all():
            advice = (
                "Episodes end at different times, or in the middle of a rollout (train_freq="
                f"{self.model.train_freq.frequency}). A larger save_freq makes this rarer."  # type: ignore[union-attr]
            )
        elif length > 0:
            advice = (
                f"To avoid this with episodes of up to {length} steps in {n_envs} environment(s), set save_freq to at least "
                f"{length * n_envs}."
            )
        else:
            advice = (
                "To avoid this, set save_freq to at least the length of an episode times the number of environments "
                f"({n_envs}). The length is not known, but the product is more than {2 * self.save_freq}."
            )
        warnings.warn(
            f"The checkpoint at step {self.num_timesteps} truncates unfinished episodes, as a time limit would. Since it was "
            f"due (save_freq={self.save_freq}), the environments have not all ended an episode together. {advice} From now "
            "on, this happens only when every environment has ended an episode since the last checkpoint, so checkpoints may "
            "be further apart."
        )

    def _save(self, subfolder: str = "") -> None:
        self.last_saved = self.num_timesteps
        try:
            path = self.model.save_checkpoint(self.folder / subfolder, self.keep)
        except CheckpointError as error:
            warnings.warn(f"{error} Training continues, and the next attempt is in {self.save_freq} steps.")
            return
        if self.verbose >= 2:
            print(f"Saving resumable checkpoint to {path}")
