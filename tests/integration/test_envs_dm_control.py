"""The DeepMind Control Suite's ids."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

pytest.importorskip("dm_control")
pytest.importorskip("shimmy")

import sb3_flowrl.envs  # noqa: F401
from sb3_flowrl import FlowRL
from sb3_flowrl.checkpoint.random_states import generator_states, restore_generator_states
from sb3_flowrl.envs import tasks


def test_all_tasks_of_the_suite_have_ids():
    from dm_control import suite

    assert {(domain, name) for domain, names in tasks.DMC.items() for name in names} == set(suite.ALL_TASKS)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")  # which not all joints' bounds are
@pytest.mark.parametrize("env_id", [f"dmc/{domain}-{name}-v0" for domain, names in tasks.DMC.items() for name in names])
def test_every_task(env_id):
    """As far as plain gymnasium and check_env take it; the paper's tasks are checked more closely in test_envs."""
    env, again = gym.make(env_id), gym.make(env_id)
    check_env(env)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation) and np.array_equal(observation, again.reset(seed=0)[0])
    env.action_space.seed(0)
    for _ in range(3):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, _ = env.step(action)
        assert env.observation_space.contains(observation) and isinstance(reward, float)
        assert np.isfinite(observation).all() and not (terminated or truncated)
        # lqr draws its springs when it is built: the same ones each time
        assert np.array_equal(observation, again.step(action)[0])


def test_observations_are_the_suites_in_the_suites_order():
    env = gym.make("dmc/walker-run-v0")
    observation, _ = env.reset(seed=0)
    physics, task = env.unwrapped.physics, env.unwrapped.task
    parts = task.get_observation(physics)
    assert list(parts) == ["orientations", "height", "velocity"]
    assert np.array_equal(observation, np.hstack(list(parts.values())).astype(np.float32))


def test_action_bounds_are_the_joints():
    env = gym.make("dmc/quadruped-walk-v0")
    # yaw, lift, extend of each leg
    assert np.allclose(env.action_space.low, np.tile([-1, -1, -0.8], 4))
    assert np.allclose(env.action_space.high, np.tile([1, 1.1, 0.8], 4))
    model = FlowRL("MlpPolicy", env, buffer_size=1, policy_kwargs=dict(net_arch=[8]), seed=0)
    physics = env.unwrapped.physics
    env.reset(seed=0)
    for action in (env.action_space.high, 3 * env.action_space.high, model.policy.unscale_action(np.ones(12, np.float32))):
        env.step(action)
        assert (physics.control() <= physics.model.actuator_ctrlrange[:, 1]).all()  # float32's 1.1 is more than 1.1
        assert np.allclose(physics.control(), np.tile([1, 1.1, 0.8], 4))


def test_an_action_outside_the_bounds_is_one_at_the_bounds():
    env, at_bounds = gym.make("dmc/humanoid-run-v0"), gym.make("dmc/humanoid-run-v0")
    env.reset(seed=0), at_bounds.reset(seed=0)
    action = np.full(21, 5, np.float32)
    left, right = env.step(action), at_bounds.step(np.ones(21, np.float32))
    # the reward too, which counts the control's size
    assert np.array_equal(left[0], right[0]) and left[1] == right[1]


@pytest.mark.parametrize("env_id", ["dmc/cartpole-swingup-v0", "dmc/lqr-lqr_2_1-v0"])
def test_time_outs_are_truncations(env_id):
    env = gym.make(env_id)
    env.reset(seed=0)
    for step in range(1, 1001):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert not terminated and truncated == (step == 1000)


def test_an_early_end_is_a_termination():
    env = gym.make("dmc/lqr-lqr_2_1-v0")
    env.reset(seed=0)
    with env.unwrapped.physics.reset_context():
        env.unwrapped.physics.data.qpos[:] = 0  # where lqr's task is done
    _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert terminated and not truncated


def test_lqr_has_bounds_that_random_actions_survive():
    env = gym.make("dmc/lqr-lqr_6_2-v0")
    assert (env.action_space.low == -10).all() and (env.action_space.high == 10).all()


def test_a_reset_asks_for_no_opengl():
    env = gym.make("dmc/quadruped-escape-v0")
    env.reset(seed=0)
    assert env.unwrapped.physics._contexts is None


def test_task_arguments_reach_the_task():
    env = gym.make("dmc/cartpole-swingup-v0", task_kwargs=dict(time_limit=0.05))
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(5)] == [False] * 4 + [True]


def test_copies_are_the_same_task():
    env = gym.make("dmc/quadruped-run-v0", task_kwargs=dict(time_limit=0.04)).unwrapped
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])
    assert [copy.step(np.zeros(12, np.float32))[3] for _ in range(2)] == [False, True]


def test_its_generator_can_be_saved_as_any_environments():
    env = DummyVecEnv([lambda: gym.make("dmc/walker-walk-v0")])
    env.seed(0)
    env.reset()
    states = generator_states(env)
    following = env.reset()
    assert states is not None
    restore_generator_states(env, states)
    assert np.array_equal(env.reset(), following)
