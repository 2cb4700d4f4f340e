"""
The benchmarks of the FlowRL paper as flat float32 environments. Importing this module registers their ids with gymnasium::

    import gymnasium as gym
    import sb3_flowrl.envs

    env = gym.make("dmc/dog-run-v0")

In rl_zoo3: ``--gym-packages sb3_flowrl.envs``. No suite is imported before one of its environments is made; where it is
missing, making one says what to install.
"""

from sb3_flowrl.envs import tasks as _tasks
from sb3_flowrl.envs.missing import MissingSuiteError
from sb3_flowrl.envs.registry import register_env as _register_env

__all__ = ["MissingSuiteError", "register"]


def register() -> None:
    """
    Register the ids. Importing this module has done it; after an import of a suite, which registers ids of its own, call it
    again.
    """
    for domain, names in _tasks.DMC.items():
        for name in names:
            # lqr's episodes never end; the others are ended by the task
            limit = 1_000 if domain == "lqr" else None
            _register_env(f"dmc/{domain}-{name}-v0", "dm_control:DmControlEnv", limit, domain=domain, task=name)
    for robot, control in _tasks.HUMANOID_BENCH_ROBOTS.items():
        for name, limit in _tasks.HUMANOID_BENCH.items():
            arguments = dict(robot=robot, control=control, task=name)
            _register_env(f"{robot}-{name}-v0", "humanoid_bench:HumanoidBenchEnv", limit, **arguments)
    for env_id in _tasks.MYOSUITE:
        _register_env(env_id, "myosuite:make", myosuite_id=env_id)


register()
