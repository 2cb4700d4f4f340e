"""Stable-Baselines3's own tests pass with FlowRL in the place of TD3 and of SAC."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("replaced", ["TD3", "SAC"])
def test_upstream(replaced):
    command = [sys.executable, str(Path(__file__).parent / "run.py"), replaced]
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    passed = int(result.stdout.split(" passed")[0].split()[-1])
    assert passed >= 50, result.stdout  # the tests were found, and FlowRL was in them
