"""The start-up hook beside other packages: it must never keep Python, or a module, from loading."""

import importlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sb3_flowrl import startup, zoo

PACKAGE = Path(startup.__file__).parent
NAME = "stand_in_for_rl_zoo3"


@pytest.fixture(autouse=True)
def target(tmp_path, monkeypatch):
    """A module in the place of rl_zoo3's, which the hook completes by an attribute."""
    (tmp_path / f"{NAME}.py").write_text("loaded = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if type(finder).__name__ != "_ZooFinder"])
    monkeypatch.setattr(startup, "TARGETS", (NAME,))
    monkeypatch.setitem(zoo._COMPLETIONS, NAME, lambda module: setattr(module, "completed", True))
    monkeypatch.delenv(startup.OPT_OUT, raising=False)
    yield
    sys.modules.pop(NAME, None)


def second_package() -> types.ModuleType:
    """Made from this package's own hook, with a class of the same name."""
    spec = importlib.util.spec_from_file_location("other_package.startup", startup.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TARGETS = (NAME,)  # type: ignore[attr-defined]
    return module


class CarelessFinder:
    """Asks all other finders, and doesn't mind being asked by them."""

    def find_spec(self, name, path=None, target=None):
        if name == NAME:
            for finder in sys.meta_path:
                if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                    return spec
        return None


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("careless", [True, False])
def test_a_second_package_with_such_a_hook_is_asked_and_asks_without_end_to_it(first, careless):
    def install_the_other() -> None:
        if careless:
            sys.meta_path.insert(0, CarelessFinder())
        else:
            second_package().install()

    for install in (install_the_other, startup.install) if first else (startup.install, install_the_other):
        install()
    assert [startup._is_ours(finder) for finder in sys.meta_path[:2]] == ([True, False] if first else [False, True])
    module = importlib.import_module(NAME)
    assert module.loaded and module.completed
    assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert importlib.reload(module).completed


def test_a_loader_that_has_only_load_module_is_completed_as_well():
    class OldLoader:
        def load_module(self, name):
            module = sys.modules[name] = types.ModuleType(name)  # of its own, as old loaders may
            module.loaded = True  # type: ignore[attr-defined]
            return module

    class OldFinder:
        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, OldLoader()) if name == NAME else None  # type: ignore[arg-type]

    sys.meta_path.insert(0, OldFinder())
    startup.install()
    module = importlib.import_module(NAME)
    assert module.loaded and module.completed


@pytest.mark.parametrize("error", [ImportError("gone"), SystemExit(3), RuntimeError("broken")])
def test_a_module_loads_without_the_completion_if_that_can_not_be_imported(error, monkeypatch, capsys):
    def fail(name: str) -> None:
        raise error

    startup.install()
    monkeypatch.delattr("sb3_flowrl.zoo")
    monkeypatch.setattr("sb3_flowrl.__getattr__", fail)
    module = importlib.import_module(NAME)
    assert module.loaded and not hasattr(module, "completed")
    assert "sb3-flowrl: can't be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "returncode", "output"),
    [
        ("import sys; sys.exit(3)", 0, "started\n"),
        ("raise SystemExit", 0, "started\n"),
        ("class Skipped(BaseException): pass\nraise Skipped", 0, "started\n"),
        ("1 / 0", 0, "started\n"),
        ("raise KeyboardInterrupt", 1, ""),
    ],
)
def test_another_package_of_the_name_does_not_keep_python_from_starting(code, returncode, output, tmp_path):
    (tmp_path / "sb3_flowrl.py").write_text(code)
    start = (
        f"import site, sys; sys.path.insert(0, {str(tmp_path)!r}); site.addpackage({str(PACKAGE)!r}, 'sb3_flowrl.pth', set())"
    )
    result = subprocess.run([sys.executable, "-S", "-c", start + "; print('started')"], capture_output=True, text=True)
    assert (bool(result.returncode), result.stdout) == (bool(returncode), output)
    assert ("KeyboardInterrupt" in result.stderr) == bool(returncode)
