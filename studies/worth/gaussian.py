"""
Define the Gaussian twin of FlowRL: the flow is replaced by one affine map of its base sample, everything else is the same.
"""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flowrl import FlowRL
from sb3_flowrl.flow import squash, truncate_noise
from sb3_flowrl.networks import FlowActor, create_normed_mlp
from sb3_flowrl.policies import FlowActorCriticPolicy

#: Bounds of log σ, those of SB3's SAC.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class GaussianActor(FlowActor):
    """
    The policy tanh(μ(s) + σ(s)·a0), with the flow's base sample a0.

    One network gives μ and log σ. It is built like the flow's velocity field, but has neither a point nor a time as input.

    The network gives the logarithm of σ, as SAC's does, for three reasons. σ is always above 0. An optimizer step changes σ by
    a factor, and the spread that FlowRL keeps is a logarithm, too. And σ starts near 1, so that the first policy is a0 plus
    the outputs of a new network, as with the flow. The bounds only guard against overflow.

    Takes FlowActor's arguments. Those of the integration, ``flow_steps`` and ``ode_solver``, have no effect.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ELU,
        layer_norm: bool = True,
        **kwargs: Any,
    ):
        # The fork leaves the generator as it is, so that the critics, made next, start like FlowRL's from the same seed
        with th.random.fork_rng(devices=[]):
            gaussian_net = create_normed_mlp(
                features_dim, 2 * get_action_dim(action_space), net_arch, activation_fn, layer_norm
            )
        super().__init__(
            observation_space,
            action_space,
            net_arch,
            features_extractor,
            features_dim,
            activation_fn=activation_fn,
            layer_norm=layer_norm,
            **kwargs,
        )
        del self.velocity_net
        self.gaussian_net = gaussian_net

    def distribution(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Compute μ and σ.

        :param features: features of the states, ``(B, features_dim)``
        :return: μ and σ, ``(B, A)`` each, in float32 whatever precision the network ran in
        """
        mean, log_std = self.gaussian_net(features).float().chunk(2, dim=1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()

    def flow(self, features: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Map noise to an action; the gradient flows to μ and σ.

        :param features: features of the states, ``(B, features_dim)``
        :param noise: standard normal samples, ``(B, A)``, not yet truncated; zeros give the deterministic action
        :return: actions in [-1, 1], ``(B, A)``
        """
        mean, std = self.distribution(features)
        return squash(mean + std * truncate_noise(noise, self.noise_clip))

    def velocity(self, t: th.Tensor, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Return zeros, since there is no velocity field to match. The update multiplies them by the weight 0.

        :param t: times, ``(B, 1)``; no effect
        :param features: features of the states, ``(B, features_dim)``; no effect
        :param x: points, ``(B, A)``
        :return: zeros, ``(B, A)``, without gradient
        """
        return th.zeros_like(x)


class GaussianTwinPolicy(FlowActorCriticPolicy):
    """
    FlowRL's policy with a Gaussian actor; takes the same arguments.
    """

    actor_class: ClassVar[type[FlowActor]] = GaussianActor


class GaussianTwin(FlowRL):
    """
    FlowRL with a Gaussian actor and without the constraint, which needs a flow.

    The updates, the critics and their first weights, the optimizers, the replay buffer, the random numbers and the spread of
    actions are FlowRL's. Takes FlowRL's arguments; those of the flow and of the matching have no effect.

    :raises ValueError: unless ``w2_coef`` is 0
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": GaussianTwinPolicy}

    def _setup_model(self) -> None:
        if self.w2_coef != 0:
            raise ValueError(
                f"w2_coef={self.w2_coef!r} must be 0 for the Gaussian twin, which has no velocity field to match with the "
                "replay buffer's actions. Write `w2_coef: 0.0` in the study file."
            )
        super()._setup_model()
