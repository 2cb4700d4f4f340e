"""Test the scripts that make learning curves outside of a study."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studies.figures import NAMES
from tests.marks import slow_except

ROOT = Path(__file__).parents[2]


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"studies.{name}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("algo", slow_except(["flowrl"], ["flowrl", "sac"]))
def test_learning_curves(algo, tmp_path):
    common = ["--results", str(tmp_path)]
    run = ["run", "--algo", algo, "--env", "Pendulum-v1", "--steps", "30", "--eval-freq", "10", "--episodes", "2", *common]
    run_script("learning_curves", *run)
    record = json.loads((tmp_path / f"Pendulum-v1_{algo}_seed0.json").read_text())
    assert record["finished"] and [point["step"] for point in record["curve"]] == [10, 20, 30]
    assert all(len(point[mode]) == 2 for point in record["curve"] for mode in ("deterministic", "stochastic"))
    assert "is finished" in run_script("learning_curves", *run)
    table = run_script("learning_curves", "report", "--at", "10", "30", *common)
    assert f"| {NAMES[algo]} seed 0 | stochastic | -" in table
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_actor_is_compared_with_its_averages(tmp_path):
    path = tmp_path / "returns.json"
    options = "Pendulum-v1 --steps 60 --every 30 --episodes 2 --learning-starts 20 --precision float32".split()
    output = run_script("averaged_actor", *options, "--output", str(path))
    first, last = json.loads(path.read_text())
    assert first["step"] == 30 and last["step"] == 60
    assert first["raw"] != last["raw"] and last["raw"] != last["0.01"]
    assert output.splitlines()[-6].startswith("raw ")
