"""MuJoCo Playground's environments as vector environments."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor

from sb3_flowrl import FlowRL
from sb3_flowrl.envs import MissingSuiteError, tasks
from sb3_flowrl.envs.vector import GymnasiumVecEnv
from tests.paper_tasks import installed

NAME = "CartpoleBalance"
needs_playground = pytest.mark.skipif(not installed("jax", "mujoco_playground"), reason="needs the extra playground")


@pytest.mark.skipif(installed("mujoco_playground"), reason="the extra playground is installed")
def test_a_missing_playground_is_one_error_that_says_what_to_do():
    with pytest.raises(
        MissingSuiteError, match=r"MuJoCo Playground can't be imported .* pip install 'sb3-flowrl\[playground\]'"
    ):
        gym.make_vec(f"playground/{NAME}", num_envs=2)


@pytest.mark.slow
@needs_playground
def test_flowrl_trains_on_16_environments_whose_episodes_end_and_begin():
    from mujoco_playground import registry

    assert {f"playground/{name}" for name in registry.ALL_ENVS} == {f"playground/{name}" for name in tasks.PLAYGROUND}
    vector_env = gym.make_vec(f"playground/{NAME}", num_envs=16)
    vector_env._episode_length = 5  # the task's 1 000 steps take long
    env = GymnasiumVecEnv(vector_env)

    env.seed(3)
    first = env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 16, 1)).astype(np.float32)
    steps = [env.step(action) for action in actions]
    assert [dones.all() for _, _, dones, _ in steps] == [dones.any() for _, _, dones, _ in steps]
    assert [dones.all() for _, _, dones, _ in steps] == [False, False, False, False, True, False]
    observations, rewards, _, infos = steps[4]
    last = np.stack([info["terminal_observation"] for info in infos])
    assert all(info["TimeLimit.truncated"] for info in infos) and rewards.dtype == observations.dtype == np.float32
    # the last observation goes on from the one before; the new episode starts elsewhere, at rest but for noise
    assert np.abs(last - steps[3][0]).max() < 1 < 16 == len(np.unique(observations, axis=0))
    assert np.abs(observations - last).max(axis=1).min() > 1e-3

    env.seed(3)
    np.testing.assert_array_equal(env.reset(), first)
    for action, (expected, *_) in zip(actions, steps, strict=True):
        np.testing.assert_array_equal(env.step(action)[0], expected)

    model = FlowRL("MlpPolicy", VecMonitor(env), learning_starts=160, policy_kwargs=dict(net_arch=[8]), device="cpu")
    model.learn(320)
    assert model._n_updates == 10 and len(model.ep_info_buffer) == 64
