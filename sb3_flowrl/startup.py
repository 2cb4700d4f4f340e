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
        create_module = getattr(self._loader, "create_module", None)
        return None if create_module is None else create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader  # leave no trace on the module
        if hasattr(self._loader, "exec_module"):
            self._loader.exec_module(module)
        else:  # older loaders have only this, and may put another module in the place of ours
            module = self._loader.load_module(module.__name__)
        try:
            from sb3_flowrl import zoo
        except (Exception, SystemExit) as error:  # such as another package of this name
            print(f"sb3-flowrl: can't be imported, and does not register with rl_zoo3: {error!r}", file=sys.stderr)
        else:
            zoo.complete(module)


class _ZooFinder:
    """Has the other finders find a target, and wraps its loader."""

    def __init__(self):
        self._finding = set()

    def find_spec(self, name, path=None, target=None):
        # Another finder may ask all others as well, and so this one while it is asked
        if name not in TARGETS or name in self._finding:
            return None
        self._finding.add(name)
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, "find_spec", None)
                spec = find_spec(name, path, target) if find_spec is not None and finder is not self else None
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _CompletingLoader(spec.loader)
                    return spec
        finally:
            self._finding.discard(name)
        return None


def _is_ours(finder) -> bool:
    """By name, as this module may have been loaded anew since."""
    return (type(finder).__module__, type(finder).__name__) == (__name__, _ZooFinder.__name__)


def install() -> None:
    """Wait for rl_zoo3, unless that is done already or turned off."""
    try:
        if os.environ.get(OPT_OUT, "") in ("", "0") and not any(_is_ours(finder) for finder in sys.meta_path):
            sys.meta_path.insert(0, _ZooFinder())
    except Exception:  # an interpreter must start, whatever it finds
        pass
