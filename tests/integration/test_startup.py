"""Break the start-up hook and what stands around it: Python, and every module, must load all the same."""

import importlib
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from sb3_flowrl import zoo
from sb3_flowrl.zoo import registration, startup

FOLDER = Path(startup.__file__).parent
ROOT = FOLDER.parent.parent
NAME = "stand_in_for_rl_zoo3"


@pytest.fixture(autouse=True)
def target(tmp_path, monkeypatch):
    """A module in the place of rl_zoo3's, which the hook completes by an attribute."""
    path = tmp_path / f"{NAME}.py"
    path.write_text("loaded = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if type(finder).__name__ != "_ZooFinder"])
    monkeypatch.setattr(startup, "TARGETS", (NAME,))
    monkeypatch.setitem(registration._COMPLETIONS, NAME, lambda module: setattr(module, "completed", True))
    monkeypatch.delenv(startup.OPT_OUT, raising=False)
    yield path
    sys.modules.pop(NAME, None)


def second_package() -> types.ModuleType:
    """Make another package's hook from this package's own, with a class of the same name."""
    spec = importlib.util.spec_from_file_location("other_package.startup", startup.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.TARGETS = (NAME,)  # type: ignore[attr-defined]
    return module


class CarelessFinder:
    """Ask all other finders, and allow them to ask back."""

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


# --------------------------------------------------------------------------------------------------- when a target is imported

COMMANDS = pytest.mark.parametrize("arguments", [["train.py", "--algo", "sac"], ["train.py", "--algo=flowrl"]])


@COMMANDS
@pytest.mark.parametrize("error", [ImportError("gone"), SystemExit(3), RuntimeError("broken")])
def test_a_package_that_can_not_be_imported_is_named_to_those_who_ask_for_flowrl(arguments, error, monkeypatch, capsys):
    class FailingFinder:
        def find_spec(self, name, path=None, target=None):
            if name == registration.__name__:
                raise error

    startup.install()
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delattr(zoo, "registration")
    monkeypatch.delitem(sys.modules, registration.__name__)
    sys.meta_path.insert(0, FailingFinder())
    module = importlib.import_module(NAME)
    assert module.loaded and not hasattr(module, "completed")
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "" if "sac" in arguments else f"sb3-flowrl: can't be imported, and does not register with rl_zoo3: {error!r}\n"
    )


@COMMANDS
def test_an_rl_zoo3_that_has_changed_or_a_broken_sb3_is_named_to_those_who_ask_for_flowrl(arguments, monkeypatch, capsys):
    def fail(module: types.ModuleType) -> None:
        raise ImportError("stable_baselines3 is broken")

    startup.install()
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setitem(registration._COMPLETIONS, NAME, fail)
    assert importlib.import_module(NAME).loaded
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == ("--algo=flowrl" in arguments)
    assert output.err == "" or "(ImportError: stable_baselines3 is broken)" in output.err


def test_an_rl_zoo3_that_raises_raises_its_own_error_and_can_be_imported_once_it_is_mended(target, capsys):
    startup.install()
    working = target.read_text()
    target.write_text("raise RuntimeError('rl_zoo3 is broken')")
    importlib.invalidate_caches()
    with pytest.raises(RuntimeError, match="rl_zoo3 is broken"):
        importlib.import_module(NAME)
    assert NAME not in sys.modules
    target.unlink()
    importlib.invalidate_caches()
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{NAME}'"):
        importlib.import_module(NAME)
    target.write_text(working)
    importlib.invalidate_caches()
    assert importlib.import_module(NAME).completed
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------------------- when Python starts


def start_python(folder: Path, program: str, *options: str, paths: tuple[Path, ...] = (), **environment: str):
    """Start Python with our start-up file as its only one, and the standard library and these folders to import from."""
    start = f"import site, sys; sys.path[:0] = {[str(path) for path in paths]!r}; before = set(sys.modules);"
    start += f"[site.addpackage({str(FOLDER)!r}, 'sb3_flowrl.pth', set()) for _ in range(2)];"  # a venv reads it twice
    return subprocess.run(
        [sys.executable, "-E", "-S", *options, "-c", start + program],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


FINDERS = "print(sum(type(finder).__name__ == '_ZooFinder' for finder in sys.meta_path))"


def test_starting_python_adds_one_finder_and_leaves_no_module(tmp_path):
    imported = "; print(set(sys.modules) - before - {'encodings.utf_8_sig'})"  # Python 3.13 reads .pth files with that codec
    result = start_python(tmp_path, FINDERS + imported, paths=(ROOT,))
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\nset()\n", "")


def test_modules_of_the_package_that_someone_else_imported_stay():
    before = set(sys.modules)
    startup.start()
    assert before <= set(sys.modules) and any(startup._is_ours(finder) for finder in sys.meta_path)


def test_a_script_finds_the_copy_of_the_package_that_lies_beside_it(tmp_path):
    (tmp_path / "sb3_flowrl.py").write_text("")
    program = f"sys.path.insert(0, {str(tmp_path)!r}); import sb3_flowrl; print(sb3_flowrl.__file__)"
    result = start_python(tmp_path.parent, program, paths=(ROOT,))
    assert (result.stdout, result.stderr) == (f"{tmp_path / 'sb3_flowrl.py'}\n", "")


@pytest.mark.parametrize(
    ("options", "value", "finders"),
    [([], "", 1), ([], "0", 1), ([], "1", 0), ([], "yes", 0), (["-I"], "", 0), (["-s"], "", 1)],
)
def test_the_hook_is_off_where_it_should_be(options, value, finders, tmp_path):
    result = start_python(tmp_path, FINDERS, *options, paths=(ROOT,), **{startup.OPT_OUT: value})
    assert (result.stdout, result.stderr) == (f"{finders}\n", "")


def test_the_hook_itself_is_off_in_isolated_mode():
    """Python 3.15 and later read ``sb3_flowrl.start``, which can't ask for the mode."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sb3_flowrl.zoo import startup; startup.start();" + FINDERS
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    ("code", "returncode", "output"),
    [
        (None, 0, "started\n"),
        ("import sys; sys.exit(3)", 0, "started\n"),
        ("raise SystemExit", 0, "started\n"),
        ("class Skipped(BaseException): pass\nraise Skipped", 0, "started\n"),
        ("1 / 0", 0, "started\n"),
        ("def", 0, "started\n"),
        ("raise KeyboardInterrupt", 1, ""),
    ],
)
def test_a_package_that_is_missing_or_broken_or_another_one_does_not_keep_python_from_starting(
    code, returncode, output, tmp_path
):
    if code is not None:
        (tmp_path / "sb3_flowrl.py").write_text(code)
    result = start_python(tmp_path, "print('started')")
    assert (bool(result.returncode), result.stdout) == (bool(returncode), output)
    assert result.stderr == "" or (returncode and "KeyboardInterrupt" in result.stderr)


def test_a_broken_sb3_leaves_rl_zoo3_as_it_is_without_a_word(tmp_path):
    files = {"rl_zoo3/__init__.py": "", "rl_zoo3/utils.py": "ALGOS = {}", "stable_baselines3.py": "1 / 0", "torch.py": "1 / 0"}
    (tmp_path / "rl_zoo3").mkdir()
    for name, code in files.items():
        (tmp_path / name).write_text(code)
    program = "import rl_zoo3.utils as u; print(u.ALGOS, type(u.__loader__).__name__)"
    result = start_python(tmp_path, program, paths=(tmp_path, ROOT))
    assert (result.returncode, result.stdout, result.stderr) == (0, "{} SourceFileLoader\n", "")


def test_nothing_that_the_hook_meets_keeps_it_from_returning(monkeypatch):
    monkeypatch.setattr(startup.sys, "meta_path", None)
    startup.start()
