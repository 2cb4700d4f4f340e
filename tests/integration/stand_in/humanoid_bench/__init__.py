"""
A stand-in for HumanoidBench, written for these tests: its layout, its names, and everything that ``sb3_flowrl.envs`` has to
mend, around a pendulum instead of a robot.
"""

import gymnasium as gym

from .env import TASKS

for task, task_class in TASKS.items():
    gym.register(
        f"h1-{task}-v0",
        entry_point="humanoid_bench.env:HumanoidEnv",
        max_episode_steps=task_class.max_episode_steps,
        kwargs=dict(robot="h1", control="pos", task=task),
    )
