"""What the diagnostics take from a model, and a run that does not notice that it is measured."""

import csv
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flowrl import DiagnosticsCallback, FlowRL, execution, update
from sb3_flowrl.diagnostics import callback as diagnostics
from sb3_flowrl.diagnostics import instruments
from sb3_flowrl.stacked import StackedLinear
from tests.models import (
    SMALL,
    ScaleExtractor,
    StepCountingEnv,
    assert_same,
    batch_of,
    make_model,
    moments,
    noise_of,
    parameters,
)

FOR_ALL = ["action_spread", "saturated_actions", "critic_rank", "critic_feature_norm", "critic_dead_units"]
FOR_FLOWRL = [
    "behavior_advantage",
    "guidance_active",
    "q_gradient_norm",
    "constraint_gradient_norm",
    "gradient_cosine",
    "weighted_flow_matching_loss",
    "w2_coef",
]
WITH_EVAL_ENV = ["q_bias", "monte_carlo_return"]


# --------------------------------------------------------------------------------------------- what they are computed from


def test_own_random_numbers_begin_at_their_seed_and_leave_the_others_alone():
    def draw() -> list[float]:
        return [random.random(), np.random.rand(), th.rand(()).item()]

    def seed() -> None:
        random.seed(1), np.random.seed(1), th.manual_seed(1)

    seed()
    undisturbed = [draw(), draw()]
    seed()
    drawn, outside = [], []
    for _ in range(2):
        with execution.own_random_numbers(5, th.device("cpu")):
            drawn.append(draw())
        outside.append(draw())
    assert outside == undisturbed
    assert drawn[0] == drawn[1]
    seed()
    with pytest.raises(KeyError), execution.own_random_numbers(5, th.device("cpu")):
        draw()
        raise KeyError
    assert draw() == undisturbed[0]


def make_any(algorithm, env="Pendulum-v1", **kwargs):
    policy_kwargs = dict(net_arch=[16, 8])  # a new one each time, as SAC adds to it
    return algorithm("MlpPolicy", env, **{**SMALL, "policy_kwargs": policy_kwargs, "seed": 0, **kwargs})


@pytest.mark.parametrize("algorithm", [FlowRL, SAC, TD3])
def test_hidden_features_are_what_the_last_layer_is_given(algorithm):
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=2.0))
    without_batch_norm = dict(batch_norm=False) if algorithm is FlowRL else {}  # which would come between
    critic = make_any(algorithm, policy_kwargs=dict(net_arch=[16, 8], **extractor, **without_batch_norm)).critic
    obs, actions = th.randn(5, 3), th.rand(5, 1)
    features = diagnostics.hidden_features(critic, obs, actions)
    assert features.shape == (2, 5, 8) and not features.requires_grad
    if algorithm is FlowRL:
        values = list(critic.networks)[-1](features)
    else:
        values = [network[-1](each) for network, each in zip(critic.q_networks, features, strict=True)]
    for ours, theirs in zip(values, critic(obs, actions), strict=True):
        th.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("share", [False, True])
def test_the_two_terms_add_up_to_the_gradient_of_an_update(share):
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=1.0))
    policy_kwargs = dict(net_arch=[16], share_features_extractor=share, **extractor)
    model = make_model(policy_kwargs=policy_kwargs, w2_coef=0.5, spread_coef=0.0).learn(70)  # the spread would be a third term
    batch, noise = batch_of(model, 40), noise_of(model, 40)
    terms = diagnostics.actor_terms(model, batch, noise)

    q_behavior = diagnostics.clipped_values(model.behavior_critic, batch.observations, batch.actions)
    loss, _ = update.actor_loss(model.policy, model.settings, batch, noise, q_behavior)
    names = [name for name, _ in model.actor.named_parameters()]
    expected = th.autograd.grad(loss, list(model.actor.parameters()))
    for q, constraint, gradient in zip(terms.q, terms.constraint, expected, strict=True):
        th.testing.assert_close(q + constraint, gradient)
    assert any(name.startswith("features_extractor") for name in names)
    assert all(gradient.norm() > 0 for gradient in terms.constraint)
    assert terms.logs["weighted_flow_matching_loss"] > 0


def test_each_term_alone():
    model = make_model(w2_coef=0.0).learn(70)
    batch, noise = batch_of(model, 40), noise_of(model, 40)
    terms = diagnostics.actor_terms(model, batch, noise)
    assert instruments.gradient_norm(terms.constraint) == 0 < instruments.gradient_norm(terms.q)

    # A critic that has one value for all actions pulls at nothing, and every weight is λ
    make_constant(model, 0.0)
    model.guidance = lambda q_behavior, q_policy, w2_coef: th.ones_like(q_policy)
    terms = diagnostics.actor_terms(model, batch, noise)
    assert instruments.gradient_norm(terms.q) == 0
    features = model.actor.features(batch.observations)
    a0 = noise.path.clamp(-1, 1)
    points = noise.time * batch.actions + (1 - noise.time) * a0
    loss = (model.actor.velocity(noise.time, features, points) - (batch.actions - a0)).square().mean()
    for ours, theirs in zip(terms.constraint, th.autograd.grad(loss, list(model.actor.parameters())), strict=True):
        th.testing.assert_close(ours, theirs)
    assert terms.logs["weighted_flow_matching_loss"] == pytest.approx(loss.item())


def make_constant(model: FlowRL, value: float) -> None:
    """Make Q_π the same for all states and actions."""
    last = list(model.critic.networks)[-1]
    assert isinstance(last, StackedLinear)  # for mypy
    with th.no_grad():
        last.weight.zero_()
        last.bias.fill_(value)


class PayingEnv(StepCountingEnv):
    """The rewards are 1, 2, 3, ..., and the action is bounded by 2."""

    def __init__(self, terminates: bool, length: int):
        super().__init__(terminates, length)
        self.action_space = spaces.Box(-2, 2, (1,), dtype=np.float32)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.steps), terminated, truncated, info


@pytest.mark.parametrize("terminates, length, n_steps", [(True, 3, 3), (False, 8, 2), (False, 3, 0)])
def test_errors_of_q_are_against_the_known_returns(terminates, length, n_steps):
    env = PayingEnv(terminates, length)
    model = make_model(env=PayingEnv(terminates, length), gamma=0.5)
    make_constant(model, 10.0)
    episode = diagnostics.play_episode(model, env, seed=0)
    np.testing.assert_array_equal(episode.rewards, np.arange(1, length + 1))
    th.testing.assert_close(episode.observations, th.arange(length)[:, None].float())
    errors, returns = diagnostics.q_errors(model, episode)
    expected = [sum(0.5 ** (k - t) * (k + 1) for k in range(t, length)) for t in range(n_steps)]
    np.testing.assert_allclose(returns, expected)
    np.testing.assert_allclose(errors, 10 - np.array(expected))


def test_episodes_have_the_stochastic_actions_of_the_policy_scaled():
    model = make_model(env=PayingEnv(True, 4))
    taken = []
    env = gym.wrappers.TransformAction(PayingEnv(True, 4), lambda action: taken.append(action) or action, None)
    episode = diagnostics.play_episode(model, env, seed=0)
    np.testing.assert_allclose(episode.actions.numpy() * 2, taken, rtol=1e-6)
    deterministic, _ = model.predict(episode.observations.numpy(), deterministic=True)
    assert not np.isclose(deterministic, taken).any()


def test_episodes_that_do_not_end_are_cut(monkeypatch):
    monkeypatch.setattr(diagnostics, "MAX_EPISODE_STEPS", 6)
    env = StepCountingEnv(terminates=True, length=10)
    episode = diagnostics.play_episode(make_model(env=env), env, seed=0)
    assert len(episode.rewards) == 6 and not episode.terminated


def test_episodes_are_normalised_as_the_replay_buffers_samples_are():
    env = VecNormalize(DummyVecEnv([lambda: PayingEnv(terminates=True, length=3)]))
    model = make_model(env=env).learn(60)
    episode = diagnostics.play_episode(model, PayingEnv(terminates=True, length=3), seed=0)
    np.testing.assert_allclose(episode.rewards, env.normalize_reward(np.array([1.0, 2.0, 3.0])))
    np.testing.assert_allclose(episode.observations.numpy(), env.normalize_obs(np.array([[0.0], [1.0], [2.0]])), rtol=1e-6)
    batch = diagnostics.sample_replay(model, 200)
    assert set(batch.rewards.unique().tolist()) <= set(np.float32(episode.rewards).tolist())


def test_the_replay_buffer_keeps_the_device_that_training_samples_it_for():
    model = make_any(SAC).learn(60)
    model.replay_buffer.device = th.device("meta")
    batch = diagnostics.sample_replay(model, 10)
    assert batch.rewards.shape == (10, 1) and batch.rewards.device == model.device
    assert model.replay_buffer.device == th.device("meta")


# ------------------------------------------------------------------------------------------------------------ the callback


def generators() -> list:
    numpy_state = np.random.get_state(legacy=False)["state"]
    return [random.getstate(), numpy_state["key"].tolist(), numpy_state["pos"], th.get_rng_state().tolist()]


def run(algorithm, callback, **kwargs):
    model = make_any(algorithm, buffer_size=60, **kwargs)  # so small that it is overwritten while it is measured
    random.seed(0)
    model.learn(90, callback=callback)
    return model, generators()


@pytest.mark.parametrize("algorithm", [FlowRL, SAC, TD3])
def test_a_measured_run_is_bit_for_bit_the_run_that_is_not(algorithm):
    eval_env = gym.make("Pendulum-v1", max_episode_steps=12) if algorithm is FlowRL else None
    callback = DiagnosticsCallback(every=3, eval_env=eval_env, n_eval_episodes=1, sample_size=20)
    gamma = dict(gamma=0.5)
    (measured, after), (plain, expected) = run(algorithm, callback, **gamma), run(algorithm, None, **gamma)
    assert callback.last_measured == 90
    assert after == expected
    assert_same(parameters(measured), parameters(plain))
    if algorithm is FlowRL:
        assert_same(moments(measured), moments(plain))
    np.testing.assert_array_equal(measured.replay_buffer.actions, plain.replay_buffer.actions)
    assert measured.replay_buffer.device == plain.replay_buffer.device
    assert measured.policy.training == plain.policy.training


def test_measuring_leaves_no_gradients_and_gives_the_same_twice():
    extractor = dict(features_extractor_class=ScaleExtractor, features_extractor_kwargs=dict(scale=1.0))
    model = make_model(policy_kwargs=dict(net_arch=[16], **extractor))
    callback = DiagnosticsCallback(eval_env=gym.make("Pendulum-v1", max_episode_steps=5), sample_size=20)
    model.gamma = 0.1
    model.learn(60)
    callback.init_callback(model)
    for parameter in model.policy.parameters():
        parameter.grad = None
    found = callback.measure()
    assert [*found] == FOR_ALL + FOR_FLOWRL + WITH_EVAL_ENV
    assert all(np.isfinite(value) for value in found.values())
    assert all(parameter.grad is None for parameter in model.policy.parameters())
    assert callback.measure() == found


def test_networks_are_measured_in_evaluation_mode_also_when_training_has_ended(monkeypatch):
    model = make_model(learning_starts=10)
    modes = []
    sample = diagnostics.sample_replay
    monkeypatch.setattr(
        diagnostics,
        "sample_replay",
        lambda *args: modes.append([net.training for net in model.policy.children()]) or sample(*args),
    )
    model.learn(20, callback=DiagnosticsCallback(every=20, sample_size=10))
    assert modes == [[False] * 6] * 2


@pytest.mark.parametrize(
    "algorithm, eval_env, names",
    [
        (FlowRL, None, FOR_ALL + FOR_FLOWRL),
        (FlowRL, StepCountingEnv(True), FOR_ALL + FOR_FLOWRL + WITH_EVAL_ENV),
        (SAC, None, FOR_ALL),
        (TD3, None, FOR_ALL),
    ],
)
def test_everything_is_logged_at_its_step(algorithm, eval_env, names, tmp_path):
    model = make_any(algorithm, env=StepCountingEnv(True), learning_starts=10)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(45, callback=DiagnosticsCallback(every=15, eval_env=eval_env, sample_size=30), log_interval=1000)
    with open(tmp_path / "progress.csv", newline="") as file_handler:
        rows = list(csv.DictReader(file_handler))
    # The first updates follow step 11
    assert [int(row["time/total_timesteps"]) for row in rows] == [11, 15, 30, 45]
    logged = {name for name in rows[0] if name.startswith("diagnostics/")}
    assert logged == {f"diagnostics/{name}" for name in names}
    assert all(row[name] for row in rows for name in logged if name != "diagnostics/gradient_cosine")
    if algorithm is FlowRL:
        assert {row["diagnostics/w2_coef"] for row in rows} == {"0.1"}
    if eval_env is not None:
        expected = np.mean([1, 1.99, 2.9701])
        assert all(float(row["diagnostics/monte_carlo_return"]) == pytest.approx(expected) for row in rows)
    assert all((float(row["diagnostics/action_spread"]) == 0) == (algorithm is TD3) for row in rows)


def test_one_measurement_for_all_steps_of_a_rollout_and_anew_in_another_run():
    model = make_model(train_freq=20, learning_starts=10)
    callback = DiagnosticsCallback(every=7, sample_size=10)
    steps = []
    measure = callback.measure
    callback.measure = lambda: steps.append(callback.num_timesteps) or measure()  # type: ignore[method-assign]
    model.learn(60, callback=callback)
    model.learn(20, callback=callback, reset_num_timesteps=False)
    assert steps == [20, 40, 60, 80]
    for _ in range(2):
        model.learn(20, callback=callback)
    assert steps[4:] == [20, 20]


def test_dict_observations_and_hindsight_replay():
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)
    kwargs = {**SMALL, "learning_starts": 3, "seed": 0}
    model = FlowRL("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **kwargs)
    eval_env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)
    callback = DiagnosticsCallback(every=4, eval_env=eval_env, sample_size=20)
    model.gamma = 0.1
    model.learn(8, callback=callback)
    found = callback.measure()
    assert callback.last_measured == 8 and [*found] == FOR_ALL + FOR_FLOWRL + WITH_EVAL_ENV
    assert all(np.isfinite(value) for value in found.values())


class Fewer(ReplayBuffer):
    def sample(self, batch_size, env=None):
        return super().sample(max(1, batch_size // 2), env=env)


def test_a_buffer_may_return_another_number_of_transitions():
    callback = DiagnosticsCallback(every=20, sample_size=16)
    make_model(replay_buffer_class=Fewer).learn(60, callback=callback)
    assert np.isfinite(callback.measure()["gradient_cosine"])


@pytest.mark.parametrize("batch_norm", [True, False])
def test_critics_without_hidden_layers_are_measured_by_what_they_are_given(batch_norm):
    model = make_model(policy_kwargs=dict(net_arch=[], batch_norm=batch_norm))
    model.learn(60, callback=DiagnosticsCallback(every=20, sample_size=16))
    batch = batch_of(model, 16)
    features = diagnostics.hidden_features(model.critic, batch.observations, batch.actions)
    given = th.cat([batch.observations, batch.actions], dim=1)
    assert th.equal(features, given.expand(2, 16, 4))


@pytest.mark.parametrize("unused", [False, True])
def test_an_actor_that_is_frozen_has_gradients_of_zero(unused):
    model = make_model().learn(60)
    model.actor.requires_grad_(False)
    if unused:
        model.actor.head = th.nn.Linear(2, 2)
    callback = DiagnosticsCallback(sample_size=16)
    callback.init_callback(model)
    measured = callback.measure()
    assert measured["q_gradient_norm"] == measured["constraint_gradient_norm"] == 0.0
    assert np.isnan(measured["gradient_cosine"]) and measured["weighted_flow_matching_loss"] > 0.0


def test_episodes_that_are_too_short_are_warned_about_and_give_no_bias():
    model = make_model(env=StepCountingEnv(False), learning_starts=10)
    callback = DiagnosticsCallback(every=100, eval_env=StepCountingEnv(False), sample_size=10)
    with pytest.warns(UserWarning, match=r"after at most 3 steps.*gamma=0.99.*max_episode_steps"):
        model.learn(12, callback=callback)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not set(WITH_EVAL_ENV) & set(callback.measure())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(every=0), "every=0 must be an integer"),
        (dict(sample_size=1.5), "sample_size=1.5 must be an integer"),
        (dict(n_eval_episodes=-1), "n_eval_episodes=-1 must be"),
        (dict(eval_env="Pendulum-v1"), "eval_env='Pendulum-v1' must be a single gymnasium environment"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiagnosticsCallback(**kwargs)


def test_what_can_not_be_measured_is_said_before_training():
    env = StepCountingEnv(True)
    for model, eval_env, message in (
        (PPO("MlpPolicy", "Pendulum-v1"), None, "PPO does not have all three"),
        (make_any(SAC), gym.make("Pendulum-v1"), "for FlowRL only, not for SAC. Leave eval_env out"),
        (make_model(), StepCountingEnv(True), "Make it like the training environment"),
        (make_model(env=env), env, "eval_env is the training environment"),
    ):
        with pytest.raises(ValueError, match=message):
            DiagnosticsCallback(eval_env=eval_env).init_callback(model)
