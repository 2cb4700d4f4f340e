"""
The policy of FlowRL, which holds its networks and their optimizers.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import get_device
from torch import nn

from sb3_flowrl import legacy
from sb3_flowrl.checks import (
    ALGORITHM_CHECKS,
    POLICY_CHECKS,
    UnsupportedObservationSpaceError,
    check_action_space,
    check_arguments,
)
from sb3_flowrl.networks import Activation, BoundedActionPolicy, FlowActor, FlowCritic, FlowValue, float32_by_default

#: Widths of hidden layers, for all networks or by "pi", "qf" and "behavior".
NetArch = Sequence[int] | Mapping[str, Sequence[int]]

#: Values of the policy's arguments where ``None`` is passed; ``optimizer_kwargs`` are for Adam and AdamW only.
POLICY_DEFAULTS: dict[str, Any] = dict(
    net_arch=dict(pi=[256, 256], qf=[256, 256], behavior=[128, 128]),
    activation_fn=nn.ReLU,
    batch_norm=True,
    optimizer_kwargs=dict(betas=(0.5, 0.999), fused=True),
)

SelfFlowActorCriticPolicy = TypeVar("SelfFlowActorCriticPolicy", bound="FlowActorCriticPolicy")


class FlowActorCriticPolicy(BoundedActionPolicy):
    """
    Policy class of FlowRL, with all its networks and their optimizers.

    The networks are the flow actor, the twin critic Q_π, the twin critic Q_β* of the best behavior in the replay buffer, and
    that behavior's state value V_β*. Q_β* has a target network; Q_π has one unless it is normalized by batch.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Widths of the hidden layers, each one Linear → LayerNorm → activation (but see ``batch_norm``): a list for
        all networks, or ``dict(pi=[...], qf=[...])`` for the actor and for the critics and V_β*. A third key,
        ``behavior=[...]``, sets the widths of Q_β* and V_β*: they only serve the constraint, and may be smaller.
        Default: ``dict(pi=[256, 256], qf=[256, 256], behavior=[128, 128])``, where SB3's SAC has ``[256, 256]`` (the paper's
        Table 1: ``dict(pi=[512, 512], qf=[512, 512, 512])``)
    :param activation_fn: Activation function: one for all networks, or ``dict(pi=..., qf=...)``; each is a class, or a
        function that creates a module, such as ``functools.partial(nn.LeakyReLU, 0.2)``.
        Default: ``nn.ReLU`` (the authors use ``dict(pi=nn.ELU, qf=nn.GELU)``)
    :param layer_norm: Whether each hidden layer has a LayerNorm before its activation
    :param batch_norm: Whether the inputs of Q_π's layers are normalized by batch. This replaces its LayerNorms and its
        ``critic_layout``. Q_π then has no target network, as in CrossQ (Bhatt et al., ICLR 2024): it bootstraps from its own
        values, computed in the same pass of its networks as the values that are trained. Unlike sb3_contrib's CrossQ, the
        actor has no batch normalization, and Q_π uses plain batch normalization throughout training.
        Default: True
    :param critic_layout: "mlp", or "reference" for the critics and V_β* of the authors' code, which leave out the
        activation of the first and of the last hidden layer; theirs are four wide, ``qf=[512, 512, 512, 512]``
    :param features_extractor_class: Features extractor to use.
    :param features_extractor_kwargs: Keyword arguments
        to pass to the features extractor.
    :param normalize_images: Whether to normalize images or not,
         dividing by 255.0 (True by default)
    :param optimizer_class: The optimizer to use,
        ``th.optim.Adam`` by default
    :param optimizer_kwargs: Additional keyword arguments,
        excluding the learning rate, to pass to the optimizer.
        Default for Adam and AdamW: ``dict(betas=(0.5, 0.999), fused=True)`` (CrossQ's momentum, and the step in one kernel)
    :param n_critics: Number of networks in each critic.
    :param share_features_extractor: Whether to share or not the features extractor
        between the actor, the critics and V_β* (this saves memory, and the other gradients). A shared extractor is
        trained by the actor's loss only, as in SB3's SAC; the targets keep their own
    :param flow_steps: Number of integration steps N from noise to action. Set by ``FlowRL``.
    :param ode_solver: Integration rule: "euler", "midpoint" or "rk4". Set by ``FlowRL``.
    :param noise_clip: Bound of the components of the base sample; ``None`` leaves it unbounded. Set by ``FlowRL``.
    :param average_actor: Whether to keep a moving average of the actor, which gives the deterministic actions. Set by
        ``FlowRL``.
    :raises ValueError: if an argument or a space is not allowed (see ``sb3_flowrl.checks``), or ``critic_layout`` is
        "reference" for fewer than three hidden layers
    """

    #: Class of the actor
    actor_class: ClassVar[type[FlowActor]] = FlowActor
    #: Class of Q_π; Q_β* is always a ``FlowCritic``
    critic_class: ClassVar[type[FlowCritic]] = FlowCritic

    actor: FlowActor
    critic: FlowCritic
    critic_target: FlowCritic | None
    behavior_critic: FlowCritic
    behavior_critic_target: FlowCritic
    behavior_value: FlowValue
    averaged_actor: FlowActor | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: Activation | Mapping[str, Activation] | None = None,
        layer_norm: bool = True,
        batch_norm: bool | None = None,
        critic_layout: str = "mlp",
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        flow_steps: int = 1,
        ode_solver: str = "midpoint",
        noise_clip: float | None = 1.0,
        average_actor: bool = False,
    ):
        arguments = dict(
            net_arch=net_arch,
            activation_fn=activation_fn,
            layer_norm=layer_norm,
            batch_norm=batch_norm,
            critic_layout=critic_layout,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            n_critics=n_critics,
            share_features_extractor=share_features_extractor,
            average_actor=average_actor,
        )
        check_arguments(POLICY_CHECKS, arguments)
        check_arguments(ALGORITHM_CHECKS, dict(flow_steps=flow_steps, ode_solver=ode_solver, noise_clip=noise_clip))
        check_action_space(action_space)
        if isinstance(observation_space, spaces.Dict) and features_extractor_class is FlattenExtractor:
            raise UnsupportedObservationSpaceError(
                f"FlattenExtractor, which is MlpPolicy's, can't take {observation_space}. Use MultiInputPolicy with its own."
            )
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = dict(POLICY_DEFAULTS["optimizer_kwargs"])

        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )

        if net_arch is None:
            net_arch = {name: list(widths) for name, widths in POLICY_DEFAULTS["net_arch"].items()}
        if activation_fn is None:
            activation_fn = POLICY_DEFAULTS["activation_fn"]
        if batch_norm is None:
            batch_norm = POLICY_DEFAULTS["batch_norm"]

        actor_arch, critic_arch = get_actor_critic_arch(_as_lists(net_arch))
        behavior_arch = list(net_arch["behavior"]) if "behavior" in net_arch else critic_arch  # type: ignore[call-overload]
        actor_activation, critic_activation = _split_activations(activation_fn)
        if not batch_norm:  # which leaves no layout to choose
            _check_critic_layout(critic_layout, "qf", critic_arch)
        _check_critic_layout(critic_layout, "behavior" if "behavior" in net_arch else "qf", behavior_arch)

        self.net_arch = net_arch
        self.activation_fn = activation_fn
        net_args = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "layer_norm": layer_norm,
            "normalize_images": normalize_images,
        }
        self.actor_kwargs: dict[str, Any] = {
            **net_args,
            "net_arch": actor_arch,
            "activation_fn": actor_activation,
            "flow_steps": flow_steps,
            "ode_solver": ode_solver,
            "noise_clip": noise_clip,
        }
        self.value_kwargs: dict[str, Any] = {
            **net_args,
            "net_arch": behavior_arch,
            "activation_fn": critic_activation,
            "critic_layout": critic_layout,
        }
        self.behavior_critic_kwargs: dict[str, Any] = {**self.value_kwargs, "n_networks": n_critics}
        self.critic_kwargs: dict[str, Any] = {**self.behavior_critic_kwargs, "net_arch": critic_arch}
        self.batch_norm = batch_norm
        self.share_features_extractor = share_features_extractor
        self.average_actor = average_actor

        self._build(lr_schedule)

    @float32_by_default()
    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared, batch_norm=self.batch_norm)
        # The targets' extractors follow slowly, so they can't be the shared one
        self.critic_target = None if self.batch_norm else self.make_critic()
        self.behavior_critic = self.make_critic(shared, self.behavior_critic_kwargs)
        self.behavior_critic_target = self.make_critic(None, self.behavior_critic_kwargs)
        self.behavior_value = self.make_value(shared)

        if self.critic_target is not None:
            self.critic_target.load_state_dict(self.critic.state_dict())
            # Equal initial weights, if both critics have the same layers: the first guidance weights then compare policies
            if self.critic_kwargs == self.behavior_critic_kwargs:
                self.behavior_critic.load_state_dict(self.critic.state_dict())
        self.behavior_critic_target.load_state_dict(self.behavior_critic.state_dict())
        self.averaged_actor = self._make_averaged_actor() if self.average_actor else None

        self.actor.optimizer = self._make_optimizer(list(self.actor.parameters()), lr_schedule)
        for model in (self.critic, self.behavior_critic, self.behavior_value):
            model.optimizer = self._make_optimizer(model.own_parameters(), lr_schedule)

        # Averages of networks should always be in eval mode
        for target in (self.critic_target, self.behavior_critic_target, self.averaged_actor):
            if target is not None:
                target.set_training_mode(False)

    def _make_averaged_actor(self) -> FlowActor:
        with th.random.fork_rng(devices=[]):  # later random numbers stay the same with and without it
            average = self.make_actor()
        average.load_state_dict(self.actor.state_dict())
        return average.requires_grad_(False)

    def _make_optimizer(self, parameters: list[nn.Parameter], lr_schedule: Schedule) -> th.optim.Optimizer:
        learning_rate = lr_schedule(1)
        try:
            return self.optimizer_class(parameters, lr=learning_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"optimizer_kwargs={self.optimizer_kwargs} is not valid for {self.optimizer_class.__name__}: {error}"
            ) from error

    @classmethod
    def load(
        cls: type[SelfFlowActorCriticPolicy], path: str | Path | io.BytesIO, device: th.device | str = "auto"
    ) -> SelfFlowActorCriticPolicy:
        """
        Load a policy that was saved alone, with ``policy.save``.

        :param path: the file
        :param device: Device on which the policy should be loaded.
        :return: the policy
        """
        device = get_device(device)
        # `weights_only` would refuse Gymnasium's spaces
        saved = th.load(path, map_location=device, weights_only=False)
        policy = cls(**legacy.policy_arguments(saved["data"]))
        policy.load_state_dict(legacy.stacked_policy_state(policy, saved["state_dict"]))
        return policy.to(device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()

        data.update(
            dict(
                net_arch=self.net_arch,
                activation_fn=self.activation_fn,
                layer_norm=self.actor_kwargs["layer_norm"],
                critic_layout=self.critic_kwargs["critic_layout"],
                n_critics=self.critic_kwargs["n_networks"],
                batch_norm=self.batch_norm,
                share_features_extractor=self.share_features_extractor,
                flow_steps=self.actor_kwargs["flow_steps"],
                ode_solver=self.actor_kwargs["ode_solver"],
                noise_clip=self.actor_kwargs["noise_clip"],
                average_actor=self.average_actor,
                lr_schedule=self._dummy_schedule,  # dummy lr schedule, not needed for loading policy alone
                optimizer_class=self.optimizer_class,
                optimizer_kwargs=self.optimizer_kwargs,
                features_extractor_class=self.features_extractor_class,
                features_extractor_kwargs=self.features_extractor_kwargs,
            )
        )
        return data

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> FlowActor:
        """
        Create an actor.

        :param features_extractor: a features extractor to share; ``None`` creates one
        :return: the actor
        """
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return self.actor_class(**actor_kwargs).to(self.device)

    def make_critic(
        self,
        features_extractor: BaseFeaturesExtractor | None = None,
        critic_kwargs: dict[str, Any] | None = None,
        batch_norm: bool = False,
    ) -> FlowCritic:
        """
        Create a critic.

        :param features_extractor: the actor's features extractor, to share it; ``None`` creates one
        :param critic_kwargs: arguments of ``FlowCritic``; those of Q_π by default
        :param batch_norm: whether the critic is normalized by batch
        :return: the critic
        """
        critic_class = self.critic_class if critic_kwargs is None else FlowCritic
        critic_kwargs = {**(critic_kwargs or self.critic_kwargs), "batch_norm": batch_norm}
        critic_kwargs = self._update_features_extractor(critic_kwargs, features_extractor)
        return critic_class(share_features_extractor=features_extractor is not None, **critic_kwargs).to(self.device)

    def make_value(self, features_extractor: BaseFeaturesExtractor | None = None) -> FlowValue:
        """
        Create the state value V_β*.

        :param features_extractor: the actor's features extractor, to share it; ``None`` creates one
        :return: the state value
        """
        value_kwargs = self._update_features_extractor(self.value_kwargs, features_extractor)
        return FlowValue(share_features_extractor=features_extractor is not None, **value_kwargs).to(self.device)

    @property
    def value_optimizers(self) -> list[th.optim.Optimizer]:
        """Return the optimizers of Q_π, Q_β* and V_β*."""
        return [self.critic.optimizer, self.behavior_critic.optimizer, self.behavior_value.optimizer]

    def averages(self, tau: float, actor_tau: float | None) -> list[tuple[nn.Module, nn.Module, float]]:
        """
        List the networks that have a moving average.

        :param tau: weight of a critic in its target
        :param actor_tau: weight of the actor in its average. None, in a model that was made with an average, makes the average
            equal to the actor
        :return: each network, its average, and its weight in it
        :raises ValueError: if there is a weight, but no average
        """
        averages: list[tuple[nn.Module, nn.Module, float]] = []
        if self.critic_target is not None:
            averages.append((self.critic, self.critic_target, tau))
        averages.append((self.behavior_critic, self.behavior_critic_target, tau))
        if self.averaged_actor is not None:
            averages.append((self.actor, self.averaged_actor, 1.0 if actor_tau is None else actor_tau))
        elif actor_tau is not None:
            raise ValueError(
                f"actor_tau={actor_tau} needs a moving average of the actor, but this model was made with actor_tau=None. "
                f"Save it, and load it with FlowRL.load(path, env, actor_tau={actor_tau})."
            )
        return averages

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Compute an action for each observation.

        :param obs: observations, ``(B, *obs_shape)``
        :param deterministic: take the deterministic action of :attr:`trained_actor`, instead of a sample from the actor
        :return: actions in [-1, 1], ``(B, A)``
        """
        return self._predict(obs, deterministic=deterministic)

    @property
    def trained_actor(self) -> FlowActor:
        """Return the actor to use after training: the averaged actor if there is one, otherwise the actor."""
        return self.actor if self.averaged_actor is None else self.averaged_actor

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return (self.trained_actor if deterministic else self.actor)._predict(observation, deterministic)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        average_keys = [key for key in state_dict if key.startswith(f"{prefix}averaged_actor.")]
        if self.averaged_actor is None:  # drop a saved average that this policy does not keep
            for key in average_keys:
                del state_dict[key]
        elif not average_keys:  # start the average from the saved actor
            actor_keys = [key for key in state_dict if key.startswith(f"{prefix}actor.")]
            state_dict.update({f"{prefix}averaged_{key[len(prefix):]}": state_dict[key] for key in actor_keys})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put the policy in either training or evaluation mode.

        This affects certain modules, such as batch normalization and dropout. Target networks and the averaged actor stay in
        evaluation mode.

        :param mode: if true, set to training mode, else set to evaluation mode
        """
        for model in (self.actor, self.critic, self.behavior_critic, self.behavior_value):
            # Every prediction calls this. Setting the mode takes almost as long as predicting, and checking it a fiftieth
            if not _is_in_mode(model, mode):
                model.set_training_mode(mode)
        self.training = mode


def _is_in_mode(module: nn.Module, mode: bool) -> bool:
    """Check whether a module and all its parts are in a mode; five times as fast as with ``modules()``."""
    modules: list[nn.Module | None] = [module]
    while modules:
        each = modules.pop()
        if each is not None:
            if each.training != mode:
                return False
            modules.extend(each._modules.values())
    return True


def _as_lists(net_arch: NetArch) -> list[int] | dict[str, list[int]]:
    return {key: list(widths) for key, widths in net_arch.items()} if isinstance(net_arch, Mapping) else list(net_arch)


def _split_activations(activation_fn: Activation | Mapping[str, Activation]) -> tuple[Activation, Activation]:
    if not isinstance(activation_fn, Mapping):
        return activation_fn, activation_fn
    return activation_fn["pi"], activation_fn["qf"]


def _check_critic_layout(critic_layout: str, key: str, critic_arch: list[int]) -> None:
    if critic_layout == "reference" and len(critic_arch) < 3:
        raise ValueError(
            f"critic_layout='reference' has no activation after its first and its last hidden layer, so with "
            f"{key}={critic_arch} the critics would have none at all. Use three hidden layers or more "
            "(the authors' critics have four), or use critic_layout='mlp'."
        )


MlpPolicy = FlowActorCriticPolicy


class CnnPolicy(FlowActorCriticPolicy):
    """
    Policy class of FlowRL for images.

    All other parameters are those of ``FlowActorCriticPolicy``.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: Features extractor to use, ``NatureCNN`` by default.
    :raises UnsupportedObservationSpaceError: if the extractor is ``NatureCNN``, and the observations are not images
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **kwargs: Any,
    ):
        images_are_normalized = not kwargs.get("normalize_images", True)
        if features_extractor_class is NatureCNN and not is_image_space(
            observation_space, check_channels=False, normalized_image=images_are_normalized
        ):
            raise UnsupportedObservationSpaceError(
                f"CnnPolicy needs images, but the observation space is {observation_space}. An image space is a Box with "
                "three dimensions, dtype uint8 and bounds 0 and 255 (any dtype and bounds with "
                "policy_kwargs=dict(normalize_images=False)). Use MlpPolicy for vectors, and MultiInputPolicy for a Dict."
            )
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )


class MultiInputPolicy(FlowActorCriticPolicy):
    """
    Policy class of FlowRL for Dict observation spaces.

    All other parameters are those of ``FlowActorCriticPolicy``.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param features_extractor_class: Features extractor to use, ``CombinedExtractor`` by default.
    :raises UnsupportedObservationSpaceError: if the observation space is not a Dict
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = CombinedExtractor,
        **kwargs: Any,
    ):
        if not isinstance(observation_space, spaces.Dict):
            raise UnsupportedObservationSpaceError(
                f"MultiInputPolicy needs Dict observations, but the observation space is {observation_space}. Use "
                "MlpPolicy, or CnnPolicy for images."
            )
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **kwargs
        )
