"""
Define FlowRL with a velocity field that is affine in the point at first, so that the flow starts as a Gaussian.

The Gaussian twin of the study ``worth`` learns faster at first than the flow. Its network sees the state alone. A velocity
field also sees the point and the time, which are noise that it must learn to ignore.
"""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_flowrl import FlowRL
from sb3_flowrl.networks import FlowActor, create_normed_mlp
from sb3_flowrl.policies import FlowActorCriticPolicy
from studies.worth.gaussian import LOG_STD_MAX, LOG_STD_MIN


class AffineFieldActor(FlowActor):
    """
    The flow of the field v(t, s, x) = m(t, s, x) + (exp(k(t, s, x)) - 1)·x, with m and k from one network.

    The network's weights for x and t start at 0. One step of Euler's rule then gives tanh(m(s) + exp(k(s))·a0), which is the
    Gaussian twin's policy. From there the weights learn what a Gaussian can't do.

    Takes FlowActor's arguments, by name.
    """

    def __init__(self, **arguments: Any):
        action_dim, features_dim = get_action_dim(arguments["action_space"]), arguments["features_dim"]
        # The fork leaves the generator as it is, so that the critics, made next, start like FlowRL's from the same seed
        with th.random.fork_rng(devices=[]):
            field = create_normed_mlp(
                features_dim + action_dim + 1,
                2 * action_dim,
                arguments["net_arch"],
                arguments["activation_fn"],
                arguments["layer_norm"],
            )
            nn.init.zeros_(field[0].weight[:, features_dim:].detach())  # type: ignore[index]
        super().__init__(**arguments)
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

    actor_class: ClassVar[type[FlowActor]] = AffineFieldActor


class AffineFieldFlowRL(FlowRL):
    """
    FlowRL with such a field. Takes FlowRL's arguments.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": AffineFieldPolicy}
