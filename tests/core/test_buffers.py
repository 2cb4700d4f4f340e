"""Replay that favours the newest transitions, and what is stored."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_flowrl import FlowRL, NStepRecencyReplayBuffer, RecencyReplayBuffer
from sb3_flowrl.buffers import float32_space

OBS_SPACE = spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
ACTION_SPACE = spaces.Box(-1, 1, (1,), dtype=np.float32)


def filled_buffer(n_rows: int, buffer_size: int, n_envs: int = 1, buffer_class=RecencyReplayBuffer, **kwargs):
    """A buffer whose transitions are numbered: observation (row, environment), reward the row."""
    buffer = buffer_class(buffer_size, OBS_SPACE, ACTION_SPACE, device="cpu", n_envs=n_envs, **kwargs)
    for row in range(n_rows):
        obs = np.stack([np.full(n_envs, row), np.arange(n_envs)], axis=1).astype(np.float32)
        next_obs = obs + np.array([1, 0], dtype=np.float32)
        rewards, dones = np.full(n_envs, row), np.zeros(n_envs)
        buffer.add(obs, next_obs, np.zeros((n_envs, 1), np.float32), rewards, dones, [{}] * n_envs)
    return buffer


def frequencies(buffer, n_rows: int, batch_size: int = 100, n_batches: int = 2_000) -> np.ndarray:
    """How often each (row, environment) was drawn, as shares of all draws, ``(n_rows, n_envs)``."""
    counts = np.zeros((n_rows, buffer.n_envs))
    np.random.seed(0)
    for _ in range(n_batches):
        rows, envs = buffer.sample(batch_size).observations.numpy().astype(int).T
        np.add.at(counts, (rows, envs), 1)
    return counts / counts.sum()


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("n_rows", [50, 100, 130], ids=["filling", "just full", "wrapped around"])
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
def test_sampling_law(n_envs, n_rows, optimize_memory_usage):
    recent_rows = 10
    kwargs = dict(optimize_memory_usage=optimize_memory_usage, handle_timeout_termination=not optimize_memory_usage)
    buffer = filled_buffer(n_rows, 100 * n_envs, n_envs, recent_share=0.3, recent_size=recent_rows * n_envs, **kwargs)
    n_draws = 200_000
    drawn = frequencies(buffer, n_rows)

    oldest = max(n_rows - 100, 0) + (optimize_memory_usage and n_rows >= 100)  # whose next observation is overwritten
    expected = np.zeros((n_rows, n_envs))
    expected[oldest:] = 0.7 / (n_rows - oldest) / n_envs
    expected[-recent_rows:] += 0.3 / recent_rows / n_envs
    assert not drawn[expected == 0].any()
    deviations = (drawn - expected)[expected > 0] / np.sqrt(expected[expected > 0] / n_draws)
    assert np.abs(deviations).max() < 5  # standard deviations


@pytest.mark.parametrize(
    ("share", "batch_size", "n_recent"), [(0.9, 10, 9), (0.07, 100, 7), (0.2, 256, 52), (1.0, 8, 8), (0.0, 8, 0)]
)
def test_the_share_is_rounded_up_and_no_more(share, batch_size, n_recent, monkeypatch):
    buffer = filled_buffer(100, 100, recent_share=share)
    sizes = []
    draw = np.random.randint

    def drawn(*args, size, **kwargs):
        sizes.append(size)
        return draw(*args, size=size, **kwargs)

    monkeypatch.setattr(np.random, "randint", drawn)
    buffer.sample(batch_size)
    assert sizes[:2] == [batch_size - n_recent, n_recent]


def test_the_share_is_exact_in_each_batch():
    buffer = filled_buffer(10_000, 10_000)
    for _ in range(20):
        rows = buffer.sample(256).observations[:, 0]
        assert (rows[204:] >= 10_000 - 2048).all()  # int(0.8 · 256) = 204 are uniform
        assert (rows[:204] < 10_000 - 2048).any()


def test_fewer_transitions_than_count_as_recent():
    assert filled_buffer(3, 100).sample(50).observations[:, 0].unique().tolist() == [0, 1, 2]


def test_transitions_stay_whole():
    samples = filled_buffer(130, 100, optimize_memory_usage=True, handle_timeout_termination=False).sample(500)
    th.testing.assert_close(samples.next_observations[:, 0], samples.observations[:, 0] + 1)
    th.testing.assert_close(samples.rewards[:, 0], samples.observations[:, 0])


def test_n_step_returns():
    buffer = filled_buffer(50, 100, buffer_class=NStepRecencyReplayBuffer, recent_size=5, n_steps=3, gamma=0.5)
    samples = buffer.sample(500)
    row = samples.observations[:, 0]
    inside = row < 48
    th.testing.assert_close(samples.rewards[inside, 0], (row + (row + 1) / 2 + (row + 2) / 4)[inside])
    assert (samples.discounts[inside] == 0.125).all()
    assert (row >= 45).float().mean() > 0.2


def test_flowrl_learns_from_it_with_vec_normalize(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = FlowRL(
        "MlpPolicy",
        env,
        learning_starts=50,
        buffer_size=200,
        replay_buffer_class=RecencyReplayBuffer,
        replay_buffer_kwargs=dict(recent_size=20),
        policy_kwargs=dict(net_arch=[16]),
        seed=0,
    ).learn(300)
    assert model._n_updates > 100
    samples = model.replay_buffer.sample(500, env=env)
    assert samples.observations.abs().max() <= env.clip_obs and samples.rewards.abs().max() <= env.clip_reward
    model.save(tmp_path / "model")
    assert FlowRL.load(tmp_path / "model", env=env).replay_buffer.recent_size == 20


# --------------------------------------------------------------------------------------------------- what is stored


class Float64Env(gym.Env):
    """Float64 observations: a vector, or a Dict of them."""

    def __init__(self, space: str):
        box = spaces.Box(-1.0, 1.0, (17,), dtype=np.float64)
        self.observation_space = box if space == "Box" else spaces.Dict(dict(a=box, b=box))
        self.action_space = spaces.Box(-1.0, 1.0, (6,))

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), float(action.sum()), False, False, {}


@pytest.mark.parametrize(("space", "policy"), [("Box", "MlpPolicy"), ("Dict", "MultiInputPolicy")])
def test_float64_observations_are_stored_as_float32(space, policy):
    env = Float64Env(space)
    kwargs = dict(learning_starts=20, batch_size=8, buffer_size=100, seed=0, policy_kwargs=dict(net_arch=[8]))
    model = FlowRL(policy, env, **kwargs).learn(40)
    stored = model.replay_buffer.observations
    assert {array.dtype for array in ([stored] if space == "Box" else stored.values())} == {np.dtype(np.float32)}
    assert model.observation_space == model.policy.observation_space == env.observation_space


def test_the_largest_float64_as_a_bound_warns_of_nothing():
    largest = np.full(2, np.finfo(np.float64).max)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        space = float32_space(spaces.Box(-largest, largest, dtype=np.float64))
    assert space.dtype == np.float32 and not space.is_bounded("both")


def test_bytes_per_transition_beside_sb3s():
    sizes = {}
    for algorithm in (FlowRL, SAC):
        buffer = algorithm("MlpPolicy", Float64Env("Box"), buffer_size=100, policy_kwargs=dict(net_arch=[8])).replay_buffer
        sizes[algorithm] = sum(array.nbytes for array in vars(buffer).values() if isinstance(array, np.ndarray)) // 100
    action_reward_done_timeout = 4 * (6 + 3)
    assert sizes[FlowRL] == 2 * 17 * 4 + action_reward_done_timeout == 172
    assert sizes[SAC] == 2 * 17 * 8 + action_reward_done_timeout == 308
