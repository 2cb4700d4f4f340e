"""
The start-up hook: makes ``python -m rl_zoo3.train --algo flowrl`` work as written.

**Why.** rl_zoo3 has no plug-in mechanism. It reads its list of algorithms before it imports anything that a user can name, so
FlowRL must be registered from outside, in every process.

**What.** Installing the package puts two start-up files into site-packages: ``sb3_flowrl.pth``, and ``sb3_flowrl.start``,
which Python 3.15 and later read instead. Both call :func:`start` whenever Python starts. It adds one finder to
``sys.meta_path``. The finder waits for the modules in :data:`TARGETS`. When one of them is imported, the ordinary finders load
it, and then :mod:`sb3_flowrl.zoo.registration` completes it. In a process that imports none of them, nothing else happens.

**Harmless.** At start-up Python imports three small files of this package and no other module. It then drops them, so that a
script still finds the copy of the package that comes first on its path. Errors at start-up are swallowed. If the package can't
be imported, or rl_zoo3 has changed, rl_zoo3 works on without FlowRL, and only a command with ``flowrl`` among its arguments
prints the reason.

**Off.** ``SB3_FLOWRL_NO_ZOO_HOOK=1`` turns the hook off. It is never active under ``python -I`` and ``python -S``.
"""

import os
import sys

TYPE_CHECKING = False  # as in `typing`, whose import takes longer than the hook may
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OPT_OUT = "SB3_FLOWRL_NO_ZOO_HOOK"

#: The modules that :mod:`sb3_flowrl.zoo.registration` completes.
TARGETS = (
    "rl_zoo3.utils",
    "rl_zoo3.hyperparams_opt",
    "rl_zoo3.exp_manager",
    "huggingface_sb3.push_to_hub",
    "huggingface_sb3.load_from_hub",
)


class _CompletingLoader:
    """Load a module with its own loader, then complete it."""

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        create_module = getattr(self._loader, "create_module", None)
        return None if create_module is None else create_module(spec)

    def exec_module(self, module: "Any") -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # leave no trace on the module
        if hasattr(self._loader, "exec_module"):
            self._loader.exec_module(module)
        else:  # older loaders have only this, and may return another module
            module = self._loader.load_module(module.__name__)
        wanted = any("flowrl" in argument for argument in getattr(sys, "argv", ()))
        try:
            from sb3_flowrl.zoo import registration
        except (Exception, SystemExit) as error:  # a broken package, or another one of this name
            if wanted:
                print(f"sb3-flowrl: can't be imported, and does not register with rl_zoo3: {error!r}", file=sys.stderr)
        else:
            registration.complete(module, quiet=not wanted)


class _ZooFinder:
    """Find a target with the other finders, and wrap its loader."""

    def __init__(self) -> None:
        self._finding: set[str] = set()

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        # Another finder may also ask all others, and so ask this one while it asks them
        if name not in TARGETS or name in self._finding:
            return None
        self._finding.add(name)
        try:
            for finder in sys.meta_path:
                find_spec = getattr(finder, "find_spec", None)
                spec: ModuleSpec | None = (
                    find_spec(name, path, target) if find_spec is not None and finder is not self else None
                )
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _CompletingLoader(spec.loader)  # type: ignore[assignment]
                    return spec
        finally:
            self._finding.discard(name)
        return None


def _is_ours(finder: object) -> bool:
    """Compare names, because the finder may come from an earlier import of this module."""
    return (type(finder).__module__, type(finder).__name__) == (__name__, _ZooFinder.__name__)


def install() -> None:
    """Add the finder, unless it is there already, turned off, or Python runs isolated."""
    if sys.flags.isolated or os.environ.get(OPT_OUT, "") not in ("", "0"):
        return
    if not any(_is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ZooFinder())


def start() -> None:
    """Do what the start-up files are for: add the finder, and drop the modules that only this has imported."""
    try:
        install()
        ours = {"sb3_flowrl", "sb3_flowrl.zoo", __name__}
        if {name for name in sys.modules if name.split(".", 1)[0] == "sb3_flowrl"} == ours:
            for name in ours:
                del sys.modules[name]
    except Exception:  # Python must start, whatever the hook finds
        pass
