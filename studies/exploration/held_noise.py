"""
Define FlowRL that keeps the base sample of its exploration for a random number of steps.

A new sample at each step makes a robot tremble around one motion. One that is held for a while carries it somewhere else.
Updates and evaluations are FlowRL's. Source: FlashSAC (2026), which holds its noise for k steps, P(k) ∝ 1/k², k at most 16.

E is the number of environments and A the number of action dimensions.
"""

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise

from sb3_flowrl import FlowRL

#: The most steps that a sample is held for.
MAX_STEPS = 16
_LENGTHS = np.arange(1, MAX_STEPS + 1)
_PROBABILITIES = _LENGTHS**-2.0 / (_LENGTHS**-2.0).sum()


class HeldNoise:
    """
    Draws base samples for several environments, and holds each for a random number of steps.

    :param n_envs: E
    :param action_dim: A
    """

    def __init__(self, n_envs: int, action_dim: int):
        self.samples = np.zeros((n_envs, action_dim), np.float32)
        self.steps_left = np.zeros(n_envs, int)

    def next(self) -> np.ndarray:
        """
        Take the samples of the next step.

        :return: standard normal, ``(E, A)``
        """
        ended = self.steps_left == 0
        self.samples[ended] = np.random.standard_normal(self.samples[ended].shape)
        self.steps_left[ended] = np.random.choice(_LENGTHS, ended.sum(), p=_PROBABILITIES)
        self.steps_left -= 1
        return self.samples.copy()


class HeldNoiseFlowRL(FlowRL):
    """
    FlowRL that explores with held base samples. Takes FlowRL's arguments.

    A resumed run begins with a new sample, so it differs from one that was not stopped.
    """

    def _setup_model(self) -> None:
        super()._setup_model()
        self._held_noise = HeldNoise(self.n_envs, self.actor.action_dim)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.num_timesteps < learning_starts:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None and action_noise is None
        obs, _ = self.policy.obs_to_tensor(self._last_obs)
        with th.no_grad():
            actions = self.actor.act(obs, th.as_tensor(self._held_noise.next(), device=self.device)).cpu().numpy()
        return self.policy.unscale_action(actions), actions
