"""
The benchmarks of the FlowRL paper, and MuJoCo Playground, as flat float32 environments.

Importing this module registers their ids with gymnasium::

    import gymnasium as gym
    import sb3_flowrl.envs

    env = gym.make("dmc/dog-run-v0")

In rl_zoo3, pass ``--gym-packages sb3_flowrl.envs``. A suite is imported only when one of its environments is made. If the
suite is missing, the error says what to install.
"""

from sb3_flowrl.envs import tasks as _tasks
from sb3_flowrl.envs.missing import MissingSuiteError
from sb3_flowrl.envs.registry import register_env as _register_env
from sb3_flowrl.envs.registry import register_vector_env as _register_vector_env

__all__ = ["MissingSuiteError", "register"]


def register() -> None:
    """
    Register the ids of the environments.

    Importing this module does it. Importing a suite later registers the suite's own ids, so call this again afterwards.
    """
    for domain, names in _tasks.DMC.items():
        for name in names:
            # lqr's episodes never end; in the other domains the task ends them
            limit = 1_000 if domain == "lqr" else None
            _register_env(f"dmc/{domain}-{name}-v0", "dm_control:DmControlEnv", limit, domain=domain, task=name)
    for robot, control in _tasks.HUMANOID_BENCH_ROBOTS.items():
        for name, limit in _tasks.HUMANOID_BENCH.items():
            arguments = dict(robot=robot, control=control, task=name)
            _register_env(f"{robot}-{name}-v0", "humanoid_bench:HumanoidBenchEnv", limit, **arguments)
    for env_id in _tasks.MYOSUITE:
        _register_env(env_id, "myosuite:make", myosuite_id=env_id)
    for name in _tasks.PLAYGROUND:
        _register_vector_env(f"playground/{name}", "playground:PlaygroundVectorEnv", name=name)


register()
