"""
Tasks of the DeepMind Control Suite as flat float32 environments, through shimmy.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from sb3_flowrl.envs.missing import MissingSuiteError
from sb3_flowrl.envs.rendering import choose_backend

choose_backend()
try:
    from dm_control import suite
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0
except ImportError as error:
    install = "Install it with: pip install 'sb3-flowrl[dmc]' (Python 3.10 to 3.12)"
    raise MissingSuiteError("The DeepMind Control Suite", install, str(error)) from error

# Domains that are not listed use their first camera, which follows the robot or sees the whole scene
CAMERAS = {"dog": "y-axis", "quadruped": "y"}
# lqr's actuators have no limits. dm_control gives ±1e10 for them, and random actions that large break the simulation. The
# optimal controllers of lqr's two tasks stay within ±6.
UNLIMITED, ACTION_LIMIT = 1e10, 10.0


class DmControlEnv(DmControlCompatibilityV0):
    """
    A task of the DeepMind Control Suite.

    The observation is the task's arrays, concatenated in the task's order. Actions are in the task's units and clipped to the
    task's bounds.

    :param domain: the domain, such as "walker"
    :param task: the task, such as "walk"
    :param render_mode: as in shimmy: None, "rgb_array", "depth_array", "multi_camera" or "human"
    :param render_kwargs: arguments of dm_control's ``physics.render``, such as ``camera_id``, ``height``, ``width``
    :param task_kwargs: arguments of the task, such as ``time_limit``
    :param environment_kwargs: arguments of dm_control's ``Environment``, such as ``n_sub_steps``
    """

    # gymnasium's generator, not shimmy's view of the task's: it can be seeded, saved and restored like any other
    np_random = gym.Env.np_random

    def __init__(
        self,
        domain: str,
        task: str,
        render_mode: str | None = None,
        render_kwargs: dict[str, Any] | None = None,
        task_kwargs: dict[str, Any] | None = None,
        environment_kwargs: dict[str, Any] | None = None,
    ):
        # lqr draws its springs when it is built. With a fixed seed here, all its environments are the same task
        task_kwargs = {"random": 0, **(task_kwargs or {})}
        env = suite.load(domain, task, task_kwargs=task_kwargs, environment_kwargs=environment_kwargs)
        self.metadata: dict[str, Any] = dict(DmControlCompatibilityV0.metadata)  # shimmy changes the class's own
        default = {} if render_mode == "multi_camera" else {"camera_id": CAMERAS.get(domain, 0), "width": 480, "height": 480}
        super().__init__(env, render_mode, {**default, **(render_kwargs or {})})
        # shimmy stores its own arguments, which are not ours
        EzPickle.__init__(self, domain, task, render_mode, render_kwargs, task_kwargs, environment_kwargs)
        self.metadata["render_fps"] = round(1 / env.control_timestep())  # shimmy gives the step's milliseconds

        size = sum(int(np.prod(spec.shape)) for spec in env.observation_spec().values())
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        spec = env.action_spec()
        limited = spec.maximum < UNLIMITED
        self._low = np.where(limited, spec.minimum, -ACTION_LIMIT)
        self._high = np.where(limited, spec.maximum, ACTION_LIMIT)
        self.action_space = spaces.Box(self._low.astype(np.float32), self._high.astype(np.float32), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start a new episode.

        :param seed: seed of the environment's generator, or None to continue with it
        :param options: not used
        :return: the observation, and shimmy's info
        """
        gym.Env.reset(self, seed=seed)
        self._env.task._random = np.random.RandomState(self.np_random.integers(2**32))
        # quadruped's escape asks whether there is a rendering context. Asking makes one, which fails without OpenGL
        physics = self._env.physics
        physics._make_rendering_contexts = lambda: None
        try:
            observation, info = super().reset()
        finally:
            del physics._make_rendering_contexts
        return _flat(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: in the task's units; it is clipped to the task's bounds
        :return: the observation, the reward, whether the episode is terminated and truncated, and shimmy's info
        """
        # clip in float64, because float32's 1.1 is more than 1.1; rewards are computed from the action that is passed on
        action = np.clip(np.asarray(action, np.float64), self._low, self._high)
        observation, reward, terminated, truncated, info = super().step(action)
        return _flat(observation), float(reward), terminated, truncated, info


def _flat(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)
