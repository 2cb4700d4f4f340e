"""
HumanoidBench's tasks as float32 environments, from an unchanged checkout of its repository.

HumanoidBench asks for versions of its dependencies that nothing else here runs with. This module makes up for what has
changed since, without touching HumanoidBench; see the comments.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle

from sb3_flowrl.envs.missing import MissingSuiteError
from sb3_flowrl.envs.registry import ids_kept
from sb3_flowrl.envs.rendering import choose_backend

VARIABLE = "HUMANOID_BENCH"
ADVICE = (
    "It is not on PyPI. Run git clone https://github.com/carlosferrazza/humanoid-bench, put its folder into the environment "
    f"variable {VARIABLE} or on PYTHONPATH, and install what it needs with: pip install 'sb3-flowrl[dmc]'"
)


@contextmanager
def _checkout_on_path() -> Iterator[None]:
    folder = os.environ.get(VARIABLE)
    if not folder:
        yield
        return
    if not (Path(folder) / "humanoid_bench" / "__init__.py").exists():
        raise MissingSuiteError("HumanoidBench", ADVICE, f"{VARIABLE}={folder!r} holds no humanoid_bench/__init__.py")
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def _jax_stubbed() -> Iterator[None]:
    """Stub jax, which HumanoidBench imports for a conversion of weights that its environments don't use."""
    stubs = {} if importlib.util.find_spec("jax") else {name: ModuleType(name) for name in ("jax", "jax.numpy")}
    sys.modules.update(stubs)
    try:
        if stubs:
            stubs["jax"].numpy = stubs["jax.numpy"]  # type: ignore[attr-defined]
        yield
    finally:
        for name in stubs:
            del sys.modules[name]


def _import_env() -> type:
    try:
        with _checkout_on_path(), _jax_stubbed(), ids_kept():
            import mujoco

            module = importlib.import_module("humanoid_bench.env")
            sizes = importlib.import_module("humanoid_bench.dmc_deps.dmc_sizes").array_sizes
    except MissingSuiteError:
        raise
    except ImportError as error:
        raise MissingSuiteError("HumanoidBench", ADVICE, str(error)) from error
    # HumanoidBench reads every array in its table of MuJoCo's arrays, and some of them no longer exist
    for name, struct in (("mjdata", mujoco.MjData), ("mjmodel", mujoco.MjModel)):
        for field in [field for field in sizes[name] if not hasattr(struct, field)]:
            del sizes[name][field]
    return module.HumanoidEnv


choose_backend()
_HumanoidEnv: Any = _import_env()


class HumanoidBenchEnv(_HumanoidEnv):
    """
    A task of HumanoidBench.

    :param render_mode: as in gymnasium's MuJoCo environments
    :param kwargs: HumanoidBench's own arguments: robot, control, task, ...
    """

    # HumanoidBench's own default is "rgb_array", which needs OpenGL even if nothing is rendered
    def __init__(self, render_mode: str | None = None, **kwargs: Any):
        super().__init__(render_mode=render_mode, **kwargs)
        EzPickle.__init__(self, render_mode, **kwargs)  # HumanoidBench does not keep the arguments that a copy needs
        self.observation_space: spaces.Box = spaces.Box(-np.inf, np.inf, self.observation_space.shape, np.float32)
        if render_mode is not None:
            self._mend_rendering(render_mode)

    def _mend_rendering(self, render_mode: str) -> None:
        renderer = self.mujoco_renderer
        viewer, render = renderer._get_viewer(render_mode), renderer.render

        # The tasks pass the camera, but since gymnasium 1.0 the renderer knows it from the start. The renderer also draws
        # into the current OpenGL context. If another environment's was closed last, there is none, and the image is black.
        def render_here(render_mode: str, *camera: Any) -> Any:
            viewer.make_context_current()
            return render(render_mode)

        # The tasks give a marker's size as one number, but MuJoCo wants three
        add_marker = viewer.add_marker
        viewer.add_marker = lambda size, **marker: add_marker(size=np.full(3, size), **marker)
        renderer.render = render_here

    def reset_model(self) -> np.ndarray:
        """
        Start a new episode.

        :return: the observation
        """
        # Some tasks draw from numpy's global generator. Let them follow the environment's seed, and leave no trace
        state = np.random.get_state()
        np.random.seed(self.np_random.integers(2**32))
        try:
            return np.asarray(super().reset_model(), np.float32)
        finally:
            np.random.set_state(state)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Take a step.

        :param action: the action, clipped to the bounds of the action space
        :return: the observation, the reward, whether the episode is terminated and truncated, and HumanoidBench's info
        """
        # Joints would follow targets outside the bounds
        action = np.clip(action, self.action_space.low, self.action_space.high)
        observation, reward, terminated, truncated, info = super().step(action)
        # HumanoidBench's `terminated` is a numpy bool, which gymnasium refuses
        return np.asarray(observation, np.float32), float(reward), bool(terminated), truncated, info
