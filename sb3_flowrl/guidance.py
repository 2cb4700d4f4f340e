"""
Guidance: how strongly each action of the replay buffer pulls the policy towards itself.

The policy may not be far from the best behaviour in the buffer, which can't be sampled. So every buffer action is used,
weighted by how much better the behaviour did than the present policy: x = Q_β*(s, a) - Q_π(s, a^π) (paper, Eqs. 13, 14).

A guidance is any function of ``(q_behavior, q_policy, w2_coef)``, both values ``(B, 1)`` and without gradient, that
returns the final weights λ·w, ``(B, 1)``, λ = ``w2_coef`` included.
"""

import math
from collections.abc import Callable

import torch as th


class GuidanceError(ValueError):
    """
    A guidance returned something that is not one weight for each sample.
    """


Guidance = Callable[[th.Tensor, th.Tensor, float], th.Tensor]

#: Bounds of the authors' weights (``CFM_MIN`` and ``CFM_MAX`` in their ``algo.py``).
REFERENCE_WEIGHT_MIN, WEIGHT_MAX = 1e-3, 1.0


def uncapped_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    λ · 1{x > 0} · exp(x - mean(x)): the paper to the letter (Eq. 14 with the f of Appendix B.1).

    Nothing bounds it: where values spread over tens of units, single weights become astronomical. Prefer
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
    min(λ · 1{x > 0} · exp(x - mean(x)), 1): the paper's weights, capped as the authors cap theirs.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``
    :param w2_coef: λ
    :return: weights in [0, 1], ``(B, 1)``
    """
    return uncapped_guidance(q_behavior, q_policy, w2_coef).clamp(max=WEIGHT_MAX)


def reference_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    clamp(λ · exp(u - mean(u)), 1e-3, 1) with u = relu(x): the authors' code. Never zero, even for λ = 0.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``
    :param w2_coef: λ
    :return: weights in [1e-3, 1], ``(B, 1)``
    """
    advantage = th.relu(q_behavior - q_policy)
    return _scaled_exp(advantage - advantage.mean(), w2_coef).clamp(REFERENCE_WEIGHT_MIN, WEIGHT_MAX)


def _scaled_exp(exponent: th.Tensor, w2_coef: float) -> th.Tensor:
    # λ·exp(z) computed as exp(z + log λ), so that λ = 0 gives 0 and not 0·inf = NaN where exp(z) overflows.
    return th.exp(exponent + (math.log(w2_coef) if w2_coef > 0 else -math.inf))


#: What ``guidance`` may be, besides a callable.
GUIDANCES: dict[str, Guidance] = {"paper": paper_guidance, "reference": reference_guidance}
