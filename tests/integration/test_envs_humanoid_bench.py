"""HumanoidBench's ids: with a stand-in that has all that is mended, and with a checkout where there is one."""

import importlib.util
import pickle
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

pytest.importorskip("mujoco")

import sb3_flowrl.envs
from sb3_flowrl.envs import MissingSuiteError, registry, tasks
from tests import paper_tasks
from tests.integration.test_envs import forget

STAND_IN = Path(__file__).parent / "stand_in"


@pytest.fixture
def fresh(monkeypatch):
    """No HumanoidBench imported, nor found."""
    forget(monkeypatch, "humanoid_bench", "sb3_flowrl.envs.humanoid_bench")
    monkeypatch.delenv("HUMANOID_BENCH", raising=False)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "humanoid_bench").exists()])
    yield monkeypatch
    # nor left behind
    for module in [name for name in sys.modules if "humanoid_bench" in name.split(".")]:
        del sys.modules[module]


@pytest.fixture
def stand_in(fresh):
    fresh.setenv("HUMANOID_BENCH", str(STAND_IN))


@pytest.mark.parametrize("task, size", [("walk", 2), ("reach", 5)])
def test_the_stand_in_becomes_an_environment(stand_in, task, size, recwarn):
    env = gym.make(f"h1-{task}-v0")
    assert type(env.unwrapped).__module__ == "sb3_flowrl.envs.humanoid_bench"
    assert env.observation_space.shape == (size,) and env.observation_space.dtype == np.float32
    check_env(env)
    assert env.render_mode is None  # not "rgb_array", its default
    assert not recwarn.list


@pytest.mark.skipif(bool(importlib.util.find_spec("jax")), reason="the first thing that is missing is jax")
def test_the_stand_in_needs_mending(fresh):
    fresh.syspath_prepend(STAND_IN)
    with pytest.raises(ImportError, match="jax"):
        import humanoid_bench  # noqa: F401


def test_the_checkout_may_be_on_the_path_and_is_not_left_there(fresh, monkeypatch):
    monkeypatch.setenv("HUMANOID_BENCH", str(STAND_IN))
    path = list(sys.path)
    gym.make("h1-walk-v0")
    assert sys.path == path and "jax" not in sys.modules
    forget(monkeypatch, "humanoid_bench", "sb3_flowrl.envs.humanoid_bench")
    monkeypatch.delenv("HUMANOID_BENCH")
    monkeypatch.syspath_prepend(STAND_IN)
    gym.make("h1-walk-v0")


def test_a_folder_without_it_is_named(fresh, tmp_path):
    fresh.setenv("HUMANOID_BENCH", str(tmp_path))
    with pytest.raises(MissingSuiteError, match=f"HUMANOID_BENCH='{tmp_path}' holds no humanoid_bench/__init__.py"):
        gym.make("h1-walk-v0")
    # and once it is right the same process can go on
    fresh.setenv("HUMANOID_BENCH", str(STAND_IN))
    gym.make("h1-walk-v0").reset()


def test_ids_stay_ours_when_it_registers_its_own(stand_in):
    gym.make("h1-walk-v0")
    own = registry.suites_own["h1-walk-v0"]
    assert own.entry_point == "humanoid_bench.env:HumanoidEnv"
    assert gym.spec("h1-walk-v0").max_episode_steps == own.max_episode_steps == 1000
    assert gym.spec("h1-walk-v0").entry_point == "sb3_flowrl.envs.humanoid_bench:HumanoidBenchEnv"
    gym.registry["h1-walk-v0"] = registry.suites_own["h1-walk-v0"]  # as after an import of it by the user
    sb3_flowrl.envs.register()
    assert gym.spec("h1-walk-v0").entry_point == "sb3_flowrl.envs.humanoid_bench:HumanoidBenchEnv"


def test_a_termination_is_a_bool_and_a_time_out_a_truncation(stand_in):
    env = gym.make("h1-push-v0")
    env.reset(seed=0)
    for step in range(1, 501):
        _, reward, terminated, truncated, _ = env.step(np.array([-0.5], np.float32))  # upright
        assert terminated is False and truncated == (step == 500) and type(reward) is float
    env.reset(seed=0)
    for _ in range(200):
        terminated = env.step(np.ones(1, np.float32))[2]
        if terminated:
            break
    assert terminated is True


def test_actions_are_clipped(stand_in):
    env, at_bounds = gym.make("h1-walk-v0"), gym.make("h1-walk-v0")
    env.reset(seed=0), at_bounds.reset(seed=0)
    env.step(np.array([-7], np.float32)), at_bounds.step(np.array([-1], np.float32))
    assert env.unwrapped.data.ctrl == at_bounds.unwrapped.data.ctrl == [-0.5]


def test_copies_are_the_same_task(stand_in):
    env = gym.make("h1-reach-v0", width=32)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.unwrapped.width == 32 and copy.unwrapped.render_mode is None
    assert np.array_equal(copy.reset(seed=1)[0], env.reset(seed=1)[0])


def test_draws_from_numpys_generator_follow_the_seed_and_leave_no_trace(stand_in):
    env = gym.make("h1-reach-v0")
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    goal = env.reset(seed=3)[0][2:]
    following = env.reset()[0][2:]
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(1)
    assert np.array_equal(env.reset(seed=3)[0][2:], goal) and np.array_equal(env.reset()[0][2:], following)
    assert not np.array_equal(env.reset(seed=4)[0][2:], goal) and not np.array_equal(goal, following)


@paper_tasks.needs_humanoid_bench
def test_all_tasks_of_a_checkout_have_ids():
    import gymnasium

    gymnasium.make("h1-walk-v0").close()
    import humanoid_bench.env

    own = {
        f"{robot}-{task}-v0": (task_class.max_episode_steps, robot, "torque" if robot == "g1" else "pos", task)
        for robot in humanoid_bench.env.ROBOTS
        for task, task_class in humanoid_bench.env.TASKS.items()
    }
    ours = {
        f"{robot}-{task}-v0": (limit, robot, control, task)
        for robot, control in tasks.HUMANOID_BENCH_ROBOTS.items()
        for task, limit in tasks.HUMANOID_BENCH.items()
    }
    assert own == ours
    assert not any(task_class.kwargs for task_class in humanoid_bench.env.TASKS.values())  # which it registers besides


@pytest.mark.slow
@paper_tasks.needs_humanoid_bench
@pytest.mark.parametrize("task", tasks.HUMANOID_BENCH)
def test_every_task_of_a_checkout(task):
    """With the robot of the paper. Some pairs of robot and task have no model, or files that a shallow copy lacks."""
    try:
        env = gym.make(f"h1-{task}-v0")
    except (OSError, ValueError) as error:
        if "does not exist" not in str(error) and "Error opening file" not in str(error):
            raise
        pytest.skip(str(error))
    check_env(env)
    env.close()
