"""
The tasks on which FlowRL was reported, with the sizes of their observations and actions.

Those of the DeepMind Control Suite and of HumanoidBench are the paper's, but for dm_control's humanoid, to which it gives 24
actions; the last three of HumanoidBench's and MyoSuite's are measured.
"""

import importlib.util
import os

import pytest

MUJOCO = {"Ant-v4": (27, 8), "Walker2d-v4": (17, 6), "HalfCheetah-v4": (17, 6), "Swimmer-v4": (8, 2)}
DMC = {
    "dmc/dog-run-v0": (223, 38),
    "dmc/dog-walk-v0": (223, 38),
    "dmc/dog-stand-v0": (223, 38),
    "dmc/dog-trot-v0": (223, 38),
    "dmc/humanoid-run-v0": (67, 21),
    "dmc/humanoid-walk-v0": (67, 21),
    "dmc/walker-run-v0": (24, 6),
    "dmc/walker-stand-v0": (24, 6),
    "dmc/quadruped-walk-v0": (78, 12),
}
HUMANOID_BENCH = {
    "h1-balance_hard-v0": (77, 19),
    "h1-balance_simple-v0": (64, 19),
    "h1-crawl-v0": (51, 19),
    "h1-maze-v0": (51, 19),
    "h1-reach-v0": (57, 19),
    "h1-sit_hard-v0": (64, 19),
    "h1-walk-v0": (51, 19),
    "h1-run-v0": (51, 19),
    "h1-stand-v0": (51, 19),
}
MYOSUITE = {"myoHandReachRandom-v0": (115, 39)}
ALL = MUJOCO | DMC | HUMANOID_BENCH | MYOSUITE


def installed(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


def needs(condition: bool, what: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not condition, reason=f"needs {what}")


needs_mujoco = needs(installed("mujoco"), "the extra mujoco")
needs_dmc = needs(installed("dm_control", "shimmy"), "the extra dmc")
needs_myosuite = needs(installed("myosuite"), "the extra myosuite")
needs_humanoid_bench = needs(
    installed("dm_control") and (bool(os.environ.get("HUMANOID_BENCH")) or installed("humanoid_bench")),
    "a checkout of HumanoidBench (HUMANOID_BENCH=folder) and the extra dmc",
)
# All tasks, those of a suite that is not there skipped
PARAMETERS = [
    pytest.param(env_id, sizes, marks=mark, id=env_id)
    for tasks, mark in (
        (MUJOCO, needs_mujoco),
        (DMC, needs_dmc),
        (HUMANOID_BENCH, needs_humanoid_bench),
        (MYOSUITE, needs_myosuite),
    )
    for env_id, sizes in tasks.items()
]
