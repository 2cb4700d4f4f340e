"""
The two halves of FlowRL's update as pure functions of tensors and networks (paper, Algorithm 1, lines 7 to 9).

They draw nothing, look at no value and change nothing (but the running moments of a critic that is normalised by batch), so
that the same source runs eagerly, under ``torch.compile`` and in CUDA graphs. They return gradients, and do not leave them to
a ``backward()`` outside, as what is compiled is faster as one graph: forward and backward pass share what they compute. The
steps of the optimisers and the Polyak averages are :class:`~sb3_flowrl.flowrl.FlowRL`'s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_flowrl import losses
from sb3_flowrl.flow import MATCHING_SPACES, FlowNoise, straight_path, truncate_noise
from sb3_flowrl.guidance import Guidance
from sb3_flowrl.networks import FlowActor, FlowCritic, FlowValue

#: What ``precision`` may be.
PRECISIONS = ("float32", "float32_fast", "bfloat16")

#: The names in the log of what :func:`value_losses` returns.
VALUE_LOGS = ("critic_loss", "behavior_critic_loss", "value_loss")
#: The names in the log of what :func:`actor_loss` returns.
ACTOR_LOGS = (
    "actor_loss",
    "flow_matching_loss",
    "weighted_flow_matching_loss",
    "guidance_weight",
    "guidance_active",
    "q_policy",
    "q_behavior",
)
#: What comes after them where the spread of actions is part of the loss.
SPREAD_LOG = "log_spread"


class Networks(NamedTuple):
    """
    The policy's networks. A batch-normalised Q_π has no target: its values of s and s' have to come from one pass.
    """

    actor: FlowActor
    critic: FlowCritic
    critic_target: FlowCritic | None
    behavior_critic: FlowCritic
    behavior_critic_target: FlowCritic
    behavior_value: FlowValue


class Settings(NamedTuple):
    """
    The constants of the equations, arguments of ``FlowRL``.
    """

    expectile: float
    w2_coef: float
    guidance: Guidance
    per_sample: bool
    matching: str
    precision: str


class Transitions(NamedTuple):
    """
    What a replay sample holds besides its observations.

    :ivar actions: scaled to [-1, 1], ``(B, A)``
    :ivar rewards: ``(B, 1)``
    :ivar dones: ``(B, 1)``, 1 where the episode terminated
    :ivar discounts: γ, or γ^n with n of each sample, ``(B, 1)``
    """

    actions: th.Tensor
    rewards: th.Tensor
    dones: th.Tensor
    discounts: th.Tensor


class Gradients(NamedTuple):
    """
    What one half of the update wants of its networks.

    :ivar gradients: one for each of the leaves, see :func:`value_leaves` and :func:`actor_leaves`, of their shapes
    :ivar has_diverged: 1 where what they are the gradients of is not finite, else 0, a scalar
    :ivar logs: what is logged, in the order of :data:`VALUE_LOGS` or :data:`ACTOR_LOGS`, ``(3,)`` or ``(7,)``
    """

    gradients: tuple[th.Tensor, ...]
    has_diverged: th.Tensor
    logs: th.Tensor


class Features(NamedTuple):
    """
    What each network sees of the states s and s', ``(B, features_dim)`` each. Where the features extractors are equal and
    have nothing to learn, as for vectors, all are one tensor. Where Q_π has no target, ``next_critic_target`` is its own view.
    """

    critic: th.Tensor
    behavior_critic: th.Tensor
    behavior_value: th.Tensor
    behavior_critic_target: th.Tensor
    next_actor: th.Tensor
    next_critic_target: th.Tensor
    next_behavior_value: th.Tensor


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    :param precision: one of :data:`PRECISIONS`
    :param device: where the networks are
    :return: the context in which the networks run: bfloat16 autocast, or none
    """
    return th.autocast(device.type, dtype=th.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def matmul_precision(precision: str, device: th.device) -> Iterator[None]:
    """
    The setting of PyTorch's for the whole process under which float32 matrix products run, put back at the end.

    :param precision: one of :data:`PRECISIONS`. "float32_fast" lets them go through oneDNN on a CPU (which may round factors
        to bfloat16 where the processor has AMX), and take TF32 on CUDA. The others leave the setting as it is
    :param device: where the networks are
    """
    if precision != "float32_fast":
        yield  # without a look at the setting, which fails where the user has set it through PyTorch's newer interface
        return
    before = th.get_float32_matmul_precision()
    th.set_float32_matmul_precision("medium" if device.type == "cpu" else "high")
    try:
        yield
    finally:
        th.set_float32_matmul_precision(before)


def as_leaf(features: th.Tensor) -> th.Tensor:
    """
    :param features: features of states
    :return: the same features, without what lies before them in the graph of an extractor that learns: the extractor gets its
        gradients afterwards, see ``step.hand_out``
    """
    return features.detach().requires_grad_() if features.requires_grad else features


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """
    :param model: one of the policy's networks
    :return: its parameters but those that are frozen, and those of its features extractor, which it reaches by way of the
        features
    """
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not name.startswith("features_extractor.")
    ]


def gradients_of(loss: th.Tensor, leaves: Sequence[th.Tensor], logs: th.Tensor) -> Gradients:
    """
    :param loss: a scalar
    :param leaves: what to derive it by
    :param logs: what is logged of it
    :return: the gradients, each laid out in memory as its leaf: fused optimisers on CUDA demand that, ``backward()`` sees to
        it by itself, and ``autograd.grad`` does not
    """
    pairs = zip(th.autograd.grad(loss, leaves), leaves, strict=True)
    laid_out = (each if each.stride() == leaf.stride() else th.empty_like(leaf).copy_(each) for each, leaf in pairs)
    return Gradients(tuple(laid_out), (~loss.detach().isfinite()).float(), logs)


def value_leaves(networks: Networks, features: Features) -> list[th.Tensor]:
    """
    :param networks: the policy's networks
    :param features: what they see of the states
    :return: the parameters that the value losses train, and the features through which they train features extractors
    """
    models = (networks.critic, networks.behavior_critic, networks.behavior_value)
    parameters = [parameter for model in models for parameter in trained_parameters(model)]
    return [*parameters, *(each for each in features if each.requires_grad)]


def value_gradients(
    networks: Networks, settings: Settings, batch: Transitions, noise: FlowNoise, features: Features
) -> tuple[Gradients, th.Tensor]:
    """
    The gradients of :func:`value_losses`, whose arguments these are.

    :return: the gradients, in the order of :func:`value_leaves`, and the clipped Q_β*(s, a), ``(B, 1)``
    """
    loss, logs, q_behavior = value_losses(networks, settings, batch, noise, features)
    return gradients_of(loss, value_leaves(networks, features), logs), q_behavior


def value_losses(
    networks: Networks, settings: Settings, batch: Transitions, noise: FlowNoise, features: Features
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    The losses of Q_π, Q_β* and V_β* (paper, Eqs. 3, 19 and 18; Algorithm 1, lines 7 and 8).

    They read only values from before this update, so that one backward pass through their sum serves them all.

    :param networks: the policy's networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the update's random numbers
    :param features: what the networks see of the states
    :return: the sum of the losses, the losses in the order of :data:`VALUE_LOGS`, ``(3,)``, and the clipped Q_β*(s, a),
        ``(B, 1)``, the last two without gradient
    """
    with autocast(settings.precision, batch.actions.device):
        q_values, next_q_values = policy_values(networks, batch, noise, features)
        q_targets, behavior_q_targets, v_targets = value_targets(networks, batch, features, next_q_values)
        behavior_q_values = networks.behavior_critic.values(features.behavior_critic, batch.actions)
        v_values = networks.behavior_value.values(features.behavior_value)
    each = th.stack(
        [
            losses.critic_loss(q_values, q_targets),
            losses.critic_loss(behavior_q_values, behavior_q_targets),
            losses.expectile_loss(v_targets - v_values, settings.expectile),
        ]
    )
    return each.sum(), each.detach(), losses.clipped_min(behavior_q_values).detach()


def policy_values(networks: Networks, batch: Transitions, noise: FlowNoise, features: Features) -> tuple[th.Tensor, th.Tensor]:
    """
    Q_π where it is trained, and where it bootstraps from: of its target network or, where it is normalised by batch, of its
    own, in one pass through both (Bhatt et al., "CrossQ", ICLR 2024), so that both are normalised by the moments of both.

    :param networks: the policy's networks
    :param batch: replay samples
    :param noise: the update's random numbers
    :param features: what the networks see of the states
    :return: Q_π(s, a), and Q_π(s', a') at the policy's action, without gradient, each ``(n_critics, B, 1)``
    """
    with th.no_grad():
        next_actions = networks.actor.flow(features.next_actor, noise.next_action)
        if networks.critic_target is not None:
            next_q_values = networks.critic_target.values(features.next_critic_target, next_actions)
    if networks.critic_target is None:
        joined = (features.critic, batch.actions, features.next_critic_target, next_actions)
        q_values, next_q_values = networks.critic.joint_values(*joined)
        return q_values, next_q_values.detach()
    return networks.critic.values(features.critic, batch.actions), next_q_values


@th.no_grad()
def value_targets(
    networks: Networks, batch: Transitions, features: Features, next_q_values: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    What the three value functions are regressed onto (paper, Eqs. 3, 19 and 18).

    :param networks: the policy's networks
    :param batch: replay samples
    :param features: what the networks see of the states
    :param next_q_values: Q_π(s', a') of each network, see :func:`policy_values`, ``(n_critics, B, 1)``
    :return: the targets of Q_π, Q_β* and V_β*, each ``(B, 1)``, without gradient
    """
    next_q = losses.clipped_min(next_q_values)
    next_v = networks.behavior_value.values(features.next_behavior_value)
    best_q = losses.clipped_min(networks.behavior_critic_target.values(features.behavior_critic_target, batch.actions))
    return (
        losses.bootstrap_target(batch.rewards, batch.dones, batch.discounts, next_q),
        losses.bootstrap_target(batch.rewards, batch.dones, batch.discounts, next_v),
        best_q,
    )


def actor_leaves(networks: Networks, actor_features: th.Tensor) -> list[th.Tensor]:
    """
    :param networks: the policy's networks
    :param actor_features: the actor's features of the states
    :return: the parameters that the actor's loss trains, and the features through which it trains a features extractor
    """
    return [*trained_parameters(networks.actor), *([actor_features] if actor_features.requires_grad else [])]


def actor_gradients(
    networks: Networks,
    settings: Settings,
    batch: Transitions,
    noise: FlowNoise,
    actor_features: th.Tensor,
    critic_features: th.Tensor,
    q_behavior: th.Tensor,
    spread_coef: th.Tensor | None = None,
) -> Gradients:
    """
    The gradients of :func:`actor_loss`, whose arguments these are. None is computed for the critic's parameters.

    :return: the gradients, in the order of :func:`actor_leaves`
    """
    loss, logs = actor_loss(networks, settings, batch, noise, actor_features, critic_features, q_behavior, spread_coef)
    return gradients_of(loss, actor_leaves(networks, actor_features), logs)


def actor_loss(
    networks: Networks,
    settings: Settings,
    batch: Transitions,
    noise: FlowNoise,
    actor_features: th.Tensor,
    critic_features: th.Tensor,
    q_behavior: th.Tensor,
    spread_coef: th.Tensor | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    The actor's Lagrangian (paper, Eq. 22; Algorithm 1, line 9), and the term that keeps its actions apart.

    :param networks: the policy's networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the update's random numbers
    :param actor_features: the actor's features of the states, ``(B, features_dim)``
    :param critic_features: those of Q_π, ``(B, features_dim)``, without gradient
    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``, from before this update's step of Q_β*
    :param spread_coef: α, a scalar without gradient; ``None`` leaves the spread of actions out
    :return: the loss, and what is logged in the order of :data:`ACTOR_LOGS`, ``(7,)``, without gradient; with
        :data:`SPREAD_LOG` after it, ``(8,)``, unless that is left out
    """
    with autocast(settings.precision, batch.actions.device):
        actions = networks.actor.flow(actor_features, noise.action)
        q_policy = losses.clipped_min(networks.critic.values(critic_features, actions))

        end_points = MATCHING_SPACES[settings.matching](batch.actions)
        base_points = truncate_noise(noise.path, networks.actor.noise_clip)
        points, path_velocities = straight_path(base_points, end_points, noise.time)
        velocities = networks.actor.velocity(noise.time, actor_features, points)
        # The paths' base samples are as good as others: independent of those of the actions
        others = None if spread_coef is None else networks.actor.flow(actor_features, noise.path)
    errors = losses.flow_matching_error(velocities, path_velocities)

    weights = guidance_weights(settings, q_behavior, q_policy.detach())
    constraint = losses.weighted_flow_matching_loss(errors, weights, settings.per_sample)
    loss = losses.actor_loss(q_policy, constraint)
    logs = [
        loss,
        errors.mean(),
        constraint,
        weights.mean(),
        (q_behavior > q_policy).float().mean(),
        q_policy.mean(),
        q_behavior.mean(),
    ]
    if spread_coef is not None:
        assert others is not None  # for mypy
        mean_log_spread = losses.log_spread(actions, others).mean()
        loss = loss - spread_coef * mean_log_spread
        logs = [loss, *logs[1:], mean_log_spread]
    return loss, th.stack([value.detach() for value in logs])


def guidance_weights(settings: Settings, q_behavior: th.Tensor, q_policy: th.Tensor) -> th.Tensor:
    """
    :param settings: the constants of the equations
    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``
    :return: the weights λ·w, ``(B, 1)``, without gradient
    :raises ValueError: if the guidance returned something of another shape
    """
    weights = settings.guidance(q_behavior, q_policy, settings.w2_coef).detach()
    if weights.shape != q_policy.shape:
        raise ValueError(
            f"guidance={settings.guidance} returned weights of shape {tuple(weights.shape)}; it must return one weight a "
            f"sample, of shape {tuple(q_policy.shape)}, like the values that it is given."
        )
    return weights


def polyak_average(online: nn.Module, target: nn.Module, tau: th.Tensor) -> None:
    """
    θ̄ ← τ θ + (1 - τ) θ̄ for the parameters of a network and its target (paper, Algorithm 1, line 10), in place.

    :param online: the network
    :param target: its target network
    :param tau: weight of the online network, a scalar
    """
    with th.no_grad():
        for source, average in zip(online.parameters(), target.parameters(), strict=True):
            average.lerp_(source, tau)
