"""Rewards at a fixed scale: what they are divided by, and where."""

import numpy as np
import pytest
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_flowrl import FlowRL
from sb3_flowrl.diagnostics.callback import play_episode, sample_replay
from sb3_flowrl.reward_scale import RewardScale, reward_scale, scale_of
from tests.models import SMALL, StepCountingEnv, assert_same, batches_of, make_model, parameters, trained_model


@pytest.mark.parametrize(("variance", "largest", "expected"), [(4.0, 1.0, 2.0), (4.0, 30.0, 6.0), (0.0, 0.0, 1e-4)])
def test_the_larger_of_deviation_and_bound(variance, largest, expected):
    assert reward_scale(variance, largest) == pytest.approx(expected)


def test_returns_of_several_environments_by_hand():
    scale = RewardScale()
    assert scale.value == 1.0
    scale.update(np.array([1.0, -8.0]), np.array([False, True]), 0.5)
    scale.update(np.array([1.0, 2.0]), np.array([True, False]), 0.5)  # 1.5 and, in a new episode, 2
    scale.update(np.array([3.0, 0.0]), np.array([False, False]), 0.5)  # 3 in a new episode, and 1
    assert scale.moments.var == pytest.approx(np.var([1, -8, 1.5, 2, 3, 1]), rel=1e-3)  # SB3's begin with 1e-4 of a sample
    assert scale.value == pytest.approx(np.std([1, -8, 1.5, 2, 3, 1]), rel=1e-3)
    scale.update(np.array([100.0, 0.0]), np.array([False, False]), 0.5)
    assert scale.value == pytest.approx(max(101.5 / 5, np.sqrt(scale.moments.var)))


def test_a_reward_that_is_not_finite_leaves_the_scale_finite():
    scale, other = RewardScale(), RewardScale()
    for reward in (1.0, np.nan, -np.inf, 1.0):
        scale.update(np.array([reward]), np.array([False]), 0.9)
        other.update(np.array([reward if np.isfinite(reward) else 0.0]), np.array([False]), 0.9)
    assert scale.value == other.value and np.isfinite(scale.value)


def test_rewards_that_are_all_zero_are_divided_by_1():
    scale = RewardScale()
    scale.update(np.zeros(3), np.zeros(3), 0.9)
    assert scale.value == 1.0


@pytest.mark.parametrize("terminates", [False, True])
def test_episodes_end_by_termination_and_by_time_out_alike(terminates):
    model = make_model(StepCountingEnv(terminates), scale_rewards=True, gamma=0.5).learn(60)
    assert model.reward_scale.largest == 1.75  # three rewards of 1
    assert model.reward_scale.moments.var == pytest.approx(np.var([1, 1.5, 1.75]), rel=1e-3)


def test_old_transitions_get_the_new_scale():
    model = trained_model(scale_rewards=True)
    stored = set(model.replay_buffer.rewards[: model.replay_buffer.size()].ravel().tolist())
    for largest in (1e3, 1e4):
        model.reward_scale.largest = largest
        (batch,) = batches_of(model, 1, 32)
        assert scale_of(model) == largest / 5
        for reward in (batch.rewards * scale_of(model)).flatten().tolist():
            assert min(abs(each - reward) for each in stored) < 1e-5


def test_updates_are_those_of_a_divided_reward():
    """A model that scales takes the step that one without takes on the rewards divided by hand."""
    scaled, plain = (make_model(scale_rewards=scales, learning_starts=64).learn(64) for scales in (True, False))
    assert_same(parameters(scaled), parameters(plain))  # no update yet
    plain.replay_buffer.rewards /= scale_of(scaled)
    for model in (scaled, plain):
        model.set_random_seed(1)
        model.train(3, 32)
    for name, value in parameters(plain).items():
        np.testing.assert_allclose(parameters(scaled)[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert scaled.logger.name_to_value["train/reward_scale"] == scale_of(scaled) > 1


def test_multiplied_rewards_make_the_same_updates():
    class Louder(StepCountingEnv):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, 1024 * reward, *rest

    louder, plain = (make_model(env(terminates=True), scale_rewards=True).learn(70) for env in (Louder, StepCountingEnv))
    assert scale_of(louder) == pytest.approx(1024 * scale_of(plain), rel=1e-3)
    for name, value in parameters(plain).items():
        np.testing.assert_allclose(parameters(louder)[name], value, rtol=1e-2, atol=1e-4, err_msg=name)


def test_n_step_returns_and_goals_are_scaled_too():
    n_step = make_model(StepCountingEnv(terminates=False, length=50), scale_rewards=True, n_steps=3, gamma=0.5).learn(200)
    (batch,) = batches_of(n_step, 1, 64)
    np.testing.assert_allclose(batch.rewards.max().item() * scale_of(n_step), 1.75, rtol=1e-5)
    goals = BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)
    her = FlowRL("MultiInputPolicy", goals, replay_buffer_class=HerReplayBuffer, scale_rewards=True, seed=0, **SMALL)
    her.learn(120)
    (batch,) = batches_of(her, 1, 64)
    np.testing.assert_allclose(sorted((batch.rewards * scale_of(her)).unique().tolist()), [-1, 0], atol=1e-5)


@pytest.mark.parametrize("norm_reward", [False, True])
def test_beside_vec_normalize(norm_reward):
    env = VecNormalize(DummyVecEnv([lambda: StepCountingEnv(terminates=True, length=9)] * 2), norm_reward=norm_reward)
    model = make_model(env, scale_rewards=True).learn(80)
    assert model.reward_scale.largest == pytest.approx((1 - 0.99**9) / 0.01)  # of the rewards as they were
    assert scale_of(model) == (1.0 if norm_reward else model.reward_scale.value)


def test_a_reset_begins_new_returns():
    model = make_model(StepCountingEnv(terminates=True, length=1000), scale_rewards=True, gamma=1.0).learn(60)
    model.learn(60)
    assert model.reward_scale.largest == 60
    model.learn(60, reset_num_timesteps=False)
    assert model.reward_scale.largest == 120


def test_a_checkpoint_that_ends_episodes_begins_new_returns(tmp_path):
    model = make_model(StepCountingEnv(terminates=True, length=1000), scale_rewards=True, gamma=1.0).learn(60)
    model.save_checkpoint(tmp_path)
    model.learn(50, reset_num_timesteps=False)
    assert model.reward_scale.largest == 60


def test_saved_and_loaded(tmp_path):
    model = trained_model(scale_rewards=True)
    model.save(tmp_path / "model")
    loaded = FlowRL.load(tmp_path / "model", env=model.get_env())
    assert scale_of(loaded) == scale_of(model) != 1
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.reward_scale.moments.count > model.reward_scale.moments.count
    assert scale_of(FlowRL.load(tmp_path / "model", scale_rewards=False)) == 1


def test_a_model_loaded_with_another_discount_follows_returns_with_it(tmp_path):
    make_model(StepCountingEnv(terminates=True), scale_rewards=True, gamma=0.5).learn(60).save(tmp_path / "model")
    model = FlowRL.load(tmp_path / "model", env=StepCountingEnv(terminates=True), gamma=1.0)
    model.learn(6, reset_num_timesteps=False)
    assert model.reward_scale.largest == 3  # 1.75 before


def test_a_file_of_before_scales_nothing(tmp_path):
    model = trained_model()
    del model.scale_rewards, model.reward_scale
    model.save(tmp_path / "model")
    assert not FlowRL.load(tmp_path / "model").scale_rewards


def test_diagnostics_see_what_the_updates_see():
    model = make_model(StepCountingEnv(terminates=True), scale_rewards=True).learn(70)
    one = pytest.approx(1 / scale_of(model))
    assert sample_replay(model, 8).rewards.unique().tolist() == [one]
    assert set(play_episode(model, StepCountingEnv(terminates=True), 0).rewards) == {one.expected}
