"""
A callback that shows why a run learns or stalls.

:class:`DiagnosticsCallback` logs the quantities of :mod:`sb3_flowrl.diagnostics.instruments`. The other functions of this
module get the inputs of these quantities from a model.

B is the number of sampled transitions, A the number of action dimensions, and n the number of networks in a critic.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BaseModel, ContinuousCritic
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_flowrl import update
from sb3_flowrl.buffers import Batch, sample_batches
from sb3_flowrl.checks import check_positive_int
from sb3_flowrl.diagnostics.instruments import (
    action_spread,
    behavior_advantage,
    dead_share,
    discounted_returns,
    effective_rank,
    feature_norm,
    gradient_cosine,
    gradient_norm,
    n_steps_with_known_return,
    saturated_share,
)
from sb3_flowrl.execution import own_random_numbers
from sb3_flowrl.flow import FlowNoise, draw_noise
from sb3_flowrl.losses import clipped_min
from sb3_flowrl.networks import FlowCritic
from sb3_flowrl.stacked import StackedBatchNorm

if TYPE_CHECKING:
    from sb3_flowrl.flowrl import FlowRL

#: K, the number of actions that are drawn from the policy for each state.
N_ACTIONS = 16
#: Steps after which an evaluation episode is cut if it does not end by itself.
MAX_EPISODE_STEPS = 10_000


# ------------------------------------------------------------------------------------------------ inputs of the quantities


def sample_replay(model: OffPolicyAlgorithm, sample_size: int) -> Batch:
    """
    Sample transitions from the replay buffer as training does.

    :param model: a model with a replay buffer that is not empty
    :param sample_size: B
    :return: transitions, normalized as in training
    """
    buffer = model.replay_buffer
    assert buffer is not None  # for mypy
    normalizer = model.get_vec_normalize_env()
    (batch,) = sample_batches(buffer, 1, sample_size, model.gamma, normalizer, model.device, check=lambda _: None)
    return batch


@th.no_grad()
def policy_actions(model: OffPolicyAlgorithm, obs: PyTorchObs) -> th.Tensor:
    """
    Draw stochastic actions from the policy.

    :param model: the model
    :param obs: observations, ``(B, *obs_shape)``
    :return: :data:`N_ACTIONS` actions in [-1, 1] for each observation, ``(K, B, A)``
    """
    return th.stack([model.policy._predict(obs, deterministic=False) for _ in range(N_ACTIONS)])


@th.no_grad()
def hidden_features(critic: BaseModel, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
    """
    Return the outputs of the last hidden layer of a critic's networks, or their inputs if they have no hidden layers.

    :param critic: a critic of FlowRL, or one of SB3's form
    :param obs: observations, ``(B, *obs_shape)``
    :param actions: actions in [-1, 1], ``(B, A)``
    :return: outputs of the last hidden layer of each network, ``(n, B, width)``
    """
    if isinstance(critic, FlowCritic):
        x = th.cat([critic.features(obs), actions.float()], dim=1)
        layers = list(critic.networks)[:-1]
        # A normalization after the activation does not belong to the hidden layer
        hidden: Sequence[Callable[[th.Tensor], th.Tensor]] = (
            layers[:-1] if layers and isinstance(layers[-1], StackedBatchNorm) else layers
        )
        return reduce(lambda y, layer: layer(y), hidden, x.expand(critic.networks.n_networks, *x.shape))
    critic = cast(ContinuousCritic, critic)
    x = th.cat([critic.extract_features(obs, critic.features_extractor), actions.float()], dim=1)
    return th.stack([cast(th.nn.Sequential, network)[:-1](x) for network in critic.q_networks])


@th.no_grad()
def clipped_values(critic: FlowCritic, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
    """
    Return a critic's clipped values.

    :param critic: Q_π or Q_β*
    :param obs: observations, ``(B, *obs_shape)``
    :param actions: actions in [-1, 1], ``(B, A)``
    :return: the clipped values, ``(B, 1)``
    """
    return clipped_min(critic.q(obs, actions))


class ActorTerms(NamedTuple):
    """
    Gradients of the two terms of the actor's loss.

    :ivar q: gradients of -mean(Q_π), one for each parameter of the actor, of the same shape
    :ivar constraint: gradients of the weighted flow-matching loss, likewise
    :ivar logs: the loss and its parts, by name
    """

    q: list[th.Tensor]
    constraint: list[th.Tensor]
    logs: dict[str, float]


def actor_terms(model: "FlowRL", batch: Batch, noise: FlowNoise) -> ActorTerms:
    """
    Compute the gradients of the two terms of the actor's loss (paper, Eq. 22) in float32.

    They are the gradients of an update, but are returned and not left in ``.grad``. The loss is that of training,
    ``update.actor_loss``. It is differentiated once as it is, and once with weights of 0, where only the Q term remains. The
    difference is the gradient of the constraint. A spread's term (``spread_coef``) is left out.

    :param model: the model
    :param batch: replay samples
    :param noise: random numbers as for one update
    :return: the gradients, and the values
    """
    settings = model.settings._replace(precision="float32")
    whole, terms = _actor_gradients(model, settings, batch, noise)
    without_weights = settings._replace(guidance=lambda q_behavior, q_policy, w2_coef: th.zeros_like(q_policy))
    q, _ = _actor_gradients(model, without_weights, batch, noise)
    constraint = [both - one for both, one in zip(whole, q, strict=True)]
    return ActorTerms(q, constraint, {name: term.item() for name, term in terms.items()})


def _actor_gradients(
    model: "FlowRL", settings: update.Settings, batch: Batch, noise: FlowNoise
) -> tuple[list[th.Tensor], update.Terms]:
    q_behavior = clipped_values(model.behavior_critic, batch.observations, batch.actions)
    loss, terms = update.actor_loss(model.policy, settings, batch, noise, q_behavior)
    parameters = [parameter for parameter in model.actor.parameters() if parameter.requires_grad]
    if not parameters or not loss.requires_grad:  # the actor is frozen
        return [th.zeros_like(parameter) for parameter in parameters], terms
    return list(th.autograd.grad(loss, parameters, materialize_grads=True)), terms


class Episode(NamedTuple):
    """
    One episode of the policy, as the critic sees it.

    The training environment's VecNormalize normalizes observations and rewards, and rewards have the scale of the updates.

    :ivar observations: as the policy takes them, ``(T, *obs_shape)``
    :ivar actions: in [-1, 1], ``(T, A)``
    :ivar rewards: ``(T,)``
    :ivar terminated: whether it terminated, and was not truncated
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: np.ndarray
    terminated: bool


def play_episode(model: OffPolicyAlgorithm, env: gym.Env, seed: int) -> Episode:
    """
    Play one episode with stochastic actions.

    :param model: the model
    :param env: the environment
    :param seed: the seed of the environment
    :return: the episode, cut after :data:`MAX_EPISODE_STEPS` steps
    """
    normalizer = model.get_vec_normalize_env()
    observations: list[Any] = []
    scaled_actions: list[np.ndarray] = []
    rewards: list[float] = []
    obs, _ = env.reset(seed=seed)
    terminated = truncated = False
    while not (terminated or truncated) and len(rewards) < MAX_EPISODE_STEPS:
        observations.append(obs if normalizer is None else normalizer.normalize_obs(obs))
        action, _ = model.policy.predict(observations[-1], deterministic=False)
        scaled_actions.append(model.policy.scale_action(action).flatten())
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
    keys = observations[0].keys() if isinstance(observations[0], dict) else None
    stacked = np.stack(observations) if keys is None else {key: np.stack([each[key] for each in observations]) for key in keys}
    return Episode(
        model.policy.obs_to_tensor(stacked)[0],
        th.as_tensor(np.stack(scaled_actions), dtype=th.float32, device=model.device),
        np.array(rewards) if normalizer is None else normalizer.normalize_reward(np.array(rewards)),
        terminated,
    )


def q_errors(model: "FlowRL", episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """
    Compare Q_π with the returns of an episode.

    Both results cover only the steps whose return is known, see :func:`n_steps_with_known_return`.

    :param model: the model
    :param episode: an episode of its policy
    :return: the clipped Q_π(s_t, a_t) minus the return from there on, and that return, ``(steps,)`` each
    """
    n_steps = n_steps_with_known_return(len(episode.rewards), episode.terminated, model.gamma)
    returns = discounted_returns(episode.rewards, model.gamma)
    values = clipped_values(model.critic, episode.observations, episode.actions).flatten().cpu().numpy()
    return (values - returns)[:n_steps], returns[:n_steps]


# ------------------------------------------------------------------------------------------------------------ the callback


class DiagnosticsCallback(BaseCallback):
    """
    Log quantities that show why a run learns or stalls.

    They appear under ``diagnostics/`` in SB3's logger, and so in its CSV and TensorBoard files. They are explained in
    :mod:`sb3_flowrl.diagnostics.instruments`.

    The callback measures on a sample of the replay buffer, between rollouts or when training ends. It measures once the first
    updates are done, and then at the first moment after each multiple of ``every`` steps. It uses none of training's random
    numbers and changes no network: a run with it is, bit for bit, the run without it.

    Logged for FlowRL, SAC, TD3 and similar algorithms (quantities of the critic only if it has ``q_networks``):

    - ``action_spread``, ``saturated_actions``: see :func:`action_spread` (TD3's is 0) and :func:`saturated_share`
    - ``critic_rank``, ``critic_feature_norm``, ``critic_dead_units``: of the last hidden layer of Q_π at the buffer's actions,
      see :func:`effective_rank`, :func:`feature_norm` and :func:`dead_share`

    Logged for FlowRL only:

    - ``behavior_advantage``, ``guidance_active``: see :func:`behavior_advantage`
    - ``q_gradient_norm``, ``constraint_gradient_norm``, ``gradient_cosine``: of the Q term and of the weighted flow-matching
      loss, with respect to the actor's parameters, see :func:`actor_terms`
    - ``weighted_flow_matching_loss``, which includes λ, and ``w2_coef``, which is λ
    - ``q_bias`` and ``monte_carlo_return``, with ``eval_env``: the mean error of Q_π against the discounted returns of
      episodes with stochastic actions, and the mean of these returns, see :func:`q_errors`. SAC's values also include an
      entropy, so they can't be compared in this way

    :param every: environment steps between measurements, counted over all environments
    :param eval_env: environment whose returns Q_π is compared with; ``None`` leaves this comparison out. It
        must not be the training environment, and must not be wrapped in VecNormalize, because the training environment's
        statistics are used. If a time limit cuts an episode, its last steps have no known return (the last 458 for γ = 0.99).
        Give it a longer limit if too few steps are left
    :param n_eval_episodes: episodes to play at each measurement
    :param sample_size: transitions in the sample; the critic's rank is at most this
    :param seed: seed of the measurements; each one starts from it
    :raises ValueError: when training starts, if the model can't be measured or the environment does not fit it
    """

    model: OffPolicyAlgorithm

    def __init__(
        self,
        every: int = 5_000,
        eval_env: gym.Env | None = None,
        n_eval_episodes: int = 3,
        sample_size: int = 1_024,
        seed: int = 0,
    ):
        super().__init__()
        check_positive_int("every", every)
        check_positive_int("n_eval_episodes", n_eval_episodes)
        check_positive_int("sample_size", sample_size)
        if eval_env is not None:
            try:
                eval_env = _patch_env(eval_env)  # wraps an environment of OpenAI's gym, as for the training environment
            except ValueError as error:
                raise ValueError(
                    f"eval_env={eval_env!r} must be a single gymnasium environment, such as gym.make('Pendulum-v1')."
                ) from error
        self.every, self.eval_env, self.n_eval_episodes = every, eval_env, n_eval_episodes
        self.sample_size, self.seed = sample_size, seed
        self.last_measured: int | None = None

    def _init_callback(self) -> None:
        model = self.model
        name = type(model).__name__
        if not (isinstance(model, OffPolicyAlgorithm) and hasattr(model, "actor") and hasattr(model, "critic")):
            raise ValueError(
                f"DiagnosticsCallback measures an actor, critics and a replay buffer, but {name} does not have all three."
            )
        if self.eval_env is None:
            return
        if not self._is_flowrl():
            raise ValueError(f"The bias of Q is measured for FlowRL only, not for {name}. Leave eval_env out.")
        base = self.training_env.unwrapped
        if isinstance(base, DummyVecEnv) and any(env.unwrapped is self.eval_env.unwrapped for env in base.envs):
            raise ValueError("eval_env is the training environment, and would interrupt its episodes. Make another one.")
        wrapped = model._wrap_env(self.eval_env, monitor_wrapper=False)  # like the training environment: transposes images
        theirs, ours = (wrapped.observation_space, wrapped.action_space), (model.observation_space, model.action_space)
        if theirs != ours:
            raise ValueError(
                f"eval_env has the spaces {theirs}, but the model has {ours}. Make it like the training environment."
            )

    def _is_flowrl(self) -> bool:
        from sb3_flowrl.flowrl import FlowRL

        return isinstance(self.model, FlowRL)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self.last_measured = None  # a new run

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # Here the last step is stored and its updates are done
        self._measure_if_due()

    def _on_training_end(self) -> None:
        self._measure_if_due()

    def _measure_if_due(self) -> None:
        buffer = self.model.replay_buffer
        # Not before training does: until then, some buffers, such as HER's, can't be sampled
        if buffer is None or buffer.size() == 0 or self.num_timesteps <= self.model.learning_starts:
            return
        if self.last_measured is not None and self.num_timesteps // self.every == self.last_measured // self.every:
            return
        self.last_measured = self.num_timesteps
        self._keep(self.measure())

    def _keep(self, measured: dict[str, float]) -> None:
        """
        Log the measurements.

        :param measured: the quantities by name
        """
        for name, value in measured.items():
            self.logger.record(f"diagnostics/{name}", value)
        # Log them at this step, as EvalCallback does; the next dump may be episodes away
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def measure(self) -> dict[str, float]:
        """
        Measure now.

        Training's random numbers, the networks and their gradients stay as they are.

        :return: the quantities by name
        """
        policy = self.model.policy
        was_training = policy.training
        policy.set_training_mode(False)
        try:
            with own_random_numbers(self.seed, self.model.device):
                batch = sample_replay(self.model, self.sample_size)
                actions = policy_actions(self.model, batch.observations)
                measured = {"action_spread": action_spread(actions), "saturated_actions": saturated_share(actions)}
                measured.update(self._critic_numbers(batch))
                if self._is_flowrl():
                    measured.update(self._flowrl_numbers(batch, actions[0]))
                if self.eval_env is not None:
                    measured.update(self._bias_numbers(self.eval_env))
        finally:
            policy.set_training_mode(was_training)
        return measured

    def _critic_numbers(self, batch: Batch) -> dict[str, float]:
        critic = cast(BaseModel, self.model.critic)  # type: ignore[attr-defined]
        if not isinstance(critic, FlowCritic) and not hasattr(critic, "q_networks"):
            return {}
        features = hidden_features(critic, batch.observations, batch.actions)
        return {
            "critic_rank": effective_rank(features),
            "critic_feature_norm": feature_norm(features),
            "critic_dead_units": dead_share(features),
        }

    def _flowrl_numbers(self, batch: Batch, actions: th.Tensor) -> dict[str, float]:
        model = cast("FlowRL", self.model)
        q_behavior = clipped_values(model.behavior_critic, batch.observations, batch.actions)
        advantage, active = behavior_advantage(q_behavior, clipped_values(model.critic, batch.observations, actions))
        terms = actor_terms(model, batch, draw_noise(len(batch.actions), model.actor.action_dim, model.device))
        return {
            "behavior_advantage": advantage,
            "guidance_active": active,
            "q_gradient_norm": gradient_norm(terms.q),
            "constraint_gradient_norm": gradient_norm(terms.constraint),
            "gradient_cosine": gradient_cosine(terms.q, terms.constraint),
            "weighted_flow_matching_loss": terms.logs["weighted_flow_matching_loss"],
            "w2_coef": model.w2_coef,
        }

    def _bias_numbers(self, env: gym.Env) -> dict[str, float]:
        model = cast("FlowRL", self.model)
        episodes = [play_episode(model, env, self.seed + index) for index in range(self.n_eval_episodes)]
        errors, returns = (np.concatenate(each) for each in zip(*(q_errors(model, each) for each in episodes), strict=True))
        if errors.size == 0:
            warnings.warn(
                f"The bias of Q is not measured at step {self.num_timesteps}: the time limit of eval_env cuts its episodes "
                f"after at most {max(len(each.rewards) for each in episodes)} steps, when later rewards still count at "
                f"gamma={model.gamma}. Give eval_env a longer time limit, as in gym.make(id, max_episode_steps=...)."
            )
            return {}
        return {"q_bias": float(errors.mean()), "monte_carlo_return": float(returns.mean())}
