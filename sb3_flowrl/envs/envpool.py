"""
EnvPool's environments as a vector environment of gymnasium.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class EnvPoolVectorEnv(VectorEnv[Any, Any, Any]):
    """
    EnvPool's environments for :class:`~sb3_flowrl.envs.vector.GymnasiumVecEnv`.

    ::

        pool = envpool.make("HalfCheetah-v4", env_type="gymnasium", num_envs=8, seed=0)
        env = GymnasiumVecEnv(EnvPoolVectorEnv(pool))

    Seeds are EnvPool's own: pass ``seed`` to ``envpool.make``.

    :param pool: what ``envpool.make(..., env_type="gymnasium")`` returns
    :raises ValueError: if it returns only some of its environments at a step (``batch_size``)
    """

    def __init__(self, pool: Any):
        config = pool.spec.config
        if config.batch_size not in (0, config.num_envs):
            raise ValueError(
                f"batch_size={config.batch_size} returns {config.batch_size} of {config.num_envs} environments at a step, but "
                "SB3 steps all of them. Leave batch_size out."
            )
        self.pool = pool
        self.num_envs = config.num_envs
        self.single_observation_space, self.single_action_space = pool.observation_space, pool.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start a new episode in all environments, or in those of ``options["reset_mask"]``.

        :param seed: not used
        :param options: may hold the mask
        :return: the observations of all environments, and no infos
        """
        mask = (options or {}).get("reset_mask", np.full(self.num_envs, True))
        first, _ = self.pool.reset(np.flatnonzero(mask))
        if mask.all():
            self._observations = first
        else:
            self._observations = self._observations.copy()
            self._observations[mask] = first
        return self._observations, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        Take a step in all environments.

        :param actions: one action for each environment
        :return: observations, rewards, whether episodes are terminated and truncated, and EnvPool's infos
        """
        self._observations, rewards, terminated, truncated, infos = self.pool.step(actions)
        return self._observations, rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """
        Close the environments.

        :param kwargs: not used
        """
        self.pool.close()
