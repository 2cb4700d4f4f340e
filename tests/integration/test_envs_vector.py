"""Gymnasium's vector environments through our adapter: the same transitions as from SB3's own."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_flowrl import FlowRL
from sb3_flowrl.envs.envpool import EnvPoolVectorEnv
from sb3_flowrl.envs.vector import GymnasiumVecEnv
from tests.marks import slow_except


class Counter(gym.Env):
    """Counts its steps from a random number. Episodes end at 30, or are truncated after 7 steps; both can happen at once."""

    observation_space = spaces.Box(0, 50, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count, self.steps, self.action = int(self.np_random.integers(18, 29)), 0, 0.0
        return self._observe(), {"first": self.count}

    def step(self, action):
        self.count, self.steps, self.action = self.count + 1, self.steps + 1, float(action[0])
        return self._observe(), self.action, self.count >= 30, self.steps >= 7, {"count": self.count}

    def _observe(self):
        return np.array([self.count, self.action], np.float32)


class Goals(BitFlippingEnv):
    """SB3's environment with Dict observations."""

    def __init__(self):
        super().__init__(n_bits=3, continuous=True, max_steps=4)


def transitions(env, steps: int = 40) -> list:
    """What an algorithm sees of some steps, in all environments."""
    rng = np.random.default_rng(0)
    env.seed(3)
    seen = [env.reset(), list(env.reset_infos)]
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)
        seen += [*env.step(actions), list(env.reset_infos)]
    env.close()
    return seen


def assert_equal(left, right) -> None:
    if isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(left, right)
        assert getattr(left, "dtype", None) == getattr(right, "dtype", None) or not np.ndim(left)


@pytest.mark.parametrize("make_env", [Counter, Goals])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("vector_class", slow_except([SyncVectorEnv], [SyncVectorEnv, AsyncVectorEnv]))
def test_transitions_are_those_of_a_dummy_vec_env(make_env, mode, vector_class):
    ours = GymnasiumVecEnv(vector_class([make_env] * 3, autoreset_mode=mode))
    expected = transitions(DummyVecEnv([make_env] * 3))
    infos = [info for some in expected[5::5] for info in some]
    assert any("terminal_observation" in info for info in infos)
    if make_env is Counter:
        ends = {info["TimeLimit.truncated"] for info in infos if "terminal_observation" in info}
        assert ends == {True, False}
    assert_equal(transitions(ours), expected)


def test_an_environment_that_reuses_its_arrays_does_not_change_past_observations():
    ours = GymnasiumVecEnv(SyncVectorEnv([Counter] * 2, copy=False))
    assert_equal(transitions(ours), transitions(DummyVecEnv([Counter] * 2)))


def test_results_of_episodes_reach_sb3s_log():
    env = SyncVectorEnv([Counter] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    model = FlowRL("MlpPolicy", GymnasiumVecEnv(RecordEpisodeStatistics(env)), learning_starts=100)
    model.learn(60)
    assert len(model.ep_info_buffer) > 5


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_gymnasiums_statistics_are_refused_where_they_would_be_wrong(mode):
    counted = RecordEpisodeStatistics(SyncVectorEnv([Counter] * 2, autoreset_mode=mode))
    for env in (counted, DictInfoToList(counted)):
        with pytest.raises(ValueError, match=r"RecordEpisodeStatistics counts wrongly with .*VecMonitor.*SAME_STEP"):
            GymnasiumVecEnv(env)


def test_options_that_differ_are_refused():
    env = GymnasiumVecEnv(SyncVectorEnv([Counter] * 2))
    env.set_options({"a": 1})
    env.reset()
    env.set_options([{"a": 1}, {"a": 2}])
    with pytest.raises(ValueError, match=r"options=\[\{'a': 1\}, \{'a': 2\}\] differ"):
        env.reset()


def test_flowrl_learns_the_same_as_in_a_dummy_vec_env():
    parameters = []
    for env in (GymnasiumVecEnv(SyncVectorEnv([Counter] * 2)), DummyVecEnv([Counter] * 2)):
        arguments = dict(learning_starts=20, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")
        model = FlowRL("MlpPolicy", VecMonitor(env), **arguments)
        model.learn(60)
        assert len(model.ep_info_buffer) > 5
        parameters.append([parameter.detach().numpy() for parameter in model.policy.parameters()])
        evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert_equal(*parameters)


def test_a_vector_environment_that_resets_at_the_next_step_says_what_to_do():
    env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"CartPoleVectorEnv resets .*SAME_STEP.* vectorization_mode='sync'"):
        GymnasiumVecEnv(env)


def test_attributes_and_methods_of_the_environments_can_be_reached():
    env = GymnasiumVecEnv(SyncVectorEnv([Counter] * 3))
    env.reset()
    env.set_attr("count", 20, indices=[1])
    assert env.get_attr("count", indices=1) == [20] and len(env.get_attr("count")) == 3
    assert env.env_method("_observe", indices=[1])[0].tolist() == [20, 0]


def make_pool(**arguments) -> GymnasiumVecEnv:
    envpool = pytest.importorskip("envpool")
    pool = envpool.make("Pendulum-v1", env_type="gymnasium", num_envs=3, seed=0, max_episode_steps=5, **arguments)
    return GymnasiumVecEnv(EnvPoolVectorEnv(pool))


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_envpool_starts_episodes_at_once_and_keeps_their_last_observations():
    env = make_pool()
    previous, action = env.reset(), np.full((3, 1), 0.5, np.float32)
    for step in range(1, 13):
        observations, rewards, dones, infos = env.step(action)
        assert dones.tolist() == [step % 5 == 0] * 3 and rewards.dtype == np.float32
        last = np.stack([info.get("terminal_observation", observations[index]) for index, info in enumerate(infos)])
        # Pendulum's angle moves on by its new velocity, also in the step that ends an episode
        angle, before = np.arctan2(last[:, 1], last[:, 0]), np.arctan2(previous[:, 1], previous[:, 0])
        turn = np.angle(np.exp(1j * (angle - before - 0.05 * last[:, 2])))
        np.testing.assert_allclose(turn, 0, atol=1e-3)
        assert all(info["TimeLimit.truncated"] == (step % 5 == 0) for info in infos)
        previous = observations


@pytest.mark.filterwarnings("ignore:.*precision lowered")
def test_flowrl_trains_on_envpool():
    env = VecMonitor(make_pool())
    model = FlowRL("MlpPolicy", env, learning_starts=30, policy_kwargs=dict(net_arch=[8]), gradient_steps=-1, device="cpu")
    model.learn(60)
    assert model._n_updates == 30 and len(model.ep_info_buffer) == 12


def test_envpool_that_returns_some_environments_at_a_step_is_refused():
    with pytest.raises(ValueError, match="batch_size=2 returns 2 of 3 environments at a step"):
        make_pool(batch_size=2)
