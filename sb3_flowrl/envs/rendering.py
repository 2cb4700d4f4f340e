"""
Rendering without a screen.
"""

import ctypes
import importlib
import os
import sys

LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}


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
        try:
            ctypes.CDLL(library)
            os.environ["MUJOCO_GL"] = backend
            importlib.import_module(f"mujoco.{backend}").GLContext(16, 16).free()
            return
        except Exception:  # each backend fails in its own way
            os.environ.pop("MUJOCO_GL", None)
