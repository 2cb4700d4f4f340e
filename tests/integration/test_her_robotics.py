"""Hindsight experience replay on gymnasium-robotics, as docs/environments.md promises."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason="needs the extra robotics")
pytest.importorskip("rl_zoo3")


@pytest.mark.slow
def test_fetch_reach_is_learned_in_6000_steps(tmp_path):
    command = "-m sb3_flowrl.zoo train --algo flowrl --env FetchReach-v4 --gym-packages gymnasium_robotics"
    options = "-n 6000 --eval-freq 6000 --eval-episodes 20 --n-eval-envs 1 --seed 1 --num-threads 1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command.split(), *options.split()], cwd=tmp_path, env=environment, check=True)
    evaluations = np.load(tmp_path / "logs" / "flowrl" / "FetchReach-v4_1" / "evaluations.npz")
    assert evaluations["successes"].mean() >= 0.9
