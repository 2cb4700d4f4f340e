"""
The equations of FlowRL, one pure function each.

Equation numbers are those of Lv et al., "Flow-Based Policy for Online Reinforcement Learning" (NeurIPS 2025,
arXiv 2506.12811), called the paper. B is the batch size and A the number of action dimensions.
"""

import math
from functools import reduce

import torch as th

#: Smallest distance of two actions in :func:`log_spread`, whose logarithm would otherwise be infinite for equal actions.
SPREAD_FLOOR = 0.02
#: ``-E[log |z|]`` for the difference z of two samples of N(0, 1): half of Euler's constant.
GAUSSIAN_OFFSET = 0.5 * 0.5772156649015329


def clipped_min(q_values: th.Tensor) -> th.Tensor:
    """
    Compute the clipped estimate of a twin critic: the smallest of its values for each sample.

    :param q_values: values of each Q-network, ``(n_critics, B, 1)``
    :return: their minimum, ``(B, 1)``
    """
    return reduce(th.minimum, q_values.unbind())


def bootstrap_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    """
    Compute the regression target of a Q-function: y = r + γ (1 - d) V(s') (paper, Eqs. 3 and 19).

    :param rewards: r, ``(B, 1)``; for n-step replay the discounted sum of n rewards
    :param dones: d, ``(B, 1)``: 1 if the episode terminated, 0 if it continues or only a time limit ended it
    :param discounts: γ, or γ^n with each sample's own n, ``(B, 1)``
    :param next_values: values of the next states, ``(B, 1)``: for Q_π the clipped twin (of its target, if it has one) at the
        policy's action, for Q_β* the expectile value V_β*
    :return: y, ``(B, 1)``
    """
    return rewards + discounts * (1.0 - dones) * next_values


def critic_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Compute the squared Bellman residual, summed over the Q-networks of a critic (paper, Eq. 3 for Q_π, Eq. 19 for Q_β*).

    :param q_values: values of each Q-network, ``(n_critics, B, 1)``
    :param targets: y, ``(B, 1)``, without gradient
    :return: Σ_i mean((Q_i - y)²), a scalar
    """
    return (q_values - targets).square().mean(dim=(1, 2)).sum()


def expectile_loss(errors: th.Tensor, expectile: float) -> th.Tensor:
    """
    Compute the expectile regression that makes V_β* approach the best value in the replay buffer (paper, Eq. 18).

    :param errors: u = Q_β*(s, a) - V_β*(s), ``(B, 1)``, with gradient through V_β*
    :param expectile: τ in (0, 1); 0.5 gives half the mean squared error, 1 would give the maximum
    :return: mean(abs(τ - 1{u < 0}) · u²), a scalar
    """
    weights = th.where(errors < 0, 1.0 - expectile, expectile).to(errors.dtype)
    return (weights * errors.square()).mean()


def flow_matching_error(velocities: th.Tensor, path_velocities: th.Tensor) -> th.Tensor:
    """
    Compute the conditional flow-matching error of each sample (paper, Eq. 7, with the mean over action dimensions).

    The error has an irreducible part, the variance of a - a0 given a_t. It therefore does not approach 0, and it is not the
    bound of Theorem 4.1.

    :param velocities: v_θ(t, s, a_t), ``(B, A)``
    :param path_velocities: a - a0, ``(B, A)``
    :return: mean over A of the squared difference, ``(B, 1)``. The paper's squared norm is A times this.
    """
    return (velocities - path_velocities).square().mean(dim=1, keepdim=True)


def weighted_flow_matching_loss(errors: th.Tensor, weights: th.Tensor, per_sample: bool = True) -> th.Tensor:
    """
    Compute the constraint in the actor's loss (paper, Eqs. 13 and 22): λ · E[w(s, a) · error].

    :param errors: flow-matching error of each sample, ``(B, 1)``
    :param weights: final weights λ·w, ``(B, 1)``, without gradient
    :param per_sample: True multiplies each sample's error by its own weight, as Theorem 4.2 requires; False multiplies the
        two means, as the authors' code does, so that only the mean weight has an effect
    :return: a scalar
    """
    return (weights * errors).mean() if per_sample else weights.mean() * errors.mean()


def negative_lagrangian(q_policy: th.Tensor, constraint: th.Tensor) -> th.Tensor:
    """
    Compute the negative of the actor's Lagrangian (paper, Eq. 22), to be minimized.

    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``, with gradient through the actor
    :param constraint: the result of :func:`weighted_flow_matching_loss`
    :return: -mean(Q_π) + constraint, a scalar
    """
    return constraint - q_policy.mean()


def log_spread(actions: th.Tensor, others: th.Tensor) -> th.Tensor:
    """
    Measure how far apart two actions of the policy in one state are (not in the paper).

    This is the mean over dimensions of the logarithm of their distance. Unlike a standard deviation, it has a gradient that
    grows as the actions come closer, down to :data:`SPREAD_FLOOR`.

    For two samples of a Gaussian with standard deviation σ in each dimension, the result is log σ on average. If the standard
    deviations differ, it is the logarithm of their geometric mean. The floor enlarges small ones: σ = 0.05, 0.1 and 0.16 are
    measured as 0.069, 0.118 and 0.178. In [-1, 1] the largest possible value is 0.70; evenly spread samples have 0.61.

    Both actions need their gradient: where they are close, each one's part is large and the two cancel. With one of them,
    doubled, hindsight replay learned more slowly.

    :param actions: actions from one base sample a0 for each state, ``(B, A)``
    :param others: actions from another base sample for each state, ``(B, A)``
    :return: log σ, ``(B, 1)``
    """
    squares = (actions - others).square() + SPREAD_FLOOR**2
    return 0.5 * squares.log().mean(dim=1, keepdim=True) + GAUSSIAN_OFFSET


def spread_coef_gradient(mean_log_spread: th.Tensor, target_spread: float) -> th.Tensor:
    """
    Compute the gradient of log α · (mean log σ - log target) with respect to log α.

    The coefficient α rises while the policy's actions are closer together than the target, and falls otherwise, like SAC's
    entropy coefficient (Haarnoja et al. 2018, Eq. 18).

    :param mean_log_spread: mean of :func:`log_spread` over the batch, a scalar
    :param target_spread: the σ to keep
    :return: a scalar
    """
    return mean_log_spread - math.log(target_spread)
