"""
The start-up hook: makes ``flowrl`` one of rl_zoo3's algorithms, in any Python process that imports rl_zoo3.

rl_zoo3 has no plug-in mechanism, and reads its list of algorithms before anything that a user could pass to it is imported.
So a start-up file in site-packages (``sb3_flowrl.pth``; ``sb3_flowrl.start`` from Python 3.15 on) calls :func:`install`, which
adds a finder to ``sys.meta_path``. It waits for the few modules named below; when one of them is imported, the ordinary
finders load it, and then ``sb3_flowrl.zoo`` completes it. Where neither rl_zoo3 nor huggingface_sb3
is imported, nothing ever happens.

This module runs whenever Python starts: it imports nothing but ``os`` and ``sys``, and never raises.
``SB3_FLOWRL_NO_ZOO_HOOK=1`` turns it off.
"""

import os
import sys

OPT_OUT = "SB3_FLOWRL_NO_ZOO_HOOK"

#: The modules that ``sb3_flowrl.zoo`` completes.
TARGETS = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager", "huggingface_sb3.push_to_hub")


class _CompletingLoader:
    """Loads a module as its own loader does, and then completes it."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader  # leave no trace on the module
        self._loader.exec_module(module)
        from sb3_flowrl import zoo

        zoo.complete(module)


class _ZooFinder:
    """Has the other finders find a target, and wraps its loader."""

    def find_spec(self, name, path=None, target=None):
        if name not in TARGETS:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec is not None and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _CompletingLoader(spec.loader)
                return spec
        return None


def install() -> None:
    """Wait for rl_zoo3, unless that is done already or turned off."""
    try:
        if os.environ.get(OPT_OUT, "") in ("", "0") and not any(type(f).__name__ == "_ZooFinder" for f in sys.meta_path):
            sys.meta_path.insert(0, _ZooFinder())
    except Exception:  # an interpreter must start, whatever it finds
        pass
