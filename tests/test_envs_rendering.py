"""Rendering without a screen, where there is something that can."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests import paper_tasks
from tests.test_envs_humanoid_bench import STAND_IN

pytest.importorskip("mujoco")

# Each in a process of its own, as the backend is chosen once in a process's life
FRAMES = """
import sys, os, gymnasium as gym, numpy as np, sb3_flowrl.envs
env = gym.make(sys.argv[1], render_mode="rgb_array")
env.reset(seed=0)
env.action_space.seed(0)
frames = [env.render()]
for _ in range(10):
    env.step(env.action_space.sample())
frames.append(env.render())
other = gym.make(sys.argv[1], render_mode="rgb_array")
other.reset(seed=0)
other.render()
{then}
frames.append(env.render())
np.savez(sys.argv[2], *frames, fps=env.metadata["render_fps"], backend=os.environ["MUJOCO_GL"])
"""
NOTHING = "\n".join(
    [
        "from sb3_flowrl.envs import rendering",
        "rendering.choose_backend()",
        "import os; print(os.environ.get('MUJOCO_GL'))",
    ]
)
HEADLESS = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")}


def python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**HEADLESS, **environment}, capture_output=True, text=True)


def can_render() -> bool:
    return sys.platform == "linux" and python(NOTHING).stdout.strip() != "None"


needs_renderer = pytest.mark.skipif(not can_render(), reason="needs EGL or OSMesa (such as Debian's libegl1 or libosmesa6)")


@needs_renderer
@pytest.mark.parametrize(
    "env_id, shape, fps",
    [
        pytest.param("dmc/walker-walk-v0", (480, 480, 3), 40, marks=paper_tasks.needs_dmc),
        pytest.param("dmc/dog-run-v0", (480, 480, 3), 67, marks=paper_tasks.needs_dmc),
        pytest.param("h1-reach-v0", (256, 256, 3), 50, id="stand-in"),
        pytest.param("h1-reach-v0", (256, 256, 3), 50, marks=paper_tasks.needs_humanoid_bench),
        pytest.param("myoHandReachRandom-v0", (480, 640, 3), 50, marks=paper_tasks.needs_myosuite),
    ],
)
def test_frames(env_id, shape, fps, tmp_path, request):
    checkout = {"HUMANOID_BENCH": str(STAND_IN)} if "stand-in" in request.node.name else {}
    # gymnasium's renderer, which MyoSuite uses, draws black once another environment's was closed
    then = "" if "myo" in env_id else "other.close()"
    result = python(FRAMES.format(then=then), env_id, str(tmp_path / "frames.npz"), **checkout)
    assert result.returncode == 0, result.stderr
    saved = np.load(tmp_path / "frames.npz")
    first, second, third = (saved[f"arr_{number}"] for number in range(3))
    assert first.shape == shape and first.dtype == np.uint8 and saved["fps"] == fps
    assert first.std() > 5  # not one colour
    assert (first != second).any(axis=-1).mean() > 0.001  # something moves
    assert np.array_equal(second, third)  # whatever other environments do


@needs_renderer
def test_the_users_choice_stays():
    assert python(NOTHING, MUJOCO_GL="osmesa").stdout == "osmesa\n"
    assert python(NOTHING, DISPLAY=":0").stdout == "None\n"


def test_a_backend_that_does_not_work_is_not_chosen():
    program = "import sb3_flowrl.envs.rendering as r; r.LIBRARIES = {'egl': 'libmissing.so', 'osmesa': 'libc.so.6'};" + NOTHING
    assert python(program, PYOPENGL_PLATFORM="glx").stdout == "None\n"
