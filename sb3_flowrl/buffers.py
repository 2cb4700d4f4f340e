"""
Replay that favours the newest transitions, as the authors' code does (the paper's is uniform), and what is stored.
"""

import math

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flowrl.checks import check_number, check_positive_int


def float32_space(space: spaces.Space) -> spaces.Space:
    """
    The space of observations as a replay buffer should store them: MuJoCo's arrive as float64, but the networks see float32.

    :param space: the environment's observation space
    :return: the same space, with float32 in the place of float64, and the keys of a Dict in the same order
    """
    if isinstance(space, spaces.Dict):
        # A list of pairs, as gymnasium sorts the keys of a dict
        return spaces.Dict([(key, float32_space(value)) for key, value in space.spaces.items()])
    if isinstance(space, spaces.Box) and space.dtype == np.float64:
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return space


class RecencyReplayBuffer(ReplayBuffer):
    """
    Replay buffer that draws a fixed share of each batch from its newest transitions, and the rest from all of them.

    Source: ``utilis/Replaybuffer.py`` of the authors' code, which draws without replacement; here, as in SB3, with it.

    :param args: arguments of SB3's ``ReplayBuffer``
    :param recent_share: share of each batch that is drawn from the newest transitions, between 0 and 1
    :param recent_size: how many transitions, of all environments together, count as the newest
    :param kwargs: keyword arguments of SB3's ``ReplayBuffer``
    :raises ValueError: if ``recent_share`` is not between 0 and 1, or ``recent_size`` not a positive integer
    """

    def __init__(self, *args, recent_share: float = 0.2, recent_size: int = 2048, **kwargs):
        super().__init__(*args, **kwargs)
        check_number("recent_share", recent_share, lambda x: 0.0 <= x <= 1.0, "a number between 0 and 1")
        check_positive_int("recent_size", recent_size)
        self.recent_share = recent_share
        self.recent_size = recent_size

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: Number of elements to sample
        :param env: associated gym VecEnv
            to normalize the observations/rewards when sampling
        :return: ``recent_share`` of them, rounded up, from the newest transitions, and the others from all
        """
        # Rows of the buffer by age, 0 being the newest. Each holds one transition of every environment.
        n_rows = self.size()
        if self.optimize_memory_usage and self.full:
            n_rows -= 1  # the oldest row's next observation is already another one
        n_recent_rows = min(math.ceil(self.recent_size / self.n_envs), n_rows)
        n_uniform = int(batch_size * (1.0 - self.recent_share))
        ages = np.concatenate(
            [np.random.randint(0, n_rows, size=n_uniform), np.random.randint(0, n_recent_rows, size=batch_size - n_uniform)]
        )
        return self._get_samples((self.pos - 1 - ages) % self.buffer_size, env=env)


class NStepRecencyReplayBuffer(RecencyReplayBuffer, NStepReplayBuffer):
    """
    :class:`RecencyReplayBuffer` with n-step returns: give ``n_steps`` and ``gamma`` in ``replay_buffer_kwargs``.
    """
