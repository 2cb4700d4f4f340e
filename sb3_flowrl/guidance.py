"""
Guidance: weights that say how strongly each action of the replay buffer attracts the policy.

The policy must stay near the best behavior in the buffer, which can't be sampled. So every action of the buffer is used,
weighted by how much better the behavior did than the current policy: x = Q_β*(s, a) - Q_π(s, a^π) (paper, Eqs. 13, 14).

A guidance is any function of ``(q_behavior, q_policy, w2_coef)`` that returns the final weights λ·w, ``(B, 1)``. They include
λ = ``w2_coef``. Both values are ``(B, 1)`` and without gradient.
"""

import math
from collections.abc import Callable

import torch as th


class GuidanceError(ValueError):
    """
    The guidance did not return one weight for each sample.
    """


Guidance = Callable[[th.Tensor, th.Tensor, float], th.Tensor]

#: Bounds of the authors' weights (``CFM_MIN`` and ``CFM_MAX`` in their ``algo.py``).
REFERENCE_WEIGHT_MIN, WEIGHT_MAX = 1e-3, 1.0


def uncapped_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    Compute λ · 1{x > 0} · exp(x - mean(x)), exactly as in the paper (Eq. 14 with the f of Appendix B.1).

    The weights have no upper bound: when values spread over tens of units, single weights become astronomical. Prefer
    :func:`paper_guidance` for training.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``
    :param w2_coef: λ
    :return: weights, ``(B, 1)``, not bounded above
    """
    advantage = q_behavior - q_policy
    return th.where(advantage > 0, _scaled_exp(advantage - advantage.mean(), w2_coef), 0.0)


def paper_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    Compute min(λ · 1{x > 0} · exp(x - mean(x)), 1): the paper's weights, with the cap of the authors' code.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``
    :param w2_coef: λ
    :return: weights in [0, 1], ``(B, 1)``
    """
    return uncapped_guidance(q_behavior, q_policy, w2_coef).clamp(max=WEIGHT_MAX)


def reference_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    Compute clamp(λ · exp(u - mean(u)), 1e-3, 1) with u = relu(x), as the authors' code does.

    The weights are never zero, even for λ = 0.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``
    :param w2_coef: λ
    :return: weights in [1e-3, 1], ``(B, 1)``
    """
    advantage = th.relu(q_behavior - q_policy)
    return _scaled_exp(advantage - advantage.mean(), w2_coef).clamp(REFERENCE_WEIGHT_MIN, WEIGHT_MAX)


def _scaled_exp(exponent: th.Tensor, w2_coef: float) -> th.Tensor:
    # λ·exp(z) computed as exp(z + log λ), so that λ = 0 gives 0 instead of 0·inf = NaN where exp(z) overflows.
    return th.exp(exponent + (math.log(w2_coef) if w2_coef > 0 else -math.inf))


#: Allowed values of ``guidance``, besides a callable.
GUIDANCES: dict[str, Guidance] = {"paper": paper_guidance, "reference": reference_guidance}
