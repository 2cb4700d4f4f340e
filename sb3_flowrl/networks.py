"""
The networks of FlowRL: the flow actor, the twin critics and the state value.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_flowrl import execution
from sb3_flowrl.checks import check_finite_actions
from sb3_flowrl.flow import integrate, squash, truncate_noise
from sb3_flowrl.stacked import Linear, StackedMLP

#: A class such as nn.ReLU, or a function that creates a module.
Activation = Callable[[], nn.Module]
#: Constants of CrossQ's batch normalization (Bhatt et al., ICLR 2024, and sb3_contrib).
BATCH_NORM_MOMENTUM, BATCH_NORM_EPS = 0.01, 1e-3


@contextmanager
def float32_by_default() -> Iterator[None]:
    """
    Create modules in float32, even if the user has changed PyTorch's default.

    SB3 converts all observations to float32.
    """
    users_default = th.get_default_dtype()
    th.set_default_dtype(th.float32)
    try:
        yield
    finally:
        th.set_default_dtype(users_default)


@float32_by_default()
def create_normed_mlp(
    input_dim: int,
    output_dim: int,
    net_arch: list[int],
    activation_fn: Activation,
    layer_norm: bool = True,
    linear_ends: bool = False,
    batch_norm: bool = False,
) -> nn.Sequential:
    """
    Create a multi-layer perceptron of Linear → LayerNorm → activation blocks and a linear output layer.

    The weights are Xavier-uniform and the biases zero (the authors' initialization).

    :param input_dim: size of the input vector
    :param output_dim: size of the output vector
    :param net_arch: widths of the hidden layers, one block each; an empty list gives a linear map
    :param activation_fn: activation of the hidden layers
    :param layer_norm: whether blocks have a LayerNorm
    :param linear_ends: leave out the activation of the first and of the last block (the authors' critics)
    :param batch_norm: normalize the input of every linear layer by batch, instead of using LayerNorm (CrossQ's critics). The
        normalization follows the activation. Before the activation it would cancel the linear layer's bias, whose gradient
        would then consist of rounding errors, and Adam would turn these into full steps
    :return: the network
    """
    layers: list[nn.Module] = []
    width = input_dim
    for index, next_width in enumerate(net_arch):
        layers += [_batch_norm(width)] if batch_norm else []
        layers.append(Linear(width, next_width))
        layers += [nn.LayerNorm(next_width)] if layer_norm and not batch_norm else []
        if batch_norm or not (linear_ends and index in (0, len(net_arch) - 1)):
            layers.append(_make_activation(activation_fn, next_width))
        width = next_width
    layers += [_batch_norm(width)] if batch_norm else []
    layers.append(Linear(width, output_dim))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def _make_activation(activation_fn: Activation, width: int) -> nn.Module:
    try:
        activation = activation_fn()
        with th.no_grad(), th.random.fork_rng(devices=[]):
            shape = copy.deepcopy(activation)(th.zeros(2, width)).shape
    except Exception as error:
        raise ValueError(
            f"activation_fn={activation_fn} does not create an activation: {type(error).__name__}: {error}. Pass a class "
            "such as nn.ReLU, or a function without arguments that returns a module."
        ) from error
    if shape != (2, width):
        raise ValueError(
            f"activation_fn={activation_fn} turns {width} features into {tuple(shape[1:])}; it must not change their number."
        )
    if type(activation) is nn.ReLU:
        activation.inplace = True  # no layer before it needs its output again; 5 % of an eager update on a CPU
    return activation


def _batch_norm(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)


class BoundedActionPolicy(BasePolicy):
    """
    Squashed policy whose unscaled actions never leave the action space, not even by a rounding error.
    """

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Rescale the action from [-1, 1] to [low, high].

        :param scaled_action: action(s) in [-1, 1], ``(*action_shape)`` or ``(n, *action_shape)``
        :return: action(s) of the same shape, inside the bounds (``low + (high - low)`` may round to more than ``high``)
        :raises ValueError: if an action is not finite
        """
        assert isinstance(self.action_space, spaces.Box)  # for mypy
        check_finite_actions(scaled_action, self)
        actions = np.clip(super().unscale_action(scaled_action), self.action_space.low, self.action_space.high)
        return actions.astype(self.action_space.dtype, copy=False)  # a space of float16 holds nothing wider


class FlowActor(BoundedActionPolicy):
    """
    Flow policy (paper, Section 4.1): a velocity field, conditioned on the state, that carries noise to an action.

    The field is one network. Its input is the concatenation of the state's features, the point x and the time t.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Widths of the velocity field's hidden layers
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param layer_norm: Whether each hidden layer has a LayerNorm before its activation
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param flow_steps: Number of integration steps N from noise to action
    :param ode_solver: Integration rule: "euler", "midpoint" or "rk4"
    :param noise_clip: Bound of the components of the base sample a0 ~ N(0, I); ``None`` leaves it unbounded
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Activation = nn.ELU,
        layer_norm: bool = True,
        normalize_images: bool = True,
        flow_steps: int = 1,
        ode_solver: str = "midpoint",
        noise_clip: float | None = 1.0,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )

        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.layer_norm = layer_norm
        self.flow_steps = flow_steps
        self.ode_solver = ode_solver
        self.noise_clip = noise_clip

        self._captured_calls = execution.CapturedCalls("predict")
        self.action_dim = get_action_dim(self.action_space)
        self.velocity_net = create_normed_mlp(
            features_dim + self.action_dim + 1, self.action_dim, net_arch, activation_fn, layer_norm
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()

        data.update(
            dict(
                net_arch=self.net_arch,
                features_dim=self.features_dim,
                activation_fn=self.activation_fn,
                layer_norm=self.layer_norm,
                features_extractor=self.features_extractor,
                flow_steps=self.flow_steps,
                ode_solver=self.ode_solver,
                noise_clip=self.noise_clip,
            )
        )
        return data

    def velocity(self, t: th.Tensor, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Evaluate the velocity field v_θ(t, s, x).

        :param t: times in [0, 1], ``(B, 1)``
        :param features: features of the states s, ``(B, features_dim)``
        :param x: points of the flow, ``(B, A)``
        :return: velocities, ``(B, A)``, in float32 even if the network ran in another precision
        """
        return self.velocity_net(th.cat([features, x, t], dim=1)).float()

    def flow(self, features: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Carry noise along the flow to an action for each state.

        Gradients flow through every integration step.

        :param features: features of the states, ``(B, features_dim)``
        :param noise: standard normal samples, ``(B, A)``, not yet truncated; zeros give the deterministic action
        :return: actions in [-1, 1], ``(B, A)``
        """
        end_points = integrate(
            lambda t, x: self.velocity(t, features, x),
            truncate_noise(noise, self.noise_clip),
            self.flow_steps,
            self.ode_solver,
        )
        return squash(end_points)

    @property
    def integration(self) -> tuple[int, str, float | None]:
        """Return the constants of the integration: ``flow_steps``, ``ode_solver`` and ``noise_clip``."""
        return self.flow_steps, self.ode_solver, self.noise_clip

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        Extract the features on which the velocity field is conditioned.

        :param obs: observations, ``(B, *obs_shape)``
        :return: features, ``(B, features_dim)``
        """
        return self.extract_features(obs, self.features_extractor)

    def act(self, obs: PyTorchObs, noise: th.Tensor) -> th.Tensor:
        """
        Carry noise along the flow to an action for each observation.

        :param obs: observations, ``(B, *obs_shape)``
        :param noise: as for :meth:`flow`
        :return: actions in [-1, 1], ``(B, A)``
        """
        return self.flow(self.features(obs), noise)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Sample an action for each observation.

        :param obs: observations, ``(B, *obs_shape)``
        :param deterministic: start the flow at a0 = 0, the center of the base distribution, instead of a random sample
        :return: actions in [-1, 1], ``(B, A)``
        """
        features = self.features(obs)
        draw = th.zeros if deterministic else th.randn
        return self.flow(features, draw(len(features), self.action_dim, device=features.device, dtype=th.float32))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if self.device.type != execution.GRAPH_DEVICE or th.is_grad_enabled() or not execution.is_current(self.device):
            return self(observation, deterministic)
        # A graph reads the parameters where they were when it was captured
        places = (each.data_ptr() for each in (*self.parameters(), *self.buffers()))
        key = (deterministic, self.training, *self.integration, *places)
        return self._captured_calls.call(lambda obs: self(obs, deterministic), observation, key)


class _ValueModel(BaseModel):
    """
    Base class of Q(s, a) and V(s): equal networks on one features extractor.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Widths of the hidden layers
    :param features_extractor: Network to extract features
        (a CNN when using images, a nn.Flatten() layer otherwise)
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param layer_norm: Whether each hidden layer has a LayerNorm before its activation
    :param critic_layout: "mlp", or "reference" to leave out the first and the last hidden layer's activation
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param n_networks: Number of networks
    :param share_features_extractor: Whether the features extractor is the actor's and trained by the actor's loss only
    :param batch_norm: Whether the inputs of all linear layers are normalized by batch, instead of using LayerNorm. Every
        hidden layer then has an activation, in both layouts
    """

    #: Whether the value depends on an action as well as on the state
    takes_actions: ClassVar[bool]
    #: Number of outputs of each network
    n_outputs: ClassVar[int] = 1

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Activation = nn.GELU,
        layer_norm: bool = True,
        critic_layout: str = "mlp",
        normalize_images: bool = True,
        n_networks: int = 1,
        share_features_extractor: bool = False,
        batch_norm: bool = False,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.share_features_extractor = share_features_extractor
        input_dim = features_dim + (get_action_dim(action_space) if self.takes_actions else 0)
        options = (net_arch, activation_fn, layer_norm, critic_layout == "reference", batch_norm)
        self.networks = StackedMLP([create_normed_mlp(input_dim, self.n_outputs, *options) for _ in range(n_networks)])

    def features(self, obs: PyTorchObs) -> th.Tensor:
        """
        Extract the inputs of the networks from observations.

        :param obs: observations, ``(B, *obs_shape)``
        :return: features, ``(B, features_dim)``, without gradient if the extractor is the actor's
        """
        with th.set_grad_enabled(th.is_grad_enabled() and not self.share_features_extractor):
            return self.extract_features(obs, self.features_extractor)

    def own_parameters(self) -> list[nn.Parameter]:
        """
        List the parameters that this model's own loss trains.

        :return: the parameters; those of the actor's features extractor are left out
        """
        return list(self.networks.parameters() if self.share_features_extractor else self.parameters())


class FlowCritic(_ValueModel):
    """
    Critic network(s) of FlowRL, Q(s, a); clipped Q-learning uses two. Parameters as in ``_ValueModel``.
    """

    takes_actions = True

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        Estimate the values of actions, in the form of SB3's critics.

        :param obs: observations, ``(B, *obs_shape)``
        :param actions: actions in [-1, 1], ``(B, A)``
        :return: one ``(B, 1)`` tensor of values for each critic network, in float32
        """
        return tuple(self.q(obs, actions))

    def q(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Estimate the values of actions.

        :param obs: observations, ``(B, *obs_shape)``
        :param actions: actions in [-1, 1], ``(B, A)``
        :return: values of each critic network, ``(n_critics, B, 1)``, in float32
        """
        return self.networks(self._inputs(obs, actions))

    def joint_q(
        self, obs: PyTorchObs, actions: th.Tensor, next_obs: PyTorchObs, next_actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Estimate the values of actions in the current and the next states in one pass.

        Batch normalization then uses the moments of both together (Bhatt et al., "CrossQ", ICLR 2024).

        :param obs: observations, ``(B, *obs_shape)``
        :param actions: actions in these states, in [-1, 1], ``(B, A)``
        :param next_obs: the next observations, ``(B, *obs_shape)``; their features have no gradient
        :param next_actions: actions in the next states, ``(B, A)``
        :return: the values in the current and in the next states, each ``(n_critics, B, 1)``, in float32
        """
        with th.no_grad():
            next_inputs = self._inputs(next_obs, next_actions)
        joint = self.networks(th.cat([self._inputs(obs, actions), next_inputs]), by_batch=True)
        q, next_q = joint.chunk(2, dim=1)
        return q, next_q

    def _inputs(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        # The replay buffer may hold half-precision actions
        return th.cat([self.features(obs), actions.float()], dim=1)


class FlowValue(_ValueModel):
    """
    State value network of FlowRL, V_β*(s). Parameters as in ``_ValueModel``.
    """

    takes_actions = False

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """
        Estimate the values of states.

        :param obs: observations, ``(B, *obs_shape)``
        :return: values, ``(B, 1)``, in float32
        """
        return self.networks(self.features(obs))[0]
