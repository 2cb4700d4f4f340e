"""
The quantities that show why a run learns or stalls, one pure function each; ``callback.py`` measures them.

B is the number of sampled transitions, A the number of action dimensions, and n the number of networks in a critic.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch as th

#: A scaled action counts as saturated beyond this absolute value.
SATURATION = 0.99
#: Share of the singular values' sum that the effective rank may leave out, as in Kumar et al. (2021).
RANK_DELTA = 0.01
#: A unit is dead whose output varies by this share or less of what its layer's units vary by on average.
DEAD_SHARE = 0.025
#: An observed return stands for the value where what a time limit has cut off is discounted by this factor or more.
NEGLIGIBLE_DISCOUNT = 0.01


def action_spread(actions: th.Tensor) -> float:
    """
    How much the policy's actions differ in one state: their standard deviation, averaged over states and dimensions. For
    FlowRL the actions differ in their a0 alone, so that 0 means that the flow has collapsed to a point.

    :param actions: K actions for each state, in [-1, 1], ``(K, B, A)``
    :return: the mean of the sample standard deviations
    """
    return actions.std(dim=0).mean().item()


def saturated_share(actions: th.Tensor) -> float:
    """
    Share of the actions' components at the bounds, where the gradient through tanh nearly vanishes.

    :param actions: actions in [-1, 1], any shape
    :return: share of the components beyond ±:data:`SATURATION`
    """
    return (actions.abs() > SATURATION).float().mean().item()


def behavior_advantage(q_behavior: th.Tensor, q_policy: th.Tensor) -> tuple[float, float]:
    """
    What guidance is made of, x = Q_β*(s, a) - Q_π(s, a^π) (paper, Eq. 13 and 14).

    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``
    :return: the mean of x, and the share of samples with x > 0, which pull at the policy
    """
    advantage = q_behavior - q_policy
    return advantage.mean().item(), (advantage > 0).float().mean().item()


def discounted_returns(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """
    G_t = r_t + γ G_{t+1}, with nothing after the last reward.

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
    How many steps of an episode have a return that can be compared with a value.

    A value goes on beyond a time limit, an observed return does not. So the last steps of a truncated episode are left out, up
    to where the rest is discounted by :data:`NEGLIGIBLE_DISCOUNT`. Bootstrapping from Q there instead would compare Q partly
    with itself: it shows a bias b only as b (1 - γ^k), k steps before the end.

    :param length: steps of the episode
    :param terminated: whether it terminated, and was not truncated
    :param gamma: γ
    :return: number of steps from the start
    """
    if terminated or gamma == 0:
        return length
    if gamma == 1:
        return 0
    # the small term is for the rounding of logarithms whose quotient is whole
    return max(0, length + 1 - math.ceil(math.log(NEGLIGIBLE_DISCOUNT) / math.log(gamma) - 1e-9))


def effective_rank(features: th.Tensor) -> float:
    """
    The effective rank srank_δ of Kumar et al., "Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement
    Learning" (ICLR 2021): the smallest number of singular values, from the largest on, whose sum is 1 - δ of the sum of all,
    with δ = :data:`RANK_DELTA`. At most the smaller one of B and the width.

    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: its mean over the networks; NaN where a feature is not finite
    """
    if not features.isfinite().all():  # of which PyTorch makes an error
        return math.nan
    sums = th.linalg.svdvals(features.double()).cumsum(dim=1)
    ranks = 1 + (sums < (1 - RANK_DELTA) * sums[:, -1:]).sum(dim=1)
    return (ranks * (sums[:, -1] > 0)).double().mean().item()


def feature_norm(features: th.Tensor) -> float:
    """
    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: their Euclidean norm, averaged over samples and networks
    """
    return features.norm(dim=2).mean().item()


def dead_share(features: th.Tensor) -> float:
    """
    Share of units whose output says next to nothing about the input: its standard deviation over the batch is at most
    :data:`DEAD_SHARE` of the mean standard deviation of the layer's units.

    Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning" (ICML 2023), compare mean absolute outputs in
    this way (and with this threshold), which suits ReLU. A GELU is stuck near 0, but an ELU at -1: both hardly vary.

    :param features: outputs of a layer of each network, ``(n, B, width)``
    :return: the share, of the units of all networks
    """
    deviations = features.std(dim=1)
    return (deviations <= DEAD_SHARE * deviations.mean(dim=1, keepdim=True)).float().mean().item()


def gradient_norm(gradients: Sequence[th.Tensor]) -> float:
    """
    :param gradients: one for each parameter, of its shape
    :return: the Euclidean norm of all of them together
    """
    return _flat(gradients).norm().item()


def gradient_cosine(ours: Sequence[th.Tensor], theirs: Sequence[th.Tensor]) -> float:
    """
    Whether two terms of a loss agree about the parameters: 1 if they pull the same way, -1 if they pull against each other.

    :param ours: one term's gradients, one for each parameter, of its shape
    :param theirs: the other term's
    :return: the cosine of the angle between them; NaN where one of them is zero
    """
    first, second = _flat(ours), _flat(theirs)
    return (first @ second / (first.norm() * second.norm())).item()


def _flat(gradients: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([gradient.flatten() for gradient in gradients]).double() if gradients else th.zeros(0).double()
