"""MyoSuite's ids."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_flowrl.envs  # noqa: F401
from sb3_flowrl import FlowRL
from sb3_flowrl.envs import registry, tasks
from tests import paper_tasks

if not paper_tasks.installed("myosuite"):  # not by importing it, which would take the ids back
    pytest.skip("MyoSuite is not installed", allow_module_level=True)

# What asks for a file of a model hub when it is made
DOWNLOADS = ("myoFullBodyDirectional-v0",)
pytestmark = pytest.mark.filterwarnings("ignore:Attaching a spec")


def test_all_its_ids_are_ours():
    gym.make("myoHandReachRandom-v0").close()
    import myosuite

    own = set(myosuite.myosuite_env_suite)
    assert own - set(tasks.MYOSUITE) == {"myoChallengeChaseTagFBVs-v0"}  # of two agents
    assert set(tasks.MYOSUITE) <= own
    assert all(gym.spec(env_id).entry_point == "sb3_flowrl.envs.myosuite:make" for env_id in tasks.MYOSUITE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MyoSuite's own, and check_env's of bounds that are not ±1
@pytest.mark.parametrize("env_id", [env_id for env_id in tasks.MYOSUITE if env_id not in DOWNLOADS])
def test_every_id(env_id):
    env = gym.make(env_id)
    check_env(env)
    env.close()


def test_solved_is_success(monkeypatch):
    env = gym.make("myoHandReachRandom-v0")
    task = env.unwrapped
    step, solved = type(task).step, []

    def solve(self, action):
        *rest, info = step(self, action)
        info["solved"] = np.bool_(len(solved))
        return *rest, info

    monkeypatch.setattr(type(task), "step", solve)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["is_success"] is False
    solved.append(True)
    assert env.step(env.action_space.sample())[4]["is_success"] is True


def test_stable_baselines3_counts_successes():
    env = gym.make("myoHandReachRandom-v0")
    model = FlowRL("MlpPolicy", env, buffer_size=1, policy_kwargs=dict(net_arch=[8]), seed=0)
    found = []

    def look(variables, _):
        if variables["done"]:
            found.append(variables["info"]["is_success"])

    evaluate_policy(model, env, n_eval_episodes=2, callback=look, warn=False)
    assert found == [False, False]


def test_its_wrappers_and_its_time_limit_stay():
    env = gym.make("myoHandReachRandom-v0")
    assert env.spec.max_episode_steps == 100 and registry.suites_own["myoHandReachRandom-v0"].max_episode_steps == 100
    assert "MjInstabilityTerminationWrapper" in str(env)
    env.reset(seed=0)
    env.action_space.seed(0)
    for step in range(1, 101):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and truncated == (step == 100)
