"""
Reward scaling: sampled rewards are divided by a running scale of the discounted return.

Guidance compares values through an exponential. Its weights and λ therefore mean the same on every task only if values have
one scale. Sources: XQC (ICLR 2026) divides by the standard deviation of the running discounted return. FlashSAC (2026)
divides by at least the largest absolute return over a bound, so that returns stay within the bound.
"""

import math

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

#: Past discounted returns, scaled, stay within plus and minus this (FlashSAC).
RETURN_BOUND = 5.0
#: Added to the variance, which is 0 while all rewards are 0.
EPSILON = 1e-8


def reward_scale(variance: float, largest: float, bound: float = RETURN_BOUND) -> float:
    """
    Compute the divisor of the rewards: max(√(Var G + ε), max abs(G) / bound).

    :param variance: variance of the running discounted returns G
    :param largest: their largest absolute value
    :param bound: bound of the scaled returns
    :return: the scale, above 0
    """
    return max(math.sqrt(variance + EPSILON), largest / bound)


class RewardScale:
    """
    Running scale of the discounted returns of environments.

    Each step sets G ← γ G + r, and G ← 0 when an episode ends, by termination or time-out.
    """

    def __init__(self) -> None:
        self.returns = np.zeros(0)  # one for each environment after the first step
        self.moments = RunningMeanStd(shape=())
        self.largest = 0.0

    def update(self, rewards: np.ndarray, dones: np.ndarray, gamma: float) -> None:
        """
        Add one step of all environments.

        :param rewards: the environments' own rewards, ``(n_envs,)``
        :param dones: whether each environment's episode has ended, ``(n_envs,)``
        :param gamma: γ
        """
        if self.returns.shape != rewards.shape:
            self.returns = np.zeros(rewards.shape)
        # Rewards that are not finite are an error of the next update's batch, which names them
        self.returns = gamma * self.returns + np.where(np.isfinite(rewards), rewards, 0.0)
        self.moments.update(self.returns)
        self.largest = max(self.largest, float(np.abs(self.returns).max()))
        self.returns[np.asarray(dones, dtype=bool)] = 0.0

    def restart(self) -> None:
        """Reset the returns, because all environments begin new episodes."""
        self.returns = np.zeros(0)

    @property
    def value(self) -> float:
        """Return the divisor of the rewards, 1 while all of them have been 0."""
        return reward_scale(float(self.moments.var), self.largest) if self.largest > 0.0 else 1.0


def scale_of(model: BaseAlgorithm) -> float:
    """
    Return the divisor of the rewards in a model's updates.

    :param model: FlowRL or another algorithm
    :return: the scale; 1 without ``scale_rewards``, and with a VecNormalize that already normalizes rewards
    """
    scale, normalize = getattr(model, "reward_scale", None), model.get_vec_normalize_env()
    return 1.0 if scale is None or (normalize is not None and normalize.norm_reward) else scale.value
