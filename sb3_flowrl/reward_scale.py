"""
Rewards at a fixed scale: divided, when they are sampled, by a running scale of the discounted return.

Guidance compares values through an exponential, so that its weights, and λ, mean the same on every task only if values have
one scale. Sources: XQC (ICLR 2026) divides by the standard deviation of the running discounted return; FlashSAC (2026) takes
no less than its largest absolute value over a bound, so that returns stay within the bound.
"""

import math

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd

#: Scaled discounted returns of the past stay within plus and minus this (FlashSAC).
RETURN_BOUND = 5.0
#: Added to the variance, which is 0 where all rewards have been.
EPSILON = 1e-8


def reward_scale(variance: float, largest: float, bound: float = RETURN_BOUND) -> float:
    """
    Compute what rewards are divided by: max(√(Var G + ε), max abs(G) / bound).

    :param variance: of the running discounted returns G
    :param largest: their largest absolute value
    :param bound: of the scaled returns
    :return: the scale, above 0
    """
    return max(math.sqrt(variance + EPSILON), largest / bound)


class RewardScale:
    """
    Follow the discounted returns of environments: G ← γ G + r, and 0 where an episode has ended, by termination or time-out.

    :param gamma: γ
    """

    def __init__(self, gamma: float):
        self.gamma = gamma
        self.returns = np.zeros(0)  # one for each environment, from the first step on
        self.moments = RunningMeanStd(shape=())
        self.largest = 0.0

    def update(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        Take in a step of all environments.

        :param rewards: as the environments gave them, ``(n_envs,)``
        :param dones: whether an episode has ended, ``(n_envs,)``
        """
        if self.returns.shape != rewards.shape:
            self.returns = np.zeros(rewards.shape)
        self.returns = self.gamma * self.returns + rewards
        self.moments.update(self.returns)
        self.largest = max(self.largest, float(np.abs(self.returns).max()))
        self.returns[np.asarray(dones, dtype=bool)] = 0.0

    def restart(self) -> None:
        """Begin new episodes in all environments."""
        self.returns = np.zeros(0)

    @property
    def value(self) -> float:
        """:return: what to divide rewards by, 1 while all of them have been 0"""
        return reward_scale(float(self.moments.var), self.largest) if self.largest > 0.0 else 1.0


def scale_of(model: BaseAlgorithm) -> float:
    """
    Tell what the updates of a model divide rewards by.

    :param model: FlowRL or another
    :return: the scale; 1 without ``scale_rewards``, and with a VecNormalize that normalizes rewards, which is scale enough
    """
    scale, normalize = getattr(model, "reward_scale", None), model.get_vec_normalize_env()
    return 1.0 if scale is None or (normalize is not None and normalize.norm_reward) else scale.value
