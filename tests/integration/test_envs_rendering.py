"""Rendering without a screen, where there is something that can."""

import os
import subprocess
import sys
from ctypes.util import find_library

import numpy as np
import pytest

from tests import paper_tasks
from tests.integration.test_envs_humanoid_bench import STAND_IN

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
VIDEO = """
import sys, gymnasium as gym, numpy as np, sb3_flowrl.envs
from gymnasium.wrappers import RecordVideo
env = RecordVideo(gym.make(sys.argv[1], render_mode="rgb_array"), sys.argv[2])
env.reset(seed=0)
env.action_space.seed(0)
frames = [env.unwrapped.render()]
for _ in range(9):
    env.step(env.action_space.sample())
    frames.append(env.unwrapped.render())
env.close()
np.save(sys.argv[2] + "/frames.npy", frames)
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


BACKEND = python(NOTHING).stdout.strip() if sys.platform == "linux" else "None"
needs_renderer = pytest.mark.skipif(
    BACKEND == "None", reason="needs EGL or OSMesa (such as Debian's libegl1 and libgl1-mesa-dri, or libosmesa6)"
)


@needs_renderer
@pytest.mark.parametrize(
    "env_id, shape, fps",
    [
        pytest.param("Ant-v4", (480, 480, 3), 20, marks=paper_tasks.needs_mujoco),
        pytest.param("dmc/walker-walk-v0", (480, 480, 3), 40, marks=paper_tasks.needs_dmc),
        pytest.param("dmc/dog-run-v0", (480, 480, 3), 67, marks=paper_tasks.needs_dmc),
        pytest.param("h1-reach-v0", (256, 256, 3), 50, id="stand-in"),
        pytest.param("h1-reach-v0", (256, 256, 3), 50, marks=paper_tasks.needs_humanoid_bench),
        pytest.param("myoHandReachRandom-v0", (480, 640, 3), 50, marks=paper_tasks.needs_myosuite),
    ],
)
def test_frames(env_id, shape, fps, tmp_path, request):
    environment = {"HUMANOID_BENCH": str(STAND_IN)} if "stand-in" in request.node.name else {}
    if env_id in paper_tasks.MUJOCO:  # which are not ours to choose a backend for
        environment["MUJOCO_GL"] = BACKEND
    # gymnasium's renderer, which MyoSuite uses, draws black once another environment's was closed
    then = "" if "myo" in env_id or env_id in paper_tasks.MUJOCO else "other.close()"
    result = python(FRAMES.format(then=then), env_id, str(tmp_path / "frames.npz"), **environment)
    assert result.returncode == 0, result.stderr
    saved = np.load(tmp_path / "frames.npz")
    first, second, third = (saved[f"arr_{number}"] for number in range(3))
    assert first.shape == shape and first.dtype == np.uint8 and saved["fps"] == fps and saved["backend"] == BACKEND
    assert first.std() > 5  # not one colour
    assert (first != second).any(axis=-1).mean() > 0.001  # something moves
    assert np.array_equal(second, third)  # whatever other environments do


@needs_renderer
@paper_tasks.needs_dmc
def test_a_video(tmp_path):
    moviepy = pytest.importorskip("moviepy", minversion="2")  # gymnasium writes videos with it; MyoSuite has version 1
    result = python(VIDEO, "dmc/walker-walk-v0", str(tmp_path))
    assert result.returncode == 0, result.stderr
    with moviepy.VideoFileClip(str(tmp_path / "rl-video-episode-0.mp4")) as video:
        assert video.fps == 40 and tuple(video.size) == (480, 480)
        frames = np.array(list(video.iter_frames()), int)
    rendered = np.load(tmp_path / "frames.npy")
    assert len(frames) >= 9  # moviepy rounds the length
    # the same in the same order, but for the compression: each is nearest to its own
    distances = np.abs(frames[:, None] - rendered[None]).mean(axis=(2, 3, 4))
    assert (distances.argmin(axis=1) == np.arange(len(frames))).all() and (distances.min(axis=1) < 5).all()


@pytest.mark.skipif(not (sys.platform == "linux" and find_library("OSMesa")), reason="needs OSMesa")
@paper_tasks.needs_dmc
def test_osmesa_where_egl_has_no_driver(tmp_path):
    environment = dict(__EGL_VENDOR_LIBRARY_FILENAMES=str(tmp_path / "none.json"))
    result = python(FRAMES.format(then=""), "dmc/walker-walk-v0", str(tmp_path / "frames.npz"), **environment)
    assert result.returncode == 0, result.stderr
    saved = np.load(tmp_path / "frames.npz")
    assert saved["backend"] == "osmesa" and saved["arr_0"].std() > 5


@needs_renderer
def test_the_users_choice_stays():
    assert python(NOTHING, MUJOCO_GL="osmesa").stdout == "osmesa\n"
    assert python(NOTHING, DISPLAY=":0").stdout == "None\n"


def test_a_backend_that_does_not_work_is_not_chosen():
    program = "import sb3_flowrl.envs.rendering as r; r.LIBRARIES = {'egl': 'libmissing.so', 'osmesa': 'libc.so.6'};" + NOTHING
    assert python(program, PYOPENGL_PLATFORM="glx").stdout == "None\n"
