"""
The policy as a flow.

A velocity field is integrated from noise to an action (paper, Section 4.1). It is trained on the straight probability path
between them (paper, Section 3.2).

Everything here is a pure function of tensors; the networks live in ``networks.py``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch as th

#: A velocity field with the state already bound: maps times ``(B, 1)`` and points ``(B, A)`` to velocities ``(B, A)``.
VelocityField = Callable[[th.Tensor, th.Tensor], th.Tensor]

#: Actions are clipped to plus and minus this before ``atanh``, which is infinite at -1 and 1.
PRE_SQUASH_LIMIT = 0.999


class FlowNoise(NamedTuple):
    """
    All random numbers of one update.

    They are drawn together, so that the update itself is a deterministic function.

    :ivar path: standard normal, ``(B, A)``: starting points of the paths in the flow-matching loss, and base samples of the
        second action in the spread's term, which needs only that they are independent of ``action``
    :ivar next_action: standard normal, ``(B, A)``: base samples of the actions in the next states
    :ivar action: standard normal, ``(B, A)``: base samples of the actions that the actor is trained on
    :ivar time: uniform on [0, 1), ``(B, 1)``: position of each sample of the flow-matching loss on its path
    """

    path: th.Tensor
    next_action: th.Tensor
    action: th.Tensor
    time: th.Tensor


def draw_noise(batch_size: int, action_dim: int, device: th.device) -> FlowNoise:
    """
    Draw the random numbers of one update from PyTorch's global generator.

    :param batch_size: B
    :param action_dim: A
    :param device: the device of the tensors
    :return: the random numbers, not yet truncated (see :func:`truncate_noise`)
    """
    # The networks' dtype, even if the user has changed PyTorch's default
    path, next_action, action = th.randn(3, batch_size, action_dim, device=device, dtype=th.float32).unbind()
    return FlowNoise(path, next_action, action, time=th.rand(batch_size, 1, device=device, dtype=th.float32))


def truncate_noise(noise: th.Tensor, noise_clip: float | None) -> th.Tensor:
    """
    Clip each component of base samples, as the authors' code does (the paper's a0 is an unclipped N(0, I)).

    :param noise: standard normal samples, any shape
    :param noise_clip: bound of the absolute values, or ``None`` for no bound
    :return: the base samples a0, of the same shape
    """
    return noise if noise_clip is None else noise.clamp(-noise_clip, noise_clip)


def euler_step(velocity: VelocityField, t: th.Tensor, x: th.Tensor, h: float) -> th.Tensor:
    """Take one step of Euler's rule: first order, one evaluation. Shapes as in :func:`integrate`."""
    return x + h * velocity(t, x)


def midpoint_step(velocity: VelocityField, t: th.Tensor, x: th.Tensor, h: float) -> th.Tensor:
    """Take one step of the explicit midpoint rule (paper, Table 1): second order, two evaluations."""
    halfway = x + 0.5 * h * velocity(t, x)
    return x + h * velocity(t + 0.5 * h, halfway)


def rk4_step(velocity: VelocityField, t: th.Tensor, x: th.Tensor, h: float) -> th.Tensor:
    """Take one step of the classical Runge-Kutta rule: fourth order, four evaluations."""
    k1 = velocity(t, x)
    k2 = velocity(t + 0.5 * h, x + 0.5 * h * k1)
    k3 = velocity(t + 0.5 * h, x + 0.5 * h * k2)
    k4 = velocity(t + h, x + h * k3)
    return x + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)


#: Allowed values of ``ode_solver``. All are explicit with a fixed step, so that gradients of Q flow through every step.
ODE_SOLVERS = {"euler": euler_step, "midpoint": midpoint_step, "rk4": rk4_step}


def integrate(velocity: VelocityField, x0: th.Tensor, flow_steps: int, ode_solver: str) -> th.Tensor:
    """
    Solve dx/dt = velocity(t, x) from t = 0 to t = 1 with ``flow_steps`` equal steps (paper, Eq. 8).

    :param velocity: the velocity field, differentiable if gradients are to flow through the integration
    :param x0: initial points, ``(B, A)``
    :param flow_steps: N, the number of steps
    :param ode_solver: a key of :data:`ODE_SOLVERS`
    :return: x(1), ``(B, A)``
    """
    step = ODE_SOLVERS[ode_solver]
    h = 1.0 / flow_steps
    x = x0
    for index in range(flow_steps):
        t = x0.new_full((x0.shape[0], 1), index * h)
        x = step(velocity, t, x, h)
    return x


def straight_path(x0: th.Tensor, x1: th.Tensor, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Compute points on the straight line from noise to action, and its constant velocity (paper, Eq. 7).

    :param x0: base samples, ``(B, A)``
    :param x1: end points, ``(B, A)``
    :param t: times in [0, 1], ``(B, 1)``
    :return: the points t·x1 + (1-t)·x0 and the velocities x1 - x0, both ``(B, A)``
    """
    return t * x1 + (1.0 - t) * x0, x1 - x0


def squash(x: th.Tensor) -> th.Tensor:
    """
    Map end points of the flow into the action space scaled to [-1, 1].

    :param x: end points x(1) of the flow, any shape
    :return: tanh(x)
    """
    return th.tanh(x)


def unsquash(actions: th.Tensor) -> th.Tensor:
    """
    Compute the end points that :func:`squash` maps to the given actions, for flow matching before squashing.

    :param actions: actions scaled to [-1, 1], any shape; clipped to ±``PRE_SQUASH_LIMIT`` first
    :return: atanh of the clipped actions
    """
    return th.atanh(actions.clamp(-PRE_SQUASH_LIMIT, PRE_SQUASH_LIMIT))


#: Allowed values of ``matching``. Each maps a stored action to the end point onto which the velocity field is regressed.
MATCHING_SPACES: dict[str, Callable[[th.Tensor], th.Tensor]] = {"action": lambda actions: actions, "pre_squash": unsquash}
