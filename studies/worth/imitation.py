"""
Define guidance weights that ignore Q: plain imitation of the replay buffer.
"""

import torch as th


def imitation_guidance(q_behavior: th.Tensor, q_policy: th.Tensor, w2_coef: float) -> th.Tensor:
    """
    Give every action of the replay buffer the weight λ, whether it is better or worse than the policy's.

    :param q_behavior: clipped Q_β*(s, a) at the buffer's actions, ``(B, 1)``; no effect
    :param q_policy: clipped Q_π(s, a^π) at the policy's actions, ``(B, 1)``; no effect
    :param w2_coef: λ
    :return: weights, all λ, ``(B, 1)``
    """
    return th.full_like(q_policy, w2_coef)
