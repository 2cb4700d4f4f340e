"""
A callback that makes a run resumable.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_flowrl.checkpoint.files import CheckpointError, check_writable, lock_folder, resolve_folder
from sb3_flowrl.checkpoint.lock import FolderLock
from sb3_flowrl.checkpoint.run_identity import check_folder, episode_limit, identity_of
from sb3_flowrl.checkpoint.run_state import check_savable, is_between_episodes
from sb3_flowrl.checks import check_positive_int

if TYPE_CHECKING:
    from sb3_flowrl.flowrl import FlowRL


class ResumableCheckpointCallback(BaseCallback):
    """
    Save checkpoints from which ``FlowRL.load_checkpoint`` goes on bit for bit, see ``FlowRL.save_checkpoint``.

    A checkpoint is due every ``save_freq`` steps, and taken when next all environments end an episode together, before the
    next rollout. One more is taken when training ends. A checkpoint that can't be written is warned about and tried again when
    the next is due; training goes on.

    If the environments don't all end an episode together within another ``save_freq`` steps, the checkpoint is taken anyway,
    and the episodes under way end there, as by a time-out. A warning says so the first time. From then on this happens only
    when every environment has ended an episode since the last checkpoint, so that each of them gets to finish episodes.
    Checkpoints may then be as far apart as the longest episodes are long; if episodes never end, the next one is taken when
    training ends. If all episodes are equally long, a ``save_freq`` of at least their length times the number of environments
    avoids all this.

    The folder belongs to one run. While it trains, no other process can write there, and a run that was begun afresh, or with
    other arguments, is refused.

    :param folder: where the checkpoints are
    :param save_freq: environment steps, of all environments together, between checkpoints
    :param keep: how many of the newest whole checkpoints stay
    :param verbose: Verbosity level: 0 for no output, 2 for indicating when saving a checkpoint
    :raises CheckpointError: when training starts, if nothing can be written to the folder, another process writes there, it
        holds another run's checkpoints, or something in the run can't be pickled
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
        # The only moment at which all of a step is done: its transition is stored, and its updates are made
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
            self._save()
        self.lock.release()

    def _warn_of_cut(self) -> None:
        n_envs = self.model.n_envs
        lengths = [int(info["l"]) for info in self.model.ep_info_buffer or ()]
        assert self.model.env is not None
        length = max([episode_limit(self.model.env) or 0, *lengths])
        if self.have_ended.all():
            advice = (
                "Episodes end at different times, or in the midst of a rollout (train_freq="
                f"{self.model.train_freq.frequency}); a larger save_freq makes this rarer."  # type: ignore[union-attr]
            )
        elif length > 0:
            advice = (
                f"For episodes of up to {length} steps in {n_envs} environment(s), save_freq would have to be at least "
                f"{length * n_envs}."
            )
        else:
            advice = (
                f"save_freq would have to be at least the length of an episode, which is not known, times the {n_envs} "
                f"environment(s), so more than {2 * self.save_freq}."
            )
        warnings.warn(
            f"The checkpoint at step {self.num_timesteps} ends episodes under way, as by a time-out: since it was due "
            f"(save_freq={self.save_freq}) there was no moment between the episodes of all environments. {advice} From now on "
            "this happens only when every environment has ended an episode since the last checkpoint, so checkpoints may be "
            "further apart."
        )

    def _save(self) -> None:
        self.last_saved = self.num_timesteps
        try:
            path = self.model.save_checkpoint(self.folder, self.keep)
        except CheckpointError as error:
            warnings.warn(f"{error} Training goes on, and tries again in {self.save_freq} steps.")
            return
        if self.verbose >= 2:
            print(f"Saving resumable checkpoint to {path}")
