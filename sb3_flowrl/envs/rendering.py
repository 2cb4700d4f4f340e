"""
Rendering without a screen.
"""

import ctypes
import os
import subprocess
import sys

LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
PROBE = "from mujoco.{} import GLContext; context = GLContext(16, 16); context.make_current(); context.free()"


def choose_backend() -> None:
    """
    Set ``MUJOCO_GL`` to what can render without a screen, if there is none and the user has not set it.

    Left to themselves, dm_control and gymnasium choose GLFW, which fails then. They read the variable once, when they or
    MuJoCo are imported, so that this comes before. A backend that does not work is not chosen: dm_control could not even be
    imported.
    """
    if sys.platform != "linux" or any(os.environ.get(name) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")):
        return
    for backend, library in LIBRARIES.items():
        if _works(backend, library):
            os.environ["MUJOCO_GL"] = backend
            return


def _works(backend: str, library: str) -> bool:
    """
    Try a backend, in a process of its own: one that has tried EGL where it has no driver can't take OSMesa any more.

    :param backend: what ``MUJOCO_GL`` would be
    :param library: what the backend needs; where it is missing, there is nothing to try
    :return: whether it makes a context
    """
    try:
        ctypes.CDLL(library)
        command = [sys.executable, "-c", PROBE.format(backend)]
        probe = subprocess.run(command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0
