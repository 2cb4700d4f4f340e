"""
Define FlowRL with a velocity field that is affine in the point at first, so that the flow starts as a Gaussian.

The Gaussian twin of the study ``worth`` learns faster at first than the flow. Its network sees the state alone. A velocity
field also sees the point and the time, which are noise that it must learn to ignore.
"""

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_flowrl import FlowRL
from sb3_flowrl.networks import Activation, FlowActor, create_normed_mlp
from sb3_flowrl.policies import FlowActorCriticPolicy
from studies.worth.gaussian import LOG_STD_MAX, LOG_STD_MIN


class AffineFieldActor(FlowActor):
    """
    The flow of the field v(t, s, x) = m(t, s, x) + (exp(k(t, s, x)) - 1)·x, with m and k from one network.

    The network's weights for x and t start at 0. One step of Euler's rule then gives tanh(m(s) + exp(k(s))·a0), which is the
    Gaussian twin's policy. From there the weights learn what a Gaussian can't do.

    Takes FlowActor's arguments.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Activation = nn.ReLU,
        layer_norm: bool = True,
        **kwargs: Any,
    ):
        action_dim = get_action_dim(action_space)
        # The fork leaves the generator as it is, so that the critics, made next, start like FlowRL's from the same seed
        with th.random.fork_rng(devices=[]):
            field = create_normed_mlp(features_dim + action_dim + 1, 2 * action_dim, net_arch, activation_fn, layer_norm)
            nn.init.zeros_(field[0].weight[:, features_dim:].detach())  # type: ignore[index]
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
        self.velocity_net = field

    def velocity(self, t: th.Tensor, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Evaluate the velocity field m + (exp(k) - 1)·x.

        :param t: times in [0, 1], ``(B, 1)``
        :param features: features of the states, ``(B, features_dim)``
        :param x: points of the flow, ``(B, A)``
        :return: velocities, ``(B, A)``, in float32 even if the network ran in another precision
        """
        shift, log_scale = super().velocity(t, features, x).chunk(2, dim=1)
        return shift + log_scale.clamp(LOG_STD_MIN, LOG_STD_MAX).expm1() * x


class AffineFieldPolicy(FlowActorCriticPolicy):
    """
    FlowRL's policy with such a field; takes the same arguments.
    """

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> FlowActor:
        """
        Make the actor.

        :param features_extractor: the actor's features extractor; None for one of its own
        :return: the actor
        """
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return AffineFieldActor(**actor_kwargs).to(self.device)


class AffineFieldFlowRL(FlowRL):
    """
    FlowRL with such a field. Takes FlowRL's arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": AffineFieldPolicy}
