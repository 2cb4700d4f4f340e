"""
FlowRL's update as pure functions of networks and tensors (paper, Algorithm 1, lines 7 to 10).

The two loss functions are the paper's: :func:`value_loss` for Q_π, Q_β* and V_β*, :func:`actor_loss` for the flow. They draw
no random numbers, read no tensor on the host and change nothing except running moments of batch normalization (a features
extractor of the user's may do more).
So the same source runs eagerly, under ``torch.compile`` and in CUDA graphs. ``FlowRL.train`` puts them together.

B is the batch size and A the number of action dimensions.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch as th
from torch import nn

from sb3_flowrl import losses
from sb3_flowrl.buffers import Batch
from sb3_flowrl.execution import autocast
from sb3_flowrl.flow import MATCHING_SPACES, FlowNoise, straight_path, truncate_noise
from sb3_flowrl.guidance import Guidance, GuidanceError

if TYPE_CHECKING:
    from sb3_flowrl.policies import FlowActorCriticPolicy

#: Scalars to log, by name.
Terms = dict[str, th.Tensor]


class Settings(NamedTuple):
    """
    Constants of the equations, which are arguments of ``FlowRL``.
    """

    expectile: float
    w2_coef: float
    guidance: Guidance
    per_sample: bool
    matching: str
    precision: str


class Gradients(NamedTuple):
    """
    Gradients of a loss, with the terms to log.

    :ivar gradients: one for each parameter, of its shape; ``None`` for a parameter that does not affect the loss
    :ivar exploded: 1 if the loss or a gradient is not finite, else 0, a scalar
    :ivar terms: the loss and its parts, by name, without gradient
    """

    gradients: Sequence[th.Tensor | None]
    exploded: th.Tensor
    terms: Terms


def value_loss(
    policy: "FlowActorCriticPolicy", settings: Settings, batch: Batch, noise: FlowNoise, learns_behavior: bool = True
) -> tuple[th.Tensor, Terms, th.Tensor | None]:
    """
    Compute the losses of Q_π, Q_β* and V_β* (paper, Eqs. 3, 19 and 18; Algorithm 1, lines 7 and 8).

    They only read values from before this update, so one backward pass through their sum serves all three.

    :param policy: the networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the random numbers of the update
    :param learns_behavior: whether to include the losses of Q_β* and V_β*
    :return: the sum of the losses, the losses by name, and the clipped Q_β*(s, a), ``(B, 1)``, without gradient (``None`` if
        its loss is not included)
    """
    obs, actions, next_obs, discounts = batch.observations, batch.actions, batch.next_observations, batch.discounts
    assert discounts is not None  # `sample_batches` fills them in
    with autocast(settings.precision, actions.device):
        with th.no_grad():
            next_actions = policy.actor.act(next_obs, noise.next_action)
        if policy.critic_target is None:  # normalized by batch: both states in one pass, as in CrossQ
            q, next_q = policy.critic.joint_q(obs, actions, next_obs, next_actions)
        else:
            with th.no_grad():
                next_q = policy.critic_target.q(next_obs, next_actions)
            q = policy.critic.q(obs, actions)
    targets = losses.bootstrap_target(batch.rewards, batch.dones, discounts, losses.clipped_min(next_q.detach()))
    terms = {"critic_loss": losses.critic_loss(q, targets)}
    if not learns_behavior:
        return terms["critic_loss"], terms, None
    behavior_terms, q_behavior = behavior_losses(policy, settings, batch)
    terms |= behavior_terms
    return th.stack(list(terms.values())).sum(), terms, q_behavior


def behavior_losses(policy: "FlowActorCriticPolicy", settings: Settings, batch: Batch) -> tuple[Terms, th.Tensor]:
    """
    Compute the losses of Q_β* and V_β* (paper, Eqs. 19 and 18; Algorithm 1, line 8), a part of :func:`value_loss`.

    :param policy: the networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :return: the losses by name, and the clipped Q_β*(s, a), ``(B, 1)``, without gradient
    """
    obs, actions, discounts = batch.observations, batch.actions, batch.discounts
    assert discounts is not None  # `sample_batches` fills them in
    with autocast(settings.precision, actions.device):
        with th.no_grad():
            next_v = policy.behavior_value(batch.next_observations)
            q_target = losses.clipped_min(policy.behavior_critic_target.q(obs, actions))
        q, v = policy.behavior_critic.q(obs, actions), policy.behavior_value(obs)
    targets = losses.bootstrap_target(batch.rewards, batch.dones, discounts, next_v)
    terms = {
        "behavior_critic_loss": losses.critic_loss(q, targets),
        "value_loss": losses.expectile_loss(q_target - v, settings.expectile),
    }
    return terms, losses.clipped_min(q).detach()


def actor_loss(
    policy: "FlowActorCriticPolicy",
    settings: Settings,
    batch: Batch,
    noise: FlowNoise,
    q_behavior: th.Tensor,
    spread_coef: th.Tensor | None = None,
) -> tuple[th.Tensor, Terms]:
    """
    Compute the actor's loss (paper, Eq. 22; Algorithm 1, line 9), with the term that keeps its actions apart.

    :param policy: the networks
    :param settings: the constants of the equations
    :param batch: replay samples
    :param noise: the random numbers of the update
    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``, from before this update's step of Q_β*
    :param spread_coef: α, a scalar without gradient; ``None`` leaves out the spread of actions
    :return: the loss, and its parts by name
    """
    actor = policy.actor
    with autocast(settings.precision, batch.actions.device):
        features = actor.features(batch.observations)
        actions = actor.flow(features, noise.action)
        q_policy = losses.clipped_min(policy.critic.q(batch.observations, actions))
        end_points = MATCHING_SPACES[settings.matching](batch.actions)
        points, path_velocities = straight_path(truncate_noise(noise.path, actor.noise_clip), end_points, noise.time)
        velocities = actor.velocity(noise.time, features, points)
        others = None if spread_coef is None else actor.flow(features, noise.path)

    errors = losses.flow_matching_error(velocities, path_velocities)
    weights = guidance_weights(settings, q_behavior, q_policy.detach())
    constraint = losses.weighted_flow_matching_loss(errors, weights, settings.per_sample)
    loss = losses.negative_lagrangian(q_policy, constraint)
    terms = {
        "flow_matching_loss": errors.mean(),
        "weighted_flow_matching_loss": constraint,
        "guidance_weight": weights.mean(),
        "guidance_active": (q_behavior > q_policy).float().mean(),
        "q_policy": q_policy.mean(),
        "q_behavior": q_behavior.mean(),
    }
    if spread_coef is not None and others is not None:
        terms["log_spread"] = losses.log_spread(actions, others).mean()
        loss = loss - spread_coef * terms["log_spread"]
    return loss, {"actor_loss": loss, **terms}


def guidance_weights(settings: Settings, q_behavior: th.Tensor, q_policy: th.Tensor) -> th.Tensor:
    """
    Compute the weights of the buffer's actions (paper, Eq. 14), with the guidance that the user chose.

    :param settings: the constants of the equations
    :param q_behavior: clipped Q_β*(s, a), ``(B, 1)``
    :param q_policy: clipped Q_π(s, a^π), ``(B, 1)``
    :return: the weights λ·w, ``(B, 1)``, without gradient
    :raises GuidanceError: if the guidance does not return such weights
    """
    weights = settings.guidance(q_behavior, q_policy, settings.w2_coef)
    if not isinstance(weights, th.Tensor):
        raise GuidanceError(f"guidance={settings.guidance} returned a {type(weights).__name__}; it must return a tensor.")
    if weights.shape != q_policy.shape:
        raise GuidanceError(
            f"guidance={settings.guidance} returned weights of shape {tuple(weights.shape)}; it must return one weight "
            f"for each sample, of shape {tuple(q_policy.shape)}, like the values that it receives."
        )
    return weights.detach().to(q_policy.dtype)


def all_parameters(optimizers: Iterable[th.optim.Optimizer]) -> list[nn.Parameter]:
    """
    List the parameters of optimizers.

    :param optimizers: the optimizers
    :return: their parameters, in their order
    """
    return [parameter for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]]


def trainable_parameters(optimizers: Iterable[th.optim.Optimizer]) -> list[nn.Parameter]:
    """
    List the parameters that optimizers train.

    :param optimizers: the optimizers
    :return: their parameters without the frozen ones, in their order
    """
    return [parameter for parameter in all_parameters(optimizers) if parameter.requires_grad]


def differentiate(loss: th.Tensor, terms: Terms, parameters: Sequence[th.Tensor]) -> Gradients:
    """
    Compute the gradients of a loss for the given parameters only, so that a critic gets none from the actor's loss.

    The gradients are returned instead of stored in ``.grad``, so that one compiled graph holds the forward and the backward
    pass. Each has the memory layout of its parameter, as ``backward()`` would ensure and fused optimizers on CUDA require.

    :param loss: a scalar
    :param terms: scalars to log, by name
    :param parameters: the parameters; empty if all are frozen
    :return: the gradients
    """
    gradients = th.autograd.grad(loss, parameters, allow_unused=True) if parameters else ()
    laid_out = [
        gradient if gradient is None or gradient.stride() == parameter.stride() else th.empty_like(parameter).copy_(gradient)
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
    # A sum is finite only if all of its terms are finite
    sums = [loss.detach(), *(gradient.sum() for gradient in laid_out if gradient is not None)]
    exploded = (~th.stack(sums).sum().isfinite()).float()
    return Gradients(laid_out, exploded, {name: term.detach() for name, term in terms.items()})


def value_gradients(
    policy: "FlowActorCriticPolicy",
    settings: Settings,
    batch: Batch,
    noise: FlowNoise,
    learns_behavior: bool,
    parameters: Sequence[th.Tensor],
) -> tuple[Gradients, th.Tensor | None]:
    """
    Differentiate :func:`value_loss`, which receives all other arguments.

    :param parameters: the parameters of the value functions
    :return: the gradients, and the clipped Q_β*(s, a), ``(B, 1)``
    """
    loss, terms, q_behavior = value_loss(policy, settings, batch, noise, learns_behavior)
    return differentiate(loss, terms, parameters), q_behavior


def actor_gradients(
    policy: "FlowActorCriticPolicy",
    settings: Settings,
    batch: Batch,
    noise: FlowNoise,
    q_behavior: th.Tensor,
    spread_coef: th.Tensor | None,
    parameters: Sequence[th.Tensor],
) -> Gradients:
    """
    Differentiate :func:`actor_loss`, which receives all other arguments.

    :param parameters: the parameters of the actor
    :return: the gradients
    """
    loss, terms = actor_loss(policy, settings, batch, noise, q_behavior, spread_coef)
    return differentiate(loss, terms, parameters)


def descend(optimizers: Sequence[th.optim.Optimizer], computed: Gradients, diverged: th.Tensor) -> None:
    """
    Take the optimizers' steps, but skip them if this loss or an earlier one has exploded.

    Networks would never recover from such a step. A fused optimizer skips it by itself, as it does for PyTorch's
    ``GradScaler``, so the host does not have to wait for the device. For other optimizers the host reads ``diverged``.

    :param optimizers: the optimizers
    :param computed: the gradients of their :func:`trainable_parameters`
    :param diverged: 1 if an earlier loss has exploded, else 0, a scalar; set to 1, in place, if this one has
    """
    diverged.copy_(diverged.maximum(computed.exploded))
    gradients = iter(computed.gradients)
    for parameter in all_parameters(optimizers):
        # A parameter that was frozen during training must lose its last gradient, or it would keep moving
        parameter.grad = next(gradients) if parameter.requires_grad else None
    for optimizer in optimizers:
        # Not optimizer.defaults, because loading an optimizer's state replaces the options of its groups
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = diverged  # type: ignore[attr-defined]
        elif diverged.item():
            continue
        optimizer.step()


def polyak_average(online: nn.Module, target: nn.Module, tau: th.Tensor) -> None:
    """
    Update a moving average of parameters in place: θ̄ ← τ θ + (1 - τ) θ̄ (paper, Algorithm 1, line 10).

    Buffers, such as the running moments of batch normalization, are copied, see SB3's GH issue #996.

    :param online: the network; parameters that the average lacks, such as those of an auxiliary head, are ignored
    :param target: its moving average, such as a target network
    :param tau: weight of the online network, a scalar
    """
    sources = {**dict(online.named_parameters()), **dict(online.named_buffers())}
    with th.no_grad():
        for name, average in target.named_parameters():
            average.lerp_(sources[name], tau)
        for name, buffer in target.named_buffers():
            buffer.copy_(sources[name])


def read_terms(logs: Iterable[Terms]) -> dict[str, list[float]]:
    """
    Read logged scalars on the host, in one transfer from the device.

    :param logs: scalars by name, for instance of several updates
    :return: the values of each name, in their order
    """
    named = [each for terms in logs for each in terms.items()]
    columns: dict[str, list[float]] = {}
    for (name, _), value in zip(named, th.stack([term for _, term in named]).tolist(), strict=True):
        columns.setdefault(name, []).append(value)
    return columns
