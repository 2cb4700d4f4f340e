"""
MyoSuite's environments, with its ``solved`` as the ``is_success`` that Stable-Baselines3 looks for.
"""

from typing import Any

import gymnasium as gym

from sb3_flowrl.envs import registry
from sb3_flowrl.envs.missing import MissingSuiteError
from sb3_flowrl.envs.rendering import choose_backend

choose_backend()
try:
    with registry.ids_kept():
        import mujoco
        import myosuite  # noqa: F401
except ImportError as error:
    raise MissingSuiteError("MyoSuite", "Install it with: pip install 'sb3-flowrl[myosuite]'", str(error)) from error


# MyoSuite's free camera shows the hand and its targets only about 30 pixels large
HAND_CAMERA = "hand_side_inter"


class SolvedIsSuccess(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Report in ``info["is_success"]`` whether MyoSuite's task is solved at the present step.

    :param env: an environment of MyoSuite
    """

    def __init__(self, env: gym.Env):
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: the action
        :return: what the environment returns, with ``is_success`` in the info
        """
        observation, reward, terminated, truncated, info = super().step(action)
        if "solved" in info:
            info["is_success"] = bool(info["solved"])
        return observation, reward, terminated, truncated, info


def make(myosuite_id: str, **kwargs: Any) -> gym.Env:
    """
    Make one of MyoSuite's environments.

    :param myosuite_id: MyoSuite's id of the environment
    :param kwargs: arguments for it, such as ``render_mode``
    :return: MyoSuite's environment, with all its wrappers and its time limit
    """
    # gymnasium already checks the environment under our id
    env = gym.make(registry.suites_own[myosuite_id], disable_env_checker=True, **kwargs)
    task: Any = env.unwrapped
    if task.render_camera is None and mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_CAMERA, HAND_CAMERA) >= 0:
        task.render_camera = HAND_CAMERA
    return SolvedIsSuccess(env)
