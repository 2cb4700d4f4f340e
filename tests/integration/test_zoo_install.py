"""The start-up hook as it is installed: from a wheel, from the folder, editable; and that uninstalling leaves nothing."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")

ROOT = Path(__file__).parents[2]


class Environment:
    """
    A fresh virtual environment.

    Torch, rl_zoo3 and the rest are borrowed from the environment of the tests by its path alone. So its start-up files are not
    read in the new one, and only what is installed there counts.
    """

    def __init__(self, folder: Path):
        venv.create(folder, with_pip=True)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        self.site_packages = Path(self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.files_before = self.files()

    def run(self, *arguments: str, **environment: str) -> str:
        result = subprocess.run(
            [str(self.python), *arguments],
            cwd=self.python.parent,  # not the checkout, whose package would be found first
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    def pip(self, *arguments: str) -> None:
        self.run("-m", "pip", "-q", "--disable-pip-version-check", *arguments)

    def files(self) -> set[str]:
        return {path.name for path in self.site_packages.iterdir()} - {"__pycache__"}


def source(tmp_path: Path) -> Path:
    """A copy of what git knows, so that building leaves no traces in the checkout."""
    copy = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    # without git's list (an unpacked archive) everything but the tests is needed
    files = listed.stdout.split("\0")[:-1] or [
        str(path.relative_to(ROOT)) for top in ("sb3_flowrl", "hyperparams", "agents") for path in (ROOT / top).rglob("*.*")
    ] + ["setup.py", "pyproject.toml", "README.md"]
    for file in files:
        if (ROOT / file).is_file() and not file.startswith("tests/"):
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((ROOT / file).read_bytes())
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "folder", "editable"])
def test_hook_in_a_fresh_environment(way, tmp_path):
    environment = Environment(tmp_path / "venv")
    target = source(tmp_path)
    if way == "wheel":
        environment.pip("wheel", "--no-deps", "-w", str(tmp_path), str(target))
        (target,) = tmp_path.glob("*.whl")
    environment.pip("install", "--no-deps", *(["-e"] if way == "editable" else []), str(target))
    assert {"sb3_flowrl.pth", "sb3_flowrl.start"} <= environment.files()

    algos = "import rl_zoo3.train as t; import sys; print('flowrl' in t.ALGOS)"
    assert environment.run("-c", algos).split()[-1] == "True"
    assert environment.run("-c", algos, SB3_FLOWRL_NO_ZOO_HOOK="1").split()[-1] == "False"
    no_site = f"import sys; sys.path += {[sysconfig.get_path('purelib'), str(environment.site_packages)]!r};"
    if way != "editable":  # without start-up files an editable install is not found at all
        assert environment.run("-S", "-c", no_site + algos).split()[-1] == "False"
        fallback = no_site + "from sb3_flowrl import zoo; zoo.register(); zoo.register();" + algos
        assert environment.run("-S", "-c", fallback).split()[-1] == "True"

    # nothing stays imported before rl_zoo3 is
    light = "import sys; print(sorted(name for name in sys.modules if name.startswith(('sb3_flowrl', 'torch', 'rl_zoo3'))))"
    assert environment.run("-c", light).strip() == "[]"
    finders = "import sys; print([type(finder).__name__ for finder in sys.meta_path if 'Zoo' in type(finder).__name__])"
    assert environment.run("-c", finders).strip() == "['_ZooFinder']"
    assert environment.run("-I", "-c", finders).strip() == environment.run("-S", "-c", finders).strip() == "[]"
    assert environment.run("-c", finders, SB3_FLOWRL_NO_ZOO_HOOK="1").strip() == "[]"

    arguments = ["--algo", "flowrl", "--env", "Pendulum-v1", "-n", "60", "-f", str(tmp_path / "logs"), "--eval-freq", "-1"]
    train = ["-m", "rl_zoo3.train", *arguments, "-params", "learning_starts:50", "policy_kwargs:dict(net_arch=[8])"]
    output = environment.run(*train)
    hyperparams = target if way == "editable" else environment.site_packages / "sb3_flowrl"
    assert f"Loading hyperparameters from: {hyperparams / 'hyperparams' / 'flowrl.yml'}" in output
    assert (tmp_path / "logs" / "flowrl" / "Pendulum-v1_1" / "Pendulum-v1.zip").exists()
    (script,) = environment.python.parent.glob("sb3-flowrl*")
    agents = subprocess.run([script, "play", "--list"], capture_output=True, text=True, check=True).stdout
    assert "HalfCheetah-v4" in agents
    assert "--load-best" in subprocess.run([script, "enjoy", "--help"], capture_output=True, text=True, check=True).stdout

    environment.pip("uninstall", "-y", "sb3-flowrl")
    assert environment.files() == environment.files_before
    assert environment.run("-c", finders).strip() == "[]"


@pytest.mark.slow
def test_a_broken_package_does_not_break_the_interpreters_start(tmp_path):
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", str(source(tmp_path)))
    package = environment.site_packages / "sb3_flowrl"
    for file in (package / "zoo" / "startup.py", package / "zoo" / "__init__.py", package / "__init__.py"):
        file.write_text("raise RuntimeError('broken')")
        assert environment.run("-c", "print('started')") == "started\n"
        file.unlink()
        assert environment.run("-c", "print('started')") == "started\n"
    shutil.rmtree(package)
    assert environment.run("-c", "print('started')") == "started\n"


def test_the_tests_themselves_run_with_the_hook():
    """Else the tests of rl_zoo3's commands would test nothing of it."""
    program = "import sys; print(any(type(finder).__name__ == '_ZooFinder' for finder in sys.meta_path))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"
