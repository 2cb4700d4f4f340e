"""
The quantities that show why a run learns or stalls, one pure function each.

``callback.py`` measures them. B is the number of sampled transitions, A the number of action dimensions, and n the number of
networks in a critic.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch as th

#: A scaled action counts as saturated beyond this absolute value.
SATURATION = 0.99
#: δ, the share of the singular values' sum that the effective rank may leave out, as in Kumar et al. (2021).
RANK_DELTA = 0.01
#: A unit is dead if its output varies at most by this share of the mean variation of its layer's units.
DEAD_SHARE = 0.025
#: An observed return can be compared with a value if the rewards after a time limit have at most this discount factor.
NEGLIGIBLE_DISCOUNT = 0.01


def action_spread(actions: th.Tensor) -> float:
    """
    Measure how much the policy's actions differ in one state.

    This is their standard deviation, averaged over states and dimensions. FlowRL's actions differ only in their a0, so 0 means
    that the flow has collapsed to a point.

    :param actions: K actions for each state, in [-1, 1], ``(K, B, A)``
    :return: the mean of the sample standard deviations
    """
    return actions.std(dim=0).mean().item()


def saturated_share(actions: th.Tensor) -> float:
    """
    Return the share of the actions' components at the bounds, where the gradient through tanh nearly vanishes.

    :param actions: actions in [-1, 1], any shape
    :return: share of the components beyond ±:data:`SATURATION`
    """
    return (actions.abs() > SATURATION).float().mean().item()


def behavior_advantage(q_behavior: th.Tensor, q_policy: th.Tensor) -> tuple[float, float]:
    """
    Compute what guidance depends on, x = Q_β*(s, a) - Q_π(s, a^π) (paper, Eq. 13 and 14).

    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``
    :return: the mean of x, and the share of samples with x > 0, which pull at the policy
    """
    advantage = q_behavior - q_policy
    return advantage.mean().item(), (advantage > 0).float().mean().item()


def discounted_returns(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """
    Compute G_t = r_t + γ G_{t+1}, with nothing after the last reward.

    :param rewards: the rewards of one episode, ``(T,)``
    :param gamma: γ
    :return: the return from each step on, ``(T,)``
    """
    returns = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = returns[t] = rewards[t] + gamma * following
    return returns


def n_steps_with_known_return(length: int, terminated: bool, gamma: float) -> int:
    """
    Count the steps of an episode whose return can be compared with a value.

    A value includes the rewards after a time limit, an observed return does not. So the last steps of a truncated episode are
    left out, up to the step from which the rest is discounted by :data:`NEGLIGIBLE_DISCOUNT`. Bootstrapping from Q at the end
    would not help, because it would compare Q partly with itself: k steps before the end, a bias b would show only as
    b (1 - γ^k).

    :param length: steps of the episode
    :param terminated: whether it terminated, and was not truncated
    :param gamma: γ
    :return: number of steps from the start
    """
    if terminated or gamma == 0:
        return length
    if gamma == 1:
        return 0
    # the small term absorbs rounding if the quotient of the logarithms is a whole number
    return max(0, length + 1 - math.ceil(math.log(NEGLIGIBLE_DISCOUNT) / math.log(gamma) - 1e-9))


def effective_rank(features: th.Tensor) -> float:
    """
    Compute the effective rank srank_δ of a layer's outputs.

    This is the smallest number of singular values, from the largest on, whose sum is at least 1 - δ of the sum of all, with
    δ = :data:`RANK_DELTA`. It is at most the smaller one of B and the width. Source: Kumar et al., "Implicit
    Under-Parameterization Inhibits Data-Efficient Deep Reinforcement Learning" (ICLR 2021).

    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: the rank, averaged over the networks; NaN if a feature is not finite
    """
    if not features.isfinite().all():  # PyTorch would raise an error
        return math.nan
    sums = th.linalg.svdvals(features.double()).cumsum(dim=1)
    ranks = 1 + (sums < (1 - RANK_DELTA) * sums[:, -1:]).sum(dim=1)
    return (ranks * (sums[:, -1] > 0)).double().mean().item()


def feature_norm(features: th.Tensor) -> float:
    """
    Compute the norm of a layer's outputs.

    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: their Euclidean norm, averaged over samples and networks
    """
    return features.norm(dim=2).mean().item()


def dead_share(features: th.Tensor) -> float:
    """
    Return the share of units whose output says next to nothing about the input.

    The standard deviation of such an output over the batch is at most :data:`DEAD_SHARE` of the mean standard deviation of the
    layer's units.

    Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (ICML 2023), compare mean absolute outputs in
    this way (and with this threshold), which suits ReLU. A dead GELU is stuck near 0, but a dead ELU at -1; both hardly vary.

    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: the share among the units of all networks
    """
    deviations = features.std(dim=1)
    return (deviations <= DEAD_SHARE * deviations.mean(dim=1, keepdim=True)).float().mean().item()


def gradient_norm(gradients: Sequence[th.Tensor]) -> float:
    """
    Compute the norm of all gradients together.

    :param gradients: one gradient for each parameter, of the same shape
    :return: their Euclidean norm
    """
    return _flat(gradients).norm().item()


def gradient_cosine(ours: Sequence[th.Tensor], theirs: Sequence[th.Tensor]) -> float:
    """
    Measure whether two terms of a loss agree about the parameters.

    The result is 1 if they pull the same way, and -1 if they pull against each other.

    :param ours: one term's gradients, one for each parameter, of the same shape
    :param theirs: the other term's gradients
    :return: the cosine of the angle between them; NaN if one of them is zero
    """
    first, second = _flat(ours), _flat(theirs)
    return (first @ second / (first.norm() * second.norm())).item()


def _flat(gradients: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([gradient.flatten() for gradient in gradients]).double() if gradients else th.zeros(0).double()
