"""Test the script that makes learning curves outside of a study."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"studies.{name}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_an_actor_is_compared_with_its_averages(tmp_path):
    path = tmp_path / "returns.json"
    options = "Pendulum-v1 --steps 60 --every 30 --episodes 2 --learning-starts 20 --precision float32".split()
    output = run_script("averaged_actor", *options, "--output", str(path))
    first, last = json.loads(path.read_text())
    assert first["step"] == 30 and last["step"] == 60
    assert first["raw"] != last["raw"] and last["raw"] != last["0.01"]
    assert output.splitlines()[-6].startswith("raw ")
