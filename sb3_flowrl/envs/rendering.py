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
    Choose a backend that can render without a screen, if there is no screen.

    This sets ``MUJOCO_GL``, unless the user has set it. By default, dm_control and gymnasium choose GLFW, which fails without
    a screen. They read the variable once, when they or MuJoCo are imported, so this must come before. A backend that does not
    work is not chosen, because dm_control could then not even be imported.
    """
    if has_screen() or os.environ.get("MUJOCO_GL"):
        return
    for backend, library in LIBRARIES.items():
        if _works(backend, library):
            os.environ["MUJOCO_GL"] = backend
            return


def has_screen() -> bool:
    """
    Tell whether windows can be opened. Other systems than Linux are taken to have a screen.

    :return: whether there is a screen
    """
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _works(backend: str, library: str) -> bool:
    """
    Try a backend in a separate process.

    A process that has tried EGL without a driver for it can't use OSMesa any more.

    :param backend: value of ``MUJOCO_GL``
    :param library: library that the backend needs; if it is missing, the backend is not tried
    :return: whether the backend makes a context
    """
    try:
        ctypes.CDLL(library)
        command = [sys.executable, "-c", PROBE.format(backend)]
        probe = subprocess.run(command, env={**os.environ, "MUJOCO_GL": backend}, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0
