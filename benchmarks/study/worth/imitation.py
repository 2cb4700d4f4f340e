"""
Weights that ignore Q: plain imitation of the replay buffer.
"""

import torch as th


def imitation_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    λ for every action of the replay buffer, be it better than the policy's or worse.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``; has no influence
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``; has no influence
    :param w2_coef: λ
    :return: weights, all λ, ``(B, 1)``
    """
    return th.full_like(q_policy, w2_coef)
