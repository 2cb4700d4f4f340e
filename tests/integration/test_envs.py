"""What all suites have in common: their ids, their spaces, and what is said where one is missing."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import sb3_flowrl.envs
from sb3_flowrl import FlowRL
from sb3_flowrl.envs import MissingSuiteError, tasks
from tests import paper_tasks

ROOT = Path(__file__).parents[2]
# v4 of gymnasium's tasks warns that there is a v5; check_env advises bounds of ±1, which quadruped's per-joint ones are not
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*out of date"),
    pytest.mark.filterwarnings("ignore:.*symmetric and normalized"),
]
one_of_each_suite = pytest.mark.parametrize(
    "env_id",
    [
        pytest.param("dmc/quadruped-walk-v0", marks=paper_tasks.needs_dmc),
        pytest.param("h1-reach-v0", marks=paper_tasks.needs_humanoid_bench),
        pytest.param("myoHandReachRandom-v0", marks=paper_tasks.needs_myosuite),
    ],
)


def test_importing_the_ids_imports_no_suite():
    program = (
        "import sys, gymnasium; before = set(sys.modules); import sb3_flowrl.envs;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["sb3_flowrl"]


def test_registering_again_is_silent_and_changes_nothing(recwarn):
    before = dict(gym.registry)
    sb3_flowrl.envs.register()
    assert gym.registry == before and not recwarn


@pytest.mark.parametrize("env_id, sizes", paper_tasks.PARAMETERS)
def test_tasks_of_the_paper(env_id, sizes):
    env = gym.make(env_id)
    assert (env.observation_space.shape, env.action_space.shape) == ((sizes[0],), (sizes[1],))
    assert isinstance(env.action_space, spaces.Box) and env.action_space.dtype == np.float32
    if env_id not in paper_tasks.MUJOCO:
        assert env.observation_space.dtype == np.float32
    check_env(env)
    env.close()


@pytest.mark.parametrize("env_id, sizes", paper_tasks.PARAMETERS)
def test_seeds_reproduce(env_id, sizes):
    first, second = gym.make(env_id), gym.make(env_id)
    second.reset(seed=1)  # what was before the seed must not matter, nor what numpy's global generator does
    second.step(second.action_space.sample())
    states = np.random.get_state()[1].copy()
    observation, _ = first.reset(seed=5)
    assert np.array_equal(observation, second.reset(seed=5)[0])
    assert not np.array_equal(observation, first.reset(seed=6)[0])
    first.reset(seed=5)
    for _ in range(2):
        for _ in range(5):
            action = first.action_space.sample()
            left, right = first.step(action), second.step(action)
            assert np.array_equal(left[0], right[0]) and left[1:4] == right[1:4]
        # later episodes follow the seed too, and are others
        following = first.reset()[0]
        assert np.array_equal(following, second.reset()[0]) and not np.array_equal(following, observation)
    assert np.array_equal(states, np.random.get_state()[1])


@one_of_each_suite
def test_flowrl_learns_on_a_task_of_each_suite(env_id):
    model = FlowRL("MlpPolicy", env_id, learning_starts=40, buffer_size=200, policy_kwargs=dict(net_arch=[8]), seed=0)
    model.learn(50)
    assert model._n_updates == 10
    observation = model.get_env().reset()
    action, _ = model.predict(observation)
    assert model.action_space.contains(action[0])


@one_of_each_suite
def test_copies_are_the_same_task(env_id):
    env = gym.make(env_id)
    copy = pickle.loads(pickle.dumps(env))
    assert np.array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])
    action = env.action_space.sample()
    assert np.array_equal(copy.step(action)[0], env.step(action)[0])


@one_of_each_suite
def test_in_processes_of_their_own(env_id):
    # the module before the colon is imported there, as gymnasium does with every id
    makers = [lambda: gym.make(f"sb3_flowrl.envs:{env_id}")] * 2
    env, here = SubprocVecEnv(makers), DummyVecEnv(makers)
    env.seed(0), here.seed(0)
    assert np.array_equal(env.reset(), here.reset())
    actions = np.stack([env.action_space.sample() for _ in makers])
    there, here = env.step(actions), here.step(actions)
    # observations, rewards (float64 from there and float32 from here), dones
    assert all(np.array_equal(left.astype(np.float32), right) for left, right in zip(there[:3], here[:3], strict=True))
    env.close()


MISSING = {
    "dmc/dog-run-v0": ("shimmy", "The DeepMind Control Suite", "pip install 'sb3-flowrl[dmc]'"),
    "myoHandReachRandom-v0": ("myosuite", "MyoSuite", "pip install 'sb3-flowrl[myosuite]'"),
    "h1-walk-v0": ("humanoid_bench.env", "HumanoidBench", "git clone https://github.com/carlosferrazza/humanoid-bench"),
}


@pytest.mark.parametrize("env_id", MISSING)
def test_a_missing_suite_is_one_error_that_says_what_to_do(env_id, monkeypatch):
    module, suite, command = MISSING[env_id]
    monkeypatch.delenv("HUMANOID_BENCH", raising=False)
    forget(monkeypatch, "sb3_flowrl.envs.dm_control", "sb3_flowrl.envs.myosuite", "sb3_flowrl.envs.humanoid_bench")
    forget(monkeypatch, module.split(".")[0])
    monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    registered = dict(gym.registry)
    with pytest.raises(MissingSuiteError) as error:
        gym.make(env_id)
    assert str(error.value).startswith(f"{suite} can't be imported (") and command in str(error.value)
    # ids are as before, so that the same can be made once the suite is there
    assert gym.registry == registered


def forget(monkeypatch, *names: str) -> None:
    """Have modules, and what is below them, imported anew."""
    for module in list(sys.modules):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            monkeypatch.delitem(sys.modules, module)


def test_the_docs_hold_a_command_for_every_task_of_the_paper():
    text = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    documented = re.findall(r"rl_zoo3.train --algo flowrl (--gym-packages sb3_flowrl.envs )?--env (\S+)`", text)
    assert {env_id for _, env_id in documented} == set(paper_tasks.ALL)
    for packages, env_id in documented:
        assert bool(packages) == (env_id not in paper_tasks.MUJOCO), env_id
    for env_id, (observation, action) in paper_tasks.ALL.items():
        assert f"| `{env_id}` | {observation} / {action} |" in text, env_id


def test_ids_of_the_suites_are_distinct():
    ids = [f"dmc/{domain}-{name}" for domain, names in tasks.DMC.items() for name in names]
    ids += [f"{robot}-{name}" for robot in tasks.HUMANOID_BENCH_ROBOTS for name in tasks.HUMANOID_BENCH]
    ids += tasks.MYOSUITE
    assert len(ids) == len(set(ids))
