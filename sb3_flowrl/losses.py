"""
The equations of FlowRL, one pure function each.

Equation numbers are those of Lv et al., "Flow-Based Policy for Online Reinforcement Learning" (NeurIPS 2025,
arXiv 2506.12811), called the paper. B is the batch size and A the number of action dimensions.
"""

from functools import reduce

import torch as th


def clipped_min(q_values: th.Tensor) -> th.Tensor:
    """
    The clipped estimate of a twin critic: the smallest of its values, sample by sample.

    :param q_values: values of each Q-network, ``(n_critics, B, 1)``
    :return: their minimum, ``(B, 1)``
    """
    return reduce(th.minimum, q_values.unbind())


def bootstrap_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    """
    Regression target of a Q-function: y = r + γ (1 - d) V(s') (paper, Eqs. 3 and 19).

    :param rewards: r, ``(B, 1)``; for n-step replay the discounted sum of n rewards
    :param dones: d, ``(B, 1)``: 1 where the episode terminated, 0 where it goes on or was only cut by a time limit
    :param discounts: γ, or γ^n with n of each sample, ``(B, 1)``
    :param next_values: the value of the next state, ``(B, 1)``: for Q_π the clipped twin (the target, if it has one) at the
        policy's action, for Q_β* the expectile value V_β*
    :return: y, ``(B, 1)``
    """
    return rewards + discounts * (1.0 - dones) * next_values


def critic_loss(q_values: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    Squared Bellman residual, summed over the Q-networks of a critic (paper, Eq. 3 for Q_π, Eq. 19 for Q_β*).

    :param q_values: values of each Q-network, ``(n_critics, B, 1)``
    :param targets: y, ``(B, 1)``, without gradient
    :return: Σ_i mean((Q_i - y)²), a scalar
    """
    return (q_values - targets).square().mean(dim=(1, 2)).sum()


def expectile_loss(errors: th.Tensor, expectile: float) -> th.Tensor:
    """
    Expectile regression, which makes V_β* approach the best value in the replay buffer (paper, Eq. 18).

    :param errors: u = Q_β*(s, a) - V_β*(s), ``(B, 1)``, with the gradient in V_β*
    :param expectile: τ in (0, 1); 0.5 gives half the mean squared error, 1 would give the maximum
    :return: mean(abs(τ - 1{u < 0}) · u²), a scalar
    """
    weights = th.where(errors < 0, 1.0 - expectile, expectile)
    return (weights * errors.square()).mean()


def flow_matching_error(velocities: th.Tensor, path_velocities: th.Tensor) -> th.Tensor:
    """
    Conditional flow-matching error of each sample (paper, Eq. 7, with the mean over action dimensions).

    The error has an irreducible part, the variance of a - a0 given a_t, so it does not approach 0, and it is not the
    bound of Theorem 4.1.

    :param velocities: v_θ(t, s, a_t), ``(B, A)``
    :param path_velocities: a - a0, ``(B, A)``
    :return: mean over A of the squared difference, ``(B, 1)``. The paper's squared norm is A times this.
    """
    return (velocities - path_velocities).square().mean(dim=1, keepdim=True)


def weighted_flow_matching_loss(errors: th.Tensor, weights: th.Tensor, per_sample: bool = True) -> th.Tensor:
    """
    The constraint's term of the actor loss (paper, Eqs. 13 and 22): λ · E[w(s, a) · error].

    :param errors: flow-matching error of each sample, ``(B, 1)``
    :param weights: final weights λ·w, ``(B, 1)``, without gradient
    :param per_sample: True weighs each sample's error by its own weight, as Theorem 4.2 needs; False multiplies the
        two means, as the authors' code does, so that only the mean weight acts
    :return: a scalar
    """
    return (weights * errors).mean() if per_sample else weights.mean() * errors.mean()


def actor_loss(q_policy: th.Tensor, constraint: th.Tensor) -> th.Tensor:
    """
    The actor's Lagrangian (paper, Eq. 22), negated to be minimised.

    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``, with the gradient in the actor
    :param constraint: what :func:`weighted_flow_matching_loss` returns
    :return: -mean(Q_π) + constraint, a scalar
    """
    return constraint - q_policy.mean()
